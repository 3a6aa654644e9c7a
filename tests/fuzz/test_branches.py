"""The short form of the branch fuzzer: seeds that stay, and one of the day. In processes: a death is a finding too."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("branches.py")


@pytest.mark.parametrize("seed", ["a", "b", str(datetime.date.today())])
def test_no_history_goes_wrong(seed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(PROGRAM), "--seed", seed, "--most", "16", "--seconds", "600"],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    counts = dict(re.findall(r"'([\w ]+)': (\d+)", done.stdout))
    assert int(counts["step"]) > 16, counts
    assert int(counts["rows compared"]) > 200, counts
