"""The numbered behaviours of docs/liblloyal.md, which tests carry, and short forms that those tests share."""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import lloyal
from lloyal import Branch, Sampling

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "liblloyal.md"
NUMBERS = (*map(str, range(1, 169)), *(f"N{i}" for i in range(1, 29)))
INVARIANTS = tuple(f"I{i}" for i in range(1, 16))

GREEDY = Sampling(temperature=0)
DRAW = Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, seed=42)
PROMPT = "Once upon a time there was a "

# A function, and a template that calls it as many models do: behind a word, before which text is free.
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
TOOL_TEMPLATE = """\
{% if tools %}<|im_start|>system
Tools: {{ tools | tojson }}
Write <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}{% for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

Test = TypeVar("Test", bound=Callable[..., object])


def behaviours(*numbers: str) -> Callable[[Test], Test]:
    """The test holds these."""
    unknown = set(numbers) - {*NUMBERS, *INVARIANTS}
    if unknown:
        raise ValueError(f"no such behaviours: {sorted(unknown)}")
    return lambda test: test


@functools.cache
def carried() -> dict[str, list[str]]:
    """Which tests carry each number, by their names, read from the source of the files beside this one."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(HERE.glob("test_reference_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "behaviours":
                        for number in mark.args:
                            found[ast.literal_eval(number)].append(node.name)
    return found


def tokens(model: lloyal.Model | lloyal.Context, text: str = PROMPT) -> list[int]:
    """Tokens of a text that begins nothing."""
    return model.vocab.tokenize(text, add_special=False)


def pos_max(branch: Branch) -> int:
    """The last position that the context holds for a branch, -1 if it holds none."""
    seq_id = branch.seq_id
    return -1 if seq_id is None else branch.store.ctx.memory.seq_pos_max(seq_id)
