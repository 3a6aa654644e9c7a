"""State operations on the kinds of memory that only generated architectures have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lloyal
from lloyal import errors
from tests.decode import distance, feed, some

TOLERANCE = 2e-3
Generated = dict[str, dict[str, Any]]


def new_context(model: lloyal.Model, **parameters: Any) -> lloyal.Context:
    return lloyal.Context(model, **({"n_ctx": 256, "n_seq_max": 2, "n_threads": 1} | parameters))


def next_logits(model: lloyal.Model, text: list[int]) -> np.ndarray:
    """Of a context that has read just this text."""
    with new_context(model) as ctx:
        return feed(ctx, (0, 0, text))[0]


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_states_of_compressed_memory_go_back_where_they_came_from(flags: int, generated: Generated) -> None:
    text = some(100)
    with lloyal.Model(generated["deepseek4-moe"]["path"]) as model:
        ctx = new_context(model)
        feed(ctx, (0, 0, text[:27]))
        ctx.state_seq_set_data_ext(ctx.state_seq_get_data_ext(0, flags), 0, flags)
        expected = next_logits(model, text[:28])
        assert distance(feed(ctx, (0, 27, text[27:28]))[0], expected) < TOLERANCE * np.abs(expected).max()
        ctx.close()


def test_sparse_memory_is_not_shifted(generated: Generated) -> None:
    """Its index keys are stored in a rotation of their own; with a quantized cache the shift ends the process."""
    with lloyal.Model(generated["deepseek32-moe"]["path"]) as model:
        for kind in ("f16", "q8_0"):
            ctx = new_context(model, type_k=kind, type_v=kind, flash_attn="on")
            feed(ctx, (0, 0, some(20)))
            ctx.memory.seq_rm(0, 5, 10)
            assert not ctx.memory.can_shift
            with pytest.raises(errors.Unsupported, match="can_shift"):
                ctx.memory.seq_add(0, 10, 20, -5)


def test_sequences_that_llama_cpp_mixes_up_are_computed_one_by_one(generated: Generated) -> None:
    with lloyal.Model(generated["plamo2-dense"]["path"]) as model:
        ctx = new_context(model)
        with pytest.raises(errors.InvalidBatch, match="plamo2"):
            feed(ctx, (0, 0, some(8)), (1, 0, some(8, 1)))
        batch = lloyal.Batch()
        batch.extend(some(8, 1), 0, 1, False)
        batch.extend(some(8), 0, 0, "last")
        ctx.decode(batch)
        expected = next_logits(model, some(8))
        assert distance(ctx.logits(copy=True), expected) < TOLERANCE * np.abs(expected).max()
        feed(ctx, (1, 8, [5]))


def test_slices_without_room_for_all_change_nothing(generated: Generated) -> None:
    with lloyal.Model(generated["plamo2-dense"]["path"]) as model, new_context(model, n_batch=256) as ctx:
        for start in range(0, 192, 64):
            feed(ctx, (0, start, some(64, start)))
        rows = [ctx.memory.provenance(seq) for seq in (0, 1)]
        batch = lloyal.Batch()
        batch.extend(some(40), 192, 0, False)
        batch.extend(some(40), 0, 1, "last")
        with pytest.raises(errors.CacheFull, match="80 more tokens"):
            ctx.decode(batch)
        assert [ctx.memory.provenance(seq) for seq in (0, 1)] == rows
