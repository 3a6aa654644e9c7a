"""Steps of branches that read guesses: exactly the tokens of plain steps, several at a time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from lloyal.branch import Branch, BranchStore
from lloyal.context import Context
from lloyal.errors import CacheFull, InvalidArgument, NoLease
from lloyal.native import step as native
from lloyal.prompt import check_count, check_max_tokens
from lloyal.speculative.cost import Cost, Rates, Widths
from lloyal.speculative.protocol import Pick, attach, check_drafter, propose

if TYPE_CHECKING:
    from lloyal.llama.common import ChatPrompt
    from lloyal.sampling import Sampling
    from lloyal.speculative.protocol import Drafter

__all__ = ["Speculator", "SpeculatorStats", "speculator_for"]

MOST = 64  # guesses of a step
NOISE = {"exact": None, "coupled": "keyed", "ratio": "stream"}  # that texts must have; None: any

# What steps have cost in a context, for all who guess in it.
_WIDTHS: WeakKeyDictionary[Context, Widths] = WeakKeyDictionary()


@dataclasses.dataclass(slots=True)
class Heard:
    """What the drafter keeps of a branch."""

    text: Any
    rates: Rates
    edits: int  # of the branch
    n: int = 0  # tokens that it has heard
    last: int = -1
    begin: int = 0  # where `untold` begins
    untold: Sequence[int] = ()  # guesses that nobody has read: the text will say whether they are right

    def see(self, branch: Branch) -> None:
        """Hold guesses that were not read against what the branch has read since."""
        if not self.untold or branch.position <= self.begin:
            return
        read = branch._token_ids_native(self.begin)
        n = min(len(read), len(self.untold))
        right = next((i for i in range(n) if read[i] != self.untold[i]), n)
        self.rates.judge(min(right + 1, n), right)
        self.untold = ()

    def wait(self, position: int, guesses: Sequence[int]) -> None:
        """Guesses for what comes at `position`."""
        self.begin, self.untold = position, guesses


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
    probable, a batch of another size may decide otherwise. With ``Sampling(noise="keyed")`` a drafter that has a model
    guesses by the noise that the branch will pick by, and is right more often the higher the temperature.

    Rows of wrong guesses are taken back: by a trim, by the rollback ring, or a state by a checkpoint in device memory,
    and then the tokens that were right are read again in front of the next step.

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
    accept : {"exact", "coupled", "ratio"}
        ``"exact"``: as above. ``"coupled"``: the same, for texts with keyed noise alone. ``"ratio"``: rejection
        sampling, for texts without; the tokens are not those of plain steps, but of the same distribution. At
        temperature 0 the three are one.

    Attributes
    ----------
    stats : SpeculatorStats
    """

    def __init__(
        self,
        ctx: Context,
        drafter: Drafter,
        *,
        n: int | None = None,
        most: int = 8,
        accept: Literal["exact", "coupled", "ratio"] = "exact",
    ) -> None:
        if not isinstance(ctx, Context):
            raise TypeError(f"{ctx!r} is no Context")
        check_drafter(drafter)
        most = check_count("most", most, 1, MOST)
        self.n = None if n is None else check_count("n", n, 0, MOST)
        if accept not in NOISE:
            raise InvalidArgument(f"accept={accept!r} must be one of {', '.join(map(repr, NOISE))}")
        drafter.check(ctx.vocab)
        attach(drafter, ctx)
        self.ctx, self.drafter = ctx, drafter
        self.accept = accept
        self.stats = SpeculatorStats()
        uniform = ctx.memory.kind == "recurrent" or ctx.memory.kind.startswith("hybrid")
        self._cost = Cost(most, _WIDTHS.setdefault(ctx, Widths()), uniform)
        self._texts: WeakKeyDictionary[Branch, Heard] = WeakKeyDictionary()

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
        InvalidArgument
            A sampling whose noise is not what `accept` is for.

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
        if self.accept != "exact":
            self._check_noise(chosen)
        if self.n == 0 or self._cost.pause:
            return [[token] for token in self._plain(store, chosen)]
        store._make_ready(chosen)
        made: list[list[int]] = []
        before = vars(self.stats).copy()
        try:
            store._in_groups(chosen, lambda group: made.extend(self._step(group)))
        except BaseException:
            vars(self.stats).update(before)  # what groups before the one that failed have done is undone
            raise
        return made

    def _plain(self, store: BranchStore, branches: list[Branch]) -> list[int]:
        """A step without guesses, with next to nothing around it: one in eight is timed, for all of them."""
        cost, stats = self._cost, self.stats
        if cost.pause % 8:
            cost.pause -= 1
            tokens = store.step(branches)
        else:
            begin = time.perf_counter()
            tokens = store.step(branches)
            seconds = time.perf_counter() - begin
            if self.n is None:
                cost.note_pause(len(branches), seconds)
            stats.seconds_reading += seconds * (8 if self.n is None else 1)
        stats.steps += 1
        stats.tokens += len(tokens)
        return tokens

    def _check_noise(self, branches: list[Branch]) -> None:
        noise = NOISE[self.accept]
        for i, branch in enumerate(branches):
            sampling = branch.sampling if noise and isinstance(branch, Branch) else None
            if sampling is not None and sampling.temperature and sampling.noise != noise:
                raise InvalidArgument(
                    f"the branch at index {i}: accept={self.accept!r} is for Sampling(noise={noise!r}), not "
                    f"{sampling.noise!r}; accept='exact' is for both"
                )

    def _step(self, branches: list[Branch]) -> list[list[int]]:
        begin = time.perf_counter()
        n = self._cost.ask(len(branches)) if self.n is None else self.n
        guesses: list[list[int]] = [[] for _ in branches]
        lag = 0
        if n == 0:
            guessed = time.perf_counter()
            read = [[token] for token in native.step(self.ctx, branches)]
        else:
            draws = native.draw(self.ctx, branches)
            try:
                guesses, picks, lag = self._ask(branches, draws, n)
                guessed = time.perf_counter()
                made = {pick.index: sampler for pick in picks if (sampler := pick.made) is not None}
                read = draws.verify(guesses, self.accept == "ratio", made)
            except BaseException:
                draws.drop()  # or the exception's traceback would keep the branches' sequences
                raise
        end = time.perf_counter()
        stats = self.stats
        stats.steps += 1
        stats.seconds_guessing += guessed - begin
        stats.seconds_reading += end - guessed
        rows = n_tokens = 0
        for branch, taken, tokens in zip(branches, guesses, read, strict=True):
            rows += 1 + len(taken)
            n_tokens += len(tokens)
            stats.guessed += len(taken)
            stats.kept += len(tokens) - 1
            if taken:
                self._texts[branch].rates.judge(len(taken), len(tokens) - 1)
        stats.tokens += n_tokens
        if self.n is None:
            self._cost.note(len(branches), n, lag, guessed - begin, rows, n_tokens, end - guessed)
        return read

    def _ask(self, branches: list[Branch], draws: native.Draws, n: int) -> tuple[list[list[int]], list[Pick], int]:
        """The guesses to read, what the drafter was asked with, and how many tokens of a text were new to it."""
        tokens, ends = draws.tokens, draws.ends
        picks = [
            Pick(branch, draws, i, self.accept == "ratio")
            for i, branch in enumerate(branches)
            if not (ends[i] or branch._steers)
        ]
        heard, lag = [], 0
        for pick in picks:
            text, n_new = self._text(branches[pick.index], tokens[pick.index])
            heard.append(text)
            lag = max(lag, n_new)
        found = self._guess(picks, heard, n)
        lengths = [len(guess) for guess in found]
        if self.n is None:
            lengths = self._cost.cut([text.rates for text in heard], lengths, len(branches))
        guesses: list[list[int]] = [[] for _ in branches]
        for pick, text, guess, length in zip(picks, heard, found, lengths, strict=True):
            guesses[pick.index] = guess[:length]
            if not length:
                text.wait(branches[pick.index].position + 1, guess)
        return guesses, picks, lag

    def _guess(self, picks: list[Pick], heard: list[Heard], n: int) -> list[list[int]]:
        """What the drafter guesses behind the tokens that were picked."""
        if not picks:
            return []
        try:
            proposed = propose(self.drafter, [text.text for text in heard], n, picks)
        except (CacheFull, NoLease):  # it has no room; ours is no matter
            return [[] for _ in picks]
        return [self._to_the_end(guess) for guess in proposed]

    def _to_the_end(self, guess: list[int]) -> list[int]:
        is_eog = self.ctx.vocab.is_eog
        end = next((k for k, token in enumerate(guess) if is_eog(token)), len(guess))
        # An end that was drawn is judged as any guess: to leave it out would make other texts likelier.
        return guess[: end + (self.accept == "ratio")]

    def _text(self, branch: Branch, drawn: int) -> tuple[Heard, int]:
        """What the drafter keeps of a branch, having heard all its tokens and what it has drawn; how many were new."""
        position = branch.position
        heard = self._texts.pop(branch, None)  # gone, should the drafter fail
        if heard is not None:
            heard.see(branch)
        if heard is not None and heard.n == position + 1 and heard.last == drawn:
            self._texts[branch] = heard  # the step before failed: it has drawn the same again
            return heard, 0
        new: list[int] = []
        if heard is not None and 0 < heard.n <= position:
            new = branch._token_ids_native(heard.n - 1)
        if heard is None or heard.edits != branch._edits or new[:1] != [heard.last]:  # it is another text now
            rates = Rates(self._cost.most, self._cost.all) if heard is None else heard.rates
            for other in [other for other in self._texts if other.pruned]:  # what is kept of them may be short
                del self._texts[other]
            heard = Heard(self.drafter.start(), rates, branch._edits)
            new = [-1, *branch._token_ids_native()]
        new.append(drawn)
        heard.n, heard.last = position + 1, drawn
        self.drafter.feed(heard.text, new[1:])
        self._texts[branch] = heard
        return heard, len(new) - 1

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


def speculator_for(ctx: Context, draft: Drafter | Speculator | None) -> Speculator | None:
    """What a `draft` argument means for the texts of a context."""
    if draft is None:
        return None
    speculator = draft if isinstance(draft, Speculator) else Speculator(ctx, draft)
    if speculator.ctx is not ctx:
        raise InvalidArgument("the speculator was made for another context")
    return speculator
