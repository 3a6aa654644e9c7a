# Written by tools/stubs.py from backend.pyx.
"""The native library itself: starting it, its log, its devices.

Importing this module starts nothing; the first model, or the first look at the devices, does.
"""

__all__ = ["Device", "build_info", "devices", "drain_logs", "ensure_started", "live_handles", "system_info"]

def ensure_started() -> int:
    """Start ggml's back ends once: plug-ins are loaded from ``lloyal/lib``."""

def drain_logs() -> None:
    """Hand llama.cpp's waiting log lines to ``logging.getLogger("lloyal.native")``."""

class Device:
    """A compute device that ggml found or was told of. Get one from `devices()`.

    Two objects for the same device are equal. Devices live as long as the process.
    """

    @property
    def name(self) -> str:
        """Name to select it by, such as ``"CPU"``, ``"CUDA0"`` or ``"RPC0[127.0.0.1:50052]"``."""
    @property
    def description(self) -> str: ...
    @property
    def backend(self) -> str:
        """Name of the back end that drives it."""
    @property
    def type(self) -> str:
        """``"cpu"``, ``"gpu"``, ``"igpu"``, ``"accel"`` or ``"meta"``."""
    @property
    def memory(self) -> tuple[int, int]:
        """Free and total bytes, as the back end reports them. Releases the GIL.

        A device of an RPC server is asked over the network: `LoadFailed` if the server does not answer.
        """
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...
    def __repr__(self) -> str: ...

def devices() -> list[Device]:
    """All devices, the CPU among them. Starts the back ends."""

def live_handles() -> dict[str, int]:
    """Native objects that are alive now, by kind."""

def build_info() -> dict[str, object]:
    """Versions and back ends: what to put into a bug report. Starts the back ends."""

def system_info() -> str:
    """llama.cpp's own line about instruction sets and threads (`llama_print_system_info`)."""
