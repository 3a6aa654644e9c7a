"""The branches of one context, and what is done to many of them in one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Never

from lloyal.branch.branch import Branch
from lloyal.branch.tree import Tree
from lloyal.errors import Busy, CacheFull, Closed, InvalidArgument, NoLease, OutOfDeviceMemory
from lloyal.kv import Tenancy
from lloyal.llama import Sampler
from lloyal.llama.params import unknown_parameter
from lloyal.lock import patiently
from lloyal.native import branch as native
from lloyal.native import step as steps
from lloyal.native.memory import cells
from lloyal.prompt import as_chat, one_grammar, tokens_of
from lloyal.sampling import Sampling, check_sampling

if TYPE_CHECKING:
    from lloyal.context import Context
    from lloyal.llama.common import ChatPrompt

__all__ = ["BranchStore", "KvPressure"]


class KvPressure(NamedTuple):
    """Cells of the cache: rows that branches share lie in one cell."""

    n_ctx: int
    cells_used: int
    remaining: int


class BranchStore:
    """The branches of a context. Closing it, or leaving its ``with`` block, prunes them all.

    Every call that computes is for all of its branches or for none: when it raises an error of ours, each branch has
    the tokens, logits, sampler, grammar and numbers it had before. Ctrl-C may come out when all has been done.

    Parameters
    ----------
    ctx : Context
        Its sequences are leased (`kv.Tenancy`) as branches need them; raw calls may use others beside.
    auto_park : bool
        Keep more branches than the context has sequences or cells for: those that were used least lately wait in
        checkpoints, and come back when they go on.
    park_where : {"device", "host"}
        Where they wait.
    """

    def __init__(
        self, ctx: Context, *, auto_park: bool = False, park_where: Literal["device", "host"] = "device"
    ) -> None:
        if park_where not in ("device", "host"):
            raise InvalidArgument(f"park_where={park_where!r} must be 'device' or 'host'")
        self.ctx = ctx
        self.auto_park = auto_park
        self.park_where = park_where
        self._roots: dict[Branch, None] = {}
        self._seated: dict[Branch, None] = {}  # whose rows may be in a sequence
        self._numbers = count()
        self._closed = False

    def _next_number(self) -> int:
        return next(self._numbers)

    def create(
        self,
        prompt: str | bytes | Sequence[int] | ChatPrompt = (),
        *,
        sampling: Sampling | None = None,
        grammar: str | Sampler | None = None,
        json_schema: Mapping[str, Any] | bool | str | None = None,
        name: str | None = None,
        read: bool = True,
        **unknown: Never,
    ) -> Branch:
        """A new text, which begins with a prompt.

        Parameters
        ----------
        prompt : str, bytes, sequence of int or ChatPrompt
            Read at once; nothing makes an empty branch.
        sampling : Sampling, optional
            How its tokens are picked, by default ``Sampling()``.
        grammar : str or Sampler, optional
            Rules in GBNF that its text must follow.
        json_schema : mapping, bool or str, optional
            Its text is JSON that this schema admits.
        name : str, optional
            For `tree`.
        read : bool
            Without it the branch is made for the prompt, which is yet to be read: by `decode_scatter`, in parts if need
            be, beside the steps of others.

        Raises
        ------
        NoLease, CacheFull
            No sequence, or no cells, are free; see `auto_park`.
        Unsupported
            The model keeps no memory.
        """
        for keyword in unknown:
            raise unknown_parameter("create", list(inspect.signature(self.create).parameters)[:-1], keyword)
        self._check_open()
        sampling = Sampling() if sampling is None else sampling
        check_sampling(sampling)
        chat = as_chat(prompt)
        rules = one_grammar(self.ctx.vocab, chat, grammar, json_schema)
        tokens = tokens_of(self.ctx.vocab, prompt, beginning=True)
        branch = Branch._make(self, None, name)
        branch._sampling, branch._grammar = sampling, rules
        branch._begin = branch._first_at = len(tokens)
        branch.fork_head = 0
        branch._note_steering()
        branch._create_native(self.ctx, sampling.build(self.ctx.vocab, grammar=rules, history=tokens))
        if tokens and read:
            try:
                self.decode_scatter([(branch, tokens)])
            except BaseException:
                branch._release_native()
                raise
        self._roots[branch] = None
        return branch

    def _tokens(self, prompt: str | bytes | Sequence[int], *, beginning: bool) -> list[int]:
        return tokens_of(self.ctx.vocab, prompt, beginning=beginning)

    # Steps

    def step(self, branches: Sequence[Branch] | None = None) -> list[int]:
        """Each branch picks a token, accepts it and reads it, in as few batches as possible.

        A token that ends the text is picked only: its branch has `Branch.ended` then, and is to be left out.

        Parameters
        ----------
        branches : sequence of Branch, optional
            By default `live`. None of them twice.

        Returns
        -------
        list of int
            The tokens, in the order of the branches.

        Notes
        -----
        Releases the GIL, but for steering and logits processors, which are called before.
        """
        chosen = self.live if branches is None else list(branches)
        self._make_ready(chosen)
        if not self.auto_park:
            return steps.step(self.ctx, chosen)
        made: list[int] = []
        self._in_groups(chosen, lambda group: made.extend(steps.step(self.ctx, group)))
        return made

    def _make_ready(self, branches: list[Branch]) -> None:
        """Let functions change what those see that have some; most have none, and one pass says so."""
        if self._closed or not steps.steps_alone(branches, self):
            self._check(branches)
            for branch in branches:
                if branch._steers:
                    branch._steer()

    def commit(self, items: Sequence[tuple[Branch, int]]) -> None:
        """Each branch accepts a token and reads it: as `step`, where the caller has picked.

        A token that would end the text is read as any other, and ends nothing: see `Vocab.is_eog`.
        """
        self._read([(branch, [token]) for branch, token in items], True)

    def decode_each(self, items: Sequence[tuple[Branch, int]]) -> None:
        """Each branch reads one token, which its sampler and its numbers do not hear of."""
        self._read([(branch, [token]) for branch, token in items], False)

    def decode_scatter(self, items: Sequence[tuple[Branch, Sequence[int]]]) -> None:
        """Each branch reads any number of tokens, packed into as few batches as they take."""
        self._read([(branch, list(tokens)) for branch, tokens in items], False)

    def _read(self, items: list[tuple[Branch, list[int]]], accept: bool) -> None:
        by_branch = dict(items)
        self._in_groups(
            [branch for branch, _ in items],
            lambda group: steps.read(self.ctx, [(branch, by_branch[branch]) for branch in group], accept),
        )

    def merge_logits(self, branch: Branch, experts: Sequence[Branch], alpha: float) -> None:
        """``branch.logits += alpha * sum(expert.logits)``, that the next pick sees; all of it or nothing."""
        branch._merge_native(list(experts), alpha)

    # Room

    def _in_groups(self, branches: list[Branch], run: Callable[[list[Branch]], object]) -> None:
        """`run` for all of them, or for as many at once as there is room for; all or nothing."""
        self._check(branches)
        if len(set(branches)) < len(branches):
            raise InvalidArgument("a branch is named twice: it can take one step at a time")
        if not self.auto_park:
            run(branches)
            return
        rest = branches
        undo: list[tuple[Branch, native.BranchBase]] = []
        try:
            while rest:
                n = self._seat(rest)
                group, rest = rest[:n], rest[n:]
                for branch in group if rest or undo else ():
                    before = native.BranchBase()
                    before._note_native(branch)
                    undo.append((branch, before))
                self._with_room(group, lambda group=group: run(group))  # type: ignore[misc]
        except BaseException:
            for branch, before in undo:
                if not branch.pruned:
                    patiently(partial(branch._assign_native, before))
            raise

    def _seat(self, branches: list[Branch]) -> int:
        """Find sequences for as many as possible from the first on, and say for how many."""
        group = branches[: self.ctx.n_seq_max]
        done = 0
        # Asked again each time: the next may have been parked for the one before.
        while todo := steps.unseated(self.ctx, group[done:]):
            i = done + todo[0]
            try:
                self._with_room(group[: i + 1], group[i]._seat_native)
            except (NoLease, CacheFull):
                if i == 0:
                    raise
                return i
            self._seated[group[i]] = None
            done = i + 1
        return len(group)

    def _with_room(self, keep: Sequence[Branch], run: Callable[[], object]) -> None:
        """`run`; where it finds no sequence or no cells, others are parked and it runs again."""
        while True:
            try:
                run()
                return
            except (NoLease, CacheFull):
                if not self.auto_park or not self._park_one(keep):
                    raise

    def _park_one(self, keep: Sequence[Branch]) -> bool:
        """Park the seat that was used least lately, but none that is of one to `keep` alone."""
        self._seated.update(dict.fromkeys(keep))
        kept = {info["seat"] for info in (branch._info_native() for branch in keep) if info["own"]}
        # Those that have been seated, and if they hold nothing to give up all: forks of what was pruned hold seats too.
        for several in (list(self._seated), self.branches):
            oldest: tuple[int, Branch] | None = None
            for branch in several:
                info = {} if branch.pruned else branch._info_native()
                if info.get("seq", -1) < 0:
                    self._seated.pop(branch, None)
                elif info["seat"] not in kept and (oldest is None or info["used_at"] < oldest[0]):
                    oldest = info["used_at"], branch
            if oldest is not None:
                self.park(oldest[1])
                return True
        return False

    def park(self, branch: Branch) -> None:
        """Give a branch's sequence up; see `Branch.park`. With no room on the device the rows wait on the host."""
        self._check([branch])
        try:
            branch._park_native(self.park_where == "host")
        except OutOfDeviceMemory:
            if self.park_where == "host":
                raise
            branch._park_native(True)

    @property
    def available(self) -> int:
        """Sequences that branches could still be given."""
        return Tenancy(self.ctx).available

    @property
    def kv_pressure(self) -> KvPressure:
        """Cells of the cache, as they are taken now, by whomever; of recurrent memory the states of sequences."""
        n_cells, used = cells(self.ctx)
        return KvPressure(n_cells, used, n_cells - used)

    # Kin

    @property
    def roots(self) -> list[Branch]:
        """Branches without a parent."""
        return list(self._roots)

    @property
    def branches(self) -> Iterator[Branch]:
        """All branches, parents before their forks."""
        for root in self.roots:
            yield from root.subtree()

    @property
    def leaves(self) -> list[Branch]:
        """Branches without live forks."""
        return [branch for branch in self.branches if branch.is_leaf]

    @property
    def live(self) -> list[Branch]:
        """The leaves whose text has not ended."""
        return [branch for branch in self.leaves if not branch.ended]

    def retain_only(self, winner: Branch) -> None:
        """Prune every branch but one, which becomes a root."""
        if not isinstance(winner, Branch):
            raise TypeError(f"{winner!r} is no Branch")
        if winner.pruned or winner.store is not self:
            raise Closed("the winner was pruned" if winner.pruned else "the winner belongs to another store")
        others = [branch for branch in self.branches if branch is not winner]
        winner._unlink()
        for branch in others:
            branch.parent, branch._children = None, None
            branch._release_native()
        winner._children = None
        winner.fork_head = 0
        self._roots = {winner: None}
        self._seated.clear()

    def tree(self) -> Tree:
        """The branches as a picture: print it, or let a notebook show it."""
        return Tree.of(self)

    def close(self) -> None:
        """Prune everything. May be called twice."""
        for root in self.roots:
            root.prune_subtree()
        self._seated.clear()
        self._closed = True

    def _check(self, branches: list[Branch]) -> None:
        self._check_open()
        for i, branch in enumerate(branches):
            if not isinstance(branch, Branch):
                raise TypeError(f"{branch!r} is no Branch")
            if branch.store is None:
                raise Closed("a branch was not made by a store")
            if branch.store is not self:
                what = "store" if branch.store.ctx is self.ctx else "context"
                raise InvalidArgument(f"the branch at index {i} ({branch.name}) belongs to another {what}")

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the store is closed: make another BranchStore of its context")

    def __enter__(self) -> BranchStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return sum(1 for _ in self.branches)

    def __repr__(self) -> str:
        try:
            room = "closed" if self._closed or self.ctx.closed else f"{self.available} sequences available"
        except Busy:
            room = "busy"
        return f"<BranchStore: {len(self)} branches, {room}>"
