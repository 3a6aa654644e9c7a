"""The picture of a store: what it draws, and that no text or name can break the languages it is written in."""

from __future__ import annotations

import html.parser
import json
import math
import re

import pytest

import lloyal
from lloyal.branch.tree import WIDTH, Node, Tree

NASTY = 'a"b\\c\n[x](y){z} <b>&amp;</b> | #1; `q`'
NASTIER = "**s** __i__ 1. \x1b[m\x00\u2028ñ  ~&"


@pytest.fixture
def store(nano, new_context):
    with lloyal.BranchStore(new_context(nano, n_ctx=512, n_seq_max=8)) as made:
        yield made


@pytest.fixture
def tree(store):
    root = store.create("def ", name=NASTY)
    left, right = root.fork(2, seed=1)
    left.prefill(NASTIER)
    for _ in range(4):
        right.step()
    left.fork(name=NASTIER).prefill(NASTY)
    store.create(name="empty")
    made = store.tree()
    assert all(len(text) < WIDTH for node in nodes(made) for text in (_visible(node.name), _visible(node.text)))
    return made


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)


def nodes(tree: Tree) -> list[Node]:
    found, waiting = [], list(reversed(tree.roots))
    while waiting:
        found.append(node := waiting.pop())
        waiting += reversed(node.children)
    return found


def labels(tree: Tree) -> list[str]:
    return [f"{node.label}\n{node.short}".rstrip() for node in nodes(tree)]


def edges(text: str, arrow: str) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in re.findall(rf"^  n(\d+) {arrow} n(\d+);?$", text, re.MULTILINE)]


def test_it_shows_every_branch_once(store, tree):
    assert [node.position for node in nodes(tree)] == [branch.position for branch in store.branches]
    assert [node.perplexity for node in nodes(tree)] == [branch.perplexity for branch in store.branches]
    right = store.roots[0].children[1]
    assert nodes(tree)[3].text == right.text
    lines = str(tree).split("\n")
    assert [line[:3] for line in lines] == [lines[0][:3], "├─ ", "│  ", "└─ ", "emp"]
    assert all(line.isprintable() for line in lines)
    assert repr(tree) == str(tree) == tree.draw()


def test_lines_are_as_wide_as_asked_for(store):
    for fork in store.create("def ").fork(4, seed=1):
        list(fork.generate(32))
    for width in (80, 90, 120):
        lines = store.tree().draw(width).split("\n")
        assert max(map(len, lines)) <= width
        assert len({line.index("…") for line in lines if "…" in line}) == 1


TEXTS = ["", "x" * WIDTH, "x" * WIDTH + "y", "\n" * 100, "é\\" * 60, "x" * (WIDTH - 1) + "\x00"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_cut_text_is_the_end_of_the_whole(text):
    node = Node("n", 1, "resident", False, math.inf, text, ())
    assert len(node.short) <= WIDTH
    whole = _visible(text)
    assert node.short == whole if len(whole) <= WIDTH else whole.endswith(node.short.removeprefix("…"))
    # No escape is cut in two.
    assert re.fullmatch(r"…?([^\\]|\\\\|\\n|\\x00)*", node.short)


def test_dot_says_what_the_branches_say(tree):
    dot = tree.to_dot()
    said = re.findall(r'^  n\d+ \[label="((?:[^"\\\n]|\\.)*)"\];$', dot, re.MULTILINE)
    assert len(dot.split("\n")) == 2 + len(said) + 3 + 1
    plain = [re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], label) for label in said]
    assert [html.unescape(label) for label in plain] == labels(tree)
    assert edges(dot, "->") == [(0, 1), (1, 2), (0, 3)]


def test_mermaid_says_what_the_branches_say(tree):
    chart = tree.to_mermaid()
    said = re.findall(r'^  n\d+\["([A-Za-z0-9 ,:.#;<>/]*)"\]$', chart, re.MULTILINE)
    assert not any(re.search(r"\.(?!\d)|[<>](?!br/>|$)", label.replace("<br/>", "")) for label in said)
    plain = [re.sub(r"#(\d+);", lambda found: chr(int(found[1])), label.replace("<br/>", "\n")) for label in said]
    assert plain == labels(tree)
    assert edges(chart, "-->") == [(0, 1), (1, 2), (0, 3)]


def test_html_is_nested_as_the_branches_are(tree):
    class Outline(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.items: list[tuple[int, str]] = []

        def handle_starttag(self, tag, attrs):
            self.open.append(tag)
            if tag == "li":
                self.items.append((self.open.count("ul"), ""))

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

        def handle_data(self, data):
            depth, text = self.items[-1]
            self.items[-1] = depth, text + data

    outline = Outline()
    outline.feed(tree._repr_html_())
    outline.close()
    assert outline.open == []
    assert [depth for depth, _ in outline.items] == [1, 2, 3, 2, 1]
    assert [text for _, text in outline.items] == [label.replace("\n", " ") for label in labels(tree)]


def test_its_values_are_json(tree):
    value = json.loads(json.dumps(tree.to_dict(), allow_nan=False))
    root, empty = value["roots"]
    assert (root["name"], root["perplexity"], empty["state"]) == (NASTY, None, "empty")
    assert [child["position"] for child in root["children"]] == [node.position for node in tree.roots[0].children]


def test_nothing(store):
    tree = store.tree()
    assert str(tree) == "(no branches)"
    assert "(no branches)" in tree._repr_html_()
    assert (tree.to_dict(), tree.to_mermaid()) == ({"roots": []}, "flowchart TD")


def test_deeper_than_python_recurses(store):
    branch = store.create("def ")
    for _ in range(1500):
        branch = branch.fork()
    tree = store.tree()
    assert len(str(tree).split("\n")) == len(edges(tree.to_dot(), "->")) + 1 == 1501
    assert tree._repr_html_().count("</li>") == len(labels(tree)) == 1501
    assert len(edges(tree.to_mermaid(), "-->")) == 1500
    assert len(tree.to_dict()["roots"]) == 1
