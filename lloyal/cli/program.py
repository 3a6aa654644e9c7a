"""The program: its commands in a group, with errors that a person can read and a script can rely on."""

from __future__ import annotations

import logging
import sys
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lloyal import build_info
from lloyal.cli.output import fail, one_line
from lloyal.errors import LloyalError

__all__ = ["INTERRUPTED", "app", "bench", "main"]

INTERRUPTED = 130


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
            fail(one_line(error), 1)
        except Exception as error:
            # What is wrong with a command line. Newer typers carry a copy of click, so its classes have no one name.
            if not hasattr(error, "format_message"):
                raise
            where = getattr(getattr(error, "ctx", None), "command_path", "lloyal")
            fail(f"{error.format_message().rstrip('.')}. See `{where} --help`.", 2)
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
