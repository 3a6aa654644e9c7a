"""An RPC server in a process of its own, and a proxy in front of it that counts what passes.

``with server() as endpoint`` runs a server on loopback for the CPU of this machine; ``with CountingProxy(endpoint) as
proxy`` listens at ``proxy.endpoint`` and passes everything on. The two make a device without a GPU: its memory is in
another process, and every byte that enters or leaves it is seen.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

START_TIMEOUT = 30.0


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(n_devices: int = 1) -> Iterator[str]:
    """Run a server that offers the CPU (`n_devices` times); gives its endpoint."""
    endpoint = f"127.0.0.1:{free_port()}"
    code = (
        "import lloyal.llama as ll; cpu = [d for d in ll.devices() if d.type == 'cpu']; "
        f"ll.rpc_serve({endpoint!r}, devices=cpu * {n_devices}, n_threads=1)"
    )
    process = subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_until_it_listens(endpoint, process)
        yield endpoint
    finally:
        process.kill()
        process.communicate()


def wait_until_it_listens(endpoint: str, process: subprocess.Popen[Any]) -> None:
    host, port = endpoint.split(":")
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            _, error = process.communicate()
            raise RuntimeError(f"the RPC server ended with {process.returncode}: {error!r}")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"no RPC server at {endpoint} after {START_TIMEOUT} s")


class CountingProxy:
    """Pass connections on to `target`, and count the bytes each way."""

    def __init__(self, target: str) -> None:
        host, port = target.split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.to_server = 0
        self.to_client = 0
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in self._open:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for link in self._open:
            link.close()

    @property
    def total(self) -> int:
        """Bytes both ways since the start."""
        with self._lock:
            return self.to_server + self.to_client

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(self._target)
            for link in (client, upstream):
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(link)
            for source, sink, counter in ((client, upstream, "to_server"), (upstream, client, "to_client")):
                thread = threading.Thread(target=self._pass_on, args=(source, sink, counter), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, counter: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                with self._lock:
                    setattr(self, counter, getattr(self, counter) + len(data))
                sink.sendall(data)
        # one side is done: tell the other
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
