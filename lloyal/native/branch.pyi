# Written by tools/stubs.py from branch.pyx.
"""Native calls behind `lloyal.Branch` and `lloyal.BranchStore`. Not for direct use."""

from collections.abc import Sequence
from lloyal.llama.base import ContextBase
from lloyal.llama.sampler import Sampler
from numpy import float32
from numpy.typing import NDArray
from typing import Any
from typing_extensions import Buffer

BufferLike = Buffer | NDArray[Any]

__all__ = ["BranchBase", "Draws", "LogitsRow", "draw", "read", "step", "steps_alone", "unseated"]

class LogitsRow:
    """One row of logits that nobody changes any more, as a read-only buffer of float32."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

class BranchBase:
    """The handle of a branch. See `lloyal.Branch`."""

    def _create_native(self, ctx: ContextBase, sampler: Sampler | None) -> None: ...
    def _fork_native(self, source: BranchBase, seed: int) -> None: ...
    def _keep_native(self, source: BranchBase, where: str) -> None: ...
    def _note_native(self, source: BranchBase) -> None: ...
    def _assign_native(self, source: BranchBase) -> None: ...
    def _release_native(self) -> None: ...
    def _seat_native(self) -> None: ...
    def _park_native(self, host: bool) -> None: ...
    def _sample_native(self) -> int: ...
    def _accept_native(self, token: int) -> None: ...
    def _rewind_native(self, n: int, first_at: int) -> None: ...
    def _set_sampler_native(self, sampler: Sampler, first: Sampler, generators: bool, grammars: bool) -> None: ...
    def _set_biases_native(self, biases: dict[int, float]) -> None: ...
    def _set_row_native(self, row: BufferLike, show: bool) -> None: ...
    def _merge_native(self, experts: Sequence[BranchBase], alpha: float) -> None: ...
    def _legal_native(self) -> NDArray[float32]: ...
    def _is_legal_native(self, token: int) -> bool: ...
    def _top_native(self, n: int) -> list[tuple[float, int]]: ...
    def _row_native(self) -> LogitsRow: ...
    def _tokens_native(self, begin: int = 0) -> list[tuple[int, bool, float, float]]:
        """From `begin` on: id, accepted, probability (negative: not picked by the sampler), log-probability."""
    def _token_ids_native(self, begin: int = 0) -> list[int]: ...
    def _sampler_state_native(self) -> bytes: ...
    def _info_native(self) -> dict[str, Any]: ...
    @property
    def pruned(self) -> bool:
        """True once it was given up: nothing can be done with it any more."""
    @property
    def position(self) -> int:
        """Tokens read into it, the prompt included; the position of the next one."""
    @property
    def ended(self) -> bool:
        """The last step picked a token that ends the text. It was not read."""

def steps_alone(branches: Sequence[BranchBase], store: object) -> bool:
    """Whether these are branches of that store, and none has anything to do in Python before it picks."""

def step(ctx: ContextBase, branches: Sequence[BranchBase]) -> list[int]:
    """Pick, accept and read one token in each branch: all or none. Releases the GIL."""

class Draws:
    """What branches have picked and not read yet. No branch has changed, nor will it if this is dropped."""

    @property
    def tokens(self) -> list[int]:
        """The token of each branch."""
    @property
    def ends(self) -> list[bool]:
        """Whether it ends the text."""
    def verify(self, guesses: Sequence[Sequence[int]]) -> list[list[int]]:
        """Read the tokens, and of the guesses behind each those that its branch would pick itself: all or none.

        Releases the GIL. Returns what each branch has read, or the token that ends it.
        """

def draw(ctx: ContextBase, branches: Sequence[BranchBase]) -> Draws:
    """Pick a token in each branch, and change none."""

def read(ctx: ContextBase, items: Sequence[tuple[BranchBase, Sequence[int]]], accept: bool) -> None:
    """Read tokens into branches: all or none. Releases the GIL."""

def unseated(ctx: ContextBase, branches: Sequence[BranchBase]) -> list[int]:
    """Indices of the branches that a step would have to find a sequence for."""
