"""Batches and the sizes of contexts."""

from __future__ import annotations

import numpy as np

import lloyal
from lloyal.errors import CacheFull, InvalidArgument, InvalidBatch, LoadFailed, NoLogits, Unsupported
from tests.abuse.lab import Lab, case, check, decode
from tests.abuse.models import N_POS_TABLE
from tests.models import N_POS_TABLE as GPT2_POS_TABLE
from tests.models import N_VOCAB, tokens


def batch_of(*entries: tuple[int, int, int | list[int]], logits: bool = True) -> lloyal.Batch:
    batch = lloyal.Batch()
    for token, pos, seq_ids in entries:
        batch.add(token, pos, seq_ids, logits)
    return batch


@case("20", "more tokens than n_batch in one decode", upstream="GGML_ASSERT", ours="InvalidBatch")
def more_tokens_than_n_batch(lab: Lab) -> None:
    for name in ("llama", "mamba2", "gemma3"):
        ctx = lab.context(name, n_batch=32, n_ubatch=16)
        lab.feed(ctx, (0, 0, tokens(32)))
        with lab.refused(InvalidBatch, 33, 32, "n_batch"):
            decode(ctx, (0, 32, tokens(33)))


@case("21a", "more tokens than n_ubatch, attention not causal", upstream="GGML_ASSERT", ours="InvalidBatch")
def more_tokens_than_n_ubatch_not_causal(lab: Lab) -> None:
    ctx = lab.context(attention="non_causal", n_batch=64, n_ubatch=32)
    lab.feed(ctx, (0, 0, tokens(32)))
    with lab.refused(InvalidBatch, 33, 32, "n_ubatch"):
        decode(ctx, (0, 32, tokens(33)))


@case("21b", "more tokens than n_ubatch in one encode", upstream="GGML_ASSERT", ours="InvalidBatch")
def more_tokens_than_n_ubatch_in_encode(lab: Lab) -> None:
    for name in ("t5", "bert"):
        ctx = lloyal.Context(
            lab.model(name), n_ctx=256, n_batch=64, n_ubatch=32, n_seq_max=2, n_threads=1, embeddings=name == "bert"
        )
        batch = lloyal.Batch()
        batch.extend(tokens(33), 0, 0, True)
        with lab.refused(InvalidBatch, 33, 32, "n_ubatch"):
            ctx.encode(batch)
        batch.clear()
        batch.extend(tokens(32), 0, 0, True)
        ctx.encode(batch)
        ctx.close()


@case(
    "52",
    "tokens, positions and sequences out of range, or nothing at all",
    upstream="-1, with the reason in its log",
    ours="InvalidBatch, InvalidArgument",
)
def batch_entries_out_of_range(lab: Lab) -> None:
    for name in ("llama", "lfm2"):
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(10)))
        for token in (-1, N_VOCAB, 2**31 - 1, -(2**31)):
            with lab.refused(InvalidBatch, f"token {token}", N_VOCAB):
                ctx.decode(batch_of((token, 10, 0)))
        for pos in (-1, -(2**31), 2**31 - 1):
            with lab.refused(InvalidBatch, f"position {pos}"):
                ctx.decode(batch_of((1, pos, 0)))
        for seq in (-1, 4, 255, 256, 2**31 - 1):
            with lab.refused(InvalidBatch, f"sequence {seq}"):
                ctx.decode(batch_of((1, 10, seq)))
        with lab.refused(InvalidBatch, "empty"):
            ctx.decode(lloyal.Batch())
        with lab.refused(InvalidBatch, "index 0", "no sequence"):
            ctx.decode(batch_of((1, 10, [])))
        for argument, entry in (
            ("token", (2**40, 0, 0)),
            ("pos", (0, 2**40, 0)),
            ("seq_ids", (0, 0, 2**40)),
            ("seq_ids", (0, 0, [0, -(2**40)])),
        ):
            with lab.refused(InvalidArgument, argument, 2**40):
                batch_of(entry)


@case(
    "53",
    "positions with a gap, twice the same, or backwards",
    upstream="-1, with the reason in its log",
    ours="InvalidBatch",
)
def positions_that_do_not_follow(lab: Lab) -> None:
    for name in ("llama", "lfm2", "gemma3"):
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(10)))
        for pos in (0, 9, 11, 500):
            with lab.refused(InvalidBatch, "position 10", pos):
                ctx.decode(batch_of((1, pos, 0)))
        for entries in ([(1, 10, 0), (1, 12, 0)], [(1, 11, 0), (1, 10, 0)], [(1, 10, 0), (1, 11, 0), (1, 20, 0)]):
            with lab.refused(InvalidBatch):
                ctx.decode(batch_of(*entries))


@case("54", "more tokens than the cache has room for", upstream="1", ours="CacheFull")
def more_tokens_than_cells(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(200)))
    with lab.refused(CacheFull, 100):
        decode(ctx, (1, 0, tokens(100)))
    check(ctx.memory.seq_pos_max(1) == -1, "rows were left behind")


@case(
    "55",
    "positions past a learned position table (gpt2, mpt, starcoder, bert)",
    upstream="abort in get_rows",
    ours="InvalidBatch",
)
def positions_past_the_table(lab: Lab) -> None:
    models = {"gpt2": (lab.model("gpt2"), GPT2_POS_TABLE)}
    for name in ("mpt", "starcoder"):
        models[name] = (lab.model(name), N_POS_TABLE)
    for model, n in models.values():
        ctx = lab.context(model)
        lab.feed(ctx, (0, 0, tokens(n - 10)))
        with lab.refused(InvalidBatch, f"position {n}", f"of {n}"):
            decode(ctx, (0, n - 10, tokens(20)))
        with lab.refused(InvalidBatch, f"position {n + 40}"):
            decode(ctx, (1, n + 40, tokens(1)))
        ctx.memory.seq_rm(0)
        lab.forget(ctx, 0)
    encoder = lab.model("bert")
    ctx = lloyal.Context(encoder, n_ctx=256, n_batch=256, n_ubatch=256, n_seq_max=2, n_threads=1, embeddings=True)
    for call in (ctx.encode, ctx.decode):
        batch = lloyal.Batch()
        batch.extend(tokens(N_POS_TABLE + 1), 0, 0, True)
        with lab.refused(InvalidBatch, f"position {N_POS_TABLE}"):
            call(batch)
        batch.clear()
        batch.extend(tokens(N_POS_TABLE), 0, 0, True)
        call(batch)
        check(np.isfinite(ctx.embeddings(0, copy=True)).all(), "the embeddings are not numbers")
    ctx.close()


@case("56", "encode on a model without encoder", upstream="SIGSEGV", ours="Unsupported")
def encode_without_encoder(lab: Lab) -> None:
    for name in ("llama", "mamba2", "gemma3", "lfm2"):
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(5)))
        with lab.refused(Unsupported, "decode()"):
            ctx.encode(batch_of((1, 5, 0)))


@case("57a", "decoder run before its encoder", upstream="GGML_ASSERT", ours="InvalidBatch")
def decoder_before_encoder(lab: Lab) -> None:
    model = lab.model("t5")

    def encode(ctx: lloyal.Context, seq_id: int) -> None:
        batch = lloyal.Batch()
        batch.extend(tokens(9), 0, seq_id, True)
        ctx.encode(batch)

    def new() -> lloyal.Context:
        return lloyal.Context(model, n_ctx=256, n_seq_max=3, n_threads=1)

    ctx, twin = new(), new()
    with lab.refused(InvalidBatch, "sequence 0", "encode()"):
        ctx.decode(batch_of((0, 0, 0)))
    encode(ctx, 0)
    with lab.refused(InvalidBatch, "sequence 2", "encode()"):  # llama.cpp: no error, logits that are not numbers
        ctx.decode(batch_of((0, 0, 2)))
    encode(twin, 0)
    rows = []
    for c in (ctx, twin):
        c.decode(batch_of((0, 0, 0), (5, 1, 0)))
        rows.append(c.logits(copy=True))
        c.close()
    check(np.array_equal(*rows) and np.isfinite(rows[0]).all(), "the decoder goes on wrong")


@case("57b", "decoder with kv_unified=False", upstream="GGML_ASSERT in its first decode", ours="Unsupported")
def decoder_between_streams(lab: Lab) -> None:
    model = lab.model("t5")
    with lab.refused(Unsupported, "kv_unified=False", "n_seq_max=2"):
        lloyal.Context(model, n_ctx=256, n_seq_max=2, n_threads=1, kv_unified=False)


@case("58", "more outputs than n_outputs_max", upstream="GGML_ASSERT", ours="InvalidBatch")
def more_outputs_than_the_limit(lab: Lab) -> None:
    ctx = lab.context(n_outputs_max=8)
    lab.feed(ctx, (0, 0, tokens(5)))
    for n in (9, 60):
        with lab.refused(InvalidBatch, n, 8, "n_outputs_max"):
            ctx.decode(batch_of(*[(1, 5 + i, 0) for i in range(n)]))
    pooled = lab.context(n_outputs_max=8, embeddings=True)  # every token is an output here
    with lab.refused(InvalidBatch, 9, 8, "n_outputs_max"):
        pooled.decode(batch_of(*[(1, i, 0) for i in range(9)], logits=False))
    pooled.close()


@case(
    "59",
    "n_batch or n_ctx smaller than n_seq_max",
    upstream="GGML_ASSERT when the context is made",
    ours="works; InvalidArgument where it cannot",
)
def fewer_tokens_than_sequences(lab: Lab) -> None:
    for name in ("llama", "mamba2", "qwen35", "gemma3"):
        for params in ({"n_batch": 1}, {"n_batch": 3, "n_ubatch": 2}, {"n_ctx": 2}, {"n_seq_max": 256, "n_batch": 8}):
            ctx = lab.context(name, **params)
            for i, token in enumerate(tokens(6)):
                lab.feed(ctx, (ctx.n_seq_max - 1, i, [token]))
            twin = lab.context(name)
            for i, token in enumerate(tokens(6)):
                want = lab.feed(twin, (0, i, [token]))
            far = np.max(np.abs(ctx.logits(copy=True) - want))
            check(far < 5e-3, f"{name} {params}: off by {far}")
            for c in (ctx, twin):
                c.close()
    with lab.refused(InvalidArgument, "n_outputs_max=2", "n_seq_max=4"):
        lab.context(n_outputs_max=2)
    model = lab.model("t5")
    with lab.refused(InvalidArgument, "n_batch=2", "n_seq_max=4"):
        lab.context(model, n_batch=2)


@case(
    "60a", "rollback ring deeper than a micro-batch", upstream="GGML_ASSERT in the first decode", ours="InvalidArgument"
)
def ring_deeper_than_a_micro_batch(lab: Lab) -> None:
    for name in ("lfm2", "qwen35"):
        for params in ({"n_ctx": 64, "n_rs_seq": 63}, {"n_batch": 5, "n_rs_seq": 4}, {"n_ubatch": 9, "n_rs_seq": 8}):
            with lab.refused(InvalidArgument, "n_rs_seq"):
                lab.context(name, **params)
    ctx = lab.context("lfm2", n_ubatch=6, n_rs_seq=4)
    lab.feed(ctx, (0, 0, tokens(20)))


@case(
    "60b",
    "rollback ring too deep for llama.cpp's graph",
    upstream="GGML_ASSERT when the context is made",
    ours="LoadFailed",
)
def ring_too_deep_for_the_graph(lab: Lab) -> None:
    with lab.refused(LoadFailed, "n_rs_seq=1000"):
        lab.context("lfm2", n_rs_seq=1000, n_ubatch=2000, n_batch=2000, n_ctx=2048)
    lab.feed(lab.context("lfm2", n_rs_seq=4), (0, 0, tokens(20)))


@case(
    "61",
    "sizes that no machine has, or that contradict each other",
    upstream="killed for its memory, or NULL",
    ours="InvalidArgument, LoadFailed",
)
def impossible_sizes(lab: Lab) -> None:
    for params in ({"n_ctx": 2**31 - 256}, {"n_ctx": 2**30}):
        with lab.refused(InvalidArgument, f"n_ctx={params['n_ctx']}", "MiB"):
            lab.context(**params)
    for name, value in (
        ("n_ctx", -1),
        ("n_ctx", 2**31),
        ("n_ctx", 2**64),
        ("n_ctx", 1.5),
        ("n_ctx", True),
        ("n_ctx", "4096"),
        ("n_batch", 0),
        ("n_batch", -5),
        ("n_ubatch", 0),
        ("n_seq_max", 0),
        ("n_seq_max", 257),
        ("n_seq_max", 300),
        ("n_rs_seq", -1),
        ("n_threads", 0),
        ("n_threads", 513),
        ("n_threads_batch", -1),
        ("type_k", "q9_9"),
        ("type_v", None),
        ("flash_attn", "maybe"),
        ("pooling", 3),
        ("attention", "causual"),
        ("rope_scaling", "x"),
    ):
        with lab.refused(InvalidArgument, f"{name}={value!r}"):
            lab.context(**{name: value})
    with lab.refused(InvalidArgument, "type_v='q8_0'", "flash"):
        lab.context(type_v="q8_0", flash_attn="off")
    with lab.refused(lloyal.errors.UnknownParameter, "n_cxt", "n_ctx"):
        lab.context(n_cxt=512)
    ctx = lab.context(n_batch=2**31 - 1, n_ubatch=2**31 - 1)
    lab.feed(ctx, (0, 0, tokens(20)))
    with lab.refused(LoadFailed, "type='mtp'", "MTP"):
        lab.context(type="mtp")


@case("62", "index of an output that is not there", upstream="NULL, or abort in a debug build", ours="NoLogits")
def outputs_that_are_not_there(lab: Lab) -> None:
    ctx = lab.context()
    with lab.refused(NoLogits, "nothing was decoded"):
        ctx.logits()
    lab.feed(ctx, (0, 0, tokens(5)))
    for index in (5, 500, 2**31 - 1, -2, -(2**31)):
        with lab.refused(NoLogits, index):
            ctx.logits(index)
    with lab.refused(NoLogits, "token 3"):
        ctx.logits(3)
    with lab.refused(InvalidArgument, f"index={2**40}"):
        ctx.logits(2**40)
    for call in (ctx.embeddings, lambda: ctx.embeddings(4), lambda: ctx.embeddings(seq_id=0)):
        with lab.refused(NoLogits):
            call()
    with lab.refused(InvalidArgument, "seq_id=9"):
        ctx.embeddings(seq_id=9)


@case("23", "sampling from an output that is not there", upstream="GGML_ASSERT", ours="NoLogits")
def sampling_without_logits(lab: Lab) -> None:
    ctx = lab.context()
    sampler = lloyal.Sampler.chain(lloyal.Sampler.top_k(5), lloyal.Sampler.greedy())
    with lab.refused(NoLogits, "nothing was decoded"):
        sampler.sample(ctx)
    lab.feed(ctx, (0, 0, tokens(5)))
    for index in (3, 5, 500, -2, -(2**31)):
        with lab.refused(NoLogits, index):
            sampler.sample(ctx, index)
    check(sampler.sample(ctx, 4) == int(np.argmax(ctx.logits(4))), "the sampler picks something else")
    sampler.close()


@case(
    "77",
    "embedding rows that are not finite",
    upstream="every later sequence of the context reads them",
    ours="InvalidBatch",
)
def embedding_rows_that_are_not_finite(lab: Lab) -> None:
    for name in ("llama", "mamba2", "lfm2"):
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(5)))
        for value in (np.nan, np.inf, -np.inf):
            rows = np.zeros((3, ctx.model.n_embd), np.float32)
            rows[1, 7] = value
            batch = lloyal.Batch()
            batch.extend_embd(rows, 0, 1, True)
            with lab.refused(InvalidBatch, "index 1", value, "at 7"):
                ctx.decode(batch)


@case(
    "78",
    "logits of a model that computes none with embeddings=True",
    upstream="what was in the buffer",
    ours="NoLogits",
)
def logits_beside_embeddings(lab: Lab) -> None:
    ctx = lab.context("lfm2", embeddings=True)
    decode_only(ctx, 0)
    with lab.refused(NoLogits, "no logits"):
        ctx.logits()
    ctx.set_embeddings(False)
    decode_only(ctx, 1)
    with lloyal.Context(lab.model("lfm2"), n_ctx=256, n_threads=1) as twin:
        decode_only(twin, 1)
        check(np.max(np.abs(ctx.logits(copy=True) - twin.logits(copy=True))) < 5e-3, "the logits are off")
    ctx.set_embeddings(True)
    decode_only(ctx, 2)
    with lab.refused(NoLogits, "no logits"):
        lloyal.Sampler.greedy().sample(ctx)
    ctx.close()
    ctx = lloyal.Context(lab.model("llama"), n_ctx=256, n_threads=1, embeddings=True)
    decode_only(ctx, 0)
    check(np.isfinite(ctx.logits(copy=True)).all() and np.isfinite(ctx.embeddings(copy=True)).all(), "llama has both")
    ctx.close()
    for name in ("bert", "t5"):
        ctx = lloyal.Context(lab.model(name), n_ctx=256, n_threads=1, embeddings=name == "bert")
        batch = lloyal.Batch()
        batch.extend(tokens(9), 0, 0, True)
        ctx.encode(batch)
        with lab.refused(NoLogits, "no logits"):
            ctx.logits(0)
        ctx.close()


def decode_only(ctx: lloyal.Context, seq_id: int) -> None:
    batch = lloyal.Batch()
    batch.extend(tokens(9), 0, seq_id, "last")
    ctx.decode(batch)


@case(
    "63",
    "embedding rows of another width, type or shape",
    upstream="reads past the end",
    ours="InvalidBatch, ValueError",
)
def embedding_rows_that_do_not_fit(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(5)))
    n_embd = ctx.model.n_embd
    for width in (1, n_embd - 1, n_embd + 1, 4 * n_embd):
        batch = lloyal.Batch()
        batch.extend_embd(np.zeros((2, width), np.float32), 5, 0)
        with lab.refused(InvalidBatch, width, n_embd):
            ctx.decode(batch)
    for rows in (
        np.zeros((2, n_embd), np.float64),
        np.zeros(n_embd, np.float32),
        np.zeros((2, 2, n_embd), np.float32),
        np.zeros((n_embd, 2), np.float32).T,
    ):
        batch = lloyal.Batch()
        try:
            batch.extend_embd(rows, 5, 0)
        except ValueError:
            check(len(batch) == 0, "rows were taken")
        else:
            raise AssertionError(f"rows of {rows.dtype} and shape {rows.shape} were taken")
    batch = lloyal.Batch()
    batch.extend_embd(np.zeros((2, n_embd), np.float32), 5, 0)
    with lab.refused(InvalidArgument, "clear()"):
        batch.add(1, 7, 0)
    with lab.refused(InvalidArgument, "clear()"):
        batch.extend_embd(np.zeros((2, n_embd + 1), np.float32), 7, 0)
