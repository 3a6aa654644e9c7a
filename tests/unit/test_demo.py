"""The tree of branches that the demo grows; test_cli.py has the rest of the demo."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

import lloyal
from lloyal import demo


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    path = lloyal.models.path("nano-hybrid")
    return demo.tour(Console(quiet=True), n_tokens=64, n_threads=1, model=path)


@pytest.fixture(scope="module")
def grown(shown: dict[str, Any]) -> dict[str, Any]:
    return shown["branches"]


def test_guesses_write_the_text_of_plain_steps(shown):
    said = shown["speculation"]
    assert said["same"]
    assert said["n_steps"] < said["n_tokens"]
    assert said["n_tokens"] == said["n_steps"] + said["n_right"]


def leaves(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [leaf for child in node["children"] for leaf in leaves(child)] or [node]


def test_the_best_leaf_is_named(grown):
    (root,) = grown["tree"]["roots"]
    assert len(root["children"]) == demo.N_FORKS
    best = min(leaves(root), key=lambda leaf: leaf["perplexity"])
    assert (best["name"], best["perplexity"]) == (grown["best"]["name"], grown["best"]["perplexity"])
    assert grown["best"]["text"].endswith(best["text"])
    assert grown["n_branches"] == 1 + demo.N_FORKS + 2 * demo.N_KEPT > grown["n_sequences"]


def test_the_likelier_forks_went_on(grown):
    (root,) = grown["tree"]["roots"]
    kept = [child["perplexity"] for child in root["children"] if child["children"]]
    others = [child["perplexity"] for child in root["children"] if not child["children"] and not child["ended"]]
    assert len(kept) == demo.N_KEPT
    assert max(kept) <= min(others, default=math.inf)


def test_it_says_what_it_would_with_room_for_all(grown, monkeypatch):
    monkeypatch.setattr(demo, "N_SEQUENCES", 16)
    path = lloyal.models.path("nano-hybrid")
    roomy = demo.tour(Console(quiet=True), n_tokens=64, n_threads=1, model=path)["branches"]
    assert [leaf["text"] for leaf in leaves(roomy["tree"]["roots"][0])] == [
        leaf["text"] for leaf in leaves(grown["tree"]["roots"][0])
    ]


def test_a_terminal_sees_it_grow(monkeypatch):
    monkeypatch.setattr(demo, "PAUSE", 0)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80, color_system="standard")
    demo.tour(console, n_tokens=64, n_threads=1, model=lloyal.models.path("nano-draft"))
    tree = shown.getvalue().split("a tree of branches")[1]
    assert tree.count("prompt: ") > 2 * demo.N_GROWN  # a frame for each step, and the last one
    assert tree.count("\x1b[1;32m") == 1
