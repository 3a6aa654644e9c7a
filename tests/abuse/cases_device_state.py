"""The state calls with ON_DEVICE: llama.cpp keeps one checkpoint per sequence, and trusts every blob."""

from __future__ import annotations

import struct

import numpy as np

from lloyal import StateSeqFlags
from lloyal.errors import InvalidArgument, OutOfDeviceMemory, StaleCheckpoint, StateMismatch, Unsupported
from tests.abuse.fault import largest_buffer, no_device_memory
from tests.abuse.lab import Lab, case, check
from tests.models import tokens

NONE, PARTIAL, DEVICE = StateSeqFlags.NONE, StateSeqFlags.PARTIAL_ONLY, StateSeqFlags.ON_DEVICE


@case(
    "1", "device state shorter than its header", upstream="exception through the C ABI: terminate", ours="StateMismatch"
)
def device_state_too_short(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    blob = ctx.state_seq_get_data_ext(0, DEVICE)
    for size in (0, 1, 4, 7, 8, 23):
        with lab.refused(StateMismatch, size):
            ctx.state_seq_set_data_ext(blob[:size], 1, DEVICE)
    check(ctx.memory.seq_pos_max(1) == -1, "sequence 1 was written")


@case("2", "device state with another magic", upstream="exception through the C ABI: terminate", ours="StateMismatch")
def device_state_wrong_magic(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    blob = bytearray(ctx.state_seq_get_data_ext(0, DEVICE))
    blob[0] ^= 0xFF
    with lab.refused(StateMismatch, "bytes"):
        ctx.state_seq_set_data_ext(blob, 1, DEVICE)


@case("3a", "device state of a sequence that was never saved", upstream="GGML_ASSERT", ours="StateMismatch")
def device_state_never_saved(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    blob = bytearray(ctx.state_seq_get_data_ext(0, DEVICE))
    struct.pack_into("<i", blob, 4, 3)
    with lab.refused(StateMismatch, "sequence 3"):
        ctx.state_seq_set_data_ext(blob, 1, DEVICE)


@case("3b", "device state of another context", upstream="GGML_ASSERT", ours="StateMismatch")
def device_state_of_another_context(lab: Lab) -> None:
    ctx, other = lab.context(), lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    lab.feed(other, (0, 0, tokens(20)))
    blob = other.state_seq_get_data_ext(0, DEVICE)
    ctx.state_seq_get_data_ext(0, DEVICE)
    with lab.refused(StateMismatch, "context"):
        ctx.state_seq_set_data_ext(blob, 1, DEVICE)


@case("3c", "host state restored as a device state", upstream="GGML_ASSERT", ours="StateMismatch")
def host_state_as_device_state(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    ctx.state_seq_get_data_ext(0, DEVICE)
    with lab.refused(StateMismatch, "context"):
        ctx.state_seq_set_data_ext(ctx.state_seq_get_data_ext(0, NONE), 1, DEVICE)


@case("3d", "device state restored as a host state", upstream="0, the destination emptied", ours="StateMismatch")
def device_state_as_host_state(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)), (1, 0, tokens(5)))
    blob = ctx.state_seq_get_data_ext(0, DEVICE)
    with lab.refused(StateMismatch, "sequence 1"):
        ctx.state_seq_set_data_ext(blob, 1, NONE)
    lab.forget(ctx, 1)


@case("4", "device state with 4 bytes too many", upstream="GGML_ASSERT in a destructor", ours="StateMismatch")
def device_state_too_long(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    blob = ctx.state_seq_get_data_ext(0, DEVICE)
    for longer in (blob + bytes(4), blob[:-16] + bytes(4) + blob[-16:]):
        with lab.refused(StateMismatch):
            ctx.state_seq_set_data_ext(longer, 1, DEVICE)


@case("5a", "stale device state, another number of bytes", upstream="GGML_ABORT", ours="StaleCheckpoint")
def stale_device_state(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    stale = ctx.state_seq_get_data_ext(0, DEVICE)
    lab.feed(ctx, (0, 20, tokens(7)))
    fresh = ctx.state_seq_get_data_ext(0, DEVICE)
    with lab.refused(StaleCheckpoint, "sequence 0"):
        ctx.state_seq_set_data_ext(stale, 1, DEVICE)
    check(ctx.state_seq_set_data_ext(fresh, 1, DEVICE) == len(fresh), "the newer state was not restored")
    ctx.memory.seq_rm(1)


@case("5b", "stale device state, as many bytes", upstream="success, with the newer tensors", ours="StaleCheckpoint")
def stale_device_state_of_equal_size(lab: Lab) -> None:
    for name in ("mamba2", "llama"):
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(20)))
        stale = ctx.state_seq_get_data_ext(0, DEVICE)
        ctx.state_seq_get_data_ext(0, DEVICE)
        with lab.refused(StaleCheckpoint, "sequence 0"):
            ctx.state_seq_set_data_ext(stale, 0, DEVICE)


@case(
    "6",
    "device state whose sequence was saved again when empty",
    upstream="exception in a destructor: terminate",
    ours="StaleCheckpoint",
)
def device_state_saved_empty(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    blob = ctx.state_seq_get_data_ext(0, DEVICE)
    ctx.memory.seq_rm(0)
    lab.forget(ctx, 0)
    ctx.state_seq_get_data_ext(0, DEVICE)
    with lab.refused(StaleCheckpoint, "sequence 0"):
        ctx.state_seq_set_data_ext(blob, 1, DEVICE)


@case(
    "7",
    "device state of a quantized cache",
    upstream="1/32 of the data is copied; wrong logits, or SIGSEGV",
    ours="Unsupported",
)
def device_state_of_a_quantized_cache(lab: Lab) -> None:
    for type_k, type_v in (("q8_0", "q8_0"), ("q4_0", "f16"), ("f16", "q5_1")):
        ctx = lab.context(type_k=type_k, type_v=type_v, flash_attn="on")
        lab.feed(ctx, (0, 0, tokens(20)))
        for call in (ctx.state_seq_get_size_ext, ctx.state_seq_get_data_ext):
            with lab.refused(Unsupported, "ON_DEVICE", "quantized"):
                call(0, DEVICE)
        with lab.refused(Unsupported, "ON_DEVICE", "quantized"):
            ctx.state_seq_set_data_ext(bytes(64), 1, DEVICE)
        host = ctx.state_seq_get_data_ext(0, NONE)
        ctx.state_seq_set_data_ext(host, 1, NONE)
        check(lab.content(ctx, 1) == lab.content(ctx, 0), "the host state did not survive")
        ctx.memory.seq_rm(1)
    # PARTIAL_ONLY leaves the attention cache out, but not a window cache beside a recurrent state.
    for name, fine in (("lfm2", True), ("lfm2-swa", False), ("gemma3", False)):
        ctx = lab.context(name, type_k="q8_0", type_v="q8_0", flash_attn="on")
        lab.feed(ctx, (0, 0, tokens(20)))
        if fine:
            ctx.state_seq_set_data_ext(ctx.state_seq_get_data_ext(0, DEVICE | PARTIAL), 0, DEVICE | PARTIAL)
        else:
            with lab.refused(Unsupported, "ON_DEVICE", "quantized"):
                ctx.state_seq_get_data_ext(0, DEVICE | PARTIAL)


@case(
    "8",
    "second device save in smaller pieces, V transposed (no flash attention)",
    upstream="abort: not enough space in the buffer",
    ours="Unsupported",
)
def device_save_in_smaller_pieces(lab: Lab) -> None:
    for empty_between in (False, True):
        ctx = lab.context(flash_attn="off")
        lab.feed(ctx, (0, 0, tokens(32)))
        blob = ctx.state_seq_get_data_ext(0, DEVICE)
        want = lab.content(ctx, 0)
        ctx.memory.seq_rm(0)
        lab.forget(ctx, 0)
        if empty_between:  # which leaves llama.cpp's buffer as it was
            ctx.state_seq_get_data_ext(0, DEVICE)
        # 15 + 17 rows with another sequence's row between: each piece is padded to the alignment.
        lab.feed(ctx, (0, 0, tokens(15)))
        lab.feed(ctx, (1, 0, tokens(1)))
        lab.feed(ctx, (0, 15, tokens(17, seed=1)))
        with lab.refused(Unsupported, "sequence 0"):
            ctx.state_seq_get_data_ext(0, DEVICE)
        if not empty_between:
            ctx.state_seq_set_data_ext(blob, 2, DEVICE)
            check(lab.content(ctx, 2) == want, "the state saved before is lost")
            ctx.memory.seq_rm(2)


@case("9", "device save without device memory", upstream="GGML_ASSERT(buffer)", ours="OutOfDeviceMemory")
def device_save_without_memory(lab: Lab) -> None:
    for name in ("llama", "lfm2", "mamba2"):
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(20)))
        before = ctx.state_seq_get_data_ext(0, DEVICE)
        lab.feed(ctx, (0, 20, tokens(20)), (1, 0, tokens(8)))
        with no_device_memory() as asked:
            with lab.refused(OutOfDeviceMemory, "CPU"):
                ctx.state_seq_get_data_ext(1, DEVICE)
        check(len(asked) == 1 and asked[0] > 1000, f"asked for {asked}")
        # What was saved before is still there, and so is the way to save.
        check(ctx.state_seq_set_data_ext(before, 2, DEVICE) == len(before), "the older state was lost")
        blob = ctx.state_seq_get_data_ext(1, DEVICE)
        ctx.state_seq_set_data_ext(blob, 3, DEVICE)
        check(lab.content(ctx, 3) == lab.content(ctx, 1), "the later state is not right")
        ctx.memory.seq_rm(2)
        ctx.memory.seq_rm(3)


@case(
    "10", "device save larger than the largest buffer", upstream="GGML_ASSERT: tensor not allocated", ours="Unsupported"
)
def device_save_larger_than_a_buffer(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    with largest_buffer(4096), lab.refused(Unsupported, 4096):
        ctx.state_seq_get_data_ext(0, DEVICE)
    blob = ctx.state_seq_get_data_ext(0, DEVICE)
    ctx.state_seq_set_data_ext(blob, 1, DEVICE)
    ctx.memory.seq_rm(1)


@case("11", "device state of all sequences (seq_id -1), recurrent", upstream="GGML_ABORT", ours="InvalidArgument")
def device_state_of_all_sequences(lab: Lab) -> None:
    for name in ("mamba2", "lfm2", "llama"):
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(9)))
        lab.feed(ctx, (2, 0, tokens(9)))
        for flags in (DEVICE, DEVICE | PARTIAL, NONE):
            for call in (ctx.state_seq_get_size_ext, ctx.state_seq_get_data_ext):
                with lab.refused(InvalidArgument, "seq_id=-1"):
                    call(-1, flags)


@case(
    "12",
    "whole-context state while sequences share a recurrent state and one has a rollback pending",
    upstream="GGML_ABORT",
    ours="cannot be reached: Unsupported, or saved right",
)
def whole_state_with_a_rollback_pending(lab: Lab) -> None:
    ctx = lab.context("lfm2", n_rs_seq=4)
    lab.feed(ctx, (0, 0, tokens(12)))
    ctx.memory.seq_cp(0, 1)
    with lab.refused(Unsupported, "sequence 0"):  # they share a cell now: nothing to go back to
        ctx.memory.seq_rm(0, 10, -1)
    ctx.memory.seq_rm(1)
    ctx.memory.seq_rm(0)
    lab.forget(ctx, 0)
    lab.feed(ctx, (0, 0, tokens(12)))
    ctx.memory.seq_rm(0, 10, -1)
    ctx.memory.seq_cp(0, 1)  # the other order: the rollback is applied first
    whole = ctx.state_get_data()
    other = lab.context("lfm2", n_rs_seq=4)
    other.state_set_data(whole)
    probes = [lab.feed(c, (seq, 10, tokens(3, seed=5))) for c in (ctx, other) for seq in (0, 1)]
    for probe in probes[1:]:
        check(np.max(np.abs(probe - probes[0])) < 1e-3, "a copy goes on differently")
    for c in (ctx, other):
        c.memory.clear()
    lab.watched[0].batches.clear()
    lab.watched[1].batches.clear()


@case(
    "29",
    "device save into a buffer that is too small",
    upstream="0, and the state saved before is lost",
    ours="InvalidArgument",
)
def device_save_into_a_small_buffer(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    blob = ctx.state_seq_get_data_ext(0, DEVICE)
    lab.feed(ctx, (0, 20, tokens(5)))
    for size in (0, 7, len(blob)):
        with lab.refused(InvalidArgument, f"{size} bytes"):
            ctx.state_seq_get_data_ext(0, DEVICE, out=bytearray(size))
    ctx.state_seq_set_data_ext(blob, 1, DEVICE)
    check(ctx.memory.seq_pos_max(1) == 19, "the state saved before is lost")
    ctx.memory.seq_rm(1)
