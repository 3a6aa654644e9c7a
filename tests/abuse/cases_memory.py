"""Sequence operations: ids, ranges and models they are not for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from lloyal.errors import InvalidArgument, Unsupported
from tests.abuse.lab import Lab, case, check, decode
from tests.models import WINDOW, tokens

NO_SEQUENCE = (-1, -2, 4, 255, 256, 2**31 - 1, -(2**31), 2**40)
# Only the order of additions moves a logit then.
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}
KINDS = ("llama", "gemma3", "mamba2", "lfm2")


@case(
    "14",
    "seq_pos_min, seq_pos_max, seq_cp, seq_keep, seq_add, seq_div of a sequence that is not there",
    upstream="GGML_ASSERT",
    ours="InvalidArgument",
)
def operations_on_no_sequence(lab: Lab) -> None:
    for name in KINDS:
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(20)))
        memory = ctx.memory
        for seq in NO_SEQUENCE:
            calls: dict[str, list[Callable[[int], object]]] = {
                "seq_id": [
                    memory.seq_pos_min,
                    memory.seq_pos_max,
                    memory.seq_keep,
                    partial(memory.seq_add, p0=0, p1=-1, delta=1),
                    partial(memory.seq_div, p0=0, p1=-1, d=2),
                    partial(memory.can_rollback, n_tokens=1),
                    memory.provenance,
                ],
                "seq_id_src": [partial(memory.seq_cp, seq_id_dst=0)],
                "seq_id_dst": [partial(memory.seq_cp, 0)],
            }
            for argument, group in calls.items():
                for call in group:
                    with lab.refused(InvalidArgument, f"{argument}={seq}"):
                        call(seq)


@case(
    "15",
    "seq_rm of a sequence that is not there",
    upstream="GGML_ASSERT",
    ours="InvalidArgument (-1 is every sequence)",
)
def removal_from_no_sequence(lab: Lab) -> None:
    for name in KINDS:
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(20)), (1, 0, tokens(5)))
        for seq in NO_SEQUENCE[1:]:
            with lab.refused(InvalidArgument, f"seq_id={seq}"):
                ctx.memory.seq_rm(seq)
        # llama.cpp's recurrent memory answers -1 with "no" and does nothing.
        ctx.memory.seq_rm(-1)
        lab.forget(ctx, 0)
        lab.forget(ctx, 1)


@case("16", "seq_cp of part of a sequence, kv_unified=False", upstream="GGML_ASSERT", ours="Unsupported")
def copy_of_a_part_between_streams(lab: Lab) -> None:
    ctx = lab.context(kv_unified=False)
    lab.feed(ctx, (0, 0, tokens(20)))
    for p0, p1 in ((0, 10), (5, -1), (5, 10), (1, 2**31 - 1)):
        with lab.refused(Unsupported, "kv_unified=False", f"{max(p0, 0)} to {min(p1, 20) - 1 if p1 > 0 else 19}"):
            ctx.memory.seq_cp(0, 1, p0, p1)
    check(ctx.memory.seq_pos_max(1) == -1, "something was copied")


@case("17", "seq_add, seq_div with M-RoPE positions", upstream="GGML_ASSERT", ours="Unsupported")
def shift_of_mrope_positions(lab: Lab) -> None:
    ctx = lab.context("qwen35")
    lab.feed(ctx, (0, 0, tokens(20)))
    check(not ctx.memory.can_shift, "can_shift is True")
    with lab.refused(Unsupported, "seq_add", "M-RoPE"):
        ctx.memory.seq_add(0, 10, -1, 5)
    with lab.refused(Unsupported, "seq_div", "M-RoPE"):
        ctx.memory.seq_div(0, 10, -1, 2)


@case("18", "seq_div by 0 or less", upstream="SIGFPE; negative positions", ours="InvalidArgument")
def division_by_nothing(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    for d in (0, -1, -(2**31), 2**40):
        with lab.refused(InvalidArgument, f"d={d}"):
            ctx.memory.seq_div(0, 0, -1, d)


@case(
    "19",
    "positions shifted where the next decode cannot rotate the keys",
    upstream="GGML_ABORT in that decode",
    ours="Unsupported",
)
def shift_that_cannot_be_applied(lab: Lab) -> None:
    for name in ("gemma3", "mamba2", "lfm2", "falcon-h1", "qwen35", "lfm2-swa"):
        ctx = lab.context(name, n_ctx=512)  # large enough for a window cache to be smaller than the others
        lab.feed(ctx, (0, 0, tokens(20)))
        check(not ctx.memory.can_shift, f"{name}: can_shift is True")
        with lab.refused(Unsupported, "seq_add"):
            ctx.memory.seq_add(0, 10, -1, 5)
        with lab.refused(Unsupported, "seq_div"):
            ctx.memory.seq_div(0, 10, -1, 2)


@case(
    "42",
    "seq_add over others, below 0, or past the largest position",
    upstream="two rows at one position, or rows lost",
    ours="InvalidArgument",
)
def shift_onto_others(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    for p0, delta in ((10, -5), (10, -11), (0, -1), (0, 2**31 - 1), (0, 2**31 - 20), (10, -(2**31))):
        with lab.refused(InvalidArgument, f"delta={delta}"):
            ctx.memory.seq_add(0, p0, -1, delta)
    with lab.refused(InvalidArgument, f"delta={2**40}"):
        ctx.memory.seq_add(0, 0, -1, 2**40)


@case(
    "43",
    "seq_add, seq_div of rows that another sequence shares",
    upstream="the other sequence's positions change too",
    ours="Unsupported",
)
def shift_of_shared_rows(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    ctx.memory.seq_cp(0, 1)
    for call in (lambda: ctx.memory.seq_add(0, 10, -1, 5), lambda: ctx.memory.seq_div(1, 0, -1, 2)):
        with lab.refused(Unsupported, "share"):
            call()
    check(ctx.memory.seq_pos_max(0) == ctx.memory.seq_pos_max(1) == 19, "positions moved")
    ctx.memory.seq_rm(1)
    lab.forget(ctx, 1)
    ctx.memory.seq_add(0, 10, -1, 5)  # alone it may
    check(ctx.memory.seq_pos_max(0) == 24, "positions did not move")
    ctx.memory.seq_rm(0)
    lab.forget(ctx, 0)


@case("44", "seq_cp of part of a recurrent state", upstream="the whole state is copied", ours="Unsupported")
def copy_of_part_of_a_recurrent_state(lab: Lab) -> None:
    for name in ("mamba2", "lfm2"):
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(8)))
        with lab.refused(Unsupported, "0 to 3"):
            ctx.memory.seq_cp(0, 1, 0, 4)
        lab.forget(ctx, 1)


@case("45", "rollback of more tokens than the ring holds", upstream="true, wrong logits", ours="Unsupported")
def rollback_past_the_ring(lab: Lab) -> None:
    for name in ("lfm2", "qwen35"):
        for batches, back in (([5, 3], 3), ([5, 1], 1), ([5, 1], 2), ([5, 5], 5)):
            ctx = lab.context(name, n_rs_seq=4)
            for start, n in zip([0, *np.cumsum(batches)], batches, strict=False):
                lab.feed(ctx, (0, int(start), tokens(n, seed=n)))
            with lab.refused(Unsupported, "sequence 0"):
                ctx.memory.seq_rm(0, sum(batches) - back, -1)
            ctx.close()


@case("46", "fork while a rollback is pending", upstream="the fork's logits are wrong", ours="right logits")
def fork_with_a_rollback_pending(lab: Lab) -> None:
    for name in ("lfm2", "qwen35"):
        ctx = lab.context(name, n_rs_seq=4)
        lab.feed(ctx, (0, 0, tokens(5)))
        decode(ctx, (0, 5, tokens(5, seed=1)))  # not recorded: taken back
        ctx.memory.seq_rm(0, 7, -1)
        ctx.memory.seq_cp(0, 1)
        a, b = (decode(ctx, (seq, 7, tokens(3, seed=2))) for seq in (0, 1))
        twin = lab.context(name, n_rs_seq=4)
        lab.feed(twin, (0, 0, tokens(5)))
        lab.feed(twin, (0, 5, tokens(5, seed=1)[:2]))
        want = lab.feed(twin, (0, 7, tokens(3, seed=2)))
        for who, got in (("parent", a), ("fork", b)):
            check(np.max(np.abs(got - want)) < 5e-3, f"{name}: the {who} is off by {np.max(np.abs(got - want))}")
        ctx.close()


@case(
    "47",
    "fork with kv_unified=False, saved before the next decode",
    upstream="garbage is saved",
    ours="the parent's rows",
)
def fork_between_streams_saved_at_once(lab: Lab) -> None:
    ctx = lab.context(kv_unified=False)
    lab.feed(ctx, (0, 0, tokens(20)))
    ctx.memory.seq_cp(0, 1)
    check(lab.content(ctx, 1) == lab.content(ctx, 0), "the fork holds other rows")
    ctx.memory.seq_rm(0)  # and it does not depend on the parent any more
    lab.forget(ctx, 0)
    twin = lab.context(kv_unified=False)
    lab.feed(twin, (0, 0, tokens(20)))
    got, want = decode(ctx, (1, 20, tokens(3))), lab.feed(twin, (0, 20, tokens(3)))
    check(np.max(np.abs(got - want)) < 5e-3, f"the fork is off by {np.max(np.abs(got - want))}")
    ctx.close()


@case("48", "seq_keep with kv_unified=False", upstream="the other sequences stay", ours="they go")
def keep_between_streams(lab: Lab) -> None:
    ctx = lab.context(kv_unified=False)
    for seq in range(3):
        lab.feed(ctx, (seq, 0, tokens(10, seed=seq)))
    ctx.memory.seq_keep(1)
    lab.forget(ctx, 0)
    lab.forget(ctx, 2)
    check(ctx.memory.seq_pos_max(1) == 9, "the kept sequence is gone")


@case("49", "fork of a sequence whose window has wrapped", upstream="the next decode finds no room", ours="decodes")
def fork_of_a_wrapped_window(lab: Lab) -> None:
    ctx = lab.context("gemma3", n_ctx=512, n_ubatch=16, **EXACT)
    for start in range(0, 12 * WINDOW, WINDOW):
        lab.feed(ctx, (0, start, tokens(WINDOW, seed=start)))
    ctx.memory.seq_cp(0, 1)
    twin = lab.context("gemma3", n_ctx=512, n_ubatch=16, **EXACT)
    for start in range(0, 12 * WINDOW, WINDOW):
        lab.feed(twin, (0, start, tokens(WINDOW, seed=start)))
    for start in range(12 * WINDOW, 15 * WINDOW, WINDOW):
        want = lab.feed(twin, (0, start, tokens(WINDOW, seed=start)))
        for seq in (0, 1):
            got = decode(ctx, (seq, start, tokens(WINDOW, seed=start)))
            check(np.max(np.abs(got - want)) < 1e-3, f"sequence {seq} is off by {np.max(np.abs(got - want))}")
    ctx.close()


@case(
    "50",
    "seq_cp onto a sequence that holds other rows",
    upstream="both rows stay, at one position",
    ours="InvalidArgument",
)
def copy_onto_other_rows(lab: Lab) -> None:
    for name in KINDS:
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(20)), (1, 0, tokens(7, seed=4)))
        with lab.refused(InvalidArgument, "sequence 1"):
            ctx.memory.seq_cp(0, 1)


@case("51", "arguments that are no integers, or do not fit", upstream="-", ours="TypeError, InvalidArgument")
def arguments_that_are_no_integers(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    for value in (1.0, "1", None, np.float32(1), [1]):
        for call in (ctx.memory.seq_pos_max, ctx.memory.seq_rm, ctx.state_seq_get_size_ext, ctx.logits):
            try:
                call(value)
            except TypeError as error:
                check(repr(value) in str(error), f"{value!r} is not in {error}")
            else:
                raise AssertionError(f"{value!r} was taken")
    check(ctx.memory.seq_pos_max(np.int64(0)) == 19, "a NumPy integer is refused")
    for name, value in (("p0", 2**31), ("p1", -(2**31) - 1)):
        with lab.refused(InvalidArgument, f"{name}={value}"):
            ctx.memory.seq_rm(0, **{name: value})
