"""Samplers, adapters and the extended batch, where a context or a chain meets what does not belong to it."""

from __future__ import annotations

import lloyal
from lloyal.errors import InvalidArgument, InvalidBatch, LloyalError
from lloyal.llama import BatchExt
from tests.abuse.lab import Lab, case, check
from tests.models import N_VOCAB, tokens


@case("26a", "chain functions on a sampler that is no chain", upstream="GGML_ABORT", ours="InvalidArgument")
def chain_functions_without_a_chain(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(5)))
    with lloyal.Sampler.greedy() as greedy, lloyal.Sampler.top_k(3) as top_k:
        for call in (
            greedy.chain_n,
            lambda: greedy.chain_get(0),
            lambda: greedy.chain_remove(0),
            lambda: greedy.chain_add(top_k),
            greedy.perf,
            greedy.perf_reset,
        ):
            with lab.refused(InvalidArgument, "chain"):
                call()
        with lloyal.Sampler.chain(top_k, greedy) as chain:
            for i in (2, -1, 2**31 - 1, -(2**31)):
                for call in (chain.chain_get, chain.chain_remove):
                    with lab.refused(InvalidArgument, i):
                        call(i)
            check(chain.sample(ctx) == greedy.sample(ctx), "the chain picks something else")
        # llama.cpp asserts that somebody picked
        with lloyal.Sampler.chain(top_k) as unfinished, lab.refused(InvalidArgument):
            unfinished.sample(ctx)


@case(
    "26b", "adapters given as nothing, or with other scales", upstream="GGML_ASSERT", ours="InvalidArgument, TypeError"
)
def adapters_that_are_none(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(5)))
    with lab.refused(InvalidArgument):
        ctx.set_adapters_lora([], [1.0])
    for adapters in ([None], [ctx.model], None):
        try:
            ctx.set_adapters_lora(adapters, [1.0])
        except (TypeError, LloyalError):
            continue
        raise AssertionError(f"{adapters!r} was taken for adapters")
    ctx.set_adapters_lora([])


@case(
    "74",
    "extended batch: entries out of range, positions that do not follow",
    upstream="GGML_ASSERT, or -1",
    ours="InvalidBatch",
)
def extended_batch_out_of_range(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(5)))

    def entry(token: int, pos: int, seq: int) -> BatchExt:
        batch = BatchExt(ctx)
        index = batch.add_token(seq, token)
        batch.set_pos(index, pos)
        batch.set_output_logits(index, True)
        return batch

    for token, pos, seq, text in (
        (N_VOCAB, 5, 0, N_VOCAB),
        (-1, 5, 0, "-1"),
        (1, 2**31 - 1, 0, 2**31 - 1),
        (1, 7, 0, 7),
        (1, 5, 99, 99),
    ):
        try:
            ctx.process("decode", entry(token, pos, seq))
        except (InvalidBatch, InvalidArgument) as error:
            check(str(text) in str(error), f"{text} is not in {error}")
        else:
            raise AssertionError(f"token {token} at position {pos} of sequence {seq} was decoded")
    with lab.refused(InvalidArgument, "type='prefill'"):
        ctx.process("prefill", entry(1, 5, 0))


@case(
    "75",
    "attention made non-causal after the context",
    upstream="GGML_ASSERT for more than n_ubatch tokens",
    ours="InvalidBatch",
)
def attention_made_non_causal(lab: Lab) -> None:
    ctx = lab.context(n_ubatch=32)
    ctx.set_causal_attn(False)
    batch = lloyal.Batch()
    batch.extend(tokens(33), 0, 0)
    with lab.refused(InvalidBatch, 33, 32, "n_ubatch"):
        ctx.decode(batch)
    ctx.set_causal_attn(True)
    lab.feed(ctx, (0, 0, tokens(33)))
