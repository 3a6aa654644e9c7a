# cython: language_level=3
"""The native library itself: starting it, its log, its devices.

Importing this module starts nothing; the first model, or the first look at the devices, does.
"""

from libc.stdint cimport uint64_t
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal.libllama.ggml as g
cimport lloyal.libllama.llama as c
from lloyal.llama.status cimport check_process

import atexit
import logging
import os
import threading

from lloyal.llama.openmp import passive_waiting

__all__ = ["Device", "build_info", "devices", "drain_logs", "ensure_started", "live_handles", "system_info"]

cdef object _KEY = object()  # a bare __new__ would make one that points nowhere

# llama.cpp's lines arrive here. Without a handler of the user's own nothing is printed.
_native = logging.getLogger("lloyal.native")
logging.getLogger("lloyal").addHandler(logging.NullHandler())

cdef dict _LEVELS = {
    g.GGML_LOG_LEVEL_DEBUG: logging.DEBUG,
    g.GGML_LOG_LEVEL_INFO: logging.INFO,
    g.GGML_LOG_LEVEL_WARN: logging.WARNING,
    g.GGML_LOG_LEVEL_ERROR: logging.ERROR,
}
# What a plug-in calls itself in the registry, by its file. RPC has no device before a server is named.
cdef dict _REGISTERED = {
    "rpc": "RPC",
    "cuda": "CUDA", "hip": "ROCm", "musa": "MUSA", "metal": "MTL", "vulkan": "Vulkan", "sycl": "SYCL", "opencl": "OpenCL",
}
cdef dict _LEFT_OUT = {}  # back ends that are in lloyal/lib and could not be started: name -> reason

cdef object _start_lock = threading.Lock()
cdef bint _started = False


cpdef int ensure_started() except -1:
    """Start ggml's back ends once: plug-ins are loaded from ``lloyal/lib``."""
    global _started
    check_process()
    if _started:
        return 0
    with _start_lock:
        if _started:
            return 0
        core.log_install()
        core.fence_install()
        core.fork_install()
        folder = os.path.join(os.path.dirname(os.path.dirname(__file__)), "lib")
        with passive_waiting():
            _load_plugins(os.fsencode(folder))
        _check_back_ends(folder)
        _started = True
    if _LEFT_OUT:
        _say_left_out()
    drain_logs()
    return 0


cdef int _load_plugins(bytes folder) except -1:
    cdef const char* path = folder
    with nogil:
        # Back ends that are linked in register themselves; only plug-in builds find something here.
        if g.ggml_backend_reg_count() == 0:
            g.ggml_backend_load_all_from_path(path)
        c.llama_backend_init()
    return 0


cdef int _check_back_ends(folder) except -1:
    if g.ggml_backend_reg_by_name(b"CPU") == NULL:
        from lloyal.errors import LoadFailed

        raise LoadFailed("no CPU back end could be loaded from lloyal/lib: the installation is damaged, or no variant "
                         "in it runs on this processor")
    for file in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(file)
        name = _REGISTERED.get(stem.removeprefix("libggml-")) if suffix in (".so", ".dylib") else None
        if name is None:
            continue
        path = os.fsencode(os.path.join(folder, file))
        core.log_mark()
        registered = g.ggml_backend_reg_by_name(name.encode())
        if registered == NULL:
            # ggml's own search says nothing of what it passes over: try again, and it says why.
            registered = g.ggml_backend_load(path)
        if registered == NULL:
            reason = core.log_last().decode("utf-8", "replace").strip()
            _LEFT_OUT[name] = reason.rpartition(f"{os.fsdecode(path)}: ")[2] or "no reason given"
        elif name != "RPC" and g.ggml_backend_reg_dev_count(registered) == 0:
            _LEFT_OUT[name] = "it finds no device (is the driver installed?)"
    return 0


cdef _say_left_out():
    import warnings

    reasons = "; ".join(f"{name}: {reason}" for name, reason in _LEFT_OUT.items())
    missing = any(library in reasons for library in ("libcublas.so.13", "libcublasLt.so.13", "libcudart.so.13"))
    hint = " (`pip install 'lloyal[cuda13]'` brings NVIDIA's libraries)" if missing else ""
    text = f"left out what could not be started here, the CPU goes on: {reasons}{hint}"
    _native.warning("%s", text)
    warnings.warn(f"lloyal {text}", RuntimeWarning, stacklevel=2)


def _at_exit():
    with nogil:
        core.exit_begin()


# Threads that nobody joins may compute until the interpreter ends, and the libraries are taken down right after.
atexit.register(_at_exit)


cpdef drain_logs():
    """Hand llama.cpp's waiting log lines to ``logging.getLogger("lloyal.native")``."""
    cdef uint64_t lost = 0
    cdef vector[core.LogLine] lines
    core.log_mark()  # it belongs to the call that ends here, not to the next error
    if not core.log_pending():
        return
    lines = core.log_drain(lost)
    for i in range(lines.size()):
        level = _LEVELS.get(lines[i].level, logging.INFO)
        if _native.isEnabledFor(level):
            _native.log(level, "%s", lines[i].text.decode("utf-8", "replace"))
    if lost:
        _native.warning("%d log lines were lost", lost)


cdef class Device:
    """A compute device that ggml found or was told of. Get one from `devices()`.

    Two objects for the same device are equal. Devices live as long as the process.
    """

    def __cinit__(self, key=None):
        if key is not _KEY:
            raise TypeError("Device cannot be made directly: use lloyal.devices()")

    @property
    def name(self) -> str:
        """Name to select it by, such as ``"CPU"``, ``"CUDA0"`` or ``"RPC0[127.0.0.1:50052]"``."""
        return g.ggml_backend_dev_name(self.ptr).decode()

    @property
    def description(self) -> str:
        return g.ggml_backend_dev_description(self.ptr).decode("utf-8", "replace")

    @property
    def backend(self) -> str:
        """Name of the back end that drives it."""
        return g.ggml_backend_reg_name(g.ggml_backend_dev_backend_reg(self.ptr)).decode()

    @property
    def type(self) -> str:
        """``"cpu"``, ``"gpu"``, ``"igpu"``, ``"accel"`` or ``"meta"``."""
        return {
            g.GGML_BACKEND_DEVICE_TYPE_CPU: "cpu",
            g.GGML_BACKEND_DEVICE_TYPE_GPU: "gpu",
            g.GGML_BACKEND_DEVICE_TYPE_IGPU: "igpu",
            g.GGML_BACKEND_DEVICE_TYPE_ACCEL: "accel",
        }.get(g.ggml_backend_dev_get_type(self.ptr), "meta")

    @property
    def memory(self) -> tuple[int, int]:
        """Free and total bytes, as the back end reports them. Releases the GIL.

        A device of an RPC server is asked over the network: `LoadFailed` if the server does not answer.
        """
        from lloyal.llama.rpc import connected

        cdef size_t free = 0
        cdef size_t total = 0
        _connection = connected(self)  # kept while it is asked
        with nogil:
            g.ggml_backend_dev_memory(self.ptr, &free, &total)
        return free, total

    def __eq__(self, other):
        return isinstance(other, Device) and (<Device>other).ptr == self.ptr

    def __hash__(self):
        return hash(<size_t>self.ptr)

    def __repr__(self):
        return f"<Device {self.name}: {self.description}>"


cdef Device wrap_device(g.ggml_backend_dev_t ptr):
    cdef Device device = Device.__new__(Device, _KEY)
    device.ptr = ptr
    return device


def devices() -> list[Device]:
    """All devices, the CPU among them. Starts the back ends."""
    ensure_started()
    return [wrap_device(g.ggml_backend_dev_get(i)) for i in range(g.ggml_backend_dev_count())]


def live_handles() -> dict[str, int]:
    """Native objects that are alive now, by kind."""
    cdef core.LiveCounts* n = &core.live_counts()
    return {
        "models": <long>n.models,
        "contexts": <long>n.contexts,
        "samplers": <long>n.samplers,
        "adapters": <long>n.adapters,
        "checkpoints": <long>n.checkpoints,
        "branches": <long>n.branches,
        "connections": <long>n.connections,
    }


def build_info() -> dict[str, object]:
    """Versions and back ends: what to put into a bug report. Starts the back ends."""
    import platform
    from importlib import metadata

    ensure_started()
    return {
        "lloyal": metadata.version("lloyal"),
        "llama.cpp": c.llama_version().decode(),
        "llama.cpp commit": g.ggml_commit().decode(),
        "ggml": g.ggml_version().decode(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backends": [g.ggml_backend_reg_name(g.ggml_backend_reg_get(i)).decode()
                     for i in range(g.ggml_backend_reg_count())],
        "left_out": dict(_LEFT_OUT),
        "devices": [device.name for device in devices()],
        "max_devices": c.llama_max_devices(),
        "max_sequences": c.llama_max_parallel_sequences(),
        "supports_mmap": c.llama_supports_mmap(),
        "supports_mlock": c.llama_supports_mlock(),
        "supports_gpu_offload": c.llama_supports_gpu_offload(),
        "supports_rpc": c.llama_supports_rpc(),
    }


def system_info() -> str:
    """llama.cpp's own line about instruction sets and threads (`llama_print_system_info`)."""
    ensure_started()
    return c.llama_print_system_info().decode()
