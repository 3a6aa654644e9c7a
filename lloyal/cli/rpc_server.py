"""``lloyal rpc-server``."""

from __future__ import annotations

from typing import Annotated

import typer

from lloyal import devices
from lloyal.cli.options import Threads
from lloyal.cli.output import warn
from lloyal.errors import InvalidArgument
from lloyal.llama import rpc_serve

__all__ = ["rpc_server"]


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
    warn(
        f"serving {', '.join(device) if device else 'the default devices'} at {endpoint} until Ctrl-C. Whoever reaches "
        "this port can read, write and run things in this process: never expose it to an open network."
    )
    rpc_serve(endpoint, [found[name] for name in device] if device else None, n_threads=threads, cache_dir=cache_dir)
