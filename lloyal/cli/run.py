"""``lloyal run``."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from lloyal import Context, Model
from lloyal.cli.options import AsJson, Draft, Threads, draft_for, find_model
from lloyal.cli.output import warn, write, write_json
from lloyal.errors import InvalidArgument
from lloyal.generation import generate
from lloyal.sampling import Sampling
from lloyal.speculative import Speculator
from lloyal.terminal import human_seconds, printable, progress_bar

if TYPE_CHECKING:
    from lloyal.chat import ChatPrompt
    from lloyal.generation_many import Generations

__all__ = ["run"]

PANEL_WIDTH = 38  # two beside each other on 80 columns


def run(
    model: Annotated[str, typer.Option("--model", "-m", help="A GGUF file, or the name of an embedded model.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to go on from; - reads standard input.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, max=2**24, help="Most tokens to generate.")] = 256,
    n: Annotated[
        int | None, typer.Option("--n", "-n", min=1, max=256, help="So many continuations, side by side.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 always picks the most probable token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from the k most probable; 0 is off.")] = 40,
    top_p: Annotated[float, typer.Option(help="Draw from those that reach this probability; 1 is off.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="Draw from those this close to the best; 0 is off.")] = 0.05,
    seed: Annotated[int | None, typer.Option(help="Start of the random generator; random by default.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the generation; may be repeated.")] = None,
    parse_special: Annotated[
        bool, typer.Option("--special", help="Read <|im_start|> and the like in the prompt as tokens.")
    ] = False,
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is what a user says: answer it.")] = False,
    schema: Annotated[
        str | None, typer.Option("--schema", help="Answer in JSON that fits this JSON schema: a file, or its text.")
    ] = None,
    draft: Draft = None,
    n_ctx: Annotated[
        int | None, typer.Option("--n-ctx", "-c", min=1, help="Size of the cache in tokens; by default what is needed.")
    ] = None,
    n_gpu_layers: Annotated[int, typer.Option("--n-gpu-layers", help="Layers on the devices; -1 is all.")] = -1,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Generate text from a prompt, as it comes."""
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    text = sys.stdin.buffer.read() if prompt == "-" else os.fsencode(prompt)
    json_schema = None if schema is None else _read_schema(schema)
    began = time.perf_counter()
    with progress_bar("Loading") as show:
        loaded = Model(find_model(model), n_gpu_layers=n_gpu_layers, progress=lambda share: show(share, 1.0))
    said = _as_chat(loaded, text) if chat else None
    tokens = loaded.vocab.tokenize(text if said is None else said.prompt, parse_special=parse_special or chat)
    needed = len(tokens) + max_tokens * (n or 1)
    ctx = Context(loaded, n_ctx=n_ctx or needed, n_seq_max=n or 1, n_threads=threads)
    if n_ctx is not None and ctx.n_ctx != n_ctx and not as_json:
        warn(f"--n-ctx {n_ctx} is {ctx.n_ctx}: llama.cpp rounds it up to a multiple of 256")
    if len(tokens) > ctx.n_ctx:
        raise InvalidArgument(
            f"the prompt has {len(tokens)} tokens, --n-ctx gives {ctx.n_ctx}: raise it, or leave it out"
        )
    speculator = None if draft is None else Speculator(ctx, draft_for(draft, ctx)[0])
    ready = time.perf_counter()
    if n is not None:
        with generate(
            ctx, tokens if said is None else said, n=n, max_tokens=max_tokens, sampling=sampling,
            json_schema=json_schema, stop=stop or (), draft=speculator,
        ) as generations:  # fmt: skip
            _follow(generations, quiet=as_json)
        if as_json:
            summary = _summary(loaded, ctx, generations, time.perf_counter() - ready, ready - began)
            write_json(summary | _guesses(speculator))
        return
    with progress_bar("Reading") as show:
        generation = generate(
            ctx,
            tokens if said is None else said,
            max_tokens=max_tokens,
            sampling=sampling,
            json_schema=json_schema,
            stop=stop or (),
            progress=show,
            draft=speculator,
        )
        pieces = generation.text()
        parts = [next(pieces, "")]
    n_first, first = len(generation.tokens), time.perf_counter()
    show_text = (lambda piece: None) if as_json else write
    show_text(parts[0])
    for piece in pieces:
        parts.append(piece)
        show_text(piece)
    show_text("\n")
    seconds = time.perf_counter() - first
    result = {
        "model": loaded.path,
        "text": "".join(parts),
        "tokens": generation.tokens,
        "n_ctx": ctx.n_ctx,
        "n_prompt_tokens": len(tokens),
        "stop_reason": generation.stop_reason,
        "seed": getattr(generation.sampler, "seed", None),
        "load_seconds": ready - began,
        "first_text_seconds": first - ready,
        "tokens_per_second": (len(generation.tokens) - n_first) / seconds if seconds > 0 else None,
    }
    result |= _guesses(speculator)
    if as_json:
        write_json(result)
    elif sys.stderr.isatty():
        _print_run(result)


def _guesses(speculator: Speculator | None) -> dict[str, Any]:
    """What the speculator says, if there is one."""
    return {} if speculator is None else {"speculation": dataclasses.asdict(speculator.stats)}


def _read_schema(schema: str) -> Any:
    """A JSON schema, from a file or as it stands."""
    try:
        return json.loads(schema if schema.lstrip().startswith("{") else Path(schema).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidArgument(f"--schema is not JSON: {error}") from None


def _as_chat(model: Model, text: bytes) -> ChatPrompt:
    from lloyal.chat import apply_template  # llama-common: loaded when it is needed

    return apply_template(model, [{"role": "user", "content": text.decode("utf-8", "replace")}])


def _follow(generations: Generations, *, quiet: bool) -> None:
    """Run them all, and show them side by side: as they grow in a terminal, at the end elsewhere."""
    if quiet:
        for _ in generations:
            pass
        return
    console = Console(highlight=False)
    if console.is_terminal:
        with Live(_side_by_side(generations), console=console, refresh_per_second=8) as live:
            for _ in generations.pieces():
                live.update(_side_by_side(generations))
            live.update(_side_by_side(generations))
    else:
        for _ in generations:
            pass
        console.print(_side_by_side(generations))


def _side_by_side(generations: Generations) -> Columns:
    panels = [
        Panel(
            Text(printable(text)),
            title=str(i),
            subtitle=reason,
            title_align="left",
            subtitle_align="right",
            width=PANEL_WIDTH,
        )
        for i, (text, reason) in enumerate(zip(generations.texts, generations.stop_reasons, strict=True))
    ]
    return Columns(panels)


def _summary(
    model: Model, ctx: Context, generations: Generations, seconds: float, load_seconds: float
) -> dict[str, Any]:
    parts = zip(
        generations.texts, generations.tokens, generations.stop_reasons, generations.log_probs, strict=True
    )  # fmt: skip
    return {
        "model": model.path,
        "continuations": [
            {
                "text": text,
                "tokens": tokens,
                "stop_reason": reason,
                "perplexity": math.exp(-math.fsum(log_probs) / len(log_probs)) if log_probs else None,
            }
            for text, tokens, reason, log_probs in parts
        ],
        "n_ctx": ctx.n_ctx,
        "n_prompt_tokens": len(generations.prompts[0]),
        "seed": generations.seed,
        "load_seconds": load_seconds,
        "tokens_per_second": sum(map(len, generations.tokens)) / seconds if seconds > 0 else None,
    }


def _print_run(result: dict[str, Any]) -> None:
    speed, reason = result["tokens_per_second"], result["stop_reason"]
    parts = [
        f"{result['n_prompt_tokens']} tokens read, first text after {human_seconds(result['first_text_seconds'])}",
        f"{len(result['tokens'])} generated" + (f" at {speed:.0f}/s" if speed else ""),
        {"end": "ended by the model", "length": "ended at --max-tokens", "stop": "ended by --stop"}[reason],
    ]
    if "speculation" in result:
        parts.append("{kept} of {guessed} guesses right".format(**result["speculation"]))
    if result["seed"] is not None:
        parts.append(f"seed {result['seed']}")
    Console(stderr=True, highlight=False).print(", ".join(parts), style="dim")
