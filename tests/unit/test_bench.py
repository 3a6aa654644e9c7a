"""``lloyal bench``, and the method behind every benchmark."""

from __future__ import annotations

import builtins
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import lloyal
from lloyal import bench, cli
from lloyal.bench import Timing, alternate, ratio, report


def call(*args: str) -> Result:
    return CliRunner().invoke(cli.app, ["bench", "checkpoint", "-n", "96", *args])


def test_sides_are_measured_in_turns():
    order: list[str] = []
    clock = itertools.count()

    def side(name: str) -> float:
        order.append(name)
        return float(next(clock))

    result = alternate({"a": lambda: side("a"), "b": lambda: side("b")}, 4, warm_up=2)
    assert "".join(order) == "baabbaabbaab"
    assert {name: timing.values for name, timing in result.items()} == {"a": (5, 6, 9, 10), "b": (4, 7, 8, 11)}


def test_a_ratio_is_taken_round_by_round():
    # The second round ran on a machine half as fast: the ratio does not know.
    quotient = ratio(Timing((1.0, 2.0, 1.0)), Timing((2.0, 4.0, 2.0)))
    assert quotient.values == (0.5, 0.5, 0.5)
    assert quotient.spread == (0.5, 0.5)
    assert Timing((1.0, 9.0, 2.0)).median == 2.0
    assert Timing((3.0,)).spread == (3.0, 3.0)
    with pytest.raises(ValueError):
        ratio(Timing((1.0,)), Timing((1.0, 2.0)))


@pytest.fixture(scope="module", params=["nano", "nano-hybrid"])
def measured(request: pytest.FixtureRequest) -> dict[str, Any]:
    result = call("--json", "--model", request.param)
    assert (result.exit_code, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_every_way_restores_the_bytes(measured):
    assert measured["identical"] is True
    assert [length["n_tokens"] for length in measured["lengths"]] == [16, 24, 96]
    for length in measured["lengths"]:
        names = {way["name"] for way in length["ways"]}
        expected = {
            "llama.cpp, host",
            "llama.cpp, ON_DEVICE",
            "checkpoint, host",
            "checkpoint, device",
            "checkpoint, cells",
            f"checkpoint, device, +{bench.N_MORE} tokens",
        }
        assert names == expected | ({"checkpoint, device, partial"} if measured["memory"] == "hybrid" else set())
        for way in length["ways"]:
            assert way["save"]["median"] > 0
            assert way["restore"]["quartiles"][0] <= way["restore"]["median"] <= way["restore"]["quartiles"][1]


def test_lockstep_is_measured_where_every_row_is_kept(measured):
    assert ("lockstep" in measured) == (measured["memory"] == "attention")
    if "lockstep" in measured:
        found = measured["lockstep"]
        assert (found["n_sequences"], found["n_rows"], found["identical"]) == (bench.N_TOGETHER, 6, True)
        assert found["save"]["median"] > 0
        with lloyal.Model(lloyal.models.path("nano")) as model:
            assert 0 < max(found["n_copies"].values()) <= 4 * 2 * model.n_layer
        assert "6 rows of one of 16" in bench.lockstep_line(found)


def test_what_a_way_keeps_is_what_a_checkpoint_says(measured):
    with lloyal.Model(lloyal.models.path(measured["model"])) as model:
        with lloyal.Context(model, n_ctx=256, n_threads=1) as ctx:
            lloyal.prefill(ctx, [5] * 96, logits=False)
            whole, device = ctx.state_seq_get_size(0), ctx.checkpoint(0).nbytes
    ways = {way["name"]: way["bytes"] for way in measured["lengths"][-1]["ways"]}
    assert ways["llama.cpp, host"] == whole
    assert ways["checkpoint, device"] == measured["lengths"][-1]["state_bytes"] == device
    assert ways["checkpoint, cells"] == 0
    # Between two checkpoints only what is new is copied.
    assert ways[f"checkpoint, device, +{bench.N_MORE} tokens"] < device


def test_the_table_fits_a_terminal():
    result = call()
    assert (result.exit_code, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "has the bytes it had" in result.stdout


def test_a_restore_that_does_nothing_is_noticed(monkeypatch):
    monkeypatch.setattr(lloyal.Checkpoint, "restore", lambda self, seq_id=None, ctx=None: None)
    result = call("--model", "nano-draft")
    assert result.exit_code == 1
    assert "DIFFERS" in result.stdout


class Drawn:
    """A figure that remembers the lines drawn on it; whatever else is asked of it, it does nothing."""

    last: Drawn

    def __init__(self, **options: Any) -> None:
        Drawn.last, self.lines, self.path = self, [{}, {}], ""

    def subplots(self, rows: int, columns: int, **options: Any) -> list[Any]:
        return [_Axes(lines) for lines in self.lines]

    def suptitle(self, text: str) -> None:
        self.title = text

    def savefig(self, path: str) -> None:
        self.path = path


class _Axes:
    def __init__(self, lines: dict[str, Any]) -> None:
        self.lines = lines

    def plot(self, x: Any, y: Any, *, label: str, **style: Any) -> None:
        self.lines[label] = dict(zip(x, y, strict=True))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: None


def test_the_plot_shows_what_was_measured(measured, monkeypatch):
    monkeypatch.setattr(report, "plotter", lambda: Drawn)
    bench.plot_checkpoints(measured, "plot.svg")
    saves, restores = Drawn.last.lines
    for length in measured["lengths"]:
        for way in length["ways"]:
            assert saves[way["name"]][length["n_tokens"]] == way["save"]["median"]
            assert restores[way["name"]][length["n_tokens"]] == way["restore"]["median"]
        assert restores[bench.READING][length["n_tokens"]] == length["read_seconds"]
    assert set(restores) - set(saves) == {bench.READING}
    assert (Drawn.last.path, Drawn.last.title.split(",")[0]) == ("plot.svg", measured["model"])


def test_a_plot_without_matplotlib_is_refused_at_once(monkeypatch):
    importing = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    result = call("--plot", "plot.png")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "lloyal[plot]" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("args", "said"), [(("-n", "8"), "--n-tokens"), (("more",), "more")])
def test_a_wrong_command_line(args, said):
    result = call(*args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
