"""Every example runs, and so do the README's ten lines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rpc import free_port

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


def test_readme_python(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    texts = re.split(r"--- seed \d\n", run("\n".join(blocks), tmp_path))[1:]
    assert len(texts) == len(set(texts)) == 3
    assert all(text.startswith("def read_lines(path):\n") for text in texts)


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
