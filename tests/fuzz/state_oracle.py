"""What logits must be: the recipe of a sequence, computed again alone in a context that keeps every row.

Another split of the same tokens moves the last bits of sums, so a bar is measured for each kind of context. What
exceeds it is computed again in other ways before it is called wrong.
"""

from __future__ import annotations

import random
from functools import cache

import numpy as np

import lloyal
from lloyal.errors import Unsupported
from tests.checkpoints.raw_state import Cache, RawState, Tensor, parse
from tests.fuzz.state_config import Config
from tests.fuzz.state_model import END, Recipe, Step, is_row
from tests.models import N_EMBD, N_VOCAB

# No measured noise makes the bar lower than this part of the largest logit.
FLOOR = {"f32": 1e-3, "f16": 2e-2, "q8_0": 3e-2, "q4_0": 1e-1}
FLASH_FLOOR = 1e-2  # its tiles round what they sum


@cache
def embedding(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(0.0, 0.7, (1, N_EMBD)).astype(np.float32)


def tokens(seed: int, n: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(N_VOCAB) for _ in range(n)]


class NotComparable(Exception):
    """The oracle cannot keep what this recipe would need."""


class Oracle:
    N_SLOTS = 4

    def __init__(self, config: Config, model: lloyal.Model, adapters: list[lloyal.llama.LoraAdapter]) -> None:
        self.config = config
        self.model = model
        self.adapters = adapters
        self.slots: list[Slot] = []
        self.bar = 0.0

    def slot(self, recipe: Recipe) -> Slot:
        """The one that is furthest on the way to `recipe`."""
        best, length = None, 0
        for slot in self.slots:
            n = len(slot.recipe)
            if n > length and n <= len(recipe) and recipe[:n] == slot.recipe:
                best, length = slot, n
        if best is None:
            if len(self.slots) < self.N_SLOTS:
                self.slots.append(Slot(self))
                best = self.slots[-1]
            else:
                best = self.slots[0]
                best.clear()
        self.slots.remove(best)
        self.slots.append(best)
        return best

    def logits(self, recipe: Recipe, n_last: int) -> np.ndarray:
        """After each of the last `n_last` steps, which compute rows; shape (n_last, n_vocab)."""
        slot = self.slot(recipe[: len(recipe) - n_last])
        slot.go_to(recipe[: len(recipe) - n_last])
        return slot.rows(recipe[len(recipe) - n_last :], 256)

    def differently(self, recipe: Recipe, n_last: int, chunks: tuple[int, ...] = (1, 7, 33, 64)) -> list[np.ndarray]:
        """The same by other splits into batches."""
        found = []
        for chunk in chunks:
            slot = self.slots[0] if self.slots else self.slot(())
            slot.clear()
            # The last rows in a batch with those before them: flash attention takes another way for many at once.
            begin = len(recipe) - n_last
            while begin > 0 and len(recipe) - begin < chunk and is_row(recipe[begin - 1]):
                begin -= 1
            slot.go_to(recipe[:begin], chunk)
            found.append(slot.rows(recipe[begin:], chunk)[-n_last:])
        return found

    def among_others(self, recipe: Recipe, n_last: int) -> list[np.ndarray]:
        """The same with its rows in other cells and in another order: flash attention adds up in F16, cell by cell."""
        found = []
        for seed, chunk in enumerate((1, 7, 33, 64)):
            slot = Slot(self, random.Random(seed))
            slot.go_to(recipe[:-n_last], chunk)
            found.append(slot.rows(recipe[-n_last:], chunk))
            slot.ctx.close()
        return found

    def calibrate(self) -> float:
        """How far another split moves logits, relative to the largest."""
        worst = 0.0
        for seed in range(2):
            recipe = tuple(("t", i, token, 0) for i, token in enumerate(tokens(seed, 60)))
            whole = self.logits(recipe, 40)
            scale = float(np.abs(whole).max())
            worst = max(worst, *(float(np.abs(other - whole).max()) / scale for other in self.differently(recipe, 40)))
        self.bar = max(4 * worst, FLOOR[self.config.type_k], FLOOR[self.config.type_v], FLASH_FLOOR * self.config.flash)
        return worst

    def far(self, got: np.ndarray, recipe: Recipe) -> str | None:
        """Why `got`, after each of the last steps of `recipe`, is wrong; None if it is right."""
        try:
            expected = self.logits(recipe, len(got))
            scale = max(float(np.abs(expected).max()), 1.0)
            far = float(np.abs(got - expected).max()) / scale
            if far <= self.bar:
                return None
            others = self.differently(recipe, len(got), (1, 2, 3, 5, 7, 8, 12, 16, 33, 64, 128))
            others += self.among_others(recipe, len(got))
        except NotComparable:
            return None
        noise = max(float(np.abs(other - expected).max()) / scale for other in others)
        nearest = min(far, *(float(np.abs(got - other).max()) / scale for other in others))
        if nearest <= max(self.bar, 3 * noise):
            return None
        worst = int(np.abs(got - expected).max(axis=1).argmax())
        return (
            f"logits of row {worst} of {len(got)} are off by {far:.3g} of the largest, other batches by {noise:.2g} "
            f"(the bar is {self.bar:.2g}); by row: {np.round(np.abs(got - expected).max(axis=1) / scale, 3).tolist()}"
        )

    def close(self) -> None:
        for slot in self.slots:
            slot.ctx.close()


class Slot:
    """A context with one sequence; with `company` rows of a second one come and go between its own."""

    def __init__(self, oracle: Oracle, company: random.Random | None = None) -> None:
        self.oracle = oracle
        self.config = oracle.config
        self.company = company
        self.ctx = oracle.config.oracle(oracle.model, 1 if company is None else 2)
        self.recipe: Recipe = ()
        self.chunk = 256  # tokens of a batch
        self.adapter = 0
        self.merged = False

    def clear(self) -> None:
        self.ctx.memory.clear()
        self.recipe = ()
        self.merged = False

    def go_to(self, recipe: Recipe, chunk: int = 256) -> None:
        if recipe[: len(self.recipe)] != self.recipe:
            self.clear()
        self.chunk = chunk
        left = recipe[len(self.recipe) :]
        while left:
            n = next((i for i, step in enumerate(left) if not is_row(step)), len(left))
            if n:
                self.rows(left[:n], chunk, outputs=False)
            else:
                try:
                    self.change(left[0])
                except Unsupported as error:
                    # Even a window cache of full size gives the cells of rows that the window has passed to others.
                    raise NotComparable from error
                n = 1
            left = left[n:]

    def rows(self, steps: Recipe, chunk: int, outputs: bool = True) -> np.ndarray:
        found = []
        at = 0
        while at < len(steps):
            first = steps[at]
            n = 1
            # Tokens and embeddings do not mix in a batch, and an adapter is the whole batch's.
            while (
                at + n < len(steps)
                and n < chunk
                and (steps[at + n][0], steps[at + n][3]) == (first[0], first[3])
                and steps[at + n][1] == first[1] + n
            ):
                n += 1
            found.append(self.decode(steps[at : at + n], outputs))
            at += n
        return np.concatenate(found) if outputs else np.zeros((0, 0))

    def decode(self, steps: Recipe, outputs: bool) -> np.ndarray:
        kind, pos, _, adapter = steps[0]
        if adapter != self.adapter:
            self.ctx.set_adapters_lora([self.oracle.adapters[adapter - 1]] if adapter else [])
            self.adapter = adapter
        batch = lloyal.Batch()
        if kind == "t":
            batch.extend([step[2] for step in steps], pos, 0, outputs)
        else:
            batch.extend_embd(np.concatenate([embedding(step[2]) for step in steps]), pos, 0, outputs)
        if self.company is not None:
            others = [self.company.randrange(N_VOCAB) for _ in range(self.company.choice((0, 3, 2 * len(steps))))]
            if others:
                beside = lloyal.Batch()
                beside.extend(others, self.ctx.memory.seq_pos_max(1) + 1, 1)
                self.ctx.decode(beside)
            elif self.company.random() < 0.5:
                self.ctx.memory.seq_rm(1)
        self.ctx.decode(batch)
        self.recipe += steps
        if not outputs:
            return np.zeros((0, 0))
        return np.stack([self.ctx.logits(i, copy=True) for i in range(len(steps))])

    def change(self, step: Step) -> None:
        memory = self.ctx.memory
        if step[0] == "rm":
            if self.merged and self.config.has_window:
                raise NotComparable
            memory.seq_rm(0, step[1], -1 if step[2] == END else step[2])
        elif step[0] == "add":
            memory.seq_add(0, *step[1:])
        elif step[0] == "div":
            memory.seq_div(0, *step[1:])
        elif step[0] == "edited":
            raise NotComparable
        else:
            self.take(*step[1:])
        self.recipe += (step,)

    def state(self) -> RawState:
        return parse(self.ctx.state_seq_get_data_ext(0), self.config.kind, self.config.mrope)

    def take(self, recipe: Recipe, p0: int, p1: int) -> None:
        if self.config.has_state or not self.config.readable:
            raise NotComparable
        memory = self.ctx.memory
        mine, own = self.recipe, self.state()
        sources = [(own, -1, END)]
        if self.config.has_window:
            # A state has the window of its last row only; its rows before p0 may come into the window again.
            memory.seq_rm(0, p0, -1)
            sources.append((self.state(), -1, p0))
        self.clear()
        self.go_to(recipe, self.chunk)
        if self.config.has_window and memory.seq_pos_max(0) >= p1:
            memory.seq_rm(0, p1, -1)
        sources.insert(0, (self.state(), p0, p1))
        caches = []
        for i in range(self.config.n_caches):
            caches.append(union([(state.caches[i], begin, end) for state, begin, end in sources]))
        self.ctx.state_seq_set_data_ext(RawState(caches, b"").encode(), 0)
        self.recipe = mine
        self.merged = True


def union(parts: list[tuple[Cache, int, int]]) -> Cache:
    """The rows of each part in its range of positions; of a position that two have, those of the first."""
    chosen: dict[int, list[tuple[Cache, int]]] = {}  # several rows after a division
    for part, begin, end in parts:
        found: dict[int, list[tuple[Cache, int]]] = {}
        for i, pos in enumerate(part.positions.tolist()):
            if begin <= pos < end:
                found.setdefault(pos, []).append((part, i))
        chosen = found | chosen
    order = [(pos, *row) for pos in sorted(chosen) for row in chosen[pos]]
    like = next(part for part, _, _ in parts if part.tensors)
    tensors = []
    for t, tensor in enumerate(like.tensors):
        data = np.stack([part.tensors[t].data[:, i] for _, part, i in order], axis=1)
        tensors.append(Tensor(tensor.header, data))
    ext = np.stack([part.ext[i] for _, part, i in order])
    positions = np.array([pos for pos, _, _ in order], np.int32)
    return Cache(like.n_stream, positions, ext, like.layers_header, tensors)
