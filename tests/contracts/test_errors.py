"""The error table of lloyal/errors.py and the codes of our C++ are the same list."""

from __future__ import annotations

import ast
import builtins
import re

from tests.contracts.source import PACKAGE, public_names, strip_comments


def codes() -> list[str]:
    text = strip_comments((PACKAGE / "_cpp" / "core" / "status.hpp").read_text())
    body = re.search(r"enum class Code : int \{(.*?)\}", text, re.DOTALL)
    assert body
    return [entry.split("=")[0].strip() for entry in body[1].split(",") if entry.strip()]


def classes() -> list[str]:
    tree = ast.parse((PACKAGE / "errors.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "BY_CODE":
            assert isinstance(node.value, ast.Tuple)
            return [ast.unparse(entry) for entry in node.value.elts]
    raise AssertionError("errors.py has no BY_CODE")


def test_by_code_matches_the_codes():
    own = {"ok": "None", "out_of_memory": "MemoryError"}
    assert classes() == [own.get(code) or "".join(part.title() for part in code.split("_")) for code in codes()]


def test_every_error_is_ours_and_a_builtin():
    tree = ast.parse((PACKAGE / "errors.py").read_text())
    bases = {
        node.name: [ast.unparse(base) for base in node.bases] for node in tree.body if isinstance(node, ast.ClassDef)
    }
    assert set(bases) == set(public_names(PACKAGE / "errors.py"))
    for name, own in bases.items():
        if name == "LloyalError":
            continue
        if own[0] == "LloyalError":
            assert len(own) == 2, f"{name} must also be the builtin a caller would expect"
            own = own[1:]
        builtin = own[0] if own[0] not in bases else bases[own[0]][1]
        assert issubclass(getattr(builtins, builtin), Exception)
