"""For how long a context keeps the hidden rows that heads read."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from lloyal import BranchStore
from lloyal.errors import InvalidArgument
from lloyal.native.hidden import hidden_rows
from lloyal.speculative import Speculator
from tests.speculative.test_heads import PROMPTS, Pair


def test_rows_are_kept_as_long_as_a_head_reads_them() -> None:
    """And for heads that read the same layers only."""
    pair = Pair("eagle3")
    try:
        first = pair.made(pair.head_ctx)
        speculator: Speculator | None = Speculator(pair.ctx, first, n=2)
        with pair.on(pair.ctx) as other:
            second = pair.made(other)
            Speculator(pair.ctx, second, n=2)
            changed: Any = pair.made(other)
            changed._layers_of = lambda ctx: (0, 1, 2)
            with pytest.raises(InvalidArgument, match="one kind at a time"):
                Speculator(pair.ctx, changed, n=2)
            with pytest.raises(InvalidArgument, match="on top of another context"):
                Speculator(other, pair.made(other), n=2)
            layers = first.layers

            def n_kept() -> int:
                gc.collect()
                with BranchStore(pair.ctx) as store:
                    return len(hidden_rows(store.create(PROMPTS[0]), layers, 0)[1])

            assert n_kept() == len(PROMPTS[0])
            del first, speculator
            assert n_kept() == len(PROMPTS[0])  # the second still reads them
            del second, changed
            assert n_kept() == 0
    finally:
        pair.close()
