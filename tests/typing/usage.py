"""Typed use of the public names. Never run: mypy checks it, and an error marked here must really be one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import lloyal
from lloyal import Batch, Context, Device, Logits, Memory, Model, StateSeqFlags, Vocab


def models(path: str) -> None:
    with Model(path, n_gpu_layers=0, devices=[], use_mmap=True, progress=lambda done: done < 1.0) as model:
        assert_type(model.vocab, Vocab)
        assert_type(model.metadata, dict[str, str])
        assert_type(model.vocab.tokenize("def f():", add_special=False), list[int])
        assert_type(model.vocab.token_to_piece(3), bytes)
        assert_type(model.n_params, int)
    Model(path, n_gpu_layer=0)  # type: ignore[call-arg]
    Model(path, use_mmap="yes")  # type: ignore[arg-type]
    model.path = "other"  # type: ignore[misc]


def contexts(model: Model, tokens: Sequence[int]) -> None:
    ctx = Context(model, n_ctx=512, n_seq_max=4, type_k="q8_0", flash_attn=True)
    assert_type(ctx.memory, Memory)
    batch = Batch()
    batch.extend(tokens, 0, 0, logits="last")
    batch.extend(np.asarray(tokens, dtype=np.int64), 0, [0])  # type: ignore[arg-type]
    batch.extend(tokens, 0, 0, logits="first")  # type: ignore[arg-type]
    ctx.decode(batch)
    ctx.decode(list(tokens))  # type: ignore[arg-type]


def outputs(ctx: Context) -> None:
    row = ctx.logits(-1)
    assert_type(row, Logits)
    assert_type(row[0], float)
    assert_type(row[:8], NDArray[np.float32])
    assert_type(row.argmax(), int)
    assert_type(ctx.logits(copy=True), NDArray[np.float32])
    mine = np.empty(10, dtype=np.float32)
    ctx.logits(out=mine).sum()
    np.asarray(row)
    memoryview(row)


def states(ctx: Context) -> None:
    blob = ctx.state_seq_get_data_ext(0, StateSeqFlags.ON_DEVICE | StateSeqFlags.PARTIAL_ONLY)
    assert_type(blob, bytes)
    assert_type(ctx.state_seq_get_data_ext(0, 0, bytearray(100)), int)
    assert_type(ctx.state_seq_set_data_ext(blob, 1, StateSeqFlags.ON_DEVICE), int)
    ctx.state_seq_set_data_ext("text", 1)  # type: ignore[arg-type]
    ctx.memory.seq_cp(0, 1)
    if ctx.memory.can_rollback(0, 3) == "trim":
        ctx.memory.seq_rm(0, 5)


def errors(ctx: Context, batch: Batch) -> None:
    try:
        ctx.decode(batch)
    except lloyal.errors.CacheFull as error:
        assert_type(error.status, int | None)
    except (lloyal.errors.InvalidBatch, ValueError, lloyal.errors.LloyalError):
        raise


def devices() -> None:
    found = lloyal.devices()
    assert_type(found, list[Device])
    assert_type(found[0].memory, tuple[int, int])
    assert_type(lloyal.models.path("nano"), str)
    assert_type(lloyal.live_handles(), dict[str, int])


def text(ctx: Context, model: Model) -> None:
    ctx.checkpoint(0, where="host")
    ctx.checkpoint(0, where="disk")  # type: ignore[arg-type]
    Context(model, type_k="q3_k")  # type: ignore[arg-type]
    Context(model, pooling="mean", flash_attn="auto")
    made = lloyal.generate(ctx, "x", json_schema={"type": "object"}, stop=["\n"])
    assert_type(list(made), list[int])
    lloyal.generate(ctx, "x", temperature=0.5)  # type: ignore[call-overload]
    assert_type(list(lloyal.generate(ctx, "x", n=2)), list[tuple[int, int]])
    assert_type(lloyal.generate_many(ctx, ["x", b"y", [1, 2]], max_tokens=[1, None, 3]).texts, list[str])
    lloyal.generate(ctx, "x", n=2, seq_id=1)  # type: ignore[call-overload]
    talk = lloyal.Conversation(ctx, system="x")
    assert_type(talk.say("hi").read(), str)
    assert_type(lloyal.chat.builtin_templates(), list[str])
    if made.stop_reason == "lenght":  # type: ignore[comparison-overlap]
        raise AssertionError
    lloyal.generate(ctx, [1, 2], sampling=Own())


class Own:
    def sample(self, ctx: lloyal.llama.Context, index: int = -1, /) -> int:
        return ctx.logits(index).argmax()
