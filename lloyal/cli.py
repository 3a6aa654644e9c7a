"""The ``lloyal`` command.

Results go to stdout, everything else (progress, logs, errors) to stderr. An error is one line and exit code 1, a wrong
command line one line and exit code 2, Ctrl-C exit code 130.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from importlib import metadata
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from lloyal import Context, Model, build_info, devices, models, system_info
from lloyal.bench import N_MORE, checkpoint_table, lockstep_line, measure_checkpoints, plot_checkpoints, plotter
from lloyal.decoding import generate
from lloyal.demo import tour
from lloyal.errors import InvalidArgument, LloyalError
from lloyal.llama import rpc_serve
from lloyal.sampling import Sampling
from lloyal.terminal import human_bytes, human_seconds, printable, progress_bar

__all__ = ["app", "main"]

INTERRUPTED = 130
# Characters of a metadata value that `info` shows; chat templates have thousands.
LONGEST_VALUE = 300


class _Commands(TyperGroup):
    """The commands, with errors that a person can read and a script can rely on."""

    def main(self, *args: Any, **extra: Any) -> Any:
        if not extra.get("standalone_mode", True):
            return super().main(*args, **extra)
        extra["standalone_mode"] = False  # errors come out as exceptions, exit codes as values
        try:
            code = super().main(*args, **extra) or 0
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except (LloyalError, OSError, MemoryError) as error:
            _fail(_one_line(error), 1)
        except Exception as error:
            # What is wrong with a command line. Newer typers carry a copy of click, so its classes have no one name.
            if not hasattr(error, "format_message"):
                raise
            where = getattr(getattr(error, "ctx", None), "command_path", "lloyal")
            _fail(f"{error.format_message().rstrip('.')}. See `{where} --help`.", 2)
        if code == INTERRUPTED and sys.stderr.isatty():
            sys.stderr.write("\n")  # the terminal has shown ^C
        sys.exit(code)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

bench = typer.Typer(cls=TyperGroup, context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(bench, name="bench", help="Measure on this machine what lloyal claims.")

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Threads = Annotated[int | None, typer.Option("--threads", "-t", min=1, max=512, help="CPU threads.")]


def main() -> None:
    """Run the command line of this process."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets a question mark, not a traceback.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    app(prog_name="lloyal")


@app.callback(invoke_without_command=True)
def _lloyal(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the versions and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show llama.cpp's log.")] = False,
) -> None:
    """llama.cpp with inference state as a first-class value."""
    if version:
        sys.stdout.write(f"lloyal {metadata.version('lloyal')} (llama.cpp {build_info()['llama.cpp']})\n")
        raise typer.Exit
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    if ctx.invoked_subcommand is None:
        sys.stdout.write(ctx.get_help() + "\n")
        raise typer.Exit


@app.command()
def demo(
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=64, max=16384, help="Length of the prompt.")] = 2048,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """A guided tour on the embedded models: checkpoints in device memory, and what they save."""
    result = tour(Console(quiet=as_json, highlight=False), n_tokens=tokens, n_threads=threads or 1)
    if as_json:
        _write_json(result)
    if not result["identical"]:
        raise typer.Exit(1)


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="A GGUF file, or the name of an embedded model.")] = None,
    as_json: AsJson = False,
) -> None:
    """What this build can do and which devices it sees; with MODEL, what the model is."""
    facts: dict[str, Any]
    if model is None:
        facts = {"build": build_info(), "system": system_info().strip(), "devices": _describe_devices()}
    else:
        facts = _describe_model(_find_model(model))
    if as_json:
        _write_json(facts)
        return
    console = Console(highlight=False)
    if model is None:
        _print_facts(console, "Build", facts["build"] | {"system": facts["system"]})
        _print_facts(console, "Devices", {device.pop("name"): device for device in facts["devices"]})
    else:
        of_the_file = facts.pop("metadata")
        _print_facts(console, "Model", facts)
        _print_facts(console, "Metadata", dict(sorted(of_the_file.items())))


@app.command()
def run(
    model: Annotated[str, typer.Option("--model", "-m", help="A GGUF file, or the name of an embedded model.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to go on from; - reads standard input.")],
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=1, max=2**24, help="Most tokens to generate.")
    ] = 256,
    temperature: Annotated[float, typer.Option(help="0 always picks the most probable token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from the k most probable; 0 is off.")] = 40,
    top_p: Annotated[float, typer.Option(help="Draw from those that reach this probability; 1 is off.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="Draw from those this close to the best; 0 is off.")] = 0.05,
    seed: Annotated[int | None, typer.Option(help="Start of the random generator; random by default.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the generation; may be repeated.")] = None,
    parse_special: Annotated[
        bool, typer.Option("--special", help="Read <|im_start|> and the like in the prompt as tokens.")
    ] = False,
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
    began = time.perf_counter()
    with progress_bar("Loading") as show:
        loaded = Model(_find_model(model), n_gpu_layers=n_gpu_layers, progress=lambda share: show(share, 1.0))
    tokens = loaded.vocab.tokenize(text, parse_special=parse_special)
    ctx = Context(loaded, n_ctx=n_ctx or len(tokens) + max_tokens, n_seq_max=1, n_threads=threads)
    if len(tokens) > ctx.n_ctx:
        raise InvalidArgument(
            f"the prompt has {len(tokens)} tokens, --n-ctx gives {ctx.n_ctx}: raise it, or leave it out"
        )
    ready = time.perf_counter()
    with progress_bar("Reading") as show:
        generation = generate(ctx, tokens, max_tokens=max_tokens, sampling=sampling, progress=show)
        pieces = generation.text(stop or ())
        parts = [next(pieces, "")]
    n_first, first = len(generation.tokens), time.perf_counter()
    write = (lambda piece: None) if as_json else _write
    write(parts[0])
    for piece in pieces:
        parts.append(piece)
        write(piece)
    write("\n")
    seconds = time.perf_counter() - first
    result = {
        "model": loaded.path,
        "text": "".join(parts),
        "tokens": generation.tokens,
        "n_prompt_tokens": len(tokens),
        "stop_reason": generation.stop_reason,
        "seed": generation.sampler.seed,
        "load_seconds": ready - began,
        "first_text_seconds": first - ready,
        "tokens_per_second": (len(generation.tokens) - n_first) / seconds if seconds > 0 else None,
    }
    if as_json:
        _write_json(result)
    elif sys.stderr.isatty():
        _print_run(result)


@app.command("rpc-server")
def rpc_server(
    endpoint: Annotated[
        str, typer.Option("--endpoint", "-e", help="IPv4 address and port to listen on.")
    ] = "127.0.0.1:50052",
    device: Annotated[
        list[str] | None, typer.Option("--device", "-d", help="A device to serve, as `lloyal info` names it.")
    ] = None,
    cache_dir: Annotated[
        str | None, typer.Option("--cache-dir", help="Folder that keeps large tensors for the next load.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Serve devices of this machine to llama.cpp on others. Never expose it to an open network: it is not secure."""
    found = {one.name: one for one in devices()}
    if unknown := [name for name in device or () if name not in found]:
        raise InvalidArgument(f"--device {unknown[0]}: there is none of that name, but {', '.join(found)}")
    _warn(
        f"serving {', '.join(device) if device else 'the default devices'} at {endpoint} until Ctrl-C. Whoever reaches "
        "this port can read, write and run things in this process: never expose it to an open network."
    )
    rpc_serve(endpoint, [found[name] for name in device] if device else None, n_threads=threads, cache_dir=cache_dir)


@bench.command("checkpoint")
def bench_checkpoint(
    model: Annotated[str, typer.Option("--model", "-m", help="A GGUF file, or an embedded model.")] = "nano",
    tokens: Annotated[int, typer.Option("--n-tokens", "-n", min=64, help="Length of the prompt.")] = 4096,
    plot: Annotated[str | None, typer.Option("--plot", help="Write a picture to this file (.png, .svg, .pdf).")] = None,
    n_gpu_layers: Annotated[int, typer.Option("--n-gpu-layers", help="Layers on the devices; -1 is all.")] = -1,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Every way to keep a state and bring it back, at three lengths of a prompt."""
    if plot is not None:
        plotter()  # what is missing is said before the work, not after
    began = time.perf_counter()
    lengths = sorted({max(16, tokens // 16), max(16, tokens // 4), tokens})
    with Model(_find_model(model), n_gpu_layers=n_gpu_layers) as loaded:
        prompt = _numbers(loaded, tokens)
        with Context(loaded, n_ctx=tokens + N_MORE, n_batch=512, n_seq_max=4, n_threads=threads) as ctx:
            with progress_bar("Measuring") as show:
                result = {"model": model} | measure_checkpoints(ctx, prompt, lengths, progress=show)
    result["n_threads"] = threads
    result["seconds"] = time.perf_counter() - began
    if plot is not None:
        plot_checkpoints(result, plot)
    if as_json:
        _write_json(result)
    else:
        console = Console(highlight=False)
        console.print(checkpoint_table(result))
        if "lockstep" in result:
            console.print("\n" + lockstep_line(result["lockstep"]))
        good = "Every restored state has the bytes it had." if result["identical"] else "A RESTORED STATE DIFFERS."
        console.print(f"\n{good}", style="green" if result["identical"] else "bold red")
    if not result["identical"]:
        raise typer.Exit(1)


def _numbers(model: Model, n: int) -> list[int]:
    """A prompt of `n` tokens that any vocabulary has; what it says does not matter for copying."""
    text = model.vocab.tokenize(" ".join(map(str, range(n))))
    return (text * (n // len(text) + 1))[:n]


def _find_model(name: str) -> str:
    """The file of an embedded model, or the path that `name` is; ``./nano`` is always a path."""
    return models.path(name) if name in models.NAMES else name


def _describe_devices() -> list[dict[str, Any]]:
    described = []
    for device in devices():
        free, total = device.memory
        described.append(
            {
                "name": device.name,
                "description": device.description,
                "backend": device.backend,
                "type": device.type,
                "free_bytes": free,
                "total_bytes": total,
            }
        )
    return described


def _describe_model(path: str) -> dict[str, Any]:
    # On the CPU, mapped and not repacked: a large model opens at once. The memory's kind shows only in a context.
    with Model(path, devices=[], use_extra_bufts=False) as model:
        described: dict[str, Any] = {
            "path": model.path,
            "description": model.desc,
            "architecture": model.arch,
            "file_type": model.ftype,
            "file_bytes": os.path.getsize(model.path),
            "tensor_bytes": model.size,
            "n_params": model.n_params,
            "n_vocab": len(model.vocab),
            "n_ctx_train": model.n_ctx_train,
            "n_layer": model.n_layer,
            "n_embd": model.n_embd,
            "n_head": model.n_head,
            "n_head_kv": model.n_head_kv,
            "n_swa": model.n_swa,
        }
        with Context(model, n_ctx=256, n_batch=32, n_ubatch=32, n_seq_max=1, n_threads=1) as ctx:
            described["memory"] = ctx.memory.kind
            described["can_shift"] = ctx.memory.can_shift
        described["metadata"] = model.metadata
    return described


def _print_facts(console: Console, title: str, facts: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=max(map(len, facts), default=0))
    table.add_column(overflow="fold")
    for name, value in facts.items():
        text = Text(_readable(name, value))
        text.truncate(LONGEST_VALUE, overflow="ellipsis")
        table.add_row(Text(name), text)
    console.print(title, style="bold")
    console.print(table)
    console.print()


def _readable(name: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.removesuffix('_bytes')}: {_readable(key, part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return human_bytes(value) if name.endswith("_bytes") else str(value)
    return " ".join(printable(str(value)).split())


def _print_run(result: dict[str, Any]) -> None:
    speed, reason = result["tokens_per_second"], result["stop_reason"]
    parts = [
        f"{result['n_prompt_tokens']} tokens read, first text after {human_seconds(result['first_text_seconds'])}",
        f"{len(result['tokens'])} generated" + (f" at {speed:.0f}/s" if speed else ""),
        {"end": "ended by the model", "length": "ended at --max-tokens", "stop": "ended by --stop"}[reason],
    ]
    if result["seed"] is not None:
        parts.append(f"seed {result['seed']}")
    Console(stderr=True, highlight=False).print(", ".join(parts), style="dim")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _write_json(value: object) -> None:
    _write(json.dumps(value, indent=2) + "\n")


def _one_line(error: BaseException) -> str:
    """What an exception says, with the notes llama.cpp's log was attached as, on one line."""
    parts = [str(error) or type(error).__name__, *getattr(error, "__notes__", ())]
    return " ".join("; ".join(parts).split())


def _warn(message: str) -> None:
    sys.stderr.write(f"lloyal: {message}\n")
    sys.stderr.flush()


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"lloyal: {' '.join(message.split())}\n")
    sys.exit(code)
