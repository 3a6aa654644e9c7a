"""Drafters that start from what the model has computed: prediction heads (MTP), EAGLE-3, DFlash.

They read hidden rows of the target (the inputs of some of its layers) for every token it has read. The target's context
keeps those while branches read (`Head.attach`), and a branch hands them out once; what a head makes of them stays in
its own context, where forks and rewinds of a text go on from the longest beginning that any sequence has. Where rows
are missing, a head starts over behind the gap: it never takes rows of other tokens for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet, finalize, ref

from lloyal.context import Context
from lloyal.errors import CacheFull, Closed, InvalidArgument, LloyalError, NoLease, Unsupported
from lloyal.kv import Tenancy
from lloyal.llama import BatchExt
from lloyal.native.hidden import head_info, is_on, keep_hidden
from lloyal.speculative.protocol import Alone, check_vocab

if TYPE_CHECKING:
    from lloyal.llama import Vocab
    from lloyal.speculative.protocol import Pick

__all__ = ["MTP", "DFlash", "Eagle3", "Head"]

# Those that read hidden rows of a context, which it keeps for them.
_HEADS: WeakKeyDictionary[Context, WeakSet[Head]] = WeakKeyDictionary()

SPARE = 66  # cells of a sequence for the guesses of a step
FEW = 8  # entries of a text that get outputs they do not need, which is less than a batch of their own


class Text:
    """The tokens of one text, and hidden rows that wait to be read."""

    def __init__(self) -> None:
        self.tokens: list[int] = []  # the last one is picked, and not yet read by the target
        self.slot: Slot | None = None
        self.first = 0  # token of the first row
        self.rows: Any = None  # array of shape (n, values), to the last token that was read; None: no guess now


class Slot:
    """A sequence of the head's context: what it has made of the rows of tokens `first` to `end` of a text.

    Behind that lie guesses, or what a call that failed has left: it goes before the next rows come.
    """

    def __init__(self, seq_id: int) -> None:
        self.seq_id = seq_id
        self.first = self.end = 0
        self.tokens: Sequence[int] = ()
        self.owner: Callable[[], Text | None] = lambda: None


class Asked(NamedTuple):
    """A text that is to be guessed."""

    number: int  # among those that were asked for
    text: Text
    slot: Slot

    @property
    def n(self) -> int:
        """Tokens that the target has read."""
        return len(self.text.tokens) - 1


class Entry(NamedTuple):
    """One of a batch."""

    number: int
    seq_id: int
    position: int
    token: int | None
    row: Any
    wanted: bool = False  # its output


class Head:
    """What the drafters here have in common. Each text takes a sequence of the head's context while there is one.

    Make the `Speculator` before the branches: rows are kept of what is read from then on.

    Parameters
    ----------
    ctx : Context
        Of the head, made with ``parent=`` the target's context. A text that outgrows it is guessed by its last tokens.
    """

    #: Of the target, whose inputs it reads; the number of layers stands for what a prediction head gets.
    layers: tuple[int, ...] = ()
    _ahead = 0  # what is made of the row of token r lies at position r + _ahead
    _seed = 1  # rows at the end that are read again for every guess

    def __init__(self, ctx: Context) -> None:
        if not isinstance(ctx, Context):
            raise TypeError(f"{ctx!r} is no Context")
        self.ctx = ctx
        self._room = max(8, ctx.n_ctx_seq - SPARE)
        self._batch = BatchExt(ctx)
        self._slots: list[Slot] = []  # used least lately first
        self._lock = threading.RLock()
        self._alone = Alone()
        finalize(self, _give_back, ctx, self._slots)

    def check(self, vocab: Vocab) -> None:
        """The vocabularies must be of one size, with the same pieces."""
        check_vocab(self.ctx.vocab, vocab)

    def attach(self, ctx: Context) -> None:
        """Have the target's context keep the hidden rows of what branches read from now on.

        It keeps them as long as a head that reads them is alive: one, or several that read the same layers.

        Raises
        ------
        InvalidArgument
            The head was made on top of another context, or for another model; or one is alive that reads other layers.
        Unsupported
            The target's graph does not give these rows.
        """
        if self.ctx is ctx or not is_on(self.ctx, ctx):
            raise InvalidArgument("this head works on top of another context: make its context with parent=")
        layers = self._layers_of(ctx)
        heads = _HEADS.setdefault(ctx, WeakSet())
        for other in heads:
            if other is not self and other.layers != layers:
                raise InvalidArgument(
                    f"{other!r} reads the inputs of layers {other.layers}, this head those of {layers}: "
                    "a context keeps the rows of one kind at a time"
                )
        keep_hidden(ctx, layers, max([self._room, *(other._room for other in heads)]))
        self.layers = layers
        if self not in heads:
            heads.add(self)
            finalize(self, _forget, ctx, heads)

    def _layers_of(self, ctx: Context) -> tuple[int, ...]:
        raise NotImplementedError

    def start(self) -> Text:
        """A text without tokens."""
        return Text()

    def feed(self, text: Text, tokens: Sequence[int]) -> None:
        """Tokens that the text goes on with."""
        text.tokens += tokens

    def guess(self, texts: Sequence[Text], n: int, picks: Sequence[Pick]) -> list[list[int]]:
        """The most probable tokens, of all texts in one batch a step."""
        for text, pick in zip(texts, picks, strict=True):
            self._hear(text, pick)
        return self.propose(texts, n)

    def _hear(self, text: Text, pick: Pick) -> None:
        """Take the hidden rows that it lacks."""
        with self._lock, self._alone:
            text.rows = None
            n = len(text.tokens) - 1
            slot = text.slot or self._seat(text)
            if slot is None or n < 1:
                return
            self._slots.remove(slot)
            self._slots.append(slot)
            if self.ctx.memory.seq_pos_max(slot.seq_id) + 1 < slot.end + self._ahead:  # somebody else was here
                slot.first = slot.end = 0
            first, rows = pick.hidden(self.layers, max(0, min(slot.end, n - self._seed)))
            if first + len(rows) < n or (len(rows) == 0 and slot.end < n):
                return
            begin = n - self._room // 2  # where it begins if there is no room for all
            if n - slot.first > self._room and first < begin:
                rows, first = rows[begin - first :], begin
            text.first, text.rows = first, rows

    def propose(self, texts: Sequence[Text], n: int) -> list[list[int]]:
        """By the rows that the texts were last given."""
        guesses: list[list[int]] = [[] for _ in texts]
        with self._lock, self._alone:
            asked = [
                Asked(i, text, text.slot)
                for i, text in enumerate(texts)
                if text.rows is not None and text.slot is not None and n > 0
            ]
            try:
                for one in asked:
                    self._make_room(one)
                self._guess(asked, guesses, n)
            except CacheFull:  # what there is will do
                unused = [slot for slot in self._slots if slot.owner() is None and slot.end > 0]
                for slot in unused or [one.slot for one in asked]:
                    self._empty(slot)
        return guesses

    def _guess(self, asked: list[Asked], guesses: list[list[int]], n: int) -> None:
        raise NotImplementedError

    def _make_room(self, one: Asked) -> None:
        """Leave in its sequence what goes on with its rows."""
        text, slot, memory = one.text, one.slot, self.ctx.memory
        right = min(slot.end, one.n - self._seed)
        if text.first > right and len(text.rows):  # there is a gap between
            self._empty(slot)
            slot.first = slot.end = text.first
            return
        if right > slot.first:
            memory.seq_rm(slot.seq_id, right + self._ahead, -1)
        else:
            self._empty(slot)
            slot.first = right
        slot.end = right
        if one.n - slot.first > self._room:
            slot.first = min(slot.end, one.n - self._room // 2)
            try:
                memory.seq_rm(slot.seq_id, 0, slot.first + self._ahead)
            except Unsupported:
                self._empty(slot)
                slot.first = slot.end = text.first

    # Sequences

    def _seat(self, text: Text) -> Slot | None:
        """A sequence for a text, with what is there already of its longest beginning."""
        memory = self.ctx.memory
        best, most = None, 0
        for slot in self._slots:
            right = min(slot.end, _agreed(slot.tokens, text.tokens) - self._seed)
            if right - slot.first > most:
                best, most = slot, right - slot.first
        if best is not None and best.owner() is None:
            slot = best
            slot.end = best.first + most
        else:
            try:
                slot = Slot(Tenancy(self.ctx).acquire())
                self._slots.append(slot)
            except NoLease:
                free = [slot for slot in self._slots if slot.owner() is None]
                if not free:
                    return None
                slot = free[0]
                self._empty(slot)
            if best is not None and best is not slot:
                with suppress(Unsupported, CacheFull):  # buffers of their own
                    memory.seq_cp(best.seq_id, slot.seq_id, -1, best.first + most + self._ahead)
                    slot.first, slot.end = best.first, best.first + most
        slot.tokens, slot.owner = text.tokens, ref(text)
        text.slot = slot
        return slot

    def _empty(self, slot: Slot) -> None:
        self.ctx.memory.seq_rm(slot.seq_id, -1, -1)
        slot.first = slot.end = 0

    # Batches

    def _batches(self, entries: Sequence[Entry], outputs: bool) -> Iterator[Sequence[Entry]]:
        """Compute them in few batches, with outputs for all or for none: the graphs of heads know no more."""
        batch, tenancy = self._batch, Tenancy(self.ctx)
        most = self.ctx.n_batch if self.ctx.causal_attn else self.ctx.n_ubatch
        for begin in range(0, len(entries), most):
            part = entries[begin : begin + most]
            batch.clear()
            for entry in part:
                at = batch.add(entry.seq_id) if entry.token is None else batch.add_token(entry.seq_id, entry.token)
                if entry.row is not None:
                    batch.set_embd_token(at, entry.row)
                batch.set_pos(at, entry.position)
                batch.set_output_logits(at, outputs)
            tenancy.process(batch)
            yield part

    def _read(self, entries: Sequence[Entry]) -> None:
        """Compute them without outputs."""
        for _ in self._batches(entries, False):
            pass

    def _outputs(self, entries: Sequence[Entry]) -> Iterator[tuple[int, int]]:
        """Compute them; gives the number of each that is wanted, and where its output is now."""
        for part in self._batches(entries, True):
            yield from ((entry.number, at) for at, entry in enumerate(part) if entry.wanted)


class Pairs(Head):
    """Heads that read a token beside the hidden row of the one before it, and go on from rows of their own."""

    def __init__(self, ctx: Context) -> None:
        super().__init__(ctx)
        ctx.set_embeddings_nextn(True, masked=True)

    def _features(self, one: Asked) -> Any:
        """What the head takes for the rows of a text, from the end of its sequence on."""
        return one.text.rows[one.slot.end - one.text.first :]

    def _pairs(self, asked: list[Asked]) -> tuple[list[Entry], list[Entry]]:
        """Of all texts: pairs that are to be remembered, and the last ones, which say what comes."""
        known: list[Entry] = []
        last: list[Entry] = []
        for one in asked:
            tokens, seq_id, begin = one.text.tokens, one.slot.seq_id, one.slot.end
            rows = self._features(one)
            if begin == 0 and self._ahead:  # nothing is in front of the first token
                known.append(Entry(one.number, seq_id, 0, tokens[0], rows[0] * 0))
            for r, row in enumerate(rows, begin):
                into = known if r + 1 < one.n else last
                into.append(Entry(one.number, seq_id, r + self._ahead, tokens[r + 1], row, into is last))
        return known, last

    def _guess(self, asked: list[Asked], guesses: list[list[int]], n: int) -> None:
        is_eog = self.ctx.vocab.is_eog
        known, entries = self._pairs(asked)
        if len(known) + len(entries) <= min(self.ctx.n_batch, FEW * len(asked)):
            entries = known + entries
        else:
            self._read(known)
        by_number = {one.number: one for one in asked}
        for step in range(n):
            going: list[Entry] = []
            for i, at in self._outputs(entries):
                token = self.ctx.logits(at).argmax()
                guesses[i].append(token)
                if step + 1 < n and not is_eog(token):
                    one = by_number[i]
                    row = self.ctx.embeddings_nextn(at, copy=True)
                    going.append(Entry(i, one.slot.seq_id, one.n + self._ahead + step, token, row, True))
            if step == 0:
                for one in asked:
                    one.slot.end = one.n
            entries = going
            if not entries:
                break


class MTP(Pairs):
    """A model's own prediction head, in a context made with ``type="mtp", parent=`` the model's.

    Parameters
    ----------
    ctx : Context

    Raises
    ------
    InvalidArgument
        It is another kind of context.
    Unsupported
        Heads that work on the memory of their parent, and several that take turns.
    """

    _ahead = 1

    def __init__(self, ctx: Context) -> None:
        if isinstance(ctx, Context):
            info = head_info(ctx)
            if not info["mtp"]:
                raise InvalidArgument('the context runs no prediction head: make it with type="mtp"')
            if info["shared"]:
                raise Unsupported("this head works on the memory of its parent")
            if ctx.model.n_layer_nextn > 1:
                raise Unsupported(f"the model has {ctx.model.n_layer_nextn} prediction layers, which take turns")
        super().__init__(ctx)

    def _layers_of(self, ctx: Context) -> tuple[int, ...]:
        if ctx.model.n_embd_out != self._batch.n_embd:
            raise InvalidArgument(
                f"the head takes rows of {self._batch.n_embd} values, the model has {ctx.model.n_embd_out}: "
                "it was made for another model"
            )
        return (ctx.model.n_layer,)


class Eagle3(Pairs):
    """An EAGLE-3 draft: one layer over what three layers of the target get.

    Parameters
    ----------
    ctx : Context
        Made with ``parent=`` the target's.
    """

    def __init__(self, ctx: Context) -> None:
        _check_kind(ctx, "eagle3")
        super().__init__(ctx)

    def _layers_of(self, ctx: Context) -> tuple[int, ...]:
        return _target_layers(self.ctx, ctx)

    def _features(self, one: Asked) -> Any:
        """The rows of the three layers made one, of the head's own width."""
        import numpy as np

        batch, seq_id = self._batch, one.slot.seq_id
        rows = super()._features(one)
        made = np.empty((len(rows), batch.n_embd), np.float32)
        position = self.ctx.memory.seq_pos_max(seq_id) + 1  # of no account, but it is checked
        for begin in range(0, len(rows), self.ctx.n_ubatch):
            batch.clear()
            for row in rows[begin : begin + self.ctx.n_ubatch]:
                at = batch.add_embd(seq_id, row)
                batch.set_pos(at, position + at)
            self.ctx.process("encode", batch)
            for at in range(len(batch)):
                made[begin + at] = self.ctx.embeddings_nextn(at, copy=True)
        return made


class DFlash(Head):
    """A DFlash draft, which fills in a block of tokens at once.

    Parameters
    ----------
    ctx : Context
        Made with ``parent=`` the target's. Its attention is set as the draft needs it.

    Raises
    ------
    InvalidArgument
        It is no such draft, or lacks its mask token or a size of blocks.
    Unsupported
        Drafts that pick by a selector of their own, and those of DSpark.
    """

    _seed = 0

    def __init__(self, ctx: Context) -> None:
        _check_kind(ctx, "dflash")
        super().__init__(ctx)
        if ctx.model.dflash_selector_top_k:
            raise Unsupported("this draft picks by a selector of its own")
        if head_info(ctx)["chained"]:
            raise Unsupported("this is a DSpark draft, whose tokens depend on each other")
        mask = ctx.vocab.mask
        if mask is None:
            raise InvalidArgument("the draft has no mask token (tokenizer.ggml.mask_token_id)")
        metadata = ctx.model.metadata
        size = metadata.get("dflash.block_size", "16")
        if not size.isdigit() or not 2 <= int(size) <= 4096:
            raise InvalidArgument(f"the draft has blocks of {size} tokens (dflash.block_size): there must be 2 to 4096")
        self._mask, self._block = mask, int(size)
        ctx.set_causal_attn(metadata.get("dflash.attention.causal") == "true")

    def _layers_of(self, ctx: Context) -> tuple[int, ...]:
        return _target_layers(self.ctx, ctx)

    def _guess(self, asked: list[Asked], guesses: list[list[int]], n: int) -> None:
        n = min(n, self._block - 1, self.ctx.n_ubatch - 1)
        rows: list[Entry] = []
        blocks: list[list[Entry]] = []
        for i, text, slot in asked:
            end = len(text.tokens) - 1
            rows += [Entry(i, slot.seq_id, r, None, text.rows[r - text.first]) for r in range(slot.end, end)]
            block = [text.tokens[-1]] + [self._mask] * n
            blocks.append([Entry(i, slot.seq_id, end + k, token, None, k > 0) for k, token in enumerate(block)])
        self._read(rows)
        for one in asked:
            one.slot.end = one.n
        at_once = max(1, min(self.ctx.n_batch, self.ctx.n_ubatch) // (n + 1))  # a block is computed as a whole
        for begin in range(0, len(blocks) if n > 0 else 0, at_once):
            for i, at in self._outputs(list(chain(*blocks[begin : begin + at_once]))):
                guesses[i].append(self.ctx.logits(at).argmax())


def _check_kind(ctx: Context, kind: str) -> None:
    if isinstance(ctx, Context) and ctx.model.arch != kind:
        raise InvalidArgument(f"the model is no {kind} draft: it is {ctx.model.arch}")


def _target_layers(head: Context, ctx: Context) -> tuple[int, ...]:
    """The target's layers that a draft reads, if the target has rows of that width for it."""
    layers, n_layer, n_embd = tuple(head.model.target_layer_ids), ctx.model.n_layer, ctx.model.n_embd
    takes = head_info(head)["n_embd_features"]
    outside = [layer for layer in layers if not 0 <= layer <= n_layer]
    if not layers or outside or takes != len(layers) * n_embd:
        raise InvalidArgument(
            f"the draft reads {takes} values of layers {list(layers)}, the model has {n_layer} layers of {n_embd}: "
            "it was made for another model"
        )
    return layers


def _agreed(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _forget(ctx: Context, heads: WeakSet[Head]) -> None:
    """The last head that reads hidden rows of a context is gone."""
    if not list(heads):  # its length counts the dead one
        with suppress(LloyalError):
            keep_hidden(ctx, [], 1)


def _give_back(ctx: Context, slots: list[Slot]) -> None:
    for slot in slots:
        with suppress(Closed, NoLease):  # the context was closed, or all leases were taken away
            if not ctx.closed:
                Tenancy(ctx).release(slot.seq_id)
