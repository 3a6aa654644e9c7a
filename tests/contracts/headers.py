"""The declarations of a C header and of the .pxd that mirrors it, reduced to names that can be compared."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from tests.contracts.source import strip_comments

# ``ctypedef enum llama_pooling_type_t "enum llama_pooling_type":``
_BLOCK = re.compile(r'(?:ctypedef |cdef )?(enum|struct|union)\s+(\w+)(?:\s+"(?:enum |struct )?(\w+)")?\s*:$')


@dataclass
class Declarations:
    """Enum members, struct fields and function parameters by name, in order."""

    enums: dict[str, list[str]] = field(default_factory=dict)
    structs: dict[str, list[str]] = field(default_factory=dict)
    functions: dict[str, list[str]] = field(default_factory=dict)


def split(text: str, separator: str = ",") -> list[str]:
    """Parts between separators that stand outside brackets."""
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == separator and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += char
    return [part for part in [*parts, current.strip()] if part]


def declared_name(declaration: str) -> str:
    """``const float * data[4]`` declares ``data``; ``int (*apply)(int)`` declares ``apply``."""
    if match := re.search(r"\(\s*\*\s*(\w+)\s*\)", declaration):
        return match[1]
    match = re.search(r"(\w+)\s*(\[\w*\]\s*)*$", declaration)
    return match[1] if match else ""


def c_fields(body: str) -> list[str]:
    """Names of the fields of a struct; those of an unnamed union inside count as its own."""
    body = re.sub(r"union \{(.*?)\}\s*;", r"\1", body, flags=re.DOTALL)
    body = re.sub(r"[^;{}]*\)\s*(const)?\s*\{[^{}]*\}", "", body)  # member functions
    fields = []
    for declaration in split(body, ";"):
        fields += [declared_name(part.split("=")[0]) for part in split(declaration)]
    return fields


def c_parameters(text: str) -> list[str]:
    return [] if text.strip() in ("", "void") else [declared_name(part) for part in split(text)]


def of_header(path: Path) -> Declarations:
    """The declarations of a header; deprecated functions are left out."""
    text = strip_comments(path.read_text())
    text = re.sub(r"^\s*#.*?(?<!\\)$", "", text, flags=re.MULTILINE)
    found = Declarations()
    for match in re.finditer(r"enum (\w+)\s*\{(.*?)\}", text, re.DOTALL):
        found.enums[match[1]] = [entry.split("=")[0].strip() for entry in split(match[2])]
    for match in re.finditer(r"struct (\w+)\s*(\{(?:[^{}]|\{[^{}]*\})*\})", text):
        found.structs[match[1]] = c_fields(match[2][1:-1])
    text = re.sub(r"DEPRECATED\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)\s*;", "", text)
    for match in re.finditer(
        r"(?:LLAMA|GGML|GGML_BACKEND|GGUF)_API\b[^;()]*?(\w+)\s*\(((?:[^()]|\([^()]*\))*)\)\s*;", text
    ):
        found.functions[match[1]] = c_parameters(match[2])
    return found


def of_pxd(path: Path, header: str) -> Declarations:
    """What a .pxd declares of one header."""
    found = Declarations()
    current: list[str] | None = None
    inside = False
    pending = ""
    for raw in path.read_text().splitlines():
        line = raw.split("#")[0].rstrip()
        if not line:
            continue
        if not line.startswith(" ") and not pending:
            inside = line.startswith("cdef extern from") and f'"{header}"' in line
            current = None
            continue
        if not inside:
            continue
        pending = f"{pending} {line.strip()}" if pending else line
        if pending.count("(") > pending.count(")"):
            continue
        line, pending = pending, ""
        indent = len(line) - len(line.lstrip())
        text = line.strip()
        if match := re.match(
            r'(?:ctypedef |cdef )?(enum|struct|union)\s+(\w+)(?:\s+"(?:enum |struct )?(\w+)")?\s*:$', text
        ):
            if indent == 4:
                current = []
                (found.enums if match[1] == "enum" else found.structs)[match[3] or match[2]] = current
        elif indent > 4 and current is not None:
            current += [declared_name(part) for part in split(text) if part != "pass"]
        elif indent == 4 and not text.startswith("ctypedef"):
            current = None
            if match := re.match(r"[^()]*?(\w+)\((.*)\)", text):
                found.functions[match[1]] = c_parameters(match[2])
    return found
