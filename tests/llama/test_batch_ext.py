"""The extended batch against the plain one, and what a context computes besides logits."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

import lloyal.llama as ll
from lloyal.errors import InvalidArgument, InvalidBatch, NoLogits, Unsupported
from tests.models import N_EMBD, N_FF, N_HEAD, N_LAYER, N_VOCAB, llama, tiny, tokens

TOKENS = tokens(20, 11)


@pytest.fixture
def open_context() -> Iterator[Callable[..., ll.Context]]:
    opened: list[ll.Context | ll.Model] = []

    def make(name: str = "llama", **parameters: object) -> ll.Context:
        model = ll.Model(name if name.endswith(".gguf") else tiny(name))
        ctx = ll.Context(model, **({"n_ctx": 256, "n_batch": 64, "n_seq_max": 4, "n_threads": 1} | parameters))
        opened.extend((ctx, model))
        return ctx

    yield make
    for thing in opened:
        thing.close()


def plain(ctx: ll.Context, ids: list[int], pos0: int = 0, seq_id: int = 0) -> np.ndarray:
    batch = ll.Batch()
    batch.extend(ids, pos0, seq_id, logits=True)
    ctx.decode(batch)
    return ctx.get_logits()


def extended(ctx: ll.Context, ids: list[int], pos0: int = 0, seq_id: int = 0) -> ll.BatchExt:
    batch = ll.BatchExt(ctx)
    for i, token in enumerate(ids):
        at = batch.add_token(seq_id, token)
        batch.set_pos(at, pos0 + i)
        batch.set_output_logits(at, True)
    return batch


@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba2", "lfm2", "qwen35"])
def test_it_computes_what_a_plain_batch_does(open_context: Callable[..., ll.Context], name: str) -> None:
    ctx, twin = open_context(name), open_context(name)
    expected = plain(twin, TOKENS)
    batch = extended(ctx, TOKENS)
    ctx.process("decode", batch)
    np.testing.assert_array_equal(ctx.get_logits(), expected)
    assert ctx.state_seq_get_data_ext(0, 0) == twin.state_seq_get_data_ext(0, 0)
    # the same guards and the same provenance stand behind both
    assert [run[:2] for run in ctx.memory.provenance(0)] == [run[:2] for run in twin.memory.provenance(0)]
    assert ctx.memory.can_rollback(0, 3) == twin.memory.can_rollback(0, 3)
    with pytest.raises(InvalidBatch):
        ctx.process("decode", batch)  # the same positions again
    batch.clear()
    assert len(batch) == 0
    at = batch.add_token(0, 5)
    batch.set_pos(at, len(TOKENS))
    batch.set_output_embd(at, True)
    ctx.process("decode", batch)
    np.testing.assert_array_equal(ctx.get_logits(), plain(twin, [5], len(TOKENS)))


def test_entries_of_several_sequences(open_context: Callable[..., ll.Context]) -> None:
    ctx, twin = open_context(), open_context()
    batch, same = ll.BatchExt(ctx), ll.Batch()
    for i, token in enumerate(TOKENS):
        at = batch.add_token(0, token)
        batch.add_seq(at, 2)
        batch.add_seq(at, 2)
        batch.set_pos(at, i)
        same.add(token, i, [0, 2], logits=i == 7)
    batch.set_output_logits(7, True)
    assert batch[7] == (TOKENS[7], (7,), (0, 2), True)
    ctx.process("decode", batch)
    twin.decode(same)
    np.testing.assert_array_equal(ctx.logits(7, copy=True), twin.logits(7, copy=True))
    assert [ctx.memory.seq_pos_max(seq) for seq in range(3)] == [19, -1, 19]
    with pytest.raises(NoLogits):
        ctx.logits(6)


def embedding(model: ll.Model, ids: list[int]) -> np.ndarray:
    return model.tok_embd()[ids]


@pytest.mark.parametrize("name", ["llama", "qwen35"])
def test_rows_instead_of_tokens(open_context: Callable[..., ll.Context], name: str) -> None:
    ctx, twin, third = open_context(name), open_context(name), open_context(name)
    rows = embedding(ctx.model, TOKENS)
    expected = plain(twin, TOKENS)
    batch = ll.BatchExt(ctx)
    assert batch.n_embd == N_EMBD
    for i, row in enumerate(rows):
        at = batch.add_embd(0, row)
        batch.set_pos(at, i)
        batch.set_output_logits(at, True)
    ctx.process("decode", batch)
    np.testing.assert_allclose(ctx.get_logits(), expected, atol=1e-4 * np.abs(expected).max())
    # the plain batch, whose rows take one position each even where the model has four
    other = ll.Batch()
    other.extend_embd(rows, 0, 0, logits=True)
    third.decode(other)
    np.testing.assert_array_equal(third.get_logits(), ctx.get_logits())


def test_rows_may_be_set_in_any_order(open_context: Callable[..., ll.Context]) -> None:
    # llama.cpp takes the rows in the order they were set, whatever entries they were set for
    ctx, twin = open_context(), open_context()
    rows = embedding(ctx.model, TOKENS)
    batch, straight = ll.BatchExt(ctx), ll.BatchExt(twin)
    for i in range(len(TOKENS)):
        batch.set_pos(batch.add(0), i)
        straight.set_pos(straight.add_embd(0, rows[i]), i)
        straight.set_output_logits(i, True)
    for i in reversed(range(len(TOKENS))):
        batch.set_embd_token(i, rows[i : i + 1])
        batch.set_output_logits(i, True)
    ctx.process("decode", batch)
    twin.process("decode", straight)
    np.testing.assert_array_equal(ctx.get_logits(), twin.get_logits())


def test_four_positions_of_a_row(open_context: Callable[..., ll.Context]) -> None:
    ctx, twin, other = open_context("qwen35"), open_context("qwen35"), open_context("qwen35")
    rows = embedding(ctx.model, TOKENS[:8])

    def run(target: ll.Context, positions: Callable[[int], int | tuple[int, ...]]) -> np.ndarray:
        batch = ll.BatchExt(target)
        for i, row in enumerate(rows):
            batch.set_pos(batch.add_embd(0, row), positions(i))
        batch.set_output_logits(len(rows) - 1, True)
        target.process("decode", batch)
        return np.asarray(target.logits(copy=True))

    text = run(ctx, lambda i: i)
    np.testing.assert_array_equal(run(twin, lambda i: (i, i, i, 0)), text)
    assert np.abs(run(other, lambda i: (i, i // 4, i % 4, 0)) - text).max() > 1e-3


def test_tokens_with_rows_feed_a_prediction_head(open_context: Callable[..., ll.Context]) -> None:
    target = open_context("qwen35-mtp")
    target.set_embeddings_nextn(True, masked=False)
    plain(target, TOKENS)
    hidden = np.stack([target.embeddings_nextn(i, copy=True) for i in range(len(TOKENS))])
    head = ll.Context(target.model, type="mtp", parent=target, n_ctx=256, n_batch=64, n_seq_max=4, n_threads=1)
    with head:
        head.set_nextn_layer_offset(0)
        with pytest.raises(InvalidArgument, match="offset 1: this model has 1 prediction layers"):
            head.set_nextn_layer_offset(1)
        results = []
        for order in (range(len(TOKENS) - 1), reversed(range(len(TOKENS) - 1))):
            head.memory.clear()
            batch = ll.BatchExt(head)
            for i in range(len(TOKENS) - 1):
                batch.set_pos(batch.add_token(0, TOKENS[i + 1]), i + 1)
                batch.set_output_logits(i, True)
            for i in order:
                batch.set_embd_token(i, hidden[i])
            head.process("decode", batch)
            results.append(head.get_logits())
        np.testing.assert_array_equal(results[0], results[1])
        # another hidden state, another prediction
        head.memory.clear()
        batch = ll.BatchExt(head)
        for i in range(len(TOKENS) - 1):
            batch.set_pos(batch.add_token(0, TOKENS[i + 1]), i + 1)
            batch.set_embd_token(i, hidden[0])
            batch.set_output_logits(i, True)
        head.process("decode", batch)
        assert np.abs(head.get_logits()[-1] - results[0][-1]).max() > 1e-3


def test_masked_and_unmasked_hidden_states_agree(open_context: Callable[..., ll.Context]) -> None:
    ctx = open_context("qwen35-mtp")
    with pytest.raises(NoLogits, match="set_embeddings_nextn"):
        ctx.embeddings_nextn(0)
    rows = {}
    for masked in (True, False):
        ctx.memory.clear()
        ctx.set_embeddings_nextn(True, masked)
        with pytest.raises(NoLogits):
            ctx.embeddings_nextn(0)
        batch = ll.Batch()
        batch.extend(TOKENS, 0, 0, logits="last")
        ctx.decode(batch)
        rows[masked] = ctx.embeddings_nextn(len(TOKENS) - 1, copy=True)
        if masked:
            with pytest.raises(NoLogits):
                ctx.embeddings_nextn(3)
        else:
            ctx.embeddings_nextn(3)
            for index in (-1, len(TOKENS)):
                with pytest.raises(NoLogits, match=f"index {index}"):
                    ctx.embeddings_nextn(index)
    np.testing.assert_allclose(rows[True], rows[False], atol=1e-4 * np.abs(rows[True]).max())


def test_inputs_of_layers(open_context: Callable[..., ll.Context]) -> None:
    ctx = open_context()
    with pytest.raises(NoLogits, match="set_embeddings_layer_inp\\(0, True\\) first"):
        ctx.embeddings_layer_inp(0, 0)
    ctx.set_embeddings_layer_inp(0, True)
    with pytest.raises(NoLogits, match="nothing yet"):
        ctx.embeddings_layer_inp(0, 0)
    plain(ctx, TOKENS)
    # what enters the first layer are the token embeddings
    got = np.stack([ctx.embeddings_layer_inp(0, i, copy=True) for i in range(len(TOKENS))])
    np.testing.assert_allclose(got, embedding(ctx.model, TOKENS), atol=1e-6)
    for index in (-1, len(TOKENS)):
        with pytest.raises(NoLogits, match=f"index {index}"):
            ctx.embeddings_layer_inp(0, index)
    for layer in (-1, N_LAYER + 1):
        with pytest.raises(InvalidArgument, match=f"layer {layer}"):
            ctx.set_embeddings_layer_inp(layer, True)
    ctx.set_embeddings_layer_inp(0, False)
    with pytest.raises(NoLogits, match="True\\) first"):
        ctx.embeddings_layer_inp(0, 0)


def test_models_without_them_say_so(open_context: Callable[..., ll.Context]) -> None:
    # llama.cpp aborts in the next decode
    ctx = open_context("mamba2")
    with pytest.raises(Unsupported, match="input of layer 1"):
        ctx.set_embeddings_layer_inp(1, True)
    with pytest.raises(Unsupported, match="prediction head"):
        ctx.set_embeddings_nextn(True)
    with pytest.raises(InvalidArgument, match="has 0 prediction layers"):
        ctx.set_nextn_layer_offset(0)
    assert plain(ctx, TOKENS).shape == (len(TOKENS), N_VOCAB)


def test_what_cannot_be_added(open_context: Callable[..., ll.Context]) -> None:
    ctx = open_context(n_batch=4, n_ubatch=4)
    batch = ll.BatchExt(ctx)
    row = np.ones(N_EMBD, np.float32)
    for call, message in [
        (lambda: batch.add_token(4, 0), "sequence 4: this context has 0 to 3"),
        (lambda: batch.add_token(-1, 0), "sequence -1"),
        (lambda: batch.add_token(0, N_VOCAB), f"token {N_VOCAB} is outside the vocabulary of {N_VOCAB}"),
        (lambda: batch.add_token(0, -1), "token -1"),
        (lambda: batch.add_embd(0, row[:-1]), "the row has 63 values, this context takes 64"),
        (lambda: batch.add_embd(4, row), "sequence 4"),
    ]:
        with pytest.raises(InvalidBatch, match=message):
            call()
        assert len(batch) == 0
    for bad in (row.astype(np.float64), row.reshape(4, 4, 4), np.ones(2 * N_EMBD, np.float32)[::2]):
        with pytest.raises(InvalidArgument, match="float32, C-contiguous"):
            batch.add_embd(0, bad)
    with pytest.raises(InvalidArgument, match="idx=0: the batch has 0 entries"):
        batch.set_pos(0, 0)
    for _ in range(4):
        batch.add_token(0, 1)
    with pytest.raises(InvalidBatch, match="the batch is full: this context takes 4"):
        batch.add_token(0, 1)
    with pytest.raises(InvalidBatch, match="takes 1 position, not 4"):
        batch.set_pos(0, (0, 0, 0, 0))
    with pytest.raises(InvalidBatch, match="position -1 of entry 0 is negative"):
        batch.set_pos(0, -1)
    batch.set_embd_token(0, row)
    with pytest.raises(InvalidBatch, match="entry 0 has a row already"):
        batch.set_embd_token(0, row)


def test_what_cannot_be_processed(open_context: Callable[..., ll.Context]) -> None:
    ctx, other = open_context(), open_context()
    expected = plain(other, TOKENS)
    row = np.ones(N_EMBD, np.float32)
    empty, no_position, mixed, nothing = (ll.BatchExt(ctx) for _ in range(4))
    no_position.add_token(0, 1)
    for add in (lambda: mixed.add_token(0, 1), lambda: mixed.add_embd(0, row)):
        mixed.set_pos(add(), len(mixed) - 1)
    nothing.set_pos(nothing.add(0), 0)
    for batch, message in [
        (empty, "the batch is empty"),
        (no_position, "entry 0 has no position: use set_pos"),
        (mixed, "entry 1 has a row, entry 0 has a token"),
        (nothing, "entry 0 has nothing"),
        (extended(ctx, [1, 2], 5) if plain(ctx, [1]) is not None else empty, "goes on at position 1"),
        (extended(other, [1]), "made for another context"),
    ]:
        with pytest.raises(InvalidBatch, match=message):
            ctx.process("decode", batch)
    with pytest.raises(InvalidArgument, match="type='train'"):
        ctx.process("train", empty)  # type: ignore[arg-type]
    ctx.memory.clear()
    np.testing.assert_array_equal(plain(ctx, TOKENS), expected)


def test_a_batch_keeps_its_context_alive() -> None:
    before = ll.live_handles()["contexts"]
    with ll.Model(tiny("llama")) as model:
        ctx = ll.Context(model, n_ctx=256, n_threads=1)
        batch = ll.BatchExt(ctx)
        ctx.close()
        assert ll.live_handles()["contexts"] == before + 1
        batch.add_token(0, 1)
        del batch
        gc.collect()
        assert ll.live_handles()["contexts"] == before


def test_embeddings_can_be_switched(open_context: Callable[..., ll.Context]) -> None:
    ctx, made_so = open_context(), open_context(embeddings=True, pooling="none")
    with pytest.raises(NoLogits, match="nothing was decoded"):
        ctx.get_embeddings()
    plain(ctx, TOKENS)
    with pytest.raises(NoLogits, match="embeddings=False"):
        ctx.get_embeddings()
    ctx.set_embeddings(True)
    with pytest.raises(NoLogits):
        ctx.logits()
    ctx.memory.clear()
    plain(ctx, TOKENS)
    plain(made_so, TOKENS)
    np.testing.assert_array_equal(ctx.get_embeddings(), made_so.get_embeddings())
    np.testing.assert_array_equal(ctx.get_embeddings()[3], ctx.embeddings(3, copy=True))
    assert ctx.get_embeddings().shape == (len(TOKENS), N_EMBD)


def test_causal_attention_can_be_switched(open_context: Callable[..., ll.Context]) -> None:
    ctx, twin = open_context(n_ubatch=32), open_context(attention="non_causal", n_ubatch=32)
    assert (ctx.causal_attn, twin.causal_attn) == (True, False)
    causal = plain(ctx, TOKENS)
    ctx.set_causal_attn(False)
    ctx.memory.clear()
    np.testing.assert_array_equal(plain(ctx, TOKENS), plain(twin, TOKENS))
    assert np.abs(ctx.get_logits()[0] - causal[0]).max() > 1e-2  # the first token sees the others now
    with pytest.raises(InvalidBatch, match="33 tokens, this context takes 32 at once \\(n_ubatch\\)"):
        plain(ctx, tokens(33), len(TOKENS))
    ctx.set_causal_attn(True)
    ctx.memory.clear()
    np.testing.assert_array_equal(plain(ctx, TOKENS), causal)


def test_bytes_by_buffer(open_context: Callable[..., ll.Context]) -> None:
    small, large = open_context(n_ctx=256), open_context(n_ctx=1024)
    uses = [{use.buffer: use for use in ctx.memory_breakdown()} for ctx in (small, large)]
    holders = [use for use in uses[0].values() if use.context]
    assert [(use.is_host, use.device) for use in holders] == [(True, None)]
    assert sum(use.model for use in uses[0].values()) >= small.model.size
    of_256 = 2 * N_LAYER * 256 * N_EMBD * 2  # K and V, f16
    assert sum(use.context for use in uses[0].values()) >= of_256
    assert sum(use.context for use in uses[1].values()) - sum(use.context for use in uses[0].values()) == 3 * of_256


def test_the_embedding_matrix(open_context: Callable[..., ll.Context], tmp_path: Path) -> None:
    reader = gguf.GGUFReader(tiny("llama"))
    want = next(tensor.data for tensor in reader.tensors if tensor.name == "token_embd.weight")
    with ll.Model(tiny("llama")) as model:
        np.testing.assert_array_equal(model.tok_embd(), want)
        assert (model.devices, model.n_expert, model.target_layer_ids, model.dflash_selector_top_k) == ([], 0, [], 0)
    ll.quantize(tiny("llama"), tmp_path / "q8.gguf", "q8_0", token_embedding_type="q8_0")
    with ll.Model(tmp_path / "q8.gguf") as model:
        np.testing.assert_allclose(model.tok_embd(), want, atol=np.abs(want).max() / 127)


def t5(path: Path) -> str:
    """A tiny encoder-decoder model."""
    recipe = llama(0)
    recipe.arch, recipe.tensors, recipe.keys = "t5", {}, {}
    recipe.random("token_embd.weight", (N_VOCAB, N_EMBD), 0.5)
    recipe.matrix("output.weight", N_EMBD, N_VOCAB, 2.0)
    head = N_EMBD // N_HEAD
    for side in ("enc", "dec"):
        recipe.vector(f"{side}.output_norm.weight", N_EMBD)
        for layer in range(2):
            prefix = f"{side}.blk.{layer}."
            kinds = ["attn"] + (["cross_attn"] if side == "dec" else [])
            for kind in kinds:
                recipe.vector(prefix + f"{kind}_norm.weight", N_EMBD)
                for part in "qkv":
                    recipe.matrix(prefix + f"{kind}_{part}.weight", N_EMBD, N_EMBD, 1.5)
                recipe.matrix(prefix + f"{kind}_o.weight", N_EMBD, N_EMBD, 2.0)
            if layer == 0:
                recipe.random(prefix + "attn_rel_b.weight", (32, N_HEAD), 0.5)
            recipe.vector(prefix + "ffn_norm.weight", N_EMBD)
            recipe.matrix(prefix + "ffn_up.weight", N_EMBD, N_FF)
            recipe.matrix(prefix + "ffn_down.weight", N_FF, N_EMBD)
    recipe.keys = {
        "block_count": 2, "attention.head_count": N_HEAD, "attention.key_length": head, "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": 1e-6, "attention.relative_buckets_count": 32, "feed_forward_length": N_FF,
        "decoder_start_token_id": 0, "decoder_block_count": 2,
    }  # fmt: skip
    recipe.write(path)
    return str(path)


def test_an_encoder_decoder_model(open_context: Callable[..., ll.Context], tmp_path: Path) -> None:
    path = t5(tmp_path / "t5.gguf")
    ctx = open_context(path)
    assert (ctx.model.has_encoder, ctx.model.has_decoder, ctx.model.decoder_start_token) == (True, True, 0)
    start = ll.Batch()
    start.add(0, 0, 0, logits=True)
    with pytest.raises(InvalidBatch, match="encode\\(\\) its text first"):  # llama.cpp aborts
        ctx.decode(start)

    def answer(text: list[int], by_process: bool = False) -> np.ndarray:
        ctx.memory.clear()
        if by_process:
            ctx.process("encode", extended(ctx, text))
        else:
            source = ll.Batch()
            source.extend(text, 0, 0)
            ctx.encode(source)
        ctx.decode(start)
        return np.asarray(ctx.logits(copy=True))

    first = answer(TOKENS)
    assert np.isfinite(first).all()
    assert np.abs(answer(TOKENS[::-1]) - first).max() > 1e-3
    np.testing.assert_array_equal(answer(TOKENS, by_process=True), first)
    start.clear()
    start.add(0, 0, 1, logits=True)
    with pytest.raises(InvalidBatch, match="sequence 1 at index 0"):
        ctx.decode(start)


def test_a_decoder_has_nothing_to_encode(open_context: Callable[..., ll.Context]) -> None:
    ctx = open_context()
    with pytest.raises(Unsupported, match="no encoder"):
        ctx.process("encode", extended(ctx, TOKENS))
