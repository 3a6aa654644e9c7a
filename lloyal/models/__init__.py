"""The embedded nano models: small trained models that make demos, tests and documentation real without a download.

MODEL_CARD.md beside this file says what they are trained on and how large they are.
"""

from __future__ import annotations

from pathlib import Path

from lloyal.errors import InvalidArgument

__all__ = ["NAMES", "path"]

#: ``nano`` is a llama-architecture target, ``nano-draft`` a smaller model with the same vocabulary, ``nano-hybrid`` an
#: lfm2 with recurrent and attention layers.
NAMES = ("nano", "nano-draft", "nano-hybrid")


def path(name: str = "nano") -> str:
    """The file of an embedded model.

    Parameters
    ----------
    name : str
        One of `NAMES`.

    Raises
    ------
    InvalidArgument
        There is no such model.
    """
    if name not in NAMES:
        raise InvalidArgument(f"there is no embedded model {name!r}: use one of {', '.join(NAMES)}")
    return str(Path(__file__).parent / f"{name}.gguf")
