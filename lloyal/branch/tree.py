"""A picture of a store's branches: as text, for notebooks, as DOT and as Mermaid."""

from __future__ import annotations

import dataclasses
import html
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lloyal.branch.branch import Branch
    from lloyal.branch.store import BranchStore

__all__ = ["Node", "Tree"]

WIDTH = 48  # of the text that is shown of a branch
DEEPEST_COLUMN = 60  # where the texts begin, unless names and forks are longer than that


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """What a picture says of one branch."""

    name: str
    position: int
    state: str
    ended: bool
    perplexity: float
    text: str
    children: tuple[Node, ...]

    @classmethod
    def of(cls, branch: Branch) -> Node:
        made: dict[Branch, Node] = {}
        for part in reversed(list(branch.subtree())):  # forks first; a tree may be deeper than Python recurses
            start = part.fork_head if part.parent is not None else part._begin
            own = part.store.ctx.vocab.detokenize([token for token, *_ in part._tokens_native(start)])
            children = tuple(made.pop(child) for child in part.children)
            made[part] = cls(part.name, part.position, part.state, part.ended, part.perplexity, own, children)
        return made[branch]

    @property
    def label(self) -> str:
        """A line about it."""
        numbers = [f"{self.position} tokens", self.state]
        if math.isfinite(self.perplexity):
            numbers.append(f"perplexity {self.perplexity:.2f}")
        if self.ended:
            numbers.append("ended")
        return f"{_end(self.name)}: {', '.join(numbers)}"

    @property
    def short(self) -> str:
        """The end of its own text, on one line."""
        return _end(self.text)


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Tree:
    """The branches of a store at one moment. Printing draws it, and so does a prompt or a notebook."""

    roots: tuple[Node, ...]

    @classmethod
    def of(cls, store: BranchStore) -> Tree:
        return cls(tuple(Node.of(root) for root in store.roots))

    def draw(self, width: int = 100) -> str:
        """The tree as lines of text.

        Parameters
        ----------
        width : int
            The texts of the branches are cut so that a line has so many characters, if that leaves a few of them.
        """
        lines = [(first + node.label, node.text) for first, node in self._drawn()]
        column = min(DEEPEST_COLUMN, max((len(line) for line, text in lines if text), default=0))
        drawn = []
        for line, text in lines:
            room = min(WIDTH, max(width - 2 - max(column, len(line)), WIDTH // 4))
            drawn.append(f"{line:{column}}  {_end(text, room)}" if text else line)
        return "\n".join(drawn) or "(no branches)"

    def __str__(self) -> str:
        return self.draw()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self.roots:
            return "<p>(no branches)</p>"
        parts, depth = [], 0
        for above, node in self._walk():
            parts.append("<ul>" if len(above) == depth else "</li>" + "</ul></li>" * (depth - 1 - len(above)))
            depth = len(above) + 1
            text = f' <code style="white-space: pre">{html.escape(node.short)}</code>' if node.short else ""
            parts.append(f"<li>{html.escape(node.label)}{text}")
        return "".join(parts) + "</li></ul>" * depth

    def to_dot(self) -> str:
        """The tree in Graphviz's language."""
        lines = ["digraph branches {", "  node [shape=box, fontname=monospace];"]
        for key, node, parent in self._numbered():
            text = f"{node.label}\n{node.short}".rstrip().replace("\\", "\\\\").replace('"', '\\"')
            # Entities are read in labels of every kind.
            text = text.replace("&", "&amp;").replace("\n", "\\n")
            lines.append(f'  n{key} [label="{text}"];')
            if parent is not None:
                lines.append(f"  n{parent} -> n{key};")
        return "\n".join([*lines, "}"])

    def to_mermaid(self) -> str:
        """The tree as a Mermaid flow chart."""
        lines = ["flowchart TD"]
        for key, node, parent in self._numbered():
            text = f"{node.label}\n{node.short}".rstrip()
            # It reads quoted labels as Markdown: whatever could mean something there is written as its number.
            safe = re.sub(r"[^A-Za-z0-9 ,:.\n]|\.(?!\d)|(?<= ) ", lambda found: f"#{ord(found[0])};", text)
            safe = safe.replace("\n", "<br/>")
            lines.append(f'  n{key}["{safe}"]')
            if parent is not None:
                lines.append(f"  n{parent} --> n{key}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything it knows, as values that JSON has: a perplexity of no tokens is None."""
        made: list[dict[str, Any]] = []
        for _, node, parent in self._numbered():
            value = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
            value["perplexity"] = node.perplexity if math.isfinite(node.perplexity) else None
            value["children"] = []
            made.append(value)
            if parent is not None:
                made[parent]["children"].append(value)
        return {"roots": [made[key] for key, _, parent in self._numbered() if parent is None]}

    def _walk(self) -> Iterator[tuple[tuple[bool, ...], Node]]:
        """All nodes, parents first; with each, whether it and those above it, roots aside, are last among their kin."""
        waiting: list[tuple[tuple[bool, ...], Node]] = [((), root) for root in reversed(self.roots)]
        while waiting:
            above, node = waiting.pop()
            yield above, node
            children = list(enumerate(node.children, 1))
            waiting += [((*above, i == len(children)), child) for i, child in reversed(children)]

    def _drawn(self) -> Iterator[tuple[str, Node]]:
        """All nodes, each with the lines that lead to it."""
        for above, node in self._walk():
            lines = "".join("   " if last else "│  " for last in above[:-1])
            yield lines + ("" if not above else "└─ " if above[-1] else "├─ "), node

    def _numbered(self) -> list[tuple[int, Node, int | None]]:
        """All nodes, each with its number and its parent's."""
        found: list[tuple[int, Node, int | None]] = []
        path: list[int] = []
        for key, (above, node) in enumerate(self._walk()):
            del path[len(above) :]
            found.append((key, node, path[-1] if path else None))
            path.append(key)
        return found


def _end(text: str, width: int = WIDTH) -> str:
    """The end of a text, on one line and without characters that would steer what shows it."""
    kept: list[str] = []
    room = width
    for char in reversed(text[-width - 1 :]):
        seen = char if char.isprintable() and char != "\\" else char.encode("unicode_escape").decode()
        kept.append(seen)
        room -= len(seen)
    if room < 0:
        while room < 1:
            room += len(kept.pop())
        kept.append("…")
    return "".join(reversed(kept))
