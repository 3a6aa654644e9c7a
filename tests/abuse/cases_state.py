"""Host states and state files: damaged, of another kind, or put where they do not fit."""

from __future__ import annotations

import struct

import numpy as np

from lloyal import StateSeqFlags
from lloyal.errors import InvalidArgument, StaleCheckpoint, StateMismatch, Unsupported
from tests.abuse.lab import Lab, case, check, decode
from tests.models import tokens

NONE, PARTIAL, DEVICE = StateSeqFlags.NONE, StateSeqFlags.PARTIAL_ONLY, StateSeqFlags.ON_DEVICE
NO_SEQUENCE = (-1, -2, 4, 255, 256, 2**31 - 1, -(2**31), 2**40)


@case("13", "state restored into a sequence that is not there", upstream="GGML_ASSERT", ours="InvalidArgument")
def restore_into_no_sequence(lab: Lab) -> None:
    path = lab.folder / "state"
    for unified in (True, False):
        ctx = lab.context(kv_unified=unified)
        lab.feed(ctx, (0, 0, tokens(20)))
        host = ctx.state_seq_get_data_ext(0, NONE)
        device = ctx.state_seq_get_data_ext(0, DEVICE)
        ctx.state_seq_save_file(path, 0, tokens(20))
        for seq in NO_SEQUENCE:
            with lab.refused(InvalidArgument, f"dest_seq_id={seq}"):
                ctx.state_seq_set_data_ext(host, seq, NONE)
            with lab.refused(InvalidArgument, f"dest_seq_id={seq}"):
                ctx.state_seq_set_data_ext(device, seq, DEVICE)
            with lab.refused(InvalidArgument, f"dest_seq_id={seq}"):
                ctx.state_seq_load_file(path, seq)
            with lab.refused(InvalidArgument, f"seq_id={seq}"):
                ctx.state_seq_get_data_ext(seq, NONE)
            with lab.refused(InvalidArgument, f"seq_id={seq}"):
                ctx.state_seq_save_file(lab.folder / "none", seq)
    check(not (lab.folder / "none").exists(), "a file was written")


@case("22a", "truncated sequence file", upstream="GGML_ASSERT after loading garbage", ours="StateMismatch")
def truncated_sequence_file(lab: Lab) -> None:
    path = lab.folder / "state"
    for name in ("llama", "lfm2", "mamba2", "gemma3"):
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(20)))
        size = ctx.state_seq_save_file(path, 0, tokens(20))
        whole = path.read_bytes()
        check(size == len(whole), "the size is not the file's")
        for cut in (0, 1, 11, 12, 40, 92, 95, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:cut])
            with lab.refused(StateMismatch, path):
                ctx.state_seq_load_file(path, 1)
            check(ctx.memory.seq_pos_max(1) == -1, f"a file cut at {cut} left rows behind")
        path.write_bytes(whole)
        check(ctx.state_seq_load_file(path, 1) == tokens(20), "the whole file does not load")
        check(lab.content(ctx, 1) == lab.content(ctx, 0), "the whole file loads something else")
        ctx.memory.seq_rm(1)


@case(
    "22b",
    "truncated file of the whole context",
    upstream="false, with part of the memory overwritten",
    ours="StateMismatch",
)
def truncated_context_file(lab: Lab) -> None:
    path = lab.folder / "state"
    ctx, other = lab.context(), lab.context()
    lab.feed(ctx, (0, 0, tokens(20)), (2, 0, tokens(9)))
    ctx.state_save_file(path, tokens(20))
    whole = path.read_bytes()
    for cut in (0, 11, 50, 95, 110, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with lab.refused(StateMismatch, path):
            other.state_load_file(path)
        check(all(other.memory.seq_pos_max(seq) == -1 for seq in range(4)), f"a file cut at {cut} left rows behind")
    path.write_bytes(whole)
    check(other.state_load_file(path) == tokens(20), "the whole file does not load")
    check(lab.content(other, 2) == lab.content(ctx, 2), "the whole file loads something else")
    other.memory.clear()


@case("22c", "state file with bytes after its end", upstream="accepted", ours="StateMismatch")
def state_file_with_more_bytes(lab: Lab) -> None:
    path = lab.folder / "state"
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    ctx.state_seq_save_file(path, 0, tokens(20))
    path.write_bytes(path.read_bytes() + b"tail")
    with lab.refused(StateMismatch, path, "4 bytes"):
        ctx.state_seq_load_file(path, 1)
    lab.forget(ctx, 1)
    ctx.state_save_file(path, tokens(20))
    path.write_bytes(path.read_bytes() + b"tail")
    other = lab.context()
    with lab.refused(StateMismatch, path, "4 bytes"):
        other.state_load_file(path)


@case("22d", "state file of another kind, version or model", upstream="false, or garbage", ours="StateMismatch")
def state_file_of_another_kind(lab: Lab) -> None:
    path = lab.folder / "state"
    ctx, other = lab.context(), lab.context("lfm2")
    lab.feed(ctx, (0, 0, tokens(20)))
    lab.feed(other, (0, 0, tokens(20)))
    ctx.state_seq_save_file(path, 0, tokens(20))
    with lab.refused(StateMismatch, path, "magic"):
        ctx.state_load_file(path)
    with lab.refused(StateMismatch, path, "sequence 1"):
        other.state_seq_load_file(path, 1)
    lab.forget(other, 1)
    damaged = bytearray(path.read_bytes())
    struct.pack_into("<I", damaged, 4, 99)
    path.write_bytes(damaged)
    with lab.refused(StateMismatch, path, "version 99"):
        ctx.state_seq_load_file(path, 1)
    struct.pack_into("<II", damaged, 4, 3, 2**32 - 1)
    path.write_bytes(damaged)
    with lab.refused(StateMismatch, path, 2**32 - 1):
        ctx.state_seq_load_file(path, 1)


@case(
    "30", "host state that is truncated or has other bytes", upstream="0, the destination emptied", ours="StateMismatch"
)
def damaged_host_state(lab: Lab) -> None:
    for name in ("llama", "gemma3", "mamba2", "lfm2"):
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(20)))
        blob = ctx.state_seq_get_data_ext(0, NONE)
        for cut in (0, 4, 8, 12, 40, len(blob) // 2, len(blob) - 1):
            with lab.refused(StateMismatch, "sequence 1"):
                ctx.state_seq_set_data_ext(blob[:cut], 1, NONE)
            check(ctx.memory.seq_pos_max(1) == -1, f"{cut} bytes left rows behind")
        with lab.refused(StateMismatch, "sequence 1"):
            ctx.state_seq_set_data_ext(b"\xff" * len(blob), 1, NONE)


@case(
    "31",
    "host state whose positions or counts were changed",
    upstream="accepted; positions of -1 or beyond stay in the cache",
    ours="StateMismatch",
)
def host_state_with_impossible_positions(lab: Lab) -> None:
    for name, at in (("llama", 16), ("gemma3", 16), ("mamba2", 12)):
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(20)))
        blob = ctx.state_seq_get_data_ext(0, NONE)
        for pos in (-1, -(2**31), 2**31 - 1):
            damaged = bytearray(blob)
            struct.pack_into("<i", damaged, at, pos)
            with lab.refused(StateMismatch, pos):
                ctx.state_seq_set_data_ext(damaged, 1, NONE)
            check(ctx.memory.seq_pos_max(1) == -1, f"position {pos} left rows behind")


@case("32", "host state of another model or cache type", upstream="0, the destination emptied", ours="StateMismatch")
def host_state_of_another_model(lab: Lab) -> None:
    source = lab.context()
    lab.feed(source, (0, 0, tokens(20)))
    blob = source.state_seq_get_data_ext(0, NONE)
    whole = source.state_get_data()
    for ctx in (lab.context("lfm2"), lab.context("mamba2"), lab.context(type_k="f32", type_v="f32")):
        lab.feed(ctx, (0, 0, tokens(9)))
        with lab.refused(StateMismatch, "sequence 1"):
            ctx.state_seq_set_data_ext(blob, 1, NONE)
        lab.forget(ctx, 1)
        if ctx.model.arch != "llama":
            with lab.refused(StateMismatch):
                ctx.state_set_data(whole)
            lab.forget(ctx, 0)


@case(
    "33",
    "flags that are unknown, negative, or not those of the save",
    upstream="0, or a wrong state",
    ours="InvalidArgument, StateMismatch",
)
def wrong_flags(lab: Lab) -> None:
    ctx = lab.context("lfm2")
    lab.feed(ctx, (0, 0, tokens(9)))
    for flags in (4, 8, 2**31, -1, 2**33):
        with lab.refused(InvalidArgument, f"flags={flags}"):
            ctx.state_seq_get_size_ext(0, flags)
        with lab.refused(InvalidArgument, f"flags={flags}"):
            ctx.state_seq_set_data_ext(b"", 1, flags)
    full, partial = ctx.state_seq_get_data_ext(0, NONE), ctx.state_seq_get_data_ext(0, PARTIAL)
    with lab.refused(StateMismatch, "sequence 1"):
        ctx.state_seq_set_data_ext(full, 1, PARTIAL)
    with lab.refused(StateMismatch, "sequence 1"):
        ctx.state_seq_set_data_ext(partial, 1, NONE)
    device = ctx.state_seq_get_data_ext(0, DEVICE)
    with lab.refused(StateMismatch, "flags=2", "flags=3"):
        ctx.state_seq_set_data_ext(device, 1, DEVICE | PARTIAL)
    lab.forget(ctx, 1)


@case(
    "34",
    "state of an empty sequence restored over another",
    upstream="success, and the destination keeps its rows",
    ours="the destination is empty",
)
def empty_state_over_rows(lab: Lab) -> None:
    for name in ("llama", "gemma3", "mamba2", "lfm2", "qwen35"):
        for flags in (NONE, DEVICE):
            ctx = lab.context(name)
            empty = ctx.state_seq_get_data_ext(3, flags)
            lab.feed(ctx, (0, 0, tokens(9)), (1, 0, tokens(12)))
            check(ctx.state_seq_set_data_ext(empty, 1, flags) == len(empty), "the size read is not the state's")
            lab.forget(ctx, 1)
        ctx.state_seq_save_file(lab.folder / "state", 2)
        ctx.state_seq_load_file(lab.folder / "state", 0)
        lab.forget(ctx, 0)


@case(
    "35",
    "partial state restored, later rows left in place",
    upstream="success, wrong logits",
    ours="later rows go; right logits",
)
def partial_state_takes_later_rows_with_it(lab: Lab) -> None:
    for name in ("lfm2", "falcon-h1", "qwen35", "gemma3", "lfm2-swa"):
        for flags in (PARTIAL, PARTIAL | DEVICE):
            ctx = lab.context(name)
            lab.feed(ctx, (0, 0, tokens(30)))
            blob = ctx.state_seq_get_data_ext(0, flags)
            decode(ctx, (0, 30, tokens(12, seed=3)))  # not recorded: it is taken back
            ctx.state_seq_set_data_ext(blob, 0, flags)
            check(ctx.memory.seq_pos_max(0) == 29, f"{name}: the sequence ends at {ctx.memory.seq_pos_max(0)}")
            check(ctx.memory.provenance(0)[-1][1] == 30, f"{name}: {ctx.memory.provenance(0)}")


@case(
    "36",
    "partial state restored where its earlier rows are missing",
    upstream="success, wrong logits",
    ours="StateMismatch",
)
def partial_state_without_its_rows(lab: Lab) -> None:
    for name in ("lfm2", "gemma3"):
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(30)))
        blob = ctx.state_seq_get_data_ext(0, PARTIAL)
        lab.feed(ctx, (1, 0, tokens(10)))
        with lab.refused(StateMismatch, 30, "sequence 1", "up to 9"):
            ctx.state_seq_set_data_ext(blob, 1, PARTIAL)
        lab.forget(ctx, 1)
        with lab.refused(StateMismatch, 30, "sequence 2", "nothing"):
            ctx.state_seq_set_data_ext(blob, 2, PARTIAL)
        lab.forget(ctx, 2)


@case("37", "partial device state restored over other rows", upstream="success, wrong logits", ours="StaleCheckpoint")
def partial_device_state_over_other_rows(lab: Lab) -> None:
    for name in ("lfm2", "gemma3"):
        ctx = lab.context(name)
        lab.feed(ctx, (0, 0, tokens(30)))
        blob = ctx.state_seq_get_data_ext(0, PARTIAL | DEVICE)
        lab.feed(ctx, (1, 0, tokens(30, seed=8)))
        with lab.refused(StaleCheckpoint, "sequence 1"):
            ctx.state_seq_set_data_ext(blob, 1, PARTIAL | DEVICE)


@case("38", "unified or not: state of the other layout", upstream="0", ours="StateMismatch")
def state_of_the_other_layout(lab: Lab) -> None:
    unified, split = lab.context(), lab.context(kv_unified=False)
    for ctx in (unified, split):
        lab.feed(ctx, (0, 0, tokens(20)))
    whole = unified.state_get_data()
    with lab.refused(StateMismatch, "n_stream"):
        split.state_set_data(whole)
    lab.forget(split, 0)


@case("39", "host state with bytes after its end", upstream="accepted; says how many it read", ours="the same number")
def host_state_with_more_bytes(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    blob = ctx.state_seq_get_data_ext(0, NONE)
    read = ctx.state_seq_set_data_ext(blob + bytes(100), 1, NONE)
    check(read == len(blob), f"{read} bytes were read of {len(blob)}")
    check(lab.content(ctx, 1) == lab.content(ctx, 0), "another state was restored")
    ctx.memory.seq_rm(1)


@case("40", "state that does not fit into the free cells", upstream="0, the destination emptied", ours="StateMismatch")
def state_larger_than_the_cache(lab: Lab) -> None:
    large, small = lab.context(n_ctx=512, n_batch=512), lab.context()
    lab.feed(large, (0, 0, tokens(300)))
    lab.feed(small, (0, 0, tokens(20)))
    blob = large.state_seq_get_data_ext(0, NONE)
    with lab.refused(StateMismatch, "sequence 1"):
        small.state_seq_set_data_ext(blob, 1, NONE)
    lab.forget(small, 1)


@case(
    "41",
    "state of a model that keeps no memory, or buffers of other kinds",
    upstream="-",
    ours="TypeError, InvalidArgument, Unsupported",
)
def state_buffers_of_other_kinds(lab: Lab) -> None:
    ctx = lab.context()
    lab.feed(ctx, (0, 0, tokens(20)))
    blob = ctx.state_seq_get_data_ext(0, NONE)
    array = np.frombuffer(blob, dtype=np.uint8)
    for data in (memoryview(blob), bytearray(blob), array, np.repeat(array, 2)[::2]):
        ctx.state_seq_set_data_ext(data, 1, NONE)
        check(lab.content(ctx, 1) == lab.content(ctx, 0), f"{type(data).__name__} restored something else")
    ctx.memory.seq_rm(1)
    for out in (blob, memoryview(bytearray(len(blob) * 2))[::2]):
        with lab.refused(InvalidArgument, "writable"):
            ctx.state_seq_get_data_ext(0, NONE, out=out)
    for data in (None, "text", 5):
        try:
            ctx.state_seq_set_data_ext(data, 1, NONE)
        except TypeError:
            continue
        raise AssertionError(f"{data!r} was taken for a state")
    encoder = lab.context("bert")
    for call in (encoder.state_seq_get_size_ext, encoder.state_seq_get_data_ext):
        with lab.refused(Unsupported, "memory"):
            call(0, NONE)
