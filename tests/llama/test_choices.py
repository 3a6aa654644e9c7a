"""What is chosen by machine and model: threads, flash attention, repacked weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import lloyal
from lloyal.llama.params import _cpu_quota, default_threads
from tests.decode import feed
from tests.models import tiny


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Every CPU has something to do."""
    command = [sys.executable, "-S", "-c", "print(flush=True)\nwhile True: pass"]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(os.cpu_count() or 1)]
    try:
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()
        yield
    finally:
        for other in others:
            other.kill()
            other.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what runs")
def test_a_busy_machine_gives_one_thread(busy_machine: None, nano: lloyal.Model) -> None:
    assert default_threads() == 1
    with lloyal.Context(nano, n_ctx=256) as ctx:
        assert ctx.n_threads == 1


def test_no_more_threads_than_cpus() -> None:
    assert 1 <= default_threads() <= len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(512))


def head_sizes(model: lloyal.Model) -> set[int]:
    """Of keys and values, by the file."""
    keys = [f"{model.arch}.attention.{kind}_length" for kind in ("key", "value")]
    default = model.n_embd // model.n_head
    return {int(model.metadata.get(key, default)) for key in keys}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert _cpu_quota(str(tmp_path)) == quota


def test_a_child_context_follows_its_parent() -> None:
    with lloyal.Model(tiny("llama")) as model, lloyal.Context(model, n_ctx=256, n_threads=1) as parent:
        with lloyal.Context(model, n_ctx=256, n_threads=1, parent=parent) as child:
            assert child.flash_attn == parent.flash_attn
        with lloyal.Context(model, n_ctx=256, n_threads=1, parent=parent, type_v="q8_0") as child:
            assert child.flash_attn


@pytest.mark.parametrize("name", ["nano", "llama", "gpt2", "falcon-h1"])
def test_flash_attention_is_off_where_it_is_slower(name: str) -> None:
    path = lloyal.models.path(name) if name == "nano" else tiny(name)
    step = 64 if "AVX512 = 1" in lloyal.system_info() else 32
    with lloyal.Model(path) as model:
        slow = any(size % step for size in head_sizes(model))
        with lloyal.Context(model, n_ctx=256, n_threads=1) as ctx:
            assert ctx.flash_attn is not slow
            assert ctx.params.flash_attn == ("off" if slow else "on")
            again = lloyal.Context(model, ctx.params)
            assert again.params == ctx.params
            again.close()
        for asked in ("on", "off", True, False):
            with lloyal.Context(model, n_ctx=256, n_threads=1, flash_attn=asked) as ctx:
                assert ctx.flash_attn is (asked in ("on", True))
                assert ctx.params.flash_attn == asked


def test_a_quantized_v_has_flash_attention_whatever_the_heads() -> None:
    with lloyal.Model(tiny("llama")) as model, lloyal.Context(model, n_ctx=256, type_v="q8_0", n_threads=1) as ctx:
        assert ctx.params.flash_attn == "on"


@pytest.mark.parametrize("ftype", ["f16", "q4_0", "q8_0", "q4_k_m"])
@pytest.mark.parametrize("name", ["nano", "nano-hybrid"])
def test_repacked_weights_compute_the_same(name: str, ftype: str, tmp_path: Path) -> None:
    """Several sequences in one batch, which AMX gets wrong with F16 weights on a hybrid: refused by the choice."""
    path = tmp_path / "m.gguf"
    lloyal.llama.quantize(lloyal.models.path(name), path, ftype, n_threads=1)
    parts = [(seq, 0, [5 + seq, 6, 7, 8]) for seq in range(3)]
    rows = {}
    for asked in ("auto", False):
        with lloyal.Model(path, use_extra_bufts=asked) as model, lloyal.Context(model, n_ctx=256, n_threads=1) as ctx:
            assert isinstance(model.params.use_extra_bufts, bool)
            rows[asked] = feed(ctx, *parts)
    for chosen, plain in zip(rows["auto"], rows[False], strict=True):
        assert np.linalg.norm(chosen - plain) < 0.05 * np.linalg.norm(plain)
