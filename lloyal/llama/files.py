"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["whole_file"]


@contextmanager
def whole_file(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Iterator[str]:
    """The name of an empty file beside `path`, which takes its place when the block ends without an error.

    So a reader, or a model mapped from `path`, never sees half a file. Errors name `path`.
    """
    target = os.fsdecode(path)
    temporary = os.path.join(os.path.dirname(os.path.abspath(target)), f".lloyal-{secrets.token_hex(8)}")
    try:
        # Not tempfile: the file is for whoever the umask lets read it.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from None
    try:
        yield temporary
        try:
            os.replace(temporary, target)
        except OSError as error:
            raise OSError(error.errno, error.strerror, target) from None
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
