# cython: language_level=3
"""Devices in other processes or on other machines, by llama.cpp's RPC back end.

llama.cpp ends the process when it cannot reach a server, or when one goes away during a call. The first is prevented
here: every connection is tried before llama.cpp opens its own, and kept open while a model is on it. The second cannot
be: **a server that dies under a loaded model takes this process with it**. A server answers one client at a time.

There is no protection of any kind in the protocol: never reach for a server over an open network, never offer one to it.
"""

from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.model as cmodel
from lloyal.llama.args cimport as_integer, as_number
cimport lloyal.libllama.ggml as g
cimport lloyal.libllama.rpc as rpc
from lloyal.llama.backend cimport Device, ensure_started, wrap_device
from lloyal.llama.status cimport check

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import struct
import threading

from lloyal.errors import InvalidArgument, LoadFailed
from lloyal.llama.params import default_threads

__all__ = ["Connection", "connected", "rpc_device", "rpc_serve"]

DEFAULT_ENDPOINT = "127.0.0.1:50052"
CONNECT_TIMEOUT = 5.0  # seconds

# Of llama.cpp's protocol: the commands and sizes of a greeting.
cdef int _HELLO = 14
cdef int _DEVICE_COUNT = 15
cdef int _CAPABILITIES = 24

# One connection is made at a time: nobody may rely on one that is still being tried.
cdef object _connecting = threading.Lock()


cdef class Connection:
    """An open connection to an RPC server. Not for direct use: see `rpc_device`."""

    def __init__(self):
        raise TypeError("Connection cannot be made directly: use rpc_device")


cdef Connection _connect(bytes endpoint, double timeout):
    # The open connection to a server, or a new one to a server that answers.
    cdef Connection connection = Connection.__new__(Connection)
    cdef string name = endpoint
    cdef core.Status status
    cdef vector[g.ggml_backend_dev_t] devices
    with _connecting:
        connection.handle = cmodel.rpc_connected(name)
        if connection.handle:
            return connection
        offered = _greet(endpoint.decode(), timeout)
        with nogil:
            status = cmodel.rpc_connect(name, connection.handle)
        check(status)
        cmodel.rpc_devices(name, devices)
        if devices.size() > <size_t>offered:
            raise LoadFailed(f"the RPC server at {endpoint.decode()} has {offered} devices, it had {devices.size()} when "
                             "this process first used it: give it the same devices, or start a new process")
    return connection


cdef Connection connect_device(Device device):
    # What keeps the server of an RPC device connected; None for other devices.
    cdef string endpoint = cmodel.rpc_endpoint(device.ptr)
    if endpoint.empty():
        return None
    return _connect(endpoint, CONNECT_TIMEOUT)


def connected(Device device not None) -> Connection | None:
    """Connect to the server of an RPC device; None for other devices. It stays open as long as the result is kept."""
    return connect_device(device)


def rpc_device(endpoint: str = DEFAULT_ENDPOINT, timeout: float = CONNECT_TIMEOUT) -> list[Device]:
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
    cdef vector[g.ggml_backend_dev_t] devices
    cdef core.Status status
    cdef string name
    cdef Connection _connection  # kept while it is asked
    host, port = _parse(endpoint)
    ensure_started()
    name = f"{host}:{port}".encode()
    _connection = _connect(name, as_number(timeout, "timeout", 0.0, 1e6))
    status = cmodel.rpc_devices(name, devices)
    check(status)
    return [wrap_device(devices[i]) for i in range(devices.size())]


def rpc_serve(endpoint: str = DEFAULT_ENDPOINT, devices: Sequence[Device] | None = None,
              n_threads: int | None = None, cache_dir: StrPath | None = None) -> None:
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
    cdef vector[g.ggml_backend_dev_t] natives
    cdef core.Status status
    cdef Device device
    cdef string name
    cdef string folder
    cdef size_t threads = default_threads() if n_threads is None else as_integer(n_threads, "n_threads", 1, 512)
    host, port = _parse(endpoint)
    host = "127.0.0.1" if host == "localhost" else host
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        raise InvalidArgument(f"endpoint={endpoint!r}: a server needs an IPv4 address to listen on") from None
    ensure_started()
    for served in _served_by_default() if devices is None else devices:
        device = <Device?>served
        natives.push_back(device.ptr)
    if natives.empty():
        raise InvalidArgument("devices is empty: there is nothing to serve")
    if not address.is_loopback:
        logging.getLogger("lloyal").warning(
            "the RPC server listens on %s: never expose it to an open network, it is experimental and not secure", host)
    if cache_dir is not None:
        folder = os.fsencode(cache_dir)
        os.makedirs(os.fsdecode(folder), exist_ok=True)
    with nogil:
        status = core.check_threads(<int>threads)
    check(status)
    _check_free(host, port)
    name = f"{host}:{port}".encode()
    with _default_signals():
        with nogil:
            status = cmodel.rpc_serve(name, folder, threads, natives)
    check(status)


def _served_by_default() -> list[Device]:
    from lloyal.llama.backend import devices

    found = devices()
    return [device for device in found if device.type in ("gpu", "igpu")] or [d for d in found if d.type == "cpu"]


@contextlib.contextmanager
def _default_signals():
    # The native server waits in the kernel, where Python's handlers do not run.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _parse(endpoint) -> tuple[str, int]:
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint must be a str, not {type(endpoint).__name__}")
    host, _, port = str.__str__(endpoint).rpartition(":")
    if not host or ":" in host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise InvalidArgument(f"endpoint={endpoint!r} must be 'host:port', with a name or an IPv4 address and a port from 1 to "
                              "65535")
    return host, int(port)


def _check_free(host: str, port: int) -> None:
    # llama.cpp does not say why it could not listen.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LoadFailed(f"cannot listen on {host}:{port}: {error.strerror}") from error


def _greet(endpoint: str, timeout: float) -> int:
    """Number of devices of a server; raises if none answers. llama.cpp aborts on everything refused here."""
    host, port = _parse(endpoint)
    try:
        with socket.create_connection((host, port), timeout) as link:
            hello = _ask(link, _HELLO, bytes(_CAPABILITIES), 4 + _CAPABILITIES)
            if hello[0] != rpc.RPC_PROTO_MAJOR_VERSION or hello[1] > rpc.RPC_PROTO_MINOR_VERSION:
                raise LoadFailed(
                    f"the RPC server at {endpoint} speaks version {hello[0]}.{hello[1]} of the protocol, this one "
                    f"{rpc.RPC_PROTO_MAJOR_VERSION}.{rpc.RPC_PROTO_MINOR_VERSION}: use the same llama.cpp on both sides")
            (count,) = struct.unpack("<I", _ask(link, _DEVICE_COUNT, b"", 4))
    except TimeoutError:
        raise LoadFailed(f"the RPC server at {endpoint} did not answer within {timeout:g} seconds: it may be serving "
                         "somebody else, it takes one client at a time") from None
    except LoadFailed:
        raise
    except OSError as error:
        raise LoadFailed(f"no RPC server at {endpoint}: {error.strerror or error}") from error
    if count == 0:
        raise LoadFailed(f"the RPC server at {endpoint} has no devices")
    return count


def _ask(link, command: int, request: bytes, size: int) -> bytes:
    link.sendall(struct.pack("<BQ", command, len(request)) + request)
    answer = _receive(link, 8 + size)
    if struct.unpack("<Q", answer[:8])[0] != size:
        raise LoadFailed("what listens there is no RPC server of llama.cpp, or one of another version")
    return answer[8:]


def _receive(link, n: int) -> bytes:
    data = b""
    while len(data) < n:
        part = link.recv(n - len(data))
        if not part:
            raise LoadFailed("what listens there is no RPC server of llama.cpp, or one of another version: it closed the "
                             "connection")
        data += part
    return data
