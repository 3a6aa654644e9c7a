"""Memory against a plain model of it: whatever the memory lets us do, every sequence goes on as if freshly read.

Random operations run on a context and on a dictionary ``sequence -> tokens``. At the end each sequence decodes a few
more tokens, and a context that reads the same tokens from the start must give the same logits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lloyal
from lloyal.errors import CacheFull, Unsupported
from tests.decode import distance, feed
from tests.models import WINDOW, tiny, tokens

N_SEQ = 4
RING = 3
# f32 caches and no flash attention (which rounds to f16): only the order of additions moves a logit, by under 1e-4.
CONTEXT: dict[str, Any] = {
    "n_ctx": 512,
    "n_batch": 64,
    "n_ubatch": 32,
    "n_seq_max": N_SEQ,
    "n_threads": 1,
    "type_k": "f32",
    "type_v": "f32",
    "flash_attn": "off",
}
TOLERANCE = 1e-3
N_EXAMPLES = 1000 if os.environ.get("LLOYAL_TEST_FULL") else 15

MODELS = ("llama", "gemma3", "llama4", "mamba2", "lfm2", "lfm2-swa", "falcon-h1", "qwen35")

seqs = st.integers(0, N_SEQ - 1)
OPERATIONS = st.one_of(
    st.tuples(st.just("decode"), st.dictionaries(seqs, st.integers(1, 6), min_size=1, max_size=N_SEQ)),
    st.tuples(st.just("prompt"), seqs, st.integers(7, 60)),
    st.tuples(st.just("rollback"), seqs, st.integers(0, WINDOW + 4)),
    st.tuples(st.just("fork"), seqs, seqs),
    st.tuples(st.just("remove"), seqs),
    st.tuples(st.just("keep"), seqs),
    st.tuples(st.just("copy by state"), seqs, seqs, st.sampled_from([0, int(lloyal.StateSeqFlags.ON_DEVICE)])),
)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Iterator[lloyal.Model]:
    with lloyal.Model(tiny(request.param)) as model:
        yield model


class Twin:
    """A context and what its sequences should hold."""

    def __init__(self, model: lloyal.Model, unified: bool) -> None:
        self.ctx = lloyal.Context(model, **CONTEXT, kv_unified=unified, n_rs_seq=RING)
        self.held: dict[int, list[int]] = {seq: [] for seq in range(N_SEQ)}
        self.fresh = 0

    def take(self, n: int) -> list[int]:
        self.fresh += 1
        return tokens(n, self.fresh)

    def decode(self, lengths: dict[int, int]) -> None:
        parts = [(seq, len(self.held[seq]), self.take(n)) for seq, n in lengths.items()]
        try:
            feed(self.ctx, *parts)
        except CacheFull:
            return
        for seq, _, new in parts:
            self.held[seq] += new

    def prompt(self, seq: int, n: int) -> None:
        self.decode({seq: n})

    def rollback(self, seq: int, n: int) -> None:
        n = min(n, len(self.held[seq]))
        how = self.ctx.memory.can_rollback(seq, n)
        if how is None:
            if n and self.held[seq]:
                before = self.ctx.memory.provenance(seq)
                with pytest.raises(Unsupported):
                    self.ctx.memory.seq_rm(seq, len(self.held[seq]) - n, -1)
                assert self.ctx.memory.provenance(seq) == before
            return
        self.ctx.memory.seq_rm(seq, len(self.held[seq]) - n, -1)
        del self.held[seq][len(self.held[seq]) - n :]

    def fork(self, src: int, dst: int) -> None:
        if src == dst or not self.held[src]:
            return
        self.remove(dst)
        self.ctx.memory.seq_cp(src, dst)
        self.held[dst] = list(self.held[src])

    def remove(self, seq: int) -> None:
        self.ctx.memory.seq_rm(seq, -1, -1)
        self.held[seq] = []

    def keep(self, seq: int) -> None:
        self.ctx.memory.seq_keep(seq)
        self.held = {s: held if s == seq else [] for s, held in self.held.items()}

    def copy_by_state(self, src: int, dst: int, flags: int) -> None:
        if not self.held[src]:
            return
        try:
            state = self.ctx.state_seq_get_data_ext(src, flags)
        except Unsupported:
            # Without flash attention llama.cpp aborts on some second device saves of a sequence; they are refused.
            if flags & lloyal.StateSeqFlags.ON_DEVICE:
                return
            raise
        self.ctx.state_seq_set_data_ext(state, dst, flags)
        self.held[dst] = list(self.held[src])

    def check(self) -> None:
        for seq, held in self.held.items():
            assert self.ctx.memory.seq_pos_max(seq) == len(held) - 1
        with lloyal.Context(self.ctx.model, **CONTEXT) as reader:
            for seq, held in self.held.items():
                if len(held) > 2 * CONTEXT["n_batch"]:
                    continue
                more = self.take(3)
                for token in more:
                    [got] = feed(self.ctx, (seq, len(held), [token]))
                    held.append(token)
                reader.memory.clear()
                for start in range(0, len(held), CONTEXT["n_batch"]):
                    [expected] = feed(reader, (0, start, held[start : start + CONTEXT["n_batch"]]))
                off = distance(got, expected)
                assert off < TOLERANCE, f"sequence {seq} is off by {off}"


@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
@settings(max_examples=N_EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(operations=st.lists(OPERATIONS, min_size=1, max_size=16))
def test_every_sequence_goes_on_as_if_freshly_read(
    model: lloyal.Model, unified: bool, operations: list[tuple[Any, ...]]
) -> None:
    twin = Twin(model, unified)
    with twin.ctx:
        for operation, *arguments in operations:
            getattr(twin, operation.replace(" ", "_"))(*arguments)
        twin.check()
