"""What can go wrong, as exceptions.

Every class is a `LloyalError` and the builtin a Python programmer would expect at once. `status` is llama.cpp's own
return code where there was one, `native_log` the first error llama.cpp logged during it, or else its last warning.
"""

from __future__ import annotations

__all__ = [
    "Aborted",
    "BranchHasChildren",
    "Busy",
    "CacheFull",
    "Closed",
    "DecodeFailed",
    "InvalidArgument",
    "InvalidBatch",
    "InvalidGrammar",
    "LloyalError",
    "LoadFailed",
    "NoLease",
    "NoLogits",
    "OutOfDeviceMemory",
    "StaleCheckpoint",
    "StateMismatch",
    "UnknownParameter",
    "Unsupported",
]


class LloyalError(Exception):
    """Base of every error this package raises itself."""

    status: int | None = None
    native_log: str | None = None


class LoadFailed(LloyalError, OSError):
    """A model, adapter or context could not be loaded or created."""


class CacheFull(LloyalError, RuntimeError):
    """The cache has no room for the batch or state; nothing was changed."""


class InvalidBatch(LloyalError, ValueError):
    """The batch breaks a rule of decode; nothing was changed."""


class Aborted(LloyalError, InterruptedError):
    """A decode or load was told to stop; what it had finished stays."""


class DecodeFailed(LloyalError, RuntimeError):
    """llama.cpp failed while computing."""


class StateMismatch(LloyalError, ValueError):
    """A state does not fit here: another model, layout or kind, or damaged bytes."""


class StaleCheckpoint(StateMismatch):
    """What the state builds on has changed since it was taken."""


class OutOfDeviceMemory(LloyalError, MemoryError):
    """A device could not allocate; nothing was changed."""


class InvalidArgument(LloyalError, ValueError):
    """An argument is out of range or contradicts another."""


class UnknownParameter(LloyalError, TypeError):
    """A keyword that no parameter has."""


class InvalidGrammar(LloyalError, ValueError):
    """A grammar could not be parsed."""


class NoLogits(LloyalError, LookupError):
    """There are no logits or embeddings for that index, or the view of them is stale."""


class Unsupported(LloyalError, NotImplementedError):
    """This model, memory type or back end cannot do that."""


class NoLease(LloyalError, RuntimeError):
    """No sequence id is free to lease, or one is leased to somebody else."""


class BranchHasChildren(LloyalError, RuntimeError):
    """A branch that still has children cannot be pruned alone."""


class Busy(LloyalError, RuntimeError):
    """Another thread is inside this context."""


class Closed(LloyalError, ValueError):
    """The object was closed."""


# In the order of `enum class Code` in _cpp/core/status.hpp.
BY_CODE: tuple[type[BaseException] | None, ...] = (
    None,
    LoadFailed,
    CacheFull,
    InvalidBatch,
    Aborted,
    DecodeFailed,
    StateMismatch,
    StaleCheckpoint,
    OutOfDeviceMemory,
    InvalidArgument,
    InvalidGrammar,
    NoLogits,
    Unsupported,
    NoLease,
    Busy,
    Closed,
    MemoryError,
)


def error_from_code(code: int, message: str, status: int | None = None, native_log: str | None = None) -> BaseException:
    """Build the exception for a status of our C++."""
    kind = BY_CODE[code]
    if kind is None:
        raise ValueError(f"status code {code} is not an error")
    error = kind(message)
    if isinstance(error, LloyalError):
        error.status = status
        error.native_log = native_log or None
        if native_log and native_log not in message:
            error.add_note(f"llama.cpp: {native_log}")
    return error
