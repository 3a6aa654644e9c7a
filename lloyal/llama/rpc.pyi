# Written by tools/stubs.py from rpc.pyx.
"""Devices in other processes or on other machines, by llama.cpp's RPC back end.

llama.cpp ends the process when it cannot reach a server, or when one goes away during a call. The first is prevented
here: every connection is tried before llama.cpp opens its own, and kept open while a model is on it. The second cannot
be: **a server that dies under a loaded model takes this process with it**. A server answers one client at a time.

There is no protection of any kind in the protocol: never reach for a server over an open network, never offer one to it.
"""

from collections.abc import Sequence
from lloyal.llama.backend import Device
from os import PathLike

StrPath = str | PathLike[str]

__all__ = ["Connection", "connected", "rpc_device", "rpc_serve"]

class Connection:
    """An open connection to an RPC server. Not for direct use: see `rpc_device`."""

    def __init__(self) -> None: ...

def connected(device: Device) -> Connection | None:
    """Connect to the server of an RPC device; None for other devices. It stays open as long as the result is kept."""

def rpc_device(endpoint: str = ..., timeout: float = ...) -> list[Device]:
    """The devices of an RPC server, for ``Model(path, devices=[...])``.

    They are used only where they are named, never by default. The connection is open while a model is on the server.

    Parameters
    ----------
    endpoint : str
        ``"host:port"``, with a name or an IPv4 address.
    timeout : float
        Seconds to wait for the server. One that serves somebody else does not answer.

    Raises
    ------
    InvalidArgument
        The endpoint is no ``"host:port"``.
    LoadFailed
        No server answers there, it speaks another version of the protocol, or it is busy.
    Unsupported
        This build has no RPC back end.

    Notes
    -----
    Releases the GIL.
    """

def rpc_serve(endpoint: str = ..., devices: Sequence[Device] | None = None, n_threads: int | None = None, cache_dir: StrPath | None = None) -> None:
    """Serve devices of this machine to llama.cpp on other processes or machines (the RPC server of llama.cpp).

    It does not return: it takes the process, and Ctrl-C or a termination signal ends it. One client at a time is
    served.

    The protocol is experimental and has no protection: whoever reaches the port can read, write and run things in
    this process. **Never expose it to an open network.**

    Parameters
    ----------
    endpoint : str
        ``"host:port"`` to listen on, with an IPv4 address; anything but loopback is warned about.
    devices : sequence of Device, optional
        What to serve; the GPUs if not given, or the CPU where there is none.
    n_threads : int, optional
        Threads for the CPU; those this process may use if not given.
    cache_dir : str or os.PathLike, optional
        Folder that keeps large tensors, so that loading a model again need not send them.

    Raises
    ------
    InvalidArgument
        The endpoint is no ``"IPv4:port"``, or there are no devices.
    LoadFailed
        Nothing can listen there.
    """
