"""Guesses of a smaller model with the same vocabulary."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import finalize

from lloyal.context import Context
from lloyal.errors import CacheFull, Closed, InvalidArgument, InvalidBatch, NoLease, Unsupported
from lloyal.kv import Tenancy
from lloyal.llama import Batch
from lloyal.speculative.protocol import Alone, check_vocab

if TYPE_CHECKING:
    from lloyal.llama import Vocab
    from lloyal.speculative.protocol import Pick

__all__ = ["DraftModel"]


class DraftModel:
    """Guesses what a smaller model with the same vocabulary would write, by its most probable tokens.

    Parameters
    ----------
    ctx : Context
        Of the smaller model. Each text leases a sequence of it; texts for which there is none are not guessed.
    """

    class Text:
        """A sequence of the draft's context, and what it holds."""

        def __init__(self) -> None:
            self.seq_id = -1  # none yet
            self.tokens: list[int] = []
            self.held: list[int] = []  # in the cache; guesses that were wrong are still among them
            self.agreed = 0  # of `held`, known to be the text's

    def __init__(self, ctx: Context) -> None:
        if not isinstance(ctx, Context):
            raise TypeError(f"{ctx!r} is no Context")
        self.ctx = ctx
        self._batch = Batch()
        self._lock = threading.RLock()
        self._alone = Alone()

    def check(self, vocab: Vocab) -> None:
        """The vocabularies must be of one size, with the same pieces."""
        check_vocab(self.ctx.vocab, vocab)

    def start(self) -> DraftModel.Text:
        """A text; it takes a sequence when one is free."""
        return self.Text()

    def feed(self, text: DraftModel.Text, tokens: Sequence[int]) -> None:
        """Read when there is something to guess."""
        text.tokens += tokens

    def propose(self, texts: Sequence[DraftModel.Text], n: int) -> list[list[int]]:
        """The most probable tokens; of all texts in one batch a step."""
        return self._guess(texts, n, lambda i, place: self.ctx.logits(place).argmax())

    def guess(self, texts: Sequence[DraftModel.Text], n: int, picks: Sequence[Pick]) -> list[list[int]]:
        """What the texts' own samplers draw from the logits of this model."""

        def pick(i: int, place: int) -> int | None:
            try:
                return picks[i].sampler().sample(self.ctx, place)
            except InvalidArgument:  # the rules and this model agree on no token
                return None

        return self._guess(texts, n, pick)

    def _guess(
        self, texts: Sequence[DraftModel.Text], n: int, pick: Callable[[int, int], int | None]
    ) -> list[list[int]]:
        guesses: list[list[int]] = [[] for _ in texts]
        with self._lock, self._alone:
            rows: dict[int, int | None] = {}
            for i, text in enumerate(texts[: self.ctx.n_batch] if n > 0 else ()):
                with suppress(CacheFull, InvalidBatch, NoLease):  # no room for it, or no positions
                    self._catch_up(text)
                    rows[i] = pick(i, -1)
            with suppress(CacheFull, InvalidBatch):  # what there is will do
                for step in range(n):
                    going: dict[int, int] = {}
                    for i, token in rows.items():
                        if token is not None:
                            guesses[i].append(token)
                            if not self.ctx.vocab.is_eog(token):
                                going[i] = token
                    if step + 1 == n or not going:
                        break
                    self._read(texts, going)
                    rows = {i: pick(i, place) for place, i in enumerate(going)}
        return guesses

    def _read(self, texts: Sequence[DraftModel.Text], rows: dict[int, int]) -> None:
        """A token of each text."""
        self._batch.clear()
        for i, token in rows.items():
            self._batch.add(token, len(texts[i].held), texts[i].seq_id, True)
        Tenancy(self.ctx).decode(self._batch)
        for i, token in rows.items():
            texts[i].held.append(token)

    def _catch_up(self, text: DraftModel.Text) -> None:
        """Read what it has not read yet, with the logits behind the last token."""
        memory, tenancy = self.ctx.memory, Tenancy(self.ctx)
        if text.seq_id < 0:
            text.seq_id = tenancy.acquire()
            finalize(text, _give_back, self.ctx, text.seq_id)
        tokens, held = text.tokens, text.held
        if memory.seq_pos_max(text.seq_id) + 1 != len(held):  # stopped halfway, or somebody else was here
            memory.seq_rm(text.seq_id, -1, -1)
            held.clear()
            text.agreed = 0
        # The last token is read in any case, for the logits behind it.
        most = min(len(held), len(tokens) - 1)
        n = min(text.agreed, most)
        while n < most and held[n] == tokens[n]:
            n += 1
        text.agreed = n
        if n < len(held):
            try:
                memory.seq_rm(text.seq_id, n, -1)
            except Unsupported:
                memory.seq_rm(text.seq_id, -1, -1)
                n = text.agreed = 0
            del held[n:]
        step = self.ctx.n_batch
        for begin in range(n, len(tokens), step):
            self._batch.clear()
            self._batch.extend(tokens[begin : begin + step], begin, text.seq_id, "last")
            tenancy.decode(self._batch)
            held += tokens[begin : begin + step]
        text.agreed = len(held)


def _give_back(ctx: Context, seq_id: int) -> None:
    with suppress(Closed, NoLease):  # the context was closed, or all leases were taken away
        if not ctx.closed:
            Tenancy(ctx).release(seq_id)
