"""One branch: a text that is being generated, with its cache rows, sampler, grammar, logits and numbers.

A fork shares all of them until one of the two goes on; then it copies what it changes. So a fork costs nothing, at any
length, and needs no sequence of the context until it reads a token of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from lloyal.branch import rows
from lloyal.branch.checkpoint import BranchCheckpoint
from lloyal.errors import BranchHasChildren, Busy, Closed, InvalidArgument
from lloyal.llama import Sampler
from lloyal.lock import patiently
from lloyal.native import branch as native
from lloyal.prompt import check_count, check_max_tokens, one_grammar
from lloyal.sampling import Sampling, check_sampling
from lloyal.tokenization import StopStrings, StreamDecoder, stop_strings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from lloyal.branch.store import BranchStore

__all__ = ["Branch"]

#: Changes the logits that the sampler sees, of shape ``(n_vocab,)`` and float32, in place or by returning others.
Steering = Callable[["NDArray[np.float32]"], "NDArray[np.float32] | None"]


class Branch(native.BranchBase):
    """A text that is being generated. Made by `BranchStore.create` and `Branch.fork`; it lives until it is pruned.

    What it does to itself it does in its `store`, which does the same for many branches in one call. In a ``with``
    block it is pruned at the end, its forks with it.

    Attributes
    ----------
    store : BranchStore
    parent : Branch or None
    position : int
        Tokens read into it, the prompt included.
    ended : bool
        The last step picked a token that ends the text.
    name : str
        For `BranchStore.tree`; a number within the store if none was given.
    """

    __slots__ = (
        "_begin",
        "_children",
        "_edits",
        "_first_at",
        "_grammar",
        "_sampling",
        "_seed",
        "_shows",
        "_steering",
        "fork_head",
        "name",
        "parent",
    )

    store: BranchStore
    parent: Branch | None
    name: str
    fork_head: int  #: Where it left its parent; 0 for a root.
    _children: dict[Branch, None] | None
    _edits: int  # times that tokens were taken back
    _grammar: str | Sampler | None
    _steering: Steering | None
    _sampling: Sampling | None
    _seed: int | None  # in place of the sampling's
    _shows: bool  # the sampler sees other logits than its own
    _begin: int  # where the prompt ends and the generated text begins
    _first_at: int  # where the chain stands that a rewind begins with

    def __init__(self) -> None:
        raise TypeError("Branch cannot be made directly: use BranchStore.create or Branch.fork")

    @classmethod
    def _make(cls, store: BranchStore, parent: Branch | None, name: str | None) -> Self:
        branch = cls.__new__(cls)
        branch.store, branch.parent = store, parent
        branch._children, branch._steering, branch._shows, branch._seed = None, None, False, None
        branch._edits = 0
        branch._steers = False
        number = store._next_number()
        branch.name = str(number if name is None else name)
        return branch

    @property
    def sampling(self) -> Sampling | None:
        """How its tokens are picked. None if it was made without; see `set_sampling`."""
        if self._seed is not None and self._sampling is not None:
            self._sampling, self._seed = dataclasses.replace(self._sampling, seed=self._seed), None
        return self._sampling

    # Kin

    @overload
    def fork(self, n: None = None, *, seed: int | None = None, name: str | None = None) -> Branch: ...
    @overload
    def fork(self, n: int, *, seed: int | None = None, name: str | None = None) -> list[Branch]: ...
    def fork(self, n: int | None = None, *, seed: int | None = None, name: str | None = None) -> Branch | list[Branch]:
        """Begin other texts where this one stands: with its rows, sampler, grammar, biases, logits and numbers.

        Nothing is copied, and no sequence is taken, until the fork reads a token of its own. Steering is not inherited.

        Parameters
        ----------
        n : int, optional
            That many in a list; None makes one.
        seed : int, optional
            Give the i-th fork's random generator ``seed + i`` to draw from. Without it a fork draws what its parent
            would draw: several of them write one text.
        name : str, optional
            With `n` the i-th fork has its number behind it.

        Raises
        ------
        Closed
            The branch was pruned.
        """
        if n is None:
            fork = self._make_fork(-1 if seed is None else _seed(seed), name)
            self._children = self._children or {}
            self._children[fork] = None
            return fork
        n = check_count("n", n, 0)
        if seed is not None:
            _seed(seed + max(0, n - 1))  # before the first fork is made
        forks = [
            self._make_fork(-1 if seed is None else seed + i, None if name is None else f"{name}{i}") for i in range(n)
        ]
        self._children = (self._children or {}) | dict.fromkeys(forks)  # all of them, or none
        return forks

    def _make_fork(self, seed: int, name: str | None) -> Branch:
        fork = Branch._make(self.store, self, name)
        fork._fork_native(self, seed)
        fork._sampling, fork._grammar = self._sampling, self._grammar
        fork._begin, fork._first_at = self._begin, self._first_at
        fork._seed = self._seed if seed < 0 else seed
        if self._steers:
            fork._note_steering()
        fork.fork_head = fork.position
        return fork

    @property
    def children(self) -> list[Branch]:
        """Its live forks, in order."""
        return list(self._children or ())

    @property
    def is_leaf(self) -> bool:
        """True if it has no live forks."""
        return not self._children

    def prune(self) -> None:
        """Give the branch up; what forks of it need stays. May be called twice.

        Raises
        ------
        BranchHasChildren
            There are live forks: prune them first, or `prune_subtree`.
        """
        if self._children:
            raise BranchHasChildren(
                f"branch {self.name} has {len(self._children)} live forks: prune them first, or prune_subtree()"
            )
        if not self.pruned:
            self._unlink()
            self._release_native()

    def prune_subtree(self) -> None:
        """Give the branch up and everything that was forked from it."""
        for branch in reversed(list(self.subtree())):
            branch.prune()

    def detach(self) -> None:
        """Leave its parent and be a root, so that the parent can be pruned by itself."""
        self._check_live()
        if self.parent is not None:
            self._unlink()
            self.fork_head = 0
            self.store._roots[self] = None

    def _check_live(self) -> None:
        if self.pruned:
            raise Closed(f"branch {self.name} was pruned")

    def subtree(self) -> Iterator[Branch]:
        """The branch and all forks below it, parents first."""
        waiting = [self]
        while waiting:
            branch = waiting.pop()
            yield branch
            waiting.extend(reversed(branch.children))

    def _unlink(self) -> None:
        if self.parent is not None and self.parent._children is not None:
            self.parent._children.pop(self, None)
        self.store._roots.pop(self, None)
        self.store._seated.pop(self, None)
        self.parent = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.pruned:
            self.prune_subtree()

    # Going on

    def prefill(self, prompt: str | bytes | Sequence[int]) -> None:
        """Read tokens. They are no part of what the sampler remembers and of the perplexity: see `commit`.

        Text is tokenized as `BranchStore.create` does, and what an empty branch reads first is its prompt. All or
        nothing, as `BranchStore.decode_scatter`.
        """
        beginning = self.position == 0
        tokens = self.store._tokens(prompt, beginning=beginning)
        sampling = self.sampling
        chain = None
        if beginning and self._begin == 0 and sampling is not None:  # as if it had been made with it
            chain = sampling.build(self.store.ctx.vocab, grammar=self._grammar, history=tokens)
        self.store.decode_scatter([(self, tokens)])
        if chain is not None:
            patiently(partial(self._set_sampler_native, chain, chain.clone(), True, True))
            self._begin = self._first_at = len(tokens)

    def sample(self) -> int:
        """Pick the next token. Only the random generator moves, so it may be called again; keyed noise stays.

        Raises
        ------
        NoLogits
            Nothing was read yet.
        InvalidArgument
            It has no sampler; grammar, biases and steering rule everything out.
        """
        if self._steers:
            self._steer()
        token: int = self._sample_native()
        return token

    def accept(self, token: int) -> None:
        """Tell sampler, grammar and numbers of a token that is read next, by `decode_each` or `prefill`."""
        self._accept_native(token)

    def commit(self, token: int) -> None:
        """Accept a token and read it, or neither."""
        self.store.commit([(self, token)])

    def step(self) -> int:
        """Pick, accept and read a token. One that ends the text is only picked: see `ended`."""
        return self.store.step([self])[0]

    def generate(self, max_tokens: int | None = None) -> Iterator[int]:
        """Tokens, each one read before it is given out, until the model ends the text; none if it has."""
        check_max_tokens(max_tokens)
        return self._generate(max_tokens)

    def _generate(self, max_tokens: int | None) -> Iterator[int]:
        if self.ended:
            return
        for _ in count() if max_tokens is None else range(max_tokens):
            token = self.step()
            if self.store.ctx.vocab.is_eog(token):
                return
            yield token

    def stream(self, max_tokens: int | None = None, stop: str | Iterable[str] = ()) -> Iterator[str]:
        """The same as text, in pieces that hold whole characters, up to a stop string if there are some."""
        decoder = StreamDecoder(self.store.ctx.vocab)
        for token, accepted, *_ in self._tokens_native(max(self._begin, self.position - 8)):
            if accepted:
                decoder.feed(token)  # a character may have begun there
        stops = StopStrings(stop_strings(stop))
        for token in self.generate(max_tokens):
            if piece := stops.feed(decoder.feed(token)):
                yield piece
            if stops.found is not None:
                return
        if piece := stops.feed(decoder.flush() if self.ended else "") + stops.flush():
            yield piece

    def rewind(self, n: int) -> None:
        """Take the last `n` tokens back: rows, numbers, grammar, penalties. Of chance only keyed noise goes back.

        The rows go by a trim or by the rollback ring where the memory can, otherwise they are read again. The last
        token that is left is computed again for its logits. Behind a `set_grammar` that it goes back over, the rules
        begin anew.

        Raises
        ------
        InvalidArgument
            There are not that many.
        """
        if n == 0:
            return
        position = self.position - n
        self.store._with_room([self], partial(self._rewind_native, n, self._first_at))
        self._edits += 1
        self.fork_head, self._begin = min(self.fork_head, position), min(self._begin, position)
        if position < self._first_at:  # what is left knew tokens that are gone
            self._first_at = position
            if self.sampling is not None:
                patiently(partial(self._set_chain, self.sampling, self._grammar, generators=True, grammars=False))

    # How it picks

    def set_sampling(self, sampling: Sampling) -> None:
        """Pick otherwise from now on. What the samplers remember goes on: recent tokens, where the grammar stands, and
        the random generator unless a new seed is given. An equal one changes nothing.
        """
        check_sampling(sampling)
        if sampling == self.sampling:
            return
        old_seed = None if self.sampling is None else self.sampling.seed
        same_draws = sampling.seed is None or sampling.seed == old_seed
        self._set_chain(sampling, self._grammar, generators=same_draws, grammars=True)

    def _set_chain(
        self, sampling: Sampling, grammar: str | Sampler | None, *, generators: bool, grammars: bool
    ) -> None:
        now, first = (
            sampling.build(self.store.ctx.vocab, grammar=grammar, history=self._heard(sampling, end))
            for end in (self.position, self._first_at)
        )
        self._set_sampler_native(now, first, generators, grammars)
        self._sampling, self._grammar, self._seed = sampling, grammar, None
        self._note_steering()

    def _heard(self, sampling: Sampling, end: int) -> list[int]:
        """The tokens before a position that penalties count: the prompt, and what was accepted."""
        n = sampling.n_recent
        if n == 0:
            return []
        begin = 0 if n is None else max(0, end - 2 * n)
        while True:
            tokens = self._tokens_native(begin)[: end - begin]
            heard = [token for i, (token, accepted, *_) in enumerate(tokens) if accepted or begin + i < self._begin]
            if begin == 0 or (n is not None and len(heard) >= n):
                return heard if n is None else heard[-n:]
            begin = 0

    def set_grammar(
        self, grammar: str | Sampler | None = None, *, json_schema: Mapping[str, Any] | bool | str | None = None
    ) -> None:
        """Hold the text to other rules from here on: in GBNF, a sampler (a lazy one, say), a schema; None to none.

        Raises
        ------
        InvalidGrammar
            It cannot be parsed. Nothing was changed.
        """
        rules = one_grammar(self.store.ctx.vocab, None, grammar, json_schema)
        first_at, self._first_at = self._first_at, self.position
        try:
            self._set_chain(self.sampling or Sampling(), rules, generators=True, grammars=False)
        except BaseException:
            self._first_at = first_at
            raise

    def reseed(self, seed: int) -> None:
        """Draw from the beginning of another seed's random numbers."""
        if self.sampling is None:
            raise InvalidArgument("the branch has no sampler: set_sampling() first")
        sampling = dataclasses.replace(self.sampling, seed=_seed(seed))
        self._set_chain(sampling, self._grammar, generators=False, grammars=True)

    def set_bias(self, bias: Mapping[int, float] | None) -> None:
        """Add to the logits of some tokens whenever it picks, in place of earlier biases; ``-inf`` forbids one.

        Forks inherit it. None or nothing takes it away.
        """
        self._set_biases_native(dict(bias or {}))

    def steer(self, steering: Steering | Mapping[int, float] | None) -> None:
        """Change the logits whenever it picks, by a function or by numbers to add. Forks do not inherit it.

        A function gets a float32 copy of shape ``(n_vocab,)`` to change, or returns another; what it raises comes out
        of the step, which then changes nothing. It runs before biases, grammar and samplers.
        """
        if steering is not None and not callable(steering):
            steering = rows.adder(steering, self.store.ctx.vocab.n_tokens)
        self._steering = steering
        self._note_steering()

    def _note_steering(self) -> None:
        processors = self._sampling.logits_processors if self._sampling is not None else ()
        self._steers = self._steering is not None or self._shows or bool(processors)

    def _steer(self) -> None:
        """Let functions change what the next pick sees."""
        processors = self._sampling.logits_processors if self._sampling is not None else ()
        import numpy

        if self._steering is None and not processors:
            self._set_row_native(numpy.empty(0, dtype=numpy.float32), True)
            self._shows = self._steers = False
            return

        tokens = self.tokens if processors else []
        changes: list[Callable[[Any], Any]] = [] if self._steering is None else [self._steering]
        position = self.position
        row = rows.changed(self.logits, [*changes, *(partial(processor, tokens) for processor in processors)])
        if self.position != position:
            raise InvalidArgument(f"steering has changed branch {self.name} itself: its logits are others now")
        self._set_row_native(row, True)
        self._shows = self._steers = True

    # What can be read

    @property
    def logits(self) -> NDArray[np.float32]:
        """Logits of the next token, float32 of shape ``(n_vocab,)``, read-only. They stay what they are when the branch
        goes on; no copy is made.

        Raises
        ------
        NoLogits
            Nothing was read yet.
        """
        import numpy

        return numpy.frombuffer(memoryview(self._row_native()), dtype=numpy.float32)

    def set_logits(self, logits: ArrayLike) -> None:
        """Pick from these instead; they also count for the numbers of the next token."""
        import numpy

        self._set_row_native(numpy.ascontiguousarray(logits, dtype=numpy.float32), False)

    def top(self, n: int = 10) -> list[tuple[float, int]]:
        """The most probable next tokens, ``(log-probability, token)``, the best first."""
        return self._top_native(max(0, min(n, self.store.ctx.vocab.n_tokens)))

    def legal_logits(self) -> NDArray[np.float32]:
        """A copy of the logits with the biases added, and ``-inf`` for what the grammar does not allow."""
        return self._legal_native()

    def priors(self) -> list[tuple[int, float]]:
        """The tokens that grammar and biases leave, ``(token, probability)`` among them, in order of their ids."""
        legal = rows.log_softmax(self.legal_logits())
        return [(token, math.exp(value)) for token, value in enumerate(legal.tolist()) if value > -math.inf]

    def is_legal(self, token: int) -> bool:
        """Whether grammar and biases allow it next."""
        token = index(token)
        if not 0 <= token < self.store.ctx.vocab.n_tokens:
            return False
        return self._is_legal_native(token)

    def entropy(self, *, bits: bool = False) -> float:
        """Of the next token's distribution, before biases and samplers; in nats."""
        return rows.entropy(self.logits) / (math.log(2) if bits else 1.0)

    def surprisal(self, token: int, *, bits: bool = False) -> float:
        """``-log`` of the probability of a next token, before biases and samplers; in nats."""
        log_probs = rows.log_softmax(self.logits)
        if not 0 <= token < len(log_probs):
            raise InvalidArgument(f"token {token} is outside the vocabulary of {len(log_probs)}")
        return float(-log_probs[token]) / (math.log(2) if bits else 1.0)

    @property
    def tokens(self) -> list[int]:
        """All tokens that were read, the prompt's first."""
        return self._token_ids_native()

    @property
    def generated(self) -> list[int]:
        """The tokens behind the prompt."""
        return self._token_ids_native(self._begin)

    @property
    def log_probs(self) -> list[float]:
        """Log-probabilities of the accepted tokens, by the model, in order; NaN where there were no logits."""
        return [log_prob for _, accepted, _, log_prob in self._tokens_native() if accepted]

    @property
    def text(self) -> str:
        """The text behind the prompt. Control tokens give none."""
        decoder = StreamDecoder(self.store.ctx.vocab)
        return "".join(map(decoder.feed, self.generated)) + decoder.flush()

    @property
    def perplexity(self) -> float:
        """Of the accepted tokens, by the model; infinite without any."""
        info = self._info_native()
        return rows.perplexity(info["nll"], info["n"])

    @property
    def sampling_perplexity(self) -> float:
        """Of the tokens it picked itself, among what the samplers had left to choose from; infinite without any."""
        info = self._info_native()
        return rows.perplexity(info["sampling_nll"], info["sampling_n"])

    @property
    def picked_probability(self) -> float:
        """Of the token it picked last, among what the samplers had left to choose from; 0 before it has picked."""
        info = self._info_native()
        return float(info["probability"]) if info["picked"] >= 0 else 0.0

    @property
    def state(self) -> Literal["resident", "pending", "parked", "empty"]:
        """Where its rows are: in a sequence of its own; in one it shares with its kin, until it goes on; in a
        checkpoint; nowhere yet.
        """
        info = self._info_native()
        if info["seq"] >= 0:
            return "resident" if info["own"] else "pending"
        return "parked" if info["parked"] else "empty"

    @property
    def seq_id(self) -> int | None:
        """The sequence its rows are in, None if they are in none."""
        seq_id: int = self._info_native()["seq"]
        return seq_id if seq_id >= 0 else None

    # Coming back

    def checkpoint(self, where: Literal["device", "host", "cells"] = "device") -> BranchCheckpoint:
        """Keep the branch as it is now, as a value: rows, sampler, grammar, logits, numbers.

        Parameters
        ----------
        where : {"device", "host", "cells"}
            As `Context.checkpoint`. "cells" costs nothing until the branch goes on.

        Raises
        ------
        OutOfDeviceMemory
            There is no room. Nothing was changed.
        """
        if where not in ("device", "host", "cells"):
            raise InvalidArgument(f"where={where!r} must be one of 'device', 'host', 'cells'")
        kept = BranchCheckpoint.__new__(BranchCheckpoint)
        kept._keep_native(self, where)
        kept.where, kept.sampling, kept._grammar = where, self.sampling, self._grammar
        kept._begin, kept._first_at = self._begin, self._first_at
        return kept

    def restore(self, checkpoint: BranchCheckpoint) -> None:
        """Make the branch what it was, or what another branch of the store was; any number of times.

        The rows are put back when the branch goes on.
        """
        if not isinstance(checkpoint, BranchCheckpoint):
            raise TypeError(f"{checkpoint!r} is no BranchCheckpoint: Branch.checkpoint makes one")
        position = checkpoint.position
        self._assign_native(checkpoint)
        self._edits += 1
        self._sampling, self._grammar, self._seed = checkpoint.sampling, checkpoint._grammar, None
        self._begin, self._first_at, self._shows = checkpoint._begin, checkpoint._first_at, False
        self.fork_head = min(self.fork_head, position)
        self._note_steering()

    def park(self) -> None:
        """Give its sequence up; the rows wait in a checkpoint. `resume`, or going on, brings them back.

        Forks that share the rows are parked with it.
        """
        self.store.park(self)

    def resume(self) -> None:
        """Back into a sequence of its own."""
        self.store._with_room([self], self._seat_native)

    def __repr__(self) -> str:
        if self.pruned:
            return f"<Branch {self.name}, pruned>"
        try:
            ended = ", ended" if self.ended else ""
            return f"<Branch {self.name}: {self.position} tokens, {self.state}{ended}>"
        except Busy:
            return f"<Branch {self.name}, busy>"


def _seed(seed: int) -> int:
    if not 0 <= seed < 2**32 - 1:
        raise InvalidArgument(f"seed={seed} must be from 0 to {2**32 - 2}")
    return seed
