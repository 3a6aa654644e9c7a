"""Every example runs, and so do the README's ten lines."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rpc import free_port
from tests.unit.test_scoring import ranking_model

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(code: str | Path, folder: Path) -> str:
    script = folder / "readme.py"
    if isinstance(code, str):
        script.write_text(code)
    else:
        script = code
    command = [sys.executable, "-P", "-W", "error", str(script)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path, tmp_path):
    assert run(path, tmp_path).strip()


def test_the_state_example_finds_the_same_text(tmp_path):
    said = run(ROOT / "examples" / "device_state.py", tmp_path)
    assert "is the same text: True" in said
    assert "after another save: " in said


def test_json_in_parallel_is_json_of_each_kind(tmp_path):
    lines = run(ROOT / "examples" / "json_in_parallel.py", tmp_path).splitlines()
    values = [(line.split()[0], ast.literal_eval(line[line.index(" ", 5) :].strip())) for line in lines]
    assert [kind for kind, _ in values] == ["book", "book", "loan", "loan", "tags", "tags"]
    for kind, value in values:
        keys = {"book": ["title", "pages"], "loan": ["days", "late"]}
        assert list(value) == keys[kind] if kind in keys else set(value) <= {"new", "rare", "lent"}


def test_diverse_beams_differ_and_the_first_is_greedy(tmp_path):
    said = run(ROOT / "examples" / "diverse_beams.py", tmp_path)
    beams = [ast.literal_eval(line) for line in re.findall(r"-\d+\.\d+  ('.*')$", said, re.MULTILINE)]
    assert len(beams) == 8
    assert len(set(beams[:4])) == len(set(beams[4:])) == 4
    greedy = (
        "import lloyal\n"
        "ctx = lloyal.Context(lloyal.Model(lloyal.models.path()), n_ctx=1024, n_threads=1)\n"
        "made = lloyal.generate(ctx, 'import ', max_tokens=16, sampling=lloyal.Sampling(temperature=0))\n"
        "print(repr('import ' + ''.join(made.text())))\n"
    )
    assert beams[4] == ast.literal_eval(run(greedy, tmp_path).strip())


def test_contrastive_decoding_says_something_else(tmp_path):
    said = run(ROOT / "examples" / "contrastive.py", tmp_path)
    texts = re.findall(r"^(?:the model alone|contrasted): +('.*')$", said, re.MULTILINE)
    assert len(texts) == len(set(texts)) == 2


def test_the_long_stream_is_longer_than_its_context(tmp_path):
    said = run(ROOT / "examples" / "long_stream.py", tmp_path)
    n_tokens, n_ctx, times = map(int, re.search(r"--- (\d+) tokens .* of (\d+), .* (\d+) times", said).groups())
    assert n_tokens > 2 * n_ctx
    assert times >= 2


def test_a_client_that_goes_away_is_the_only_one(tmp_path):
    said = run(ROOT / "examples" / "async_clients.py", tmp_path)
    found = re.findall(r"^client (\d): (\d+) tokens, over: (.+)\n    (.*)$", said, re.MULTILINE)
    ends = {number: (int(n_tokens), why) for number, n_tokens, why, _ in found}
    assert sorted(ends) == ["0", "1", "2", "3"]
    assert ends.pop("2") == (8, "it went away")
    assert all(end == (32, "length") or end[1] == "end" for end in ends.values())


def test_rerank_takes_a_model_that_ranks(tmp_path):
    path = ranking_model(tmp_path)
    script = (ROOT / "examples" / "rerank.py").read_text()
    said = run(f"import sys\nsys.argv.append({str(path)!r})\n{script}", tmp_path)
    ranks = [float(line.split()[0]) for line in said.splitlines()]
    assert len(set(ranks)) == 3
    assert ranks == sorted(ranks, reverse=True)
    assert ranks != [float(line.split()[0]) for line in run(script, tmp_path).splitlines()]


def blocks(file: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / file).read_text(), re.DOTALL | re.MULTILINE)


def test_readme_python(tmp_path):
    texts = re.split(r"--- seed \d\n", run("\n".join(blocks("README.md")), tmp_path))[1:]
    assert len(texts) == len(set(texts)) == 3
    assert all(text.startswith("def read_lines(path):\n") for text in texts)


def test_best_of_eight_takes_ten_lines(tmp_path):
    (code,) = (block for block in blocks("README.md") if "BranchStore" in block)
    assert len(code.splitlines()) <= 10
    said = run(code, tmp_path)
    by_branch = re.findall(r"^[├└]─ \d+: .*perplexity (\d+\.\d+)", said, re.MULTILINE)
    assert len(by_branch) == 8
    # What it printed at last is the text of the best one, whose end the tree shows.
    drawn = [line for line in said.splitlines() if f"perplexity {min(by_branch, key=float)}" in line]
    assert any(said.endswith(line.split("…")[1].encode().decode("unicode_escape") + "\n") for line in drawn)


def test_guide_to_branches(tmp_path):
    assert run("\n".join(blocks("docs/branches.md")), tmp_path).strip()


def test_speculation_page(tmp_path: Path) -> None:
    assert "tokens a step" in run("\n".join(blocks("docs/speculation.md")), tmp_path)


@pytest.mark.parametrize("page", ["README.md", "docs/branches.md", "docs/recipes.md"])
def test_beam_search_is_shown(page):
    assert "beam_search(" in (ROOT / page).read_text()


def test_readme_commands_exist():
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"^lloyal (\w+)", readme, re.MULTILINE)
    assert {"run", "info"} <= set(commands)
    for command in set(commands):
        subprocess.run([sys.executable, "-P", "-m", "lloyal", command, "--help"], check=True, capture_output=True)


def test_readme_links_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).exists(), link


RECIPES = re.findall(
    r"^## \.\.\. ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```",
    (ROOT / "docs/recipes.md").read_text(),
    re.DOTALL | re.MULTILINE,
)


@pytest.mark.parametrize(("name", "code"), RECIPES, ids=[name.replace(" ", "-") for name, _ in RECIPES])
def test_recipe(name, code, tmp_path):
    assert len(code.splitlines()) <= 15
    script = tmp_path / "recipe.py"
    script.write_text(code.replace("50152", str(free_port())))
    command = [sys.executable, "-P", "-W", "error", str(script)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert (result.stderr if "logging" in code else result.stdout).strip()


def test_there_is_a_recipe_for_what_people_do():
    assert len(RECIPES) == (ROOT / "docs/recipes.md").read_text().count("\n## ... ") >= 13
