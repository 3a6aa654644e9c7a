"""What commands write: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from typing import NoReturn

__all__ = ["fail", "one_line", "warn", "write", "write_json"]


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: object) -> None:
    write(json.dumps(value, indent=2) + "\n")


def one_line(error: BaseException) -> str:
    """What an exception says, with the notes llama.cpp's log was attached as, on one line."""
    parts = [str(error) or type(error).__name__, *getattr(error, "__notes__", ())]
    return " ".join("; ".join(parts).split())


def warn(message: str) -> None:
    sys.stderr.write(f"lloyal: {message}\n")
    sys.stderr.flush()


def fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"lloyal: {' '.join(message.split())}\n")
    sys.exit(code)
