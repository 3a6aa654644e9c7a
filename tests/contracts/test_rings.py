"""Who may import whom. An import goes to a lower ring, or leftwards in the same row; nothing goes in circles."""

from __future__ import annotations

import re

import pytest

from tests.contracts.source import PACKAGE, ROOT, code_lines, imports, modules

# Every module has its place; a new one is put behind what it uses.
RINGS = [
    # 0: declarations, our C++, the error table
    "errors models libllama _cpp",
    # 1: llama.h as Python, and what we invented and compiled
    "llama.openmp llama.enums llama.signals llama.files llama.params llama.candidates llama.backend llama.status "
    "llama.args llama.base llama.buffers "
    "llama.vocab llama.rpc llama.load llama.model llama.batch llama.batch_ext llama.decode llama.outputs "
    "llama.memory llama.state llama.ext llama.adapter llama.quantize llama.common llama.sampler_init llama.sampler "
    "llama.sampler_backend llama.context llama native.branch native",
    # 2: text, sampling and measures on top of it
    "tokenization sampling grammar chat metrics kv",
    # 3: checkpoints and decoding
    "undecoded checkpoint.format checkpoint.value checkpoint.budget checkpoint.place checkpoint model lock context "
    "decoding prompt",
    # 4: branches and speculation
    "branch.rows branch.checkpoint branch.branch branch.tree branch.store branch.search branch "
    "speculative.protocol speculative.ngram speculative.automaton speculative.suffix speculative.model "
    "speculative.heads "
    "speculative.chain speculative.forced speculative.synthetic speculative.cost speculative.loop speculative",
    # 5: sessions
    "session scheduler generation_many generation aio conversation scoring embedding",
    # 6: what people start
    "terminal bench.timing bench.checkpoint bench.speculative bench.report bench demo "
    "cli.output cli.options cli.program cli.demo cli.info cli.run cli.score cli.embed cli.rpc_server cli.bench cli "
    "__main__",
]

# Circles that are known, each with what will end it.
CIRCLES = {
    ("lloyal.llama.backend", "lloyal.llama.status"): "only check_process, inlined; status asks backend for the log",
    (
        "lloyal.llama.backend",
        "lloyal.llama.rpc",
    ): "Device.memory asks whether a server is behind it; a hook set by rpc would do",
}

PLACE = {f"lloyal.{name}": (ring, column) for ring, row in enumerate(RINGS) for column, name in enumerate(row.split())}
PLACE["lloyal"] = (5, 99)  # the public names: everything but what people start may be imported into it, by it alone


def place(module: str) -> tuple[int, int] | None:
    """Ring and column of a module; the parts of a package have its place unless they have their own."""
    while module:
        if module in PLACE:
            return PLACE[module]
        module = module.rpartition(".")[0]
        if module == "lloyal":
            return None
    return None


def target(module: str, name: str) -> str:
    """The module that ``from module import name`` reaches."""
    return f"{module}.{name}" if f"{module}.{name}" in modules() else module


@pytest.mark.parametrize("module", modules())
def test_every_module_has_a_place(module):
    assert place(module), f"{module} stands in no ring: add it to RINGS, behind the modules it imports"


@pytest.mark.parametrize("module", modules())
def test_imports_go_down_or_left(module):
    wrong = []
    for path in modules()[module]:
        for line, source, name in imports(path):
            used = target(source, name) if name else source
            if used != module and used.split(".")[0] == "lloyal" and not allowed(module, used):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {used}")
    assert not wrong, wrong


def allowed(module: str, used: str) -> bool:
    here, there = place(module), place(used)
    if here is None or there is None:
        return False
    if (module, used) in CIRCLES:
        return True
    if module == "lloyal":
        return used == "lloyal.models" or there < (6, 0)
    # Declarations may use each other: libllama mirrors headers that include each other.
    return there < here or (there == here and here[0] == 0)


def test_the_rule_bites():
    assert not allowed("lloyal.branch", "lloyal.session")
    assert not allowed("lloyal.branch", "lloyal.speculative.loop")
    assert allowed("lloyal.speculative.loop", "lloyal.branch")
    assert not allowed("lloyal.llama.model", "lloyal.checkpoint")
    assert not allowed("lloyal.kv", "lloyal")
    assert allowed("lloyal.cli", "lloyal")


@pytest.mark.parametrize("module", modules())
def test_only_ring_1_sees_the_declarations(module):
    if module.startswith(("lloyal.libllama", "lloyal._cpp", "lloyal.llama", "lloyal.native")):
        return
    seen = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules()[module]
        for line, used, _ in imports(path)
        if used.startswith(("lloyal.libllama", "lloyal._cpp"))
    ]
    assert not seen, f"only lloyal/llama and lloyal/native cimport declarations: {seen}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.pyx")), ids=lambda path: str(path.relative_to(ROOT)))
def test_cython_is_in_ring_1(path):
    assert path.parent.name in ("llama", "native")


# Our C++: a folder per noun. A file includes from folders to its left, and from its own.
FOLDERS = ["core", "memory", "model", "state", "decode", "sample", "branch"]
# A context holds its parts: what makes and frees one names them all.
WHOLE = {"core/handles.hpp", "core/handles.cpp"}
CPP = PACKAGE / "_cpp"
SOURCES = sorted(path for path in CPP.rglob("*") if path.suffix in (".cpp", ".hpp"))


def test_every_folder_of_cpp_has_its_place():
    assert {path.parent.name for path in SOURCES} == set(FOLDERS)
    assert {path.stem for path in CPP.glob("*.pxd")} - {"__init__"} == set(FOLDERS), "one file of declarations a folder"
    names = [path.name for path in SOURCES]
    assert len(names) == len(set(names)), "a name is enough to find a file"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CPP)))
def test_includes_go_left(path):
    here = path.relative_to(CPP)
    used = re.findall(r'^#include "(\w+)/\w+\.hpp"', path.read_text(), re.MULTILINE)
    assert set(used) <= set(FOLDERS)
    allowed = FOLDERS if str(here) in WHOLE else FOLDERS[: FOLDERS.index(here.parts[0]) + 1]
    assert set(used) <= set(allowed), f"{here} includes from {sorted(set(used) - set(allowed))}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_declarations_name_headers_of_their_folder(folder):
    headers = re.findall(r'extern from "([\w/.]+)"', (CPP / f"{folder}.pxd").read_text())
    assert headers
    of_a_context = ["memory/provenance.hpp", "memory/memory.hpp"] if folder == "core" else []
    assert all(name.startswith(f"{folder}/") or name in of_a_context for name in headers)
    assert all((CPP / name).exists() for name in headers)


CYTHON = [path for path in sorted(PACKAGE.rglob("*.p[yx][xd]")) if path.stat().st_size]


@pytest.mark.parametrize("path", CYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_declarations_are_cimported_by_module(path):
    """``cimport lloyal.libllama.llama as c``: Cython leaves the other spelling out of its depfile, so that an edit of
    the .pxd would not rebuild, and ``c.`` shows the reader which names are llama.cpp's."""
    inside = path.parent.name == "libllama"
    pattern = r"\s*from\s+lloyal\.libllama\s+cimport" if inside else r"\s*from\s+lloyal\.libllama\b.*cimport"
    wrong = [f"{path.relative_to(ROOT)}:{line}" for line, code in code_lines(path) if re.match(pattern, code)]
    assert not wrong, wrong


RING_0 = [path for path in CYTHON if path.parent.name in ("libllama", "_cpp")]


@pytest.mark.parametrize("path", RING_0, ids=lambda path: str(path.relative_to(ROOT)))
def test_declared_functions_need_no_gil(path):
    """``nogil`` stands on the block, so that no declaration can forget it."""
    blocks = re.findall(r"^cdef extern from .*:$", path.read_text(), re.MULTILINE)
    assert all(block.endswith(" nogil:") for block in blocks), blocks
