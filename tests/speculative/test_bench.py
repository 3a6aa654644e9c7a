"""What ``lloyal bench width|speculative`` and ``lloyal run --draft`` measure and show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from typer.testing import CliRunner

import lloyal
from lloyal import cli
from lloyal.bench import measure_speculation, measure_widths
from lloyal.speculative import NGram
from tests.models import tiny


def call(*args: str) -> Any:
    return CliRunner().invoke(cli.app, list(args))


def call_json(*args: str) -> Any:
    result = call(*args, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2", "mamba2"])
def test_widths_leave_the_context_as_it_was(name: str) -> None:
    """A clock that counts its own ticks: what is reported is what was timed."""
    ticks = iter(range(10**6))
    with lloyal.Model(tiny(name)) as model, lloyal.Context(model, n_ctx=256, n_threads=1) as ctx:
        prompt = [8 + i % 40 for i in range(60)]
        result = measure_widths(
            {"one": ctx}, prompt, [20, 50], widths=(1, 3), rounds=3, clock=lambda: float(next(ticks))
        )
        assert ctx.memory.seq_pos_max(0) == 49
    assert [depth["n_tokens"] for depth in result["depths"]] == [20, 50]
    for depth in result["depths"]:
        (setting,) = depth["settings"]
        assert [(w["n_rows"], w["seconds"]["median"], w["steps"]["median"]) for w in setting["widths"]] == [
            (1, 1.0, 1.0),
            (3, 1.0, 1.0),
        ]


def test_speculation_is_compared_with_plain_steps_of_the_same_text() -> None:
    with lloyal.Model(lloyal.models.path("nano")) as model:
        exact = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}
        with lloyal.Context(model, n_ctx=256, n_threads=1, **exact) as ctx:  # type: ignore[arg-type]
            result = measure_speculation(ctx, lambda: NGram(3, 1), ["import os\n"], n_tokens=40, numbers=[4], rounds=2)
            assert lloyal.kv.Tenancy(ctx).available == ctx.n_seq_max
    (one,) = result["numbers"]
    assert one["same"] > 0.4
    assert 0 < one["kept"] <= one["guessed"]
    assert one["tokens_per_step"] > 1
    assert one["seconds"]["rounds"] == 2


def test_widths_are_shown_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = call_json("bench", "width", "-d", "32", "-d", "16")
    assert [depth["n_tokens"] for depth in result["depths"]] == [16, 32]
    figure = MagicMock()
    figure.canvas.get_supported_filetypes.return_value = {"svg": ""}
    monkeypatch.setattr("lloyal.bench.report.plotter", lambda: lambda **how: figure)
    shown = call("bench", "width", "-d", "32", "--plot", str(tmp_path / "w.svg"))
    assert shown.exit_code == 0
    assert "flash attention" in shown.stdout
    figure.savefig.assert_called_once_with(str(tmp_path / "w.svg"))
    assert call("bench", "width", "--plot", str(tmp_path / "w.txt")).exit_code == 1


def test_the_gain_is_shown(tmp_path: Path) -> None:
    text = tmp_path / "prompt.txt"
    text.write_text("x = 1\ny = 2\nx = 1\n")
    for draft in ("ngram", "suffix", "nano-draft"):
        result = call_json("bench", "speculative", "--draft", draft, "-n", "16", "-g", "2", "-p", str(text))
        assert [one["n"] for one in result["numbers"]] == [None, 2]
    shown = call("bench", "speculative", "--draft", "ngram", "-n", "16", "-g", "2")
    assert "as found" in shown.stdout


def test_run_takes_a_draft() -> None:
    options = ("run", "-m", "nano", "-p", "def f(x):\n", "--temperature", "0", "--max-tokens", "30")
    plain = call_json(*options)
    for draft in ("ngram", "suffix", "nano-draft"):
        mine = call_json(*options, "--draft", draft)
        assert mine["text"][:20] == plain["text"][:20]
        assert mine["speculation"]["tokens"] >= 30
    assert len(call_json(*options, "--draft", "ngram", "-n", "2")["continuations"]) == 2
    failed = call(*options, "--draft", "nonesuch")
    assert failed.exit_code == 1
    assert "neither ngram nor suffix" in failed.stderr
