"""The bytes of a checkpoint: a JSON header, the tensors, a checksum over both. Checked here, without a context."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
from typing import Any

from lloyal.errors import StateMismatch, Unsupported

__all__ = [
    "DIGEST_SIZE",
    "MAGIC",
    "MAX_HEADER",
    "PREFIX",
    "SIGNATURE_SIZE",
    "VERSION",
    "decode",
    "decode_signed",
    "encode",
]

MAGIC = b"lloyalCK"
VERSION = 2
# Magic, version, bytes of the JSON header, bytes of tensors. Behind it: BLAKE2b (32 bytes) over all the rest, the
# header, the tensors, a signature.
PREFIX = struct.Struct("<8sIIQ")
DIGEST_SIZE = 32
SIGNATURE_SIZE = 16  # version 1 has none
MAX_HEADER = 1 << 24

_KEY = os.urandom(32)  # what this process signs with: content ids in its own bytes still mean what they say


def encode(header: dict[str, Any], payload: bytes, *, sign: bool = False) -> bytes:
    """Put them together. `Unsupported` if the header is longer than `decode` takes."""
    encoded = json.dumps(header, separators=(",", ":")).encode()
    if len(encoded) > MAX_HEADER:
        raise Unsupported(f"its rows lie in {len(header['rows'])} runs: the header would have {len(encoded)} bytes")
    prefix = PREFIX.pack(MAGIC, VERSION, len(encoded), len(payload))
    digest = hashlib.blake2b(prefix, digest_size=DIGEST_SIZE)
    digest.update(encoded)
    digest.update(payload)
    signature = _signature(digest.digest()) if sign else bytes(SIGNATURE_SIZE)
    digest.update(signature)
    return b"".join((prefix, digest.digest(), encoded, payload, signature))


def decode(view: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Split and verify the bytes of a checkpoint; every field is checked, so that nothing behind it need doubt them."""
    header, payload, _ = decode_signed(view)
    return header, payload


def decode_signed(view: memoryview) -> tuple[dict[str, Any], memoryview, bool]:
    """As `decode`; the last is True if this process has written them, byte for byte."""
    start = PREFIX.size + DIGEST_SIZE
    if len(view) < start:
        raise StateMismatch(f"{len(view)} bytes are too few for a checkpoint")
    magic, version, n_header, n_payload = PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise StateMismatch(f"not a checkpoint: it starts with {magic!r}")
    if not 1 <= version <= VERSION:
        raise StateMismatch(f"checkpoint version {version}, this package reads 1 to {VERSION}")
    end = start + n_header + n_payload
    expected = end + (SIGNATURE_SIZE if version > 1 else 0)
    if n_header > MAX_HEADER or expected != len(view):
        raise StateMismatch(f"the checkpoint should have {expected} bytes, it has {len(view)}")
    digest = hashlib.blake2b(view[: PREFIX.size], digest_size=DIGEST_SIZE)
    digest.update(view[start:end])
    signature = bytes(view[end:])
    known = hmac.compare_digest(signature, _signature(digest.digest()))
    digest.update(signature)
    if digest.digest() != view[PREFIX.size : start]:
        raise StateMismatch("the checkpoint is damaged: its checksum does not match")
    try:
        header = json.loads(bytes(view[start : start + n_header]))
    except (ValueError, RecursionError) as error:
        raise StateMismatch(f"the checkpoint's header is not JSON: {error}") from None
    _check_header(header)
    return header, view[start + n_header : end], known


def _signature(digest: bytes) -> bytes:
    return hashlib.blake2b(digest, key=_KEY, digest_size=SIGNATURE_SIZE).digest()


def _check_header(header: object) -> None:
    def is_int(value: object, low: int, high: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    def is_tokens(value: object) -> bool:
        return value is None or (isinstance(value, list) and all(is_int(token, 0, int32) for token in value))

    int32, uint64 = 2**31 - 1, 2**64 - 1
    if not isinstance(header, dict):
        raise StateMismatch("the checkpoint's header is not an object")
    good = (
        isinstance(header.get("fingerprint"), dict)
        and isinstance(header.get("layout"), dict)
        and isinstance(header.get("partial"), bool)
        and is_int(header.get("seq_id"), 0, 255)
        and is_int(header.get("window_begin"), 0, int32)
        and is_tokens(header.get("tokens", 0))
        and (header.get("waiting") is None or is_int(header["waiting"], 0, int32))
        and isinstance(header.get("rows"), list)
        and all(
            isinstance(run, list)
            and len(run) == 4
            and is_int(run[0], 0, int32)
            and is_int(run[1], run[0] + 1, int32)
            and is_int(run[2], 0, uint64)
            and is_int(run[3], 0, uint64 - int32)
            for run in header["rows"]
        )
    )
    if not good:
        raise StateMismatch("the checkpoint's header has a missing or impossible field")
