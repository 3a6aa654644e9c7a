"""Contexts beside the lists of what they must hold, and every check that follows an operation."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import lloyal
from lloyal.errors import LloyalError
from tests.fuzz.state_config import Config, loaded
from tests.fuzz.state_model import EMPTY, Content, groups
from tests.fuzz.state_native import View, view
from tests.fuzz.state_oracle import Oracle
from tests.models import RECIPES

Run = tuple[int, int, int, int]


class Violation(Exception):
    """Something is not what it must be. `kind` says which check found it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Side:
    """One context and what its sequences must hold."""

    def __init__(self, config: Config, model: lloyal.Model, which: int) -> None:
        self.which = which
        self.config = config
        self.ctx = config.context(model, which)
        self.n_seq = self.ctx.n_seq_max
        self.seqs: list[Content] = [EMPTY] * self.n_seq
        self.provenance: list[list[Run]] = [[] for _ in range(self.n_seq)]
        self.seen: list[tuple[Content, int] | None] = [None] * self.n_seq  # what was compared, with which bytes
        self.tenants: set[int] = set()
        self.held: dict[int, str] = {}  # sequences that hold the cells of a checkpoint, and its name
        self.device_saves: dict[int, int] = {}
        self.adapter = 0
        self.tenancy = lloyal.kv.Tenancy(self.ctx)


@cache
def adapters(name: str) -> list[lloyal.llama.LoraAdapter]:
    """Two adapters of keys, queries and the feed-forward part."""
    made = []
    recipe = RECIPES[name](0)
    folder = Path(tempfile.mkdtemp(prefix="lloyal-adapter-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        path = folder / f"{name}-{seed}.gguf"
        writer = gguf.GGUFWriter(path, recipe.arch)
        writer.add_string("general.type", "adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 8.0)
        for tensor, values in recipe.tensors.items():
            if re.search(r"attn_[kqv]\.weight|ffn_down\.weight", tensor):
                n_out, n_in = values.shape
                writer.add_tensor(f"{tensor}.lora_a", rng.normal(0, 0.2, (4, n_in)).astype(np.float32))
                writer.add_tensor(f"{tensor}.lora_b", rng.normal(0, 0.2, (n_out, 4)).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        made.append(lloyal.llama.LoraAdapter(loaded(name), path))
    return made


_oracles: dict[tuple[Any, ...], Oracle] = {}


def oracle_for(config: Config) -> Oracle:
    key = (config.model, config.type_k, config.type_v, config.flash, config.adapters)
    if key not in _oracles:
        if len(_oracles) >= 3:
            _oracles.pop(next(iter(_oracles))).close()
        model = loaded(config.model)
        _oracles[key] = Oracle(config, model, adapters(config.model) if config.adapters else [])
        _oracles[key].calibrate()
    return _oracles[key]


class World:
    def __init__(self, config: Config, avoid: frozenset[str] = frozenset()) -> None:
        self.config = config
        self.avoid = avoid  # what is known to be wrong, see state_config.KNOWN
        self.model = loaded(config.model)
        self.oracle = oracle_for(config)
        self.sides = [Side(config, self.model, which) for which in range(1 if config.second is None else 2)]
        self.saved: dict[str, Any] = {}  # checkpoints and states by name
        self.n_named = 0
        self.rows_of: dict[tuple[int, int], int] = {}  # content id of lloyal: row of the model
        self.bytes_of: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] = {}  # cache and rows: hashes
        self.state_of: dict[int, bytes] = {}
        self.views: dict[int, View] = {}
        self.counts: dict[str, int] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="lloyal-state-"))
        self.last_error: LloyalError | None = None

    def close(self) -> None:
        for saved in self.saved.values():
            saved.release()
        for side in self.sides:
            side.ctx.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Calls

    def attempt(self, what: str, call: Callable[[], object]) -> LloyalError | None:
        """Make a call; the error of ours that it raised. What else it raises is wrong."""
        self.last_error = None
        try:
            call()
        except LloyalError as error:
            if isinstance(error, (lloyal.errors.Busy, lloyal.errors.Closed)):
                raise Violation("error", f"{type(error).__name__}: {error}") from error
            self.last_error = error
            name = f"{what}: {type(error).__name__}"
        except Violation:
            raise
        except Exception as error:
            raise Violation("error", f"{type(error).__name__}: {error}") from error
        else:
            name = what
        self.counts[name] = self.counts.get(name, 0) + 1
        return self.last_error

    def emptied(self, side: Side, error: LloyalError, dest: int | None = None) -> None:
        """What a message says is empty now."""
        text = "\n".join([str(error), *getattr(error, "__notes__", ())])
        for seq in re.findall(r"sequence (\d+)(?: is|, which is) (?:now )?empty", text):
            side.seqs[int(seq)] = EMPTY
        if dest is not None and "the sequence is now empty" in text:
            side.seqs[dest] = EMPTY
        if "the context is now empty" in text:
            side.seqs = [EMPTY] * side.n_seq

    def new_name(self) -> str:
        """For what an operation that is being chosen will keep: its name stays when others are dropped."""
        self.n_named += 1
        return f"s{self.n_named}"

    # Checks

    def check(self) -> None:
        for side in self.sides:
            for seq in range(side.n_seq):
                try:
                    self.check_sequence(side, seq)
                except Violation as found:
                    if self.last_error is None:
                        raise
                    error = self.last_error
                    raise Violation(
                        "changed", f"after {type(error).__name__} ({error}; {getattr(error, '__notes__', '')}): {found}"
                    ) from None

    def check_sequence(self, side: Side, seq: int) -> None:
        content = side.seqs[seq]
        memory = side.ctx.memory
        here = f"sequence {seq} of context {side.which}"
        low, high = memory.seq_pos_min(seq), memory.seq_pos_max(seq)
        if high != content.end - 1:
            raise Violation("position", f"{here}: seq_pos_max is {high}, it must hold {_brief(content)}")
        runs = memory.provenance(seq)
        at: dict[int, tuple[tuple[int, int], ...]] = {}
        for begin, end, epoch, first in runs:
            for pos in range(begin, end):
                at[pos] = (*at.get(pos, ()), (epoch, first + pos - begin))
        places = groups(content)
        seen = side.seen[seq]
        same = self.last_error is not None and seen is not None and seen[0] is content
        if same and runs != side.provenance[seq]:
            raise Violation("provenance", f"{here}: was {side.provenance[seq]}, is {runs}")
        side.provenance[seq] = runs
        if list(at) != list(places):
            raise Violation("provenance", f"{here} has {_ranges(list(at))}, it must hold {_brief(content)}")
        for pos, rows in places.items():
            if len(at[pos]) != len(rows):
                raise Violation("provenance", f"{here} has {len(at[pos])} ids at {pos}, it must hold {len(rows)} rows")
            if any(self.rows_of.setdefault(*pair) != pair[1] for pair in zip(at[pos], rows, strict=True)):
                raise Violation("provenance", f"{here}: the id of position {pos} stood for other content before")
        if not content.rows:
            side.seen[seq] = None
            return
        if self.config.kind == "attention" and low != content.begin:
            raise Violation("position", f"{here}: seq_pos_min is {low}, it must hold {_brief(content)}")
        if not self.config.readable:
            return
        blob = side.ctx.state_seq_get_data_ext(seq)
        key = hash(blob[8:])
        if side.seen[seq] == (content, key):
            return
        found = self.views.get(key)
        if found is None:
            if len(self.views) > 64:
                self.views.clear()
            found = self.views[key] = view(blob, self.config)
        self.compare(side, here, content, places, found)
        side.seen[seq] = (content, key)

    def compare(self, side: Side, here: str, content: Content, places: dict[int, tuple[int, ...]], found: View) -> None:
        for i, held in enumerate(found.caches):
            if i == 0:
                needed = allowed = set(places)
            else:
                next_begin = side.ctx.memory.window_begin(content.end)
                last_begin = side.ctx.memory.window_begin(content.end - 1)
                needed = {pos for pos in places if pos >= next_begin}
                allowed = {pos for pos in places if pos >= last_begin}
            have = set(held.at)
            if needed - have:
                raise Violation(
                    "rows", f"{here}: cache {i} lacks {_ranges(sorted(needed - have))} of {_brief(content)}"
                )
            if have - allowed:
                raise Violation(
                    "rows", f"{here}: cache {i} has {_ranges(sorted(have - allowed))} besides {_brief(content)}"
                )
            for pos, words in held.at.items():
                rows = places[pos]
                if pos not in needed and len(words) < len(rows):
                    continue  # a division has put rows together of which the window had passed some
                if len(words) != len(rows):
                    raise Violation("rows", f"{here}: cache {i} has {len(words)} rows at {pos}, not {len(rows)}")
                if self.bytes_of.setdefault((i, rows), words) != words:
                    raise Violation("bytes", f"{here}: cache {i} has other bytes at {pos} than this row had before")
        if content.state is not None and self.state_of.setdefault(content.state, found.state or b"") != found.state:
            raise Violation("bytes", f"{here}: another recurrent state than it had before")

    def check_logits(self, got: np.ndarray, content: Content) -> None:
        """`got`: logits after each of the last rows of a sequence, shape (n, n_vocab)."""
        wrong = self.oracle.far(got, content.recipe)
        if wrong:
            raise Violation("logits", wrong)


def _ranges(positions: list[int]) -> str:
    found: list[list[int]] = []
    for pos in positions:
        if found and pos == found[-1][1]:
            found[-1][1] = pos + 1
        else:
            found.append([pos, pos + 1])
    return " ".join(f"{begin}..{end - 1}" if end - begin > 1 else f"{begin}" for begin, end in found) or "nothing"


def _brief(content: Content) -> str:
    return _ranges(sorted({pos for pos, _ in content.rows}))
