"""The token that a sequence waits for: picked by a generation, and decoded only when the next one is asked for.

It is kept by the version of the sequence: a fork waits for it too, and whoever decodes, trims, shifts or replaces
anything does not any more. A checkpoint carries it, also through bytes.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from lloyal.llama import Context

__all__ = ["remember", "token_after"]

_by_version: WeakKeyDictionary[Context, dict[int, int]] = WeakKeyDictionary()
MANY = 512  # more than the sequences a context can have


def remember(ctx: Context, version: int, token: int) -> None:
    """`token` was picked after what a sequence of that version holds."""
    known = _by_version.setdefault(ctx, {})
    known[version] = token
    if len(known) > MANY:  # most are of versions that no sequence has any more
        live = {ctx.memory.version(seq) for seq in range(ctx.n_seq_max)}
        _by_version[ctx] = {version: known[version] for version in live & known.keys()}


def token_after(ctx: Context, seq_id: int) -> int | None:
    """The token that the sequence waits for, or None."""
    known = _by_version.get(ctx)
    return known.get(ctx.memory.version(seq_id)) if known else None
