"""Model files that are none, and parameters of models that cannot be."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

import lloyal
from lloyal.errors import Aborted, InvalidArgument, LoadFailed, UnknownParameter, Unsupported
from tests.abuse.lab import Lab, case, check, decode
from tests.abuse.models import write
from tests.models import tiny, tokens


@case(
    "64",
    "file that is missing, empty, text, a directory, or has a name that cannot be",
    upstream="NULL",
    ours="LoadFailed (an OSError)",
)
def files_that_are_no_models(lab: Lab) -> None:
    empty, text, short = (lab.folder / name for name in ("empty.gguf", "text.gguf", "short.gguf"))
    empty.write_bytes(b"")
    text.write_text("This is a text file.\n" * 100)
    short.write_bytes(b"GG")
    for path, reason in (
        (lab.folder / "missing.gguf", "No such file"),
        (empty, "is empty"),
        (text, "b'This'"),
        (short, "b'GG'"),
        (lab.folder, "is a directory"),
        (lab.folder / "missing" / "x.gguf", "No such file"),
        (text / "x.gguf", "Not a directory"),
        ("a\0b", "null"),
        ("x" * 5000, "too long"),
    ):
        for given in (path, str(path), os.fsencode(path)):
            with lab.refused(LoadFailed, os.fsdecode(path), reason):
                lloyal.Model(given)
    check(issubclass(LoadFailed, OSError), "LoadFailed is no OSError")
    with lab.refused(InvalidArgument, "empty"):
        lloyal.Model([])


@case("65", "file that may not be read", upstream="NULL", ours="LoadFailed")
def file_that_may_not_be_read(lab: Lab) -> None:
    path = lab.folder / "secret.gguf"
    path.write_bytes(tiny("llama").read_bytes())
    path.chmod(0)
    lab.folder.chmod(0o755)
    user = os.geteuid()
    if user == 0:  # who may read everything
        os.seteuid(65534)
    try:
        with lab.refused(LoadFailed, path, "Permission denied"):
            lloyal.Model(path)
    finally:
        os.seteuid(user)


@case("66", "truncated model file", upstream="NULL", ours="LoadFailed")
def truncated_model_file(lab: Lab) -> None:
    whole = tiny("llama").read_bytes()
    path = lab.folder / "cut.gguf"
    for cut in (
        4,
        5,
        8,
        16,
        23,
        24,
        100,
        500,
        2000,
        3000,
        5000,
        len(whole) // 4,
        len(whole) // 2,
        len(whole) - 4096,
        len(whole) - 1,
    ):
        path.write_bytes(whole[:cut])
        for vocab_only in (False, True) if cut < 3000 else (False,):
            with lab.refused(LoadFailed, path):
                lloyal.Model(path, vocab_only=vocab_only)
    path.write_bytes(whole)
    lab.models["whole"] = lloyal.Model(path)
    lab.feed(lab.context("whole"), (0, 0, tokens(5)))


@case("67", "model file with another version, counts or lengths", upstream="NULL, mostly", ours="LoadFailed")
def model_file_with_damaged_header(lab: Lab) -> None:
    whole = tiny("llama").read_bytes()
    path = lab.folder / "damaged.gguf"
    for at, value in (
        (4, 0),
        (4, 1),
        (4, 99),
        (4, 2**32 - 1),
        (8, 10**6),
        (8, 2**32 - 1),
        (16, 10**6),
        (16, 2**32 - 1),
        (24, 2**32 - 1),
    ):
        path.write_bytes(whole[:at] + value.to_bytes(4, "little") + whole[at + 4 :])
        with lab.refused(LoadFailed, path):
            lloyal.Model(path)


@case(
    "68",
    "model whose metadata cannot be: layers, heads, experts, sizes",
    upstream="GGML_ASSERT, for some",
    ours="LoadFailed",
)
def model_with_impossible_metadata(lab: Lab) -> None:
    path = tiny("llama")
    for key, value in (
        ("block_count", 0),
        ("block_count", 100_000),
        ("block_count", 9),
        ("attention.head_count", 0),
        ("attention.head_count", 3),
        ("embedding_length", 0),
        ("embedding_length", 65),
        ("rope.dimension_count", 7),
        ("expert_count", 8),
        ("feed_forward_length", 1),
        ("attention.head_count_kv", 77),
    ):
        with lab.refused(LoadFailed, path):
            lloyal.Model(path, kv_overrides={f"llama.{key}": value})
    with lab.refused(LoadFailed, "n_layer"):  # the reason llama.cpp asserts on is in the message
        lloyal.Model(path, kv_overrides={"llama.block_count": 0})
    for arch in ("mamba2", "no such architecture", ""):
        with lab.refused(LoadFailed, path):
            lloyal.Model(path, kv_overrides={"general.architecture": arch})
    lab.feed(lab.context(), (0, 0, tokens(5)))


@case("69", "unknown keywords, and values no parameter takes", upstream="-", ours="UnknownParameter, InvalidArgument")
def parameters_of_models_that_cannot_be(lab: Lab) -> None:
    path = tiny("llama")
    with lab.refused(UnknownParameter, "n_gpu_layer", "n_gpu_layers"):
        lloyal.Model(path, n_gpu_layer=3)
    with lab.refused(UnknownParameter, "banana"):
        lloyal.Model(path, banana=1)
    for name, value in (
        ("n_gpu_layers", -2),
        ("n_gpu_layers", 2**40),
        ("n_gpu_layers", "all"),
        ("main_gpu", -1),
        ("split_mode", "half"),
        ("progress", 5),
    ):
        with lab.refused(InvalidArgument, f"{name}={value!r}"):
            lloyal.Model(path, **{name: value})
    for devices in ("CPU", ["GPU77"], [object()]):
        with lab.refused(InvalidArgument, "devices"):
            lloyal.Model(path, devices=devices)
    for shares in ([math.nan], [-1.0, 2.0], [0.0, 0.0], [math.inf], [1.0] * 500):
        with lab.refused(InvalidArgument, "tensor_split"):
            lloyal.Model(path, tensor_split=shares)
    for overrides in (
        {"llama.context_length": 2**70},
        {5: 8},
        {"key": None},
        {"": 1},
        {"k" * 128: 1},
        {"key": "v" * 128},
    ):
        with lab.refused(InvalidArgument, "kv_overrides"):
            lloyal.Model(path, kv_overrides=overrides)
    for places in (
        [1],
        {"[": "CPU"},
        {"a\0": "CPU"},
        {"(" * 10**6 + ")" * 10**6: "CPU"},
        {"(" * 51 + "a" + ")" * 51: "CPU"},
        {5: "CPU"},
        {"ffn": "GPU77"},
        {"ffn": None},
        {f"blk.{i}": "CPU" for i in range(5000)},
    ):
        with lab.refused(InvalidArgument, "tensor_buft_overrides"):
            lloyal.Model(path, tensor_buft_overrides=places)
    lloyal.Model(path, tensor_buft_overrides={"(" * 50 + "a" + ")" * 50: "CPU"}).close()
    with lloyal.Model(path, vocab_only=True) as model:
        with lab.refused(InvalidArgument, "vocab_only"):
            lloyal.Context(model)


@case("70", "progress callback that stops the load, or raises", upstream="NULL", ours="Aborted; its own exception")
def progress_that_stops_the_load(lab: Lab) -> None:
    path = tiny("llama")
    seen: list[float] = []

    def stop(share: float) -> bool:
        seen.append(share)
        return False

    with lab.refused(Aborted, path):
        lloyal.Model(path, progress=stop)
    check(len(seen) == 1, f"called {len(seen)} times after it said stop")
    try:
        lloyal.Model(path, progress=lambda share: 1 // 0)
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("what progress raised was lost")
    with lloyal.Model(path, progress=lambda share: seen.append(share)) as model:
        check(seen[-1] == 1.0 and seen[1:] == sorted(seen[1:]), f"progress went {seen}")
        decode(lab.context(model), (0, 0, tokens(5)))
        lab.watched[-1].ctx.close()


@case("71", "model saved where nothing can be written", upstream="exception through the C ABI", ours="OSError")
def model_saved_where_it_cannot(lab: Lab) -> None:
    model = lab.model("llama")
    for path in (lab.folder / "missing" / "x.gguf", lab.folder):
        try:
            model.save(path)
        except OSError as error:
            check(str(path) in str(error), f"{path} is not in {error}")
        else:
            raise AssertionError(f"{path} was written")
    with lloyal.Model(write("mpt", lab.folder)) as other:
        other.save(lab.folder / "saved.gguf")
    with lloyal.Model(lab.folder / "saved.gguf") as again:
        ctx = lab.context(again)
        lab.feed(ctx, (0, 0, tokens(5)))
        lab.check()
        ctx.close()


@case(
    "79",
    "metadata that only computing trips over: epsilons, rotated dimensions, a layer interval of 0",
    upstream="GGML_ASSERT in decode, a decode without end, SIGFPE",
    ours="LoadFailed",
)
def metadata_that_computing_trips_over(lab: Lab) -> None:
    for name in ("llama", "gemma3", "lfm2", "qwen35", "mamba2"):
        path = tiny(name)
        with lloyal.Model(path) as model:
            arch = model.arch
        values: list[tuple[str, float]] = [
            ("attention.layer_norm_rms_epsilon", value) for value in (-1.0, math.nan, math.inf)
        ]
        if name != "mamba2":
            values += [("rope.dimension_count", value) for value in (0, -1, 1, 3, 4096)]
        if name == "qwen35":
            values.append(("full_attention_interval", 0))
        for key, value in values:
            with lab.refused(LoadFailed, path):
                lloyal.Model(path, kv_overrides={f"{arch}.{key}": value})


@case("80", "vocab_only model asked for what it has not", upstream="GGML_ABORT, for some", ours="Unsupported, or 0")
def vocab_only_model(lab: Lab) -> None:
    folder = lab.folder
    with lloyal.Model(tiny("llama"), vocab_only=True) as model:
        for name in dir(type(model)):
            if not name.startswith("_") and not callable(getattr(type(model), name)):
                getattr(model, name)
        check(model.n_head == model.n_head_kv == 0, "heads of no layers")
        with lab.refused(Unsupported, "vocab_only"):
            model.save(folder / "saved.gguf")
        check(not (folder / "saved.gguf").exists(), "a file was left behind")


@case("81", "model saved onto the file it is mapped from", upstream="SIGBUS, and the file is lost", ours="saved")
def model_saved_onto_itself(lab: Lab) -> None:
    path = lab.folder / "model.gguf"
    path.write_bytes(Path(tiny("llama")).read_bytes())
    with lloyal.Model(path) as model:
        fingerprint = model.fingerprint
        model.save(path)
        with lloyal.Context(model, n_ctx=256, n_threads=1) as ctx:
            check(np.isfinite(decode(ctx, (0, 0, tokens(5)))).all(), "the model that is open lost its weights")
    with lloyal.Model(path) as model:
        check(model.fingerprint["tensors"] == fingerprint["tensors"], "the weights changed")
    check([p.name for p in lab.folder.iterdir()] == [path.name], "temporary files were left")


@case(
    "82",
    "files that are none, and parameters of another type",
    upstream="waits for ever",
    ours="LoadFailed, InvalidArgument",
)
def parameters_of_another_type(lab: Lab) -> None:
    fifo = lab.folder / "fifo.gguf"
    os.mkfifo(fifo)
    with lab.refused(LoadFailed, "no regular file"):
        lloyal.Model(fifo)
    path = tiny("llama")
    for name, value in (
        ("use_mmap", "no"),
        ("vocab_only", 1),
        ("devices", 5),
        ("tensor_split", "abc"),
        ("kv_overrides", [1]),
    ):
        with lab.refused(InvalidArgument, f"{name}={value!r}"):
            lloyal.Model(path, **{name: value})
    with lab.refused(InvalidArgument, "NUL"):
        lloyal.Model(path, kv_overrides={"llama.context_length\0zzz": 77})
    for arguments in ({"path": 5}, {"path": path, "params": 5}):
        try:
            lloyal.Model(**arguments)
        except TypeError as error:
            check("5" in str(error), f"{error} does not name the value")
        else:
            raise AssertionError(f"Model({arguments}) went through")
    for name, value in (
        ("kv_unified", "false"),
        ("rope_freq_base", math.nan),
        ("rope_freq_base", -5.0),
        ("rope_freq_scale", math.inf),
        ("yarn_ext_factor", "x"),
        ("samplers", 5),
    ):
        with lab.refused(InvalidArgument, f"{name}={value!r}"):
            lloyal.Context(lab.model("llama"), **{name: value})
    lab.feed(lab.context(), (0, 0, tokens(5)))


@case("83", "tensors split over host memory alone, without mmap", upstream="SIGSEGV", ours="Unsupported")
def split_tensors_in_host_memory(lab: Lab) -> None:
    for more in ({"use_mmap": False}, {"use_mmap": False, "use_mlock": True}):
        with lab.refused(Unsupported, "use_mmap"):
            lloyal.Model(tiny("llama"), devices=["CPU"], split_mode="tensor", **more)
    lloyal.Model(tiny("llama"), devices=["CPU"], split_mode="tensor").close()
