"""The declarations in lloyal/libllama against the vendored headers: what a bump of llama.cpp moved.

The C++ compiler finds what a header lost. It cannot find what a header gained, nor a parameter that changed its meaning
and kept its type: those are found here.
"""

from __future__ import annotations

import pytest

from tests.contracts.headers import Declarations, of_header, of_pxd
from tests.contracts.source import LLAMA_CPP, PACKAGE

DECLARATIONS = PACKAGE / "libllama"

pytestmark = pytest.mark.skipif(
    not (LLAMA_CPP / "include" / "llama.h").exists(),
    reason="vendor/llama.cpp is absent: python vendor/fetch.py puts it there",
)

# Structs that are declared as opaque or in part on purpose.
PARTIAL_STRUCTS: dict[str, str] = {}


@pytest.fixture(scope="module")
def header() -> Declarations:
    return of_header(LLAMA_CPP / "include" / "llama.h")


@pytest.fixture(scope="module")
def declared() -> Declarations:
    return of_pxd(DECLARATIONS / "llama.pxd", "llama.h")


def test_the_header_was_read(header):
    assert header.enums["llama_flash_attn_type"] == [
        "LLAMA_FLASH_ATTN_TYPE_AUTO",
        "LLAMA_FLASH_ATTN_TYPE_DISABLED",
        "LLAMA_FLASH_ATTN_TYPE_ENABLED",
    ]
    assert header.structs["llama_token_data"] == ["id", "logit", "p"]
    assert header.functions["llama_state_seq_get_data_ext"] == ["ctx", "dst", "size", "seq_id", "flags"]
    assert len(header.functions) > 200


def test_enums_are_complete(header, declared):
    for name, members in declared.enums.items():
        assert set(members) == set(header.enums[name]), name


def test_structs_are_complete(header, declared):
    for name, fields in declared.structs.items():
        if name not in PARTIAL_STRUCTS:
            assert fields == header.structs[name], name


def test_every_enum_is_declared(header, declared):
    assert set(header.enums) - set(declared.enums) == set()


def test_functions_have_the_same_parameters(header, declared):
    for name, parameters in declared.functions.items():
        assert parameters == header.functions[name], name


def other_headers() -> list[tuple[str, str]]:
    """``(.pxd, header)`` of the files that declare only what ring 1 uses of a header."""
    found = []
    for pxd in sorted(DECLARATIONS.glob("*.pxd")):
        for line in pxd.read_text().splitlines():
            if line.startswith("cdef extern from"):
                name = line.split('"')[1]
                if name != "llama.h":
                    found.append((pxd.name, name))
    return found


@pytest.mark.parametrize(("pxd", "name"), other_headers())
def test_partial_mirrors_agree(pxd, name):
    """What is declared of another header exists there, with the same members, fields and parameters in order."""
    path = next(iter(sorted(LLAMA_CPP.rglob(name))), None)
    assert path, f"{pxd} declares {name}, which the vendored source does not have"
    header, declared = of_header(path), of_pxd(DECLARATIONS / pxd, name)
    for enum, members in declared.enums.items():
        assert set(members) <= set(header.enums[enum]), enum
    for struct, fields in declared.structs.items():
        assert fields == [f for f in header.structs[struct] if f in fields], struct
    for function, parameters in declared.functions.items():
        assert parameters == header.functions[function], function
