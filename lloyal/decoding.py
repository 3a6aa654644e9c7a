"""Reading a prompt into a sequence, and the token that a sequence still waits for.

The cache is always one token behind what was generated: a token is decoded when the next one is asked for. So does a
checkpoint go with it: save before the last token of a prompt, restore, and generate from that token. `undecoded` knows
the token after a generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lloyal import undecoded
from lloyal.errors import InvalidArgument, Unsupported
from lloyal.llama import Batch, Context

__all__ = ["Progress", "decode_tokens", "next_position", "next_tokens", "prefill"]

Progress = Callable[[int, int], object]


def prefill(
    ctx: Context,
    prompt: str | bytes | Sequence[int],
    *,
    seq_id: int = 0,
    pos0: int | None = None,
    logits: bool = True,
    progress: Progress | None = None,
) -> int:
    """Decode a prompt into a sequence, at most ``n_batch`` tokens at a time.

    Parameters
    ----------
    ctx : Context
    prompt : str, bytes or sequence of int
        Text is tokenized, with the special tokens the model asks for if it begins the sequence. If a generation ended
        here, its last token is not decoded yet: text goes on behind it, and a list of tokens has to begin with it.
    seq_id : int
    pos0 : int, optional
        Position of the first token; None goes on where the sequence ends. With a position the tokens are taken as they
        are, whatever a generation left.
    logits : bool
        Compute the logits of the last token.
    progress : callable, optional
        Called with the tokens decoded so far and their total, every ``n_ubatch`` tokens.

    Returns
    -------
    int
        The position after the prompt.

    Raises
    ------
    InvalidArgument
        The prompt is empty, or leaves out the token that a generation has not decoded.
    Unsupported
        The model keeps no memory: an encoder, or a diffusion model.
    CacheFull, Aborted, InvalidBatch, DecodeFailed
        As `Context.decode`; the batches before the failing one stay in the cache.

    Notes
    -----
    Invalidates logits. Releases the GIL. Ctrl-C stops it.
    """
    pos = next_position(ctx, seq_id) if pos0 is None else pos0
    tokens = next_tokens(ctx, prompt, seq_id, pos0)
    return decode_tokens(ctx, Batch(), tokens, seq_id, pos, logits, progress)


def next_position(ctx: Context, seq_id: int) -> int:
    """Where the next token of a sequence goes; `Unsupported` if the model keeps no memory."""
    if ctx.memory.kind == "none":
        # Every decode would see its own tokens only: a plausible text that has nothing to do with the prompt.
        raise Unsupported(
            "this model keeps no memory from one decode to the next (an encoder, or a diffusion model): "
            "it cannot go on token by token"
        )
    return ctx.memory.seq_pos_max(seq_id) + 1


def next_tokens(
    ctx: Context, prompt: str | bytes | Sequence[int], seq_id: int, pos0: int | None, *, parse_special: bool = False
) -> list[int]:
    """The tokens of a prompt that goes on where a sequence ends, the one that was not decoded yet included."""
    waiting = undecoded.token_after(ctx, seq_id) if pos0 is None else None
    if isinstance(prompt, (str, bytes)):
        pos = next_position(ctx, seq_id) if pos0 is None else pos0
        tokens = ctx.vocab.tokenize(prompt, add_special=pos == 0, parse_special=parse_special)
        if waiting is not None:
            tokens.insert(0, waiting)
    else:
        tokens = list(prompt)
    if not tokens:
        raise InvalidArgument(
            "the prompt has no tokens: give at least one (after a restore, the one that was not decoded yet)"
        )
    if waiting is not None and tokens[0] != waiting:
        raise InvalidArgument(
            f"sequence {seq_id} waits for token {waiting}, which a generation picked last and nobody decoded: "
            f"begin with it, give text (it goes on behind it), or say pos0={next_position(ctx, seq_id)} to leave it out"
        )
    return tokens


def decode_tokens(
    ctx: Context,
    batch: Batch,
    tokens: Sequence[int],
    seq_id: int,
    pos: int,
    logits: bool,
    progress: Progress | None,
) -> int:
    """Decode tokens from a position on, and return the position after them."""
    # llama.cpp computes n_ubatch at once: batches of that size cost nothing more, and something can be said in between.
    step = ctx.n_batch if progress is None else min(ctx.n_batch, ctx.n_ubatch)
    for begin in range(0, len(tokens), step):
        end = min(begin + step, len(tokens))
        batch.clear()
        batch.extend(tokens[begin:end], pos + begin, seq_id, "last" if logits and end == len(tokens) else False)
        ctx.decode(batch)
        if progress is not None:
            progress(end, len(tokens))
    return pos + len(tokens)
