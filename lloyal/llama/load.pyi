# Written by tools/stubs.py from load.pyx.
"""Loading a model: what parameters mean to llama.cpp, and what is said where it fails."""

from os import PathLike

StrPath = str | PathLike[str]

__all__ = ["check_file"]

def check_file(path: StrPath) -> None:
    """Refuse what is not a GGUF file before llama.cpp tries, with the reason the operating system gives."""
