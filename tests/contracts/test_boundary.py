"""Where Python meets C++: habits of every .pyx that keep memory safe, read from the source.

* A native call is a stay in its context or sampler (``_cpp/core/calls.hpp``); no .pyx enters or leaves one.
* An argument is converted once, and what was converted is what is checked and used.
* None, numbers and objects where an extension type, a path or plain bytes belong are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.source import PACKAGE, code_lines

LLAMA = PACKAGE / "llama"
RING1 = (LLAMA, PACKAGE / "native")
CYTHON = sorted(path for folder in RING1 for path in folder.glob("*.pyx"))
DECLARATIONS = sorted((PACKAGE / "_cpp").glob("*.pxd"))


def ids(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


# Modules of functions over a context or a sampler, which its methods call.
FUNCTIONS = "(?:adapter|decode|ext|init|outputs|sampler_backend|state)"

# What may be asked of a context or sampler while another thread is inside: what never changes, or is atomic.
ANY_TIME = {
    "memory_can_shift",
    "context_request_abort",
    "store_of",
    "layout_signature",
    "process_n_embd",
    "n_embedding",
    "n_logits",
    "n_pooled",
    "n_layer_input",
    "lease_release",
}
ANY_TIME_NATIVE = {
    "llama_n_ctx",
    "llama_n_ctx_seq",
    "llama_n_batch",
    "llama_n_ubatch",
    "llama_n_seq_max",
    "llama_n_rs_seq",
    "llama_n_threads",
    "llama_n_threads_batch",
    "llama_pooling_type",
    "llama_get_causal_attn",
    "llama_perf_context",
    "llama_perf_context_reset",
}


@pytest.mark.parametrize("path", DECLARATIONS, ids=ids)
def test_what_takes_a_box_is_called_through_a_stay(path: Path) -> None:
    declared = " ".join(line for _, line in code_lines(path))
    found = re.findall(r'(\w+)(?: "([^"]*)")?\(([^()]*\b(?:Context|Sampler)Box& [^()]*)\)', declared)
    assert {name for name, _, _ in found} <= ANY_TIME


@pytest.mark.parametrize("path", CYTHON, ids=ids)
def test_nothing_is_entered_by_hand(path: Path) -> None:
    for number, line in code_lines(path):
        assert not re.search(r"\b(?:context|sampler)_(?:enter|leave)\b|(?<![.\w])(?:enter|leave)\(", line), (
            number,
            line,
        )
        for function in re.findall(r"\bc\.(llama_\w+)\((?:handle|context|ctx)\.get\(\)\.ptr\b", line):
            if re.fullmatch(rf"context|batch_ext|memory|{FUNCTIONS}", path.stem):
                known = function.startswith(("llama_adapter", "llama_model")) or function in ANY_TIME_NATIVE
                assert known, f"{path.name}:{number}: {function} outside of a stay"


def test_the_log_is_handed_on_in_one_place() -> None:
    """`check` takes an error's reason from the log before it hands the lines on: drained earlier, it is lost."""
    found = [
        f"{path.name}:{number}"
        for path in sorted(path for folder in RING1 for path in folder.glob("*.p[yx][xd]"))
        if path.stem not in ("backend", "status")
        for number, line in code_lines(path)
        if re.search(r"\bdrain_logs\(\)", line) and path.stem != "load"
    ]
    assert not found


# Functions: their parameters with annotations, and their bodies without texts.

Function = tuple[str, dict[str, str], list[tuple[int, str]]]


def functions(path: Path, kinds: str = "def") -> Iterator[Function]:
    """Every ``def``, or what else there is to look at; not the helpers of a module, which only it calls."""
    current: tuple[str, dict[str, str], list[tuple[int, str]], int] | None = None
    for number, line in code_lines(path):
        indent = len(line) - len(line.lstrip())
        if current and line.strip() and indent <= current[3]:
            yield current[0], current[1], current[2]
            current = None
        if match := re.match(rf"\s*(?:{kinds}) (\w+)\((.*)\)\s*(?:->[^:]*(?:\[.*\])?|except \*)?:$", line):
            current = None if indent == 0 and match[1][0] == "_" else (match[1], parameters(match[2]), [], indent)
        elif current:
            current[2].append((number, re.sub(r'f?b?"(?:\\.|[^"\\])*"', '""', line)))
    if current:
        yield current[0], current[1], current[2]


def parameters(text: str) -> dict[str, str]:
    """Annotation or C type of each parameter."""
    found = {}
    for part in re.split(r",\s*(?![^\[\]()]*[\])])", text):
        part = part.split("=")[0].strip()
        if match := re.match(r"(\w+)\s*:\s*(.+)", part):
            found[match[1]] = match[2].strip()
        elif match := re.match(r"([\w.]+(?:\[[^\]]*\])?)\s+(\w+)(.*)", part):
            found[match[2]] = "C " + match[1] + match[3]
    return found


CONVERSIONS = (
    "as_integer|as_int32|as_uint32|as_index|as_number|as_seed|as_share|as_real|as_min_keep|as_n_vocab|as_window|_first_pos|"
    "check_token"
)
NUMBERS = re.compile(r"^(?:int|float)(?: \| None)?$")


@pytest.mark.parametrize("path", CYTHON, ids=ids)
def test_numbers_are_converted_once_and_used_as_converted(path: Path) -> None:
    wrong = []
    for name, arguments, lines in functions(path, r"def|cdef (?:csample\.SamplerHandle|object)"):
        for argument in (a for a, kind in arguments.items() if NUMBERS.match(kind)):
            converted = 0
            for number, line in lines:
                rest = re.sub(rf"\b{argument} is (?:not )?None", "", line)
                rest = re.sub(rf"\b{argument}=", "", rest)
                rest = re.sub(rf"(?<!\w)(?:\w+\.)?{argument}\(|\.{argument}\b", "", rest)
                rest, n = re.subn(rf"\b(?:{CONVERSIONS})\({argument}\b", "", rest)
                # Handed to another function of ours that converts it.
                rest, m = re.subn(
                    rf"\b(?:self\.|_|{FUNCTIONS}\.|(?=\w+\(ctx,))\w+\((?:[^()]*, )?{argument}\b(?=[,)])", "", rest
                )
                converted += n + m
                if re.search(rf"(?<![\w.]){argument}\b(?!\()", rest):
                    wrong.append(f"{path.name}:{number}: {name}: {argument} is used as it came: {line.strip()[:90]}")
            if converted > 1:
                wrong.append(f"{path.name}: {name}: {argument} is converted {converted} times")
    assert not wrong, "\n".join(wrong)


EXTENSION_TYPES = {
    match[1] for path in CYTHON for _, line in code_lines(path) if (match := re.match(r"cdef class (\w+)", line))
}


@pytest.mark.parametrize("path", CYTHON, ids=ids)
def test_extension_types_say_whether_they_may_be_none(path: Path) -> None:
    for name, arguments, _ in functions(path):
        for argument, kind in arguments.items():
            match = re.match(r"C (\w+)(.*)", kind)
            if match and match[1] in EXTENSION_TYPES:
                assert match[2].strip() in ("not None", "or None"), f"{path.name}: {name}: {argument}"


@pytest.mark.parametrize("path", CYTHON, ids=ids)
def test_no_loop_runs_over_objects_of_an_assumed_type(path: Path) -> None:
    """A typed loop variable takes None for any object: loop over objects and cast each by ``<Type?>``."""
    typed: dict[str, str] = {}
    for number, line in code_lines(path):
        if re.match(r"\s*(?:cp?def|def)\s.*:$", line):
            typed = {}
        if match := re.match(r"\s*cdef (\w+) (\w+)(?: = .*)?$", line):
            typed[match[2]] = match[1]
        for target in re.findall(r"\bfor ([\w, ]+?) in\b", line):
            for name in re.split(r",\s*", target):
                assert typed.get(name) not in EXTENSION_TYPES, f"{path.name}:{number}: {line.strip()}"


@pytest.mark.parametrize("path", CYTHON, ids=ids)
def test_paths_are_paths(path: Path) -> None:
    """`open` takes a number for an open file and closes it."""
    for name, arguments, lines in functions(path):
        for argument in (a for a, kind in arguments.items() if "StrPath" in kind and "Sequence" not in kind):
            text = "\n".join(line for _, line in lines)
            uses = re.findall(rf"([\w.]*)\((?:[^()]*, )?{argument}\b", text)
            assert uses, f"{path.name}: {name} never looks at {argument}"
            first = uses[0]
            known = first in ("os.fsdecode", "os.fsencode", "_MappedFile", "_write_whole")
            assert known or re.match(rf"{FUNCTIONS}\.", first), f"{path.name}: {name}: {first}({argument})"


def test_the_rules_bite() -> None:
    assert parameters("self, Model model not None, seq_id: int, p: float = 1.0, x: int | None = None") == {
        "model": "C Model not None",
        "seq_id": "int",
        "p": "float",
        "x": "int | None",
    }
    assert {"Context", "Device", "Batch"} <= EXTENSION_TYPES
    assert any(name == "seq_rm" and arguments["p0"] == "int" for name, arguments, _ in functions(LLAMA / "memory.pyx"))
