"""Write the type stubs of ring 1 (``lloyal/llama/*.pyi``, ``lloyal/native/*.pyi``) from its Cython source.

    python tools/stubs.py            write them
    python tools/stubs.py --check    fail if a committed one differs

It reads text, so it needs no compiler and no Cython. What goes into a stub is what ``__all__`` names: signatures,
properties and docstrings; of private methods, those that say their types. Four things are ours:

- C types become Python's (``int index=-1`` is ``index: int = -1``); a parameter or result without any type is an error.
- ``# @overload (self, ...) -> T`` lines above a method are its overloads.
- ``cdef readonly object params  # ContextParams`` in a .pxd is a read-only attribute of that type.
- ``**keywords: Unpack[ModelParams]`` stands for the fields of that dataclass, as keywords.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import difflib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LLAMA = ROOT / "lloyal" / "llama"
RING1 = [LLAMA, ROOT / "lloyal" / "native"]


# Where names that only annotations use come from: the source need not import them.
IMPORTS = {
    "typing": ("Any", "ClassVar", "Literal", "Self", "TypeVar", "overload"),
    "typing_extensions": ("Buffer",),
    "collections.abc": ("Callable", "Iterable", "Iterator", "Mapping", "Sequence"),
    "enum": ("IntEnum", "IntFlag"),
    "numpy": ("float32", "int32"),
    "numpy.typing": ("ArrayLike", "DTypeLike", "NDArray"),
    "os": ("PathLike",),
}
ALIASES = {
    "StrPath": "StrPath = str | PathLike[str]",
    # Arrays are buffers, which their own stubs say only from Python 3.12 on.
    "BufferLike": "BufferLike = Buffer | NDArray[Any]",
    "BufferT": 'BufferT = TypeVar("BufferT", bound=Buffer | NDArray[Any])',
}
C_TYPES = {
    "bint": "bool",
    "bool": "bool",
    "cbool": "bool",
    "float": "float",
    "double": "float",
    "object": "Any",
    "bytes": "bytes",
    "str": "str",
    "dict": "dict[Any, Any]",
} | dict.fromkeys(("int", "long", "Py_ssize_t", "size_t", "int32_t", "int64_t", "uint32_t", "uint64_t"), "int")

# Results and arguments that a special method has in every class.
SPECIAL = {
    "__init__": "None",
    "__len__": "int",
    "__bool__": "bool",
    "__hash__": "int",
    "__repr__": "str",
    "__str__": "str",
    "__eq__": "bool",
    "__enter__": "Self",
    "__exit__": "None",
    "__contains__": "bool",
}
SPECIAL_ARGUMENTS = {"__eq__": "object", "__exit__": "object", "__contains__": "object"}
BUFFER_METHOD = "def __buffer__(self, flags: int, /) -> memoryview: ..."


class StubError(Exception):
    """The source does not say what a stub needs."""


@dataclass
class Line:
    """One logical line: physical lines joined while a bracket is open."""

    number: int
    indent: int
    text: str
    raw: str


@dataclass
class Module:
    """What a .pyx file offers, as the lines of its stub."""

    name: str
    docstring: str = ""
    public: list[str] = field(default_factory=list)
    imports: dict[str, str] = field(default_factory=dict)
    body: list[str] = field(default_factory=list)


def logical_lines(source: str) -> list[Line]:
    lines: list[Line] = []
    parts: list[str] = []
    depth = 0
    quote = ""
    for number, raw in enumerate(source.splitlines(), 1):
        if quote or depth:
            parts.append(raw)
        else:
            parts, start = [raw], number
        code = raw
        if not quote:
            opened = re.match(r'\s*[rf]?(""")', raw)
            if opened and raw.count('"""') == 1:
                quote = '"""'
        elif quote in raw:
            quote = ""
        if not quote and '"""' not in raw:
            code = re.sub(r'"(\\.|[^"\\])*"|\'(\\.|[^\'\\])*\'', "''", code).split("#")[0]
            depth += sum(code.count(c) for c in "([{") - sum(code.count(c) for c in ")]}")
        if not quote and depth <= 0:
            depth = 0
            first = parts[0]
            text = " ".join(part.strip() for part in parts) if '"""' not in first else "\n".join(parts)
            if first.strip():
                lines.append(Line(start, len(first) - len(first.lstrip()), text.strip(), "\n".join(parts)))
    return lines


def split_arguments(text: str) -> list[str]:
    """Split at the commas outside brackets and quotes."""
    arguments, depth, quote, begin = [], 0, "", 0
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 0:
            arguments.append(text[begin:i].strip())
            begin = i + 1
    return [a for a in [*arguments, text[begin:].strip()] if a]


def dataclass_fields(name: str) -> list[str]:
    """The fields of a dataclass in params.py as keyword arguments."""
    tree = ast.parse((LLAMA / "params.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return [
                f"{item.target.id}: {spelled_out(item.annotation, tree)} = ..."
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            ]
    raise StubError(f"Unpack[{name}]: params.py has no such dataclass")


def spelled_out(annotation: ast.expr, tree: ast.Module) -> str:
    """An annotation with the ``X = Literal[...]`` of its module written out."""
    text = ast.unparse(annotation)
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Literal["):
            text = re.sub(rf"\b{ast.unparse(node.targets[0])}\b", ast.unparse(node.value), text)
    return text


def python_argument(argument: str, where: str, default_type: str | None) -> list[str]:
    """One argument as Python spells it, or several for ``Unpack``."""
    optional = " | None" if re.search(r"\s+or None\b", argument) else ""
    argument = re.sub(r"\s+(?:not|or) None", "", argument)
    if argument in ("self", "cls", "*", "/"):
        return [argument]
    if unpacked := re.fullmatch(r"\*\*\w+: Unpack\[(\w+)\]", argument):
        return ["*", *dataclass_fields(unpacked[1])]
    declaration, _, default = (part.strip() for part in argument.partition("="))
    declaration = re.sub(r"^(?:const )?\w+\[[:1, ]+\] (\w+)$", r"\1: BufferLike", declaration)
    if typed := re.fullmatch(r"(\w[\w.]*)\s+(\w+)", declaration):
        declaration = f"{typed[2]}: {C_TYPES.get(typed[1], typed[1])}{optional}"
    if ":" not in declaration:
        if not default_type:
            raise StubError(f"{where}: parameter {declaration!r} has no type")
        declaration += f": {default_type}"
    return [f"{declaration} = {default if is_literal(default) else '...'}" if default else declaration]


def is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return True


def python_signature(text: str, where: str, result: str = "") -> str:
    """A ``def`` or ``cpdef`` line as a stub has it; `result` is what it gives if it does not say so itself."""
    match = re.match(r"(?:cpdef\s+(?:([\w.]+)\s+)?|def\s+)(\w+)\((.*)\)\s*([^()]*):$", text)
    if not match:
        raise StubError(f"{where}: cannot read {text!r}")
    kind, name, arguments, after = match.groups()
    result = after.partition("->")[2].strip() or result
    if not result and text.startswith("cpdef"):
        result = C_TYPES.get(kind, kind) if kind else "None"
    result = result or SPECIAL.get(name, "")
    if not result:
        raise StubError(f"{where}: {name} has no result type")
    parts: list[str] = []
    for argument in split_arguments(arguments):
        parts += python_argument(argument, where, SPECIAL_ARGUMENTS.get(name))
    return f"def {name}({', '.join(parts)}) -> {result}:"


def indented(text: str, indent: int) -> list[str]:
    return [" " * indent + line if line else line for line in text.splitlines()]


class Reader:
    """Turns the logical lines of one .pyx, and the attributes in its .pxd, into a `Module`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.module = Module(path.stem)
        self.lines = logical_lines(path.read_text())
        self.attributes = read_attributes(path.with_suffix(".pxd"))

    def read(self) -> Module:
        self.read_imports()
        lines = self.lines
        i = 1 if lines[0].text.startswith("#") else 0
        if lines[i].text.startswith('"""'):
            self.module.docstring = lines[i].text
        bases = {
            m[1] for line in lines if line.indent == 0 and (m := re.match(r"(?:cdef )?class \w+\((\w+)\)", line.text))
        }
        wanted = set(self.module.public) | bases
        while i < len(lines):
            line = lines[i]
            found = re.match(r"(?:cdef )?class (\w+)|(?:cpdef|def)\b[^(]*?(\w+)\(|(\w+)(?:: (\w+))? = ", line.text)
            name = next((g for g in found.groups()[:3] if g), None) if found and line.indent == 0 else None
            end = i + 1
            while end < len(lines) and lines[end].indent > 0:
                end += 1
            if name in wanted and found:
                if found[1]:
                    self.read_class(name, lines[i:end])
                elif found[2]:
                    self.module.body += self.read_function(i, [], 0)
                    self.module.body.append("")
                else:
                    self.module.body += [f"{name}: {found[4] or 'int'}", ""]
            i = end
        return self.module

    def read_imports(self) -> None:
        for line in self.lines:
            match = re.match(r"from (lloyal[\w.]*) c?import (.*)", line.text)
            if match and line.indent == 0:
                for name in re.split(r",\s*", match[2].strip("() ").rstrip(",")):
                    if name and name[0].isupper():
                        self.module.imports[name] = match[1]
            if line.indent == 0 and line.text.startswith("__all__"):
                self.module.public = ast.literal_eval(line.text.partition("=")[2].strip())

    def read_class(self, name: str, lines: list[Line]) -> None:
        base = re.search(r"\((\w+)\):$", lines[0].text)
        out = [f"class {name}({base[1]}):" if base else f"class {name}:"]
        if lines[1].text.startswith('"""'):
            out += [*lines[1].raw.splitlines(), ""]
        out += self.attributes.get(name, [])
        empty = len(out)
        decorators: list[str] = []
        overloads: list[str] = []
        start = self.lines.index(lines[0])
        for offset, line in enumerate(lines[1:], 1):
            if line.indent != 4:
                continue
            if line.text.startswith("@"):
                decorators.append(line.text)
            elif line.text.startswith("# @overload "):
                overloads.append(line.text.removeprefix("# @overload "))
            elif re.match(r"(cp)?def ", line.text):
                out += self.read_method(start + offset, decorators, overloads)
                decorators, overloads = [], []
            elif (member := re.match(r"(\w+) = ", line.text)) and not member[1].startswith("__"):
                out.append(f"    {member[1]} = ...")
        if any(re.match(r"    def __getbuffer__", line.raw) for line in lines):
            out += indented(BUFFER_METHOD, 4)
        if len(out) == empty:
            out.append("    ...")
        self.module.body += [*out, ""]

    def read_method(self, index: int, decorators: list[str], overloads: list[str]) -> list[str]:
        text = self.lines[index].text
        found = re.search(r"(\w+)\(", text)
        name = found[1] if found else ""
        if name in ("__cinit__", "__getbuffer__", "__releasebuffer__"):
            return []
        if name.startswith("_") and not name.endswith("__"):
            # For our own upper rings, if it says its types; otherwise nobody's business.
            try:
                return self.read_function(index, decorators, 4)
            except StubError:
                return []
        out: list[str] = []
        for i, overload in enumerate(overloads):
            out += indented("@overload", 4)
            last = i + 1 == len(overloads)
            head = f"def {name}{overload}:"
            out += self.with_docstring(head, index, 4) if last else indented(f"{head} ...", 4)
        return out or self.read_function(index, decorators, 4)

    def read_function(self, index: int, decorators: list[str], indent: int) -> list[str]:
        line = self.lines[index]
        where = f"{self.path.relative_to(ROOT)}:{line.number}"
        setter = any(decorator.endswith(".setter") for decorator in decorators)
        head = python_signature(line.text, where, "None" if setter else "")
        return [" " * indent + decorator for decorator in decorators] + self.with_docstring(head, index, indent)

    def with_docstring(self, head: str, index: int, indent: int) -> list[str]:
        following = self.lines[index + 1] if index + 1 < len(self.lines) else None
        if following and following.indent > indent and following.text.startswith('"""'):
            return [" " * indent + head, *following.raw.splitlines()]
        return [" " * indent + head + " ..."]


def read_attributes(pxd: Path) -> dict[str, list[str]]:
    """Attributes of the classes in a .pxd; those that are read-only as properties."""
    found: dict[str, list[str]] = {}
    current = ""
    for number, line in enumerate(pxd.read_text().splitlines() if pxd.exists() else [], 1):
        if match := re.match(r"cdef class (\w+)", line):
            current = match[1]
        elif match := re.match(r"    cdef (readonly|public) (\w+) (\w+)(?:  # (.*))?$", line):
            access, kind, name, comment = match.groups()
            if kind == "object" and not comment:
                raise StubError(f"{pxd.relative_to(ROOT)}:{number}: say the Python type of {name} in a comment")
            result = comment or C_TYPES.get(kind, kind)
            lines = [f"    {name}: {result}"]
            if access == "readonly":
                lines = ["    @property", f"    def {name}(self) -> {result}: ..."]
            found.setdefault(current, []).extend(lines)
    return found


def resolve_imports(module: Module) -> list[str]:
    """Import lines for every name the stub's body uses and does not define."""
    tree = ast.parse("\n".join(module.body))
    defined = {node.name for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    defined |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    aliases = [text for name, text in ALIASES.items() if name in used]
    used |= {node.id for text in aliases for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    home = {name: where for where, names in IMPORTS.items() for name in names}
    home |= public_classes() | module.imports
    wanted: dict[str, list[str]] = {}
    for name in sorted(used - defined - set(ALIASES)):
        if name in home:
            wanted.setdefault(home[name], []).append(name)
        elif not hasattr(builtins, name):
            raise StubError(f"{module.name}.pyx: an annotation names {name!r}, which is not known")
    lines = [f"from {where} import {', '.join(names)}" for where, names in sorted(wanted.items())]
    return lines + ([""] if lines else []) + aliases + ([""] if aliases else [])


def ring1(pattern: str) -> list[Path]:
    return [path for folder in RING1 for path in sorted(folder.glob(pattern))]


def public_classes() -> dict[str, str]:
    """Classes of ring 1 and the module each is defined in."""
    found = {}
    for path in ring1("*.py*"):
        if path.suffix in (".py", ".pyx"):
            for name in re.findall(r"^(?:cdef )?class (\w+)", path.read_text(), re.MULTILINE):
                found[name] = f"lloyal.{path.parent.name}.{path.stem}"
    return found


def stub_of(path: Path) -> str:
    module = Reader(path).read()
    lines = [f"# Written by tools/stubs.py from {path.name}.", module.docstring, "", *resolve_imports(module)]
    lines += [f"__all__ = {module.public!r}".replace("'", '"'), "", *module.body]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
    ast.parse(text)
    return text


def stubs() -> tuple[dict[Path, str], list[str]]:
    """The stub of every .pyx in ring 1 by path, and what is wrong with the others."""
    texts, errors = {}, []
    for path in ring1("*.pyx"):
        try:
            texts[path.with_suffix(".pyi")] = stub_of(path)
        except (StubError, SyntaxError) as error:
            errors.append(f"{path.relative_to(ROOT)}: {error}")
    return texts, errors


def main() -> int:
    parser = argparse.ArgumentParser(description="Write or check the type stubs of ring 1.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a stub differs")
    check = parser.parse_args().check
    expected, errors = stubs()
    stale = 0
    sources = {path.with_suffix(".pyi") for path in ring1("*.pyx")}
    for path in sorted({path for path in ring1("*.pyi") if path not in sources} | set(expected)):
        old = path.read_text() if path.exists() else ""
        new = expected.get(path, "")
        if old == new:
            continue
        stale += 1
        if check:
            sys.stdout.writelines(
                difflib.unified_diff(old.splitlines(True), new.splitlines(True), str(path.name), "generated", n=1)
            )
        elif new:
            path.write_text(new)
            print("wrote", path.relative_to(ROOT))
        else:
            path.unlink()
            print("removed", path.relative_to(ROOT))
    if check and stale:
        print(f"{stale} stubs differ from their source: run python tools/stubs.py")
    print(*errors, sep="\n", end="\n" if errors else "")
    return int(bool(errors) or (check and bool(stale)))


if __name__ == "__main__":
    sys.exit(main())
