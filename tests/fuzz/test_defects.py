"""The defects that are kept as patches still fit the sources; whether they are found is what `defects.py` says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fuzz.defects import PATCHES, ROOT, settings


@pytest.mark.parametrize("patch", sorted(PATCHES.glob("*.patch")), ids=lambda patch: patch.stem)
def test_patch_applies(patch: Path) -> None:
    done = subprocess.run(
        ["git", "apply", "--check", str(patch)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"write it again for what the sources are now: {done.stderr}"


@pytest.mark.parametrize("patch", sorted(PATCHES.glob("*.patch")), ids=lambda patch: patch.stem)
def test_patch_says_who_finds_it(patch: Path) -> None:
    how = settings(patch)
    assert (ROOT / "tests/fuzz" / f"{how['generator']}.py").exists()
