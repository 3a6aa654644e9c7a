"""The guided tour behind ``lloyal demo``: one prompt, its state kept in device memory, many ways on from it.

An attention model and a hybrid one read real Python (this package's own source), keep the state of the sequence on the
device, and go on from it again and again. Every "identical" is a comparison of tokens; every time is measured here.
Then a tree of branches grows from one prompt, and a text is written by guesses.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lloyal import Branch, BranchStore, Checkpoint, Context, Model, StateSeqFlags, Vocab, models
from lloyal.decoding import prefill
from lloyal.generation import generate
from lloyal.sampling import Sampling
from lloyal.speculative import NGram, Speculator
from lloyal.terminal import human_bytes, human_seconds, printable

__all__ = ["tour"]

MODELS = ("nano", "nano-hybrid")
FLAGS = {"device": StateSeqFlags.ON_DEVICE, "host": StateSeqFlags.NONE}
OPENING = "\n\n\ndef read_"
N_GENERATED = 32
N_TIMED = 5
N_CHECKPOINTS, N_BETWEEN = 16, 2
SEED, OTHER_SEED = 1, 2
TREE_PROMPT = "def read_lines(path):\n"
N_FORKS, N_KEPT, N_GROWN = 4, 2, 16
N_SEQUENCES = 4
GUESSED_PROMPT = """    def get_width(self):
        return self.width

    def get_height(self):
        return self.height

    def get_"""
N_WRITTEN = 48
PAUSE = 0.04  # between steps that are watched, seconds


def tour(console: Console, *, n_tokens: int, n_threads: int, model: str | None = None) -> dict[str, Any]:
    """Show what a checkpoint saves, and that nothing changes on the way.

    Parameters
    ----------
    console : rich.console.Console
        Where to tell it; a quiet one tells nothing.
    n_tokens : int
        Length of the prompt.
    n_threads : int
    model : str, optional
        The file of another model than the embedded ones.

    Returns
    -------
    dict
        What was measured for each model, the tree of branches that the last one grew, and what it wrote by guesses;
        ``"identical"`` is true if every continuation that had to be was.
    """
    began = time.perf_counter()
    paths = {Path(model).stem: model} if model else {name: models.path(name) for name in MODELS}
    who = "The model reads" if model else "Two small models read"
    console.print(
        f"{who} {n_tokens} tokens of Python, lloyal's own source. The state that\n"
        "gives is saved in device memory and restored, to go on from it in several ways:\n"
        f"{N_GENERATED} tokens each, compared one by one. Threads: {n_threads}.\n"
    )
    results = []
    branches: dict[str, Any] = {}
    guessing: dict[str, Any] = {}
    for name, path in paths.items():
        with Model(path) as loaded:
            results.append(_Guide(console, name, loaded, n_tokens, n_threads).tour())
            if len(results) == len(paths):
                branches = _grow(console, name, loaded, n_threads)
                guessing = _guess(console, name, loaded, n_threads)
    console.print(_summary(results))
    compared = [way["identical"] for result in results for way in result["continuations"] if "identical" in way]
    verdict = f"{compared.count(True)} of {len(compared)} repeated continuations are identical, token for token."
    console.print(f"\n{verdict}", style="green" if all(compared) else "bold red")
    return {
        "models": results,
        "branches": branches,
        "speculation": guessing,
        "identical": all(compared),
        "seconds": time.perf_counter() - began,
    }


class _Guide:
    """The tour of one model.

    The state is saved before the prompt's last token: it holds no logits, and decoding that token makes them.
    """

    def __init__(self, console: Console, name: str, model: Model, n_tokens: int, n_threads: int) -> None:
        self.console = console
        self.prompt = _source(model.vocab, n_tokens)
        # Room for the prompt in two sequences at once; small batches, so that the progress moves.
        n_ctx = 2 * (n_tokens + N_GENERATED)
        self.ctx = Context(model, n_ctx=n_ctx, n_batch=256, n_ubatch=256, n_seq_max=2, n_threads=n_threads)
        self.reference: list[int] = []
        self.states: dict[str, bytes] = {}
        self.result: dict[str, Any] = {
            "model": name,
            "memory": self.ctx.memory.kind,
            "n_params": model.n_params,
            "n_prompt_tokens": n_tokens,
            "n_generated": N_GENERATED,
            "save_seconds": {},
            "restore_seconds": {},
            "python_bytes": {},
            "continuations": [],
        }

    def tour(self) -> dict[str, Any]:
        result = self.result
        title = f"{result['model']}: {result['memory']} memory, {result['n_params'] / 1e6:.1f} M weights"
        self.console.print(_row(title.replace("_", " "), "", "get there", "go on", heading=True))
        with self.ctx:
            with _Line(self.console, "read the prompt") as line:
                result["read_seconds"] = self._read(line)
            self._save("device")
            self._go_on("go on")
            self._go_on("restore, go on", lambda line: self._restore("device"))
            self._go_on("restore, go on, other seed", lambda line: self._restore("device"), seed=OTHER_SEED)
            # With several threads, flash attention sums in an order that depends on the cells: the same ones, then.
            self.ctx.memory.seq_rm(0)
            self._go_on("restore to sequence 1, go on", lambda line: self._restore("device", 1), seq_id=1)
            self.ctx.memory.seq_rm(1)
            self._restore("device")
            self._save("host")
            self._go_on("restore, go on", lambda line: self._restore("host"))
            self._checkpoints()
            self.ctx.memory.clear()
            self._go_on("forget, read again, go on", self._read)
        result["read_again_seconds"] = result["continuations"][-1]["get_there_seconds"]
        self.console.print()
        return result

    def _read(self, line: _Line) -> float:
        """Read the prompt, all but its last token, into sequence 0. Returns the seconds."""
        began = time.perf_counter()
        prefill(
            self.ctx,
            self.prompt[:-1],
            logits=False,
            progress=lambda done, total: line.update(outcome=f"{done} of {total} tokens"),
        )
        seconds = time.perf_counter() - began
        line.update(outcome=f"{len(self.prompt)} tokens of Python", there=seconds)
        return seconds

    def _save(self, where: str) -> None:
        """Save sequence 0 and time it, restoring included."""
        flags = FLAGS[where]
        saves, restores = [], []
        with _Line(self.console, f"save it in {where} memory") as line:
            for _ in range(N_TIMED):
                began = time.perf_counter()
                self.states[where] = self.ctx.state_seq_get_data_ext(0, flags)
                saves.append(time.perf_counter() - began)
                restores.append(self._restore(where))
            size = len(self.states[where])
            line.update(outcome=f"{human_bytes(size)} reach Python", there=statistics.median(saves))
        self.result["save_seconds"][where] = statistics.median(saves)
        self.result["restore_seconds"][where] = statistics.median(restores)
        self.result["python_bytes"][where] = size

    def _checkpoints(self) -> None:
        """Many checkpoints along one continuation, then each of them in another sequence, the last one first."""
        way: dict[str, Any] = {"what": "checkpoints on the way", "seq_id": 1}
        with _Line(self.console, f"{N_CHECKPOINTS} checkpoints on the way") as line:
            self._restore("device")
            taken: list[tuple[Checkpoint, list[int], list[int]]] = []
            saves, restores = [], []
            pending = self.prompt[-1:]
            vocab = self.ctx.model.vocab
            ends = {token: -1e9 for token in range(len(vocab)) if vocab.is_eog(token)}
            greedy = Sampling(temperature=0, logit_bias=ends)
            while len(taken) < N_CHECKPOINTS:
                began = time.perf_counter()
                checkpoint = self.ctx.checkpoint(0, where="device")
                saves.append(time.perf_counter() - began)
                tokens = list(generate(self.ctx, pending, max_tokens=N_BETWEEN, sampling=greedy))
                taken.append((checkpoint, pending, tokens))
                pending = tokens[-1:]
            way["nbytes"] = self.ctx.checkpoints.nbytes
            way["n_checkpoints"] = len(taken)
            way["identical"] = True
            self.ctx.memory.seq_rm(0)
            for checkpoint, pending, tokens in reversed(taken):
                began = time.perf_counter()
                checkpoint.restore(1)
                restores.append(time.perf_counter() - began)
                again = list(generate(self.ctx, pending, max_tokens=N_BETWEEN, sampling=greedy, seq_id=1))
                way["identical"] = way["identical"] and again == tokens
            one = taken[0][0].nbytes
            self.ctx.checkpoints.release_all()
            self.ctx.memory.seq_rm(1)
            line.update(
                outcome="identical" if way["identical"] else "NOT IDENTICAL",
                there=statistics.median(restores),
            )
        self.result["save_seconds"]["checkpoint"] = statistics.median(saves)
        self.result["restore_seconds"]["checkpoint"] = statistics.median(restores)
        self.result["python_bytes"]["checkpoint"] = 0
        self.result["checkpoint_states"] = way["nbytes"] / one
        self.result["continuations"].append(way)

    def _restore(self, where: str, seq_id: int = 0) -> float:
        began = time.perf_counter()
        self.ctx.state_seq_set_data_ext(self.states[where], seq_id, FLAGS[where])
        return time.perf_counter() - began

    def _go_on(
        self,
        what: str,
        get_there: Callable[[_Line], float] | None = None,
        *,
        seed: int = SEED,
        seq_id: int = 0,
    ) -> None:
        """Get to the end of the prompt, generate, and compare with the first continuation."""
        way: dict[str, Any] = {"what": what, "seed": seed, "seq_id": seq_id}
        with _Line(self.console, what) as line:
            if get_there is not None:
                way["get_there_seconds"] = get_there(line)
                line.update(there=way["get_there_seconds"])
            began = time.perf_counter()
            generation = generate(
                self.ctx, self.prompt[-1:], max_tokens=N_GENERATED, sampling=Sampling(seed=seed), seq_id=seq_id
            )
            way["text"] = ""
            shown = not self.reference or seed != SEED
            for piece in generation.text():
                way["text"] += piece
                done = f"{len(generation.tokens)} of {N_GENERATED}"
                line.update(outcome=done, text=OPENING.strip() + way["text"] if shown else "")
            way["generate_seconds"] = time.perf_counter() - began
            if not self.reference:
                self.reference = generation.tokens
                outcome = f"{len(generation.tokens)} tokens, seed {seed}"
            elif seed != SEED:
                way["first_difference"] = _first_difference(generation.tokens, self.reference)
                outcome = "identical, by chance"
                if way["first_difference"] is not None:
                    outcome = f"differs from token {way['first_difference'] + 1}"
            else:
                way["identical"] = generation.tokens == self.reference
                outcome = "identical" if way["identical"] else "NOT IDENTICAL"
            line.update(outcome=outcome, then=way["generate_seconds"])
        self.result["continuations"].append(way)


def _grow(console: Console, name: str, model: Model, n_threads: int) -> dict[str, Any]:
    """A tree of branches, drawn while it grows: the likelier forks of a prompt are forked again."""
    console.print(Text(f"{name}: a tree of branches, with {N_SEQUENCES} sequences to live in", "bold"))
    seconds = 0.0
    with (
        Context(model, n_ctx=512, n_seq_max=N_SEQUENCES, n_threads=n_threads) as ctx,
        BranchStore(ctx, auto_park=True) as store,
        Live(console=console, auto_refresh=False, transient=True) as live,
    ):

        def picture(best: Branch | None = None) -> Text:
            drawing = store.tree().draw(console.width - 2)
            if console.options.ascii_only:
                for line, plain in (("├─ ", "|- "), ("└─ ", "`- "), ("│", "|"), ("…", "~")):
                    drawing = drawing.replace(line, plain)
            styles = ["bold green" if branch is best else "" for branch in store.branches]
            lines = [Text(f"  {line}", style) for line, style in zip(drawing.splitlines(), styles, strict=True)]
            return Text("\n").join(lines)

        def grow(forks: list[Branch]) -> list[Branch]:
            """Some tokens more; then the forks, the likeliest first."""
            nonlocal seconds
            for _ in range(N_GROWN):
                began = time.perf_counter()
                store.step([fork for fork in forks if not fork.ended])
                seconds += time.perf_counter() - began
                if console.is_terminal and not console.quiet:
                    live.update(picture(), refresh=True)
                    time.sleep(PAUSE)  # a small model is too fast to watch
            return sorted(forks, key=lambda fork: fork.perplexity)

        prompt = store.create(TREE_PROMPT, name="prompt")
        forks = grow(prompt.fork(N_FORKS, seed=SEED))
        going = [fork for fork in forks if not fork.ended][:N_KEPT]
        forks += grow([new for fork in going for new in fork.fork(2, seed=SEED)])
        best = min((fork for fork in forks if fork.is_leaf), key=lambda fork: fork.perplexity)
        live.stop()
        console.print(picture(best))
        console.print(f"  All of them took {human_seconds(seconds)}. The likeliest is {best.name}:")
        console.print(Padding(Text(printable(TREE_PROMPT + best.text).rstrip(), style="cyan"), (0, 0, 1, 6)))
        return {
            "model": name,
            "n_branches": len(store),
            "n_sequences": N_SEQUENCES,
            "seconds": seconds,
            "best": {"name": best.name, "perplexity": best.perplexity, "text": best.text},
            "tree": store.tree().to_dict(),
        }


def _guess(console: Console, name: str, model: Model, n_threads: int) -> dict[str, Any]:
    """A text written twice: token by token, and with guesses by what stood there before."""
    console.print(Text(f"{name}: several tokens a step, by guesses from the text itself", "bold"))
    # Near ties are decided by the size of a batch; with these settings there are next to none.
    exact: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}
    with Context(model, n_ctx=512, n_seq_max=1, n_threads=n_threads, **exact) as ctx:
        sampling = Sampling(temperature=0)
        with BranchStore(ctx) as store:
            plain = list(store.create(GUESSED_PROMPT, sampling=sampling).generate(N_WRITTEN))
        speculator = Speculator(ctx, NGram(3, 1), n=4)
        tokens: list[int] = []
        text = Text(GUESSED_PROMPT, "dim")
        with BranchStore(ctx) as store:
            branch = store.create(GUESSED_PROMPT, sampling=sampling)
            while len(tokens) < N_WRITTEN and not branch.ended:
                for i, token in enumerate(speculator.step([branch])[0]):
                    if not ctx.vocab.is_eog(token):
                        tokens.append(token)
                        text.append(printable(ctx.vocab.detokenize([token])), "bold green" if i else "cyan")
    stats = speculator.stats
    console.print(Padding(text, (0, 0, 0, 6)))
    same = tokens[: len(plain)] == plain
    verdict = "the text of plain steps" if same else "NOT the text of plain steps"
    console.print(f"  {stats.tokens} tokens in {stats.steps} steps, {stats.kept} guessed (green): {verdict}.\n")
    return {
        "model": name,
        "text": text.plain[len(GUESSED_PROMPT) :],
        "n_tokens": stats.tokens,
        "n_steps": stats.steps,
        "n_right": stats.kept,
        "same": same,
    }


class _Line:
    """One line of the tour, which changes while its step runs, with generated text below it."""

    def __init__(self, console: Console, what: str) -> None:
        self._what = what
        self._outcome = self._there = self._then = self._text = ""
        self._console = console
        self._live = Live(self._render(), console=console, refresh_per_second=8, transient=True)

    def update(
        self,
        *,
        outcome: str | None = None,
        there: float | None = None,
        then: float | None = None,
        text: str | None = None,
    ) -> None:
        if outcome is not None:
            self._outcome = outcome
        if there is not None:
            self._there = human_seconds(there)
        if then is not None:
            self._then = human_seconds(then)
        if text is not None:
            self._text = text
        self._live.update(self._render())

    def _render(self) -> RenderableType:
        row = _row(self._what, self._outcome, self._there, self._then)
        if not self._text:
            return row
        return Group(row, Padding(Text(printable(self._text), style="cyan"), (0, 0, 0, 6)))

    def __enter__(self) -> _Line:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        self._live.stop()
        if kind is None:
            self._console.print(self._render())


def _row(what: str, outcome: str, there: str, then: str, *, heading: bool = False) -> Table:
    style = "bold" if heading else ""
    widths = (45, 9, 10, 10) if heading else (31, 23, 10, 10)
    row = Table.grid(padding=(0, 1))
    row.add_column(width=widths[0], no_wrap=True, style=style)
    row.add_column(width=widths[1], no_wrap=True, style="green" if outcome.startswith("identical") else style)
    for width in widths[2:]:
        row.add_column(width=width, no_wrap=True, justify="right", style=style)
    row.add_row(Text(what if heading else f"  {what}"), Text(outcome), Text(there), Text(then))
    return row


def _summary(results: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for name in ("model", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("save", "restore", "in Python", "vs reading"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        name = result["model"]
        states = {where: f"raw, in {where} memory" for where in FLAGS}
        states["checkpoint"] = f"{N_CHECKPOINTS} checkpoints {result['checkpoint_states']:.2f}x"
        for where, what in states.items():
            restore = result["restore_seconds"][where]
            table.add_row(
                name,
                what,
                human_seconds(result["save_seconds"][where]),
                human_seconds(restore),
                human_bytes(result["python_bytes"][where]),
                f"{result['read_again_seconds'] / restore:.0f}x",
            )
            name = ""
        table.add_row("", "read the prompt again", "", human_seconds(result["read_again_seconds"]), "", "1x")
    return table


def _source(vocab: Vocab, n_tokens: int) -> list[int]:
    """`n_tokens` tokens of this package's own Python, ending where a function begins."""
    opening = vocab.tokenize(OPENING, add_special=False)
    files = sorted(Path(__file__).parent.rglob("*.py"))
    tokens = vocab.tokenize("\n".join(file.read_text(encoding="utf-8") for file in files))
    while len(tokens) < n_tokens:
        tokens += tokens
    return tokens[: n_tokens - len(opening)] + opening


def _first_difference(tokens: list[int], others: list[int]) -> int | None:
    pairs = zip(tokens, others, strict=False)
    return next((i for i, (token, other) in enumerate(pairs) if token != other), None)
