"""Steps of branches that read guesses: exactly the tokens of plain steps, several at a time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lloyal.branch import Branch, BranchStore
from lloyal.context import Context
from lloyal.errors import CacheFull, InvalidArgument, NoLease
from lloyal.native import step as native
from lloyal.prompt import check_count, check_max_tokens
from lloyal.speculative.cost import Cost

if TYPE_CHECKING:
    from lloyal.llama.common import ChatPrompt
    from lloyal.sampling import Sampling
    from lloyal.speculative.draft import Drafter

__all__ = ["Speculator", "SpeculatorStats"]

MOST = 64  # guesses of a step


@dataclasses.dataclass
class SpeculatorStats:
    """What a `Speculator` has done so far."""

    steps: int = 0  #: of any number of branches
    tokens: int = 0
    guessed: int = 0
    kept: int = 0  #: of the guesses
    seconds_guessing: float = 0.0
    seconds_reading: float = 0.0

    @property
    def tokens_per_step(self) -> float:
        """Of one branch: 1 without a guess that was right."""
        return self.tokens / (self.tokens - self.kept) if self.tokens else 1.0


class Speculator:
    """Lets a drafter guess what branches pick next, and reads the guesses with the token before them.

    A guess is kept if the branch's own sampler picks it from the logits in front of it, with its penalties, grammar and
    random numbers. So the tokens are those of plain steps, whatever is guessed; where two tokens are as good as equally
    probable, a batch of another size may decide otherwise. Rows of wrong guesses are taken back: by a trim, by the
    rollback ring, or a state by a checkpoint in device memory, and then the tokens that were right are read again in
    front of the next step.

    Parameters
    ----------
    ctx : Context
        The branches' context.
    drafter : Drafter
        `NGram`, `DraftModel`, or anything with their methods.
    n : int, optional
        Guesses of a step. Without it as many as give the most tokens a second, by what is measured on the way; none
        where that is best.
    most : int
        The most of them, from 1 to 64.

    Attributes
    ----------
    stats : SpeculatorStats
    """

    def __init__(self, ctx: Context, drafter: Drafter, *, n: int | None = None, most: int = 8) -> None:
        if not isinstance(ctx, Context):
            raise TypeError(f"{ctx!r} is no Context")
        for method in ("check", "start", "feed", "propose"):
            if not callable(getattr(drafter, method, None)):
                raise TypeError(f"{drafter!r} is no Drafter: it has no method {method}()")
        most = check_count("most", most, 1, MOST)
        self.n = None if n is None else check_count("n", n, 0, MOST)
        drafter.check(ctx.vocab)
        self.ctx, self.drafter = ctx, drafter
        self.stats = SpeculatorStats()
        self._cost = Cost(most)
        self._texts: WeakKeyDictionary[Branch, tuple[Any, int, int]] = WeakKeyDictionary()

    def step(self, branches: Sequence[Branch]) -> list[list[int]]:
        """Each branch picks, accepts and reads a token, and of the guesses behind it those that are right.

        Returns
        -------
        list of list of int
            The tokens of each branch, one at least. One that ends the text is picked only, and the last: its branch has
            `Branch.ended` then.

        Raises
        ------
        Exception
            What `BranchStore.step` raises, and what the drafter does: no branch has changed then.

        Notes
        -----
        Branches with steering or logits processors go on without guesses. Releases the GIL while it computes.
        """
        chosen = list(branches)
        if not chosen:
            return []
        if not isinstance(chosen[0], Branch):
            raise TypeError(f"{chosen[0]!r} is no Branch")
        store = chosen[0].store
        if store is None or store.ctx is not self.ctx:
            raise InvalidArgument("the branches belong to another context than the speculator")
        store._make_ready(chosen)
        made: list[list[int]] = []
        store._in_groups(chosen, lambda group: made.extend(self._step(group)))
        return made

    def _step(self, branches: list[Branch]) -> list[list[int]]:
        n = self._cost.choose() if self.n is None else self.n
        begin = time.perf_counter()
        guesses: list[Sequence[int]] = [()] * len(branches)
        if n == 0:
            guessed = begin
            read = [[token] for token in native.step(self.ctx, branches)]
        else:
            draws = native.draw(self.ctx, branches)
            guesses = self._guesses(branches, draws, n)
            guessed = time.perf_counter()
            read = draws.verify(guesses)
        end = time.perf_counter()
        widest = max(map(len, guesses))
        self._cost.note(widest, (end - begin) / len(branches))
        stats = self.stats
        stats.steps += 1
        stats.seconds_guessing += guessed - begin
        stats.seconds_reading += end - guessed
        for guess, tokens in zip(guesses, read, strict=True):
            stats.tokens += len(tokens)
            stats.guessed += len(guess)
            stats.kept += len(tokens) - 1
            self._cost.judge(len(guess), len(tokens) - 1)
        return read

    def _guesses(self, branches: list[Branch], draws: native.Draws, n: int) -> list[Sequence[int]]:
        guesses: list[Sequence[int]] = [()] * len(branches)
        able = [i for i, (branch, ends) in enumerate(zip(branches, draws.ends, strict=True))
                if not (ends or branch._steers)]  # fmt: skip
        if not able:
            return guesses
        tokens = draws.tokens
        texts = [self._text(branches[i], tokens[i]) for i in able]
        try:
            proposed = list(islice(self.drafter.propose(texts, n), len(texts) + 1))
        except (CacheFull, NoLease):  # it has no room; ours is no matter
            return guesses
        if len(proposed) != len(texts):
            raise InvalidArgument(f"{self.drafter!r} proposed for {len(proposed)} texts, there are {len(texts)}")
        is_eog = self.ctx.vocab.is_eog
        for i, guess in zip(able, proposed, strict=True):
            guesses[i] = list(takewhile(lambda token: not is_eog(token), islice(guess, n)))
        return guesses

    def _text(self, branch: Branch, token: int) -> Any:
        """What the drafter keeps of a branch, having heard all its tokens and the one it has just picked."""
        position = branch.position
        text, heard, last = self._texts.pop(branch, (None, 0, -1))  # gone, should the drafter fail
        if heard == position + 1 and last == token:  # the step before failed: it has drawn the same again
            self._texts[branch] = text, heard, last
            return text
        known = branch._token_ids_native(max(0, heard - 1)) if text is not None and heard <= position else []
        if known[:1] != [last]:  # it is another text now
            text = None
            text, known = self.drafter.start(), [last, *branch._token_ids_native()]
        self.drafter.feed(text, [*known[1:], token])
        self._texts[branch] = text, position + 1, token
        return text

    def generate(
        self,
        prompt: str | bytes | Sequence[int] | ChatPrompt,
        max_tokens: int | None = None,
        *,
        sampling: Sampling | None = None,
        **rules: Any,
    ) -> Iterator[int]:
        """Tokens of a new text in a sequence of its own, as `Branch.generate` gives them.

        Parameters
        ----------
        prompt, sampling, rules
            As in `BranchStore.create`: `grammar`, `json_schema`.
        max_tokens : int, optional
        """
        check_max_tokens(max_tokens)
        return self._generate(prompt, max_tokens, sampling, rules)

    def _generate(self, prompt: Any, max_tokens: int | None, sampling: Sampling | None, rules: Any) -> Iterator[int]:
        with BranchStore(self.ctx) as store:
            branch = store.create(prompt, sampling=sampling, **rules)
            given = 0
            while not branch.ended:
                for token in self.step([branch])[0]:
                    if self.ctx.vocab.is_eog(token):
                        return
                    yield token
                    given += 1
                    if given == max_tokens:
                        return
