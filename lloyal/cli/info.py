"""``lloyal info``."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lloyal import Context, Model, build_info, devices, system_info
from lloyal.cli.options import AsJson, find_model
from lloyal.cli.output import write_json
from lloyal.errors import InvalidArgument
from lloyal.terminal import human_bytes, printable

__all__ = ["info"]

# Characters of a metadata value that are shown; chat templates have thousands.
LONGEST_VALUE = 300


def info(
    model: Annotated[str | None, typer.Argument(help="A GGUF file, or the name of an embedded model.")] = None,
    named: Annotated[str | None, typer.Option("--model", "-m", help="The same, as the other commands take it.")] = None,
    as_json: AsJson = False,
) -> None:
    """What this build can do and which devices it sees; with MODEL, what the model is."""
    if model is not None and named is not None:
        raise InvalidArgument(f"{model!r} and --model {named!r}: give one model")
    model = named if model is None else model
    facts: dict[str, Any]
    if model is None:
        facts = {"build": build_info(), "system": system_info().strip(), "devices": _describe_devices()}
    else:
        facts = _describe_model(find_model(model))
    if as_json:
        write_json(facts)
        return
    console = Console(highlight=False)
    if model is None:
        _print_facts(console, "Build", facts["build"] | {"system": facts["system"]})
        _print_facts(console, "Devices", {device.pop("name"): device for device in facts["devices"]})
    else:
        of_the_file = facts.pop("metadata")
        _print_facts(console, "Model", facts)
        _print_facts(console, "Metadata", dict(sorted(of_the_file.items())))


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
        return (
            ", ".join(f"{key.removesuffix('_bytes')}: {_readable(key, part)}" for key, part in value.items()) or "none"
        )
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return human_bytes(value) if name.endswith("_bytes") else str(value)
    return " ".join(printable(str(value)).split())
