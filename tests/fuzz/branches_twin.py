"""What a branch must be: its tokens, and a chain of samplers that is handed the branch's logits."""

from __future__ import annotations

import dataclasses
import math
import struct

import numpy as np

import lloyal
from lloyal import Sampling

MEMORIES = {14, 15, 17}  # grammar, penalties, dry: what a sampler keeps of accepted tokens; the others draw


def leaves(state: bytes) -> list[tuple[int, bytes, bytes]]:
    """Type, configuration and content of the samplers in a chain's state."""
    (n,) = struct.unpack_from("<I", state, 5)
    at, found = 9, []
    for _ in range(n):
        kind, config, size = state[at], state[at + 1 : at + 9], struct.unpack_from("<I", state, at + 9)[0]
        found.append((kind, config, state[at + 13 : at + 13 + size]))
        at += 13 + size
    return found


def with_draws(built: lloyal.Sampler, old: bytes) -> lloyal.Sampler:
    """A chain as it was built, but with the random generators of another one's state."""
    out = bytearray(built.state()[:9])
    drawn = [(kind, content) for kind, _, content in leaves(old) if kind not in MEMORIES]
    for kind, config, content in leaves(built.state()):
        for i, (other, taken) in enumerate(drawn):
            if other == kind:
                content = taken
                del drawn[i]
                break
        out += bytes([kind]) + config + struct.pack("<I", len(content)) + content
    built.set_state(bytes(out))
    return built


@dataclasses.dataclass
class Twin:
    """What a branch must be."""

    tokens: list[int]
    accepted: list[bool]
    log_probs: list[float]
    sampling: Sampling
    prompt: list[int]
    sampler: lloyal.Sampler
    bias: dict[int, float]
    ended: bool = False
    passed: int | None = None  # accepted, and not read yet

    def copy(self) -> Twin:
        return dataclasses.replace(
            self, tokens=list(self.tokens), accepted=list(self.accepted), log_probs=list(self.log_probs),
            sampler=self.sampler.clone(),
        )  # fmt: skip

    @property
    def heard(self) -> list[int]:
        return self.prompt + [token for token, accepted in zip(self.tokens, self.accepted, strict=True) if accepted]

    def pick(self, row: np.ndarray) -> int:
        row = row.copy()
        for token, value in self.bias.items():
            row[token] += np.float32(value)
        token = self.sampler.apply(row).token
        assert token is not None
        return token

    def accept(self, token: int) -> None:
        self.sampler.accept(token)

    def read(self, tokens: list[int], row: np.ndarray | None, accepted: bool) -> None:
        """What one call of the store does to it."""
        for k, token in enumerate(tokens):
            passed = k == 0 and self.passed == token
            if accepted and not passed:
                self.accept(token)
            self.tokens.append(token)
            self.accepted.append(accepted or passed)
            self.log_probs.append(log_prob(row, token) if k == 0 and row is not None else math.nan)
        if tokens:
            self.passed, self.ended = None, False


def log_prob(row: np.ndarray, token: int) -> float:
    wide = row.astype(np.float64)
    top = wide.max()
    return float(wide[token] - top - np.log(np.exp(wide - top).sum()))
