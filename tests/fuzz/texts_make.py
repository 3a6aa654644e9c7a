"""Hostile and odd texts: templates, JSON schemas, grammars, trigger patterns with a text, and texts to tokenize.

Each maker takes a random generator and gives a case, which JSON can hold. They are grammars of their languages, with
numbers, loops and references chosen to grow; no list of known faults.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Case = dict[str, Any]
HUGE = (7, 60, 300, 10**4, 10**6, 10**9, 10**12, 2**31, 2**63 - 1, 2**64, -1, 0)
NAMES = ("a", "b", "ns.s", "x", "messages", "tools")
FILTERS = [
    "abs",
    "capitalize",
    "default",
    "dictsort",
    "first",
    "float",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "lstrip",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "rstrip",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "truncate",
    "trim",
    "unique",
    "upper",
    "wordcount",
]
METHODS = [
    "append",
    "get",
    "items",
    "keys",
    "values",
    "split",
    "rsplit",
    "strip",
    "replace",
    "startswith",
    "upper",
    "lower",
    "title",
    "pop",
    "indent",
]
TESTS = [
    "defined",
    "divisibleby",
    "string",
    "mapping",
    "sequence",
    "number",
    "none",
    "in",
    "odd",
    "even",
    "equalto",
    "callable",
    "sameas",
]


def number(rng: random.Random) -> int:
    return rng.choice(HUGE) if rng.random() < 0.5 else rng.randrange(20)


def repeat(rng: random.Random) -> int:
    """How often something that nests is nested: a few times, or thousands."""
    return int(10 ** rng.uniform(0, 4.6))


class Template:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def make(self) -> str:
        if self.rng.random() < 0.25:
            return self.chain()
        return "".join(self.statement(0) for _ in range(self.rng.randrange(1, 9)))

    def chain(self) -> str:
        """One construction, nested or repeated."""
        n, rng = repeat(self.rng), self.rng
        before, middle, after = rng.choice([
            ("(", "1", ")"), ("[", "", "]"), ("{1:", "1", "}"), ("not ", "1", ""), ("1 if 1 else ", "1", ""),
            ("-", "1", ""), ("", "a", ".a"), ("", "a", "[0]"), ("", "'a'", "|upper"), ("", "1", "+1"),
            ("", "'a'", "~'b'"), ("range(", "1", ")"), ("a(", "1", ")"), ("", "a", "()"), ("", "1", " is defined"),
        ])  # fmt: skip
        if rng.random() < 0.7:
            return "{{ " + before * n + middle + after * n + " }}"
        opened, closed = rng.choice([
            ("{% if 1 %}", "{% endif %}"), ("{% for i in [1, 2] %}", "{% endfor %}"),
            ("{% macro a(b) %}", "{% endmacro %}"), ("{% filter upper %}", "{% endfilter %}"),
            ("{% set a = [a, a] %}", ""), ("{% set a = a ~ a %}", ""), ("{% set a = {'k': a} %}", "{{ a }}"),
        ])  # fmt: skip
        return "{% set a = 'x' %}" + opened * min(n, 10**4) + "{{ a }}" + closed * min(n, 10**4)

    def statement(self, depth: int) -> str:
        rng = self.rng
        body = "".join(self.statement(depth + 1) for _ in range(rng.randrange(1, 4))) if depth < 4 else self.out()
        return rng.choice([
            lambda: self.out(),
            lambda: self.out(),
            lambda: f"{{% set {rng.choice('abx')} = {self.value(depth)} %}}",
            lambda: f"{{% set ns = namespace(s={self.value(depth)}) %}}",
            lambda: f"{{% set ns.s = {self.value(depth)} %}}",
            lambda: f"{{% set _ = {rng.choice(NAMES)}.{rng.choice(METHODS)}({self.value(depth)}) %}}",
            lambda: f"{{% for {rng.choice('abx')} in {self.value(depth)} %}}{body}{{% endfor %}}",
            lambda: f"{{% for i in range({number(rng)}) %}}{body}{{% endfor %}}",
            lambda: f"{{% for i in range({rng.choice([30, 60, 10**6])}) %}}{self.grow()}{{% endfor %}}{self.out()}",
            lambda: f"{{% if {self.value(depth)} %}}{body}{{% else %}}{body}{{% endif %}}",
            lambda: f"{{% macro a(b, x=1) %}}{body}{{{{ a(b) }}}}{{% endmacro %}}",
            lambda: "{% macro b(x) %}" + body + "{% endmacro %}{{ b(" + self.value(depth) + ") }}",
            lambda: f"{{% filter {rng.choice(FILTERS)} %}}{body}{{% endfilter %}}",
            lambda: f"{{% set {rng.choice('abx')} %}}{body}{{% endset %}}",
            lambda: f"{{% call(x) b({self.value(depth)}) %}}{body}{{% endcall %}}",
        ])()  # fmt: skip

    def grow(self) -> str:
        """What a loop makes larger with every round."""
        return self.rng.choice([
            "{% set ns.s = ns.s + ns.s %}", "{% set ns.s = ns.s ~ ns.s %}", "{% set ns.s = [ns.s] %}",
            "{% set ns.s = [ns.s, ns.s] %}", "{% set ns.s = {'k': ns.s} %}", "{% set _ = a.append(a) %}",
            "{% set ns.s = ns.s * 2 %}", "{% set ns.s = (ns.s, 1) %}", "{% set ns.s = ns.s|list %}",
            "{% set ns.s = ns.s|tojson %}", "{% set ns.s = ns.s|replace('x', 'xx') %}", "{{ ns.s }}",
            "{% set ns.s = ns.s|indent(99) %}", "{% set ns.s = ns.s|join('xx') %}", "{% set _ = ns.s.append(ns.s) %}",
        ])  # fmt: skip

    def out(self) -> str:
        return "{{ " + self.value(2) + " }}"

    def value(self, depth: int) -> str:
        rng = self.rng
        if depth > 3:
            return rng.choice([rng.choice(NAMES), str(number(rng)), "'x'", "[]", "true", "none"])
        inner = lambda: self.value(depth + 1)  # noqa: E731
        return rng.choice([
            lambda: rng.choice(NAMES),
            lambda: rng.choice(NAMES),
            lambda: str(number(rng)),
            lambda: "'" + "x" * rng.choice([0, 1, 10, 2000]) + "'",
            lambda: "[" + ", ".join(inner() for _ in range(rng.randrange(4))) + "]",
            lambda: "{" + ", ".join(f"{inner()}: {inner()}" for _ in range(rng.randrange(3))) + "}",
            lambda: f"({inner()}, {inner()})",
            lambda: f"({inner()} {rng.choice(['+', '-', '*', '/', '//', '%', '~', '**', '==', '<', 'in', 'and'])} {inner()})",  # noqa: E501
            lambda: f"{inner()}|{rng.choice(FILTERS)}",
            lambda: f"{inner()}|{rng.choice(FILTERS)}({inner()})",
            lambda: f"{inner()}|tojson(indent={number(rng)})",
            lambda: f"{inner()}|{rng.choice(FILTERS)}({number(rng)}, {inner()})",
            lambda: f"{inner()}.{rng.choice(METHODS)}({inner()})",
            lambda: f"({inner()} is {rng.choice(TESTS)})",
            lambda: f"{inner()}[{number(rng)}:{number(rng)}:{number(rng)}]",
            lambda: f"{inner()}[{inner()}]",
            lambda: f"range({number(rng)}, {number(rng)}, {number(rng)})",
            lambda: f"({inner()} if {inner()} else {inner()})",
            lambda: f"namespace(s={inner()})",
        ])()  # fmt: skip


def template(rng: random.Random) -> Case:
    start = "{% set a = [] %}{% set b = {} %}{% set ns = namespace(s='x') %}" if rng.random() < 0.7 else ""
    return {"kind": "template", "text": start + Template(rng).make()}


class Schema:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.names = [f"d{i}" for i in range(rng.choice([1, 3, 40, 2000]))]

    def make(self) -> Any:
        rng = self.rng
        defs: dict[str, Any] = {}
        for i, name in enumerate(self.names):
            near = f"#/$defs/{self.names[min(i + 1, len(self.names) - 1)]}"
            defs[name] = rng.choice([lambda n=near: {"$ref": n}, lambda: self.node(2)])() if i < 2000 else {}
        if rng.random() < 0.3:
            return self.chain()
        node = self.node(0)
        return node | {"$defs": defs} if isinstance(node, dict) else node

    def chain(self) -> Any:
        n, rng = repeat(self.rng), self.rng
        n = min(n, 20_000)
        wrap = rng.choice([
            lambda s: {"items": s, "type": "array"}, lambda s: {"properties": {"a": s}}, lambda s: {"anyOf": [s, s]},
            lambda s: {"allOf": [s]}, lambda s: {"additionalProperties": s}, lambda s: {"prefixItems": [s, s]},
        ])  # fmt: skip
        wide = rng.choice([
            lambda: {"properties": {f"p{i}": {} for i in range(n)}},
            lambda: {"properties": {f"p{i}": {"type": "integer"} for i in range(n)}, "required": ["p0", "p9"]},
            lambda: {"anyOf": [{"const": i} for i in range(n)]},
            lambda: {"enum": ["x" * rng.randrange(99) for _ in range(n)]},
            lambda: {"allOf": [{"properties": {f"p{i}": {}}} for i in range(n)]},
            lambda: {"type": [rng.choice(["string", "object", "array"]) for _ in range(n)]},
            lambda: {"prefixItems": [{}] * n},
            lambda: {"type": "string", "pattern": "^" + self.pattern(n) + "$"},
            lambda: {"properties": {"-" * n: {}}},
            lambda: {"const": "\"\\" * n},
            lambda: {"$ref": "#" + "/a" * n},
        ])  # fmt: skip
        if rng.random() < 0.7:
            return wide()
        schema: Any = {}
        for _ in range(min(n, 100)):
            schema = wrap(schema)
            if schema.get("anyOf") or schema.get("prefixItems"):  # twice itself
                n = min(n, 12)
                if len(json.dumps(schema)) > 100_000:
                    break
        return schema

    def pattern(self, n: int) -> str:
        a, b, c = self.rng.choice([("(", "a", ")"), ("(", "a", ")*"), ("", "a?", ""), ("", "[a-z]{1,9}", ""),
                                   ("(a|", "b", ")"), ("", f"a{{{number(self.rng)}}}", ""), ("[", "a", "]"),
                                   ("(", "a", "){9}"), ("", "\\", ""), ("", "^$.", "")])  # fmt: skip
        return a * n + b + c * n if a or c else b * n

    def node(self, depth: int) -> Any:
        rng = self.rng
        if depth > 4:
            return rng.choice([{}, True, {"type": "string"}, {"$ref": f"#/$defs/{rng.choice(self.names)}"}])
        inner = lambda: self.node(depth + 1)  # noqa: E731
        low, high = number(rng), number(rng)
        return rng.choice([
            lambda: {"$ref": f"#/$defs/{rng.choice(self.names)}"},
            lambda: {"$ref": rng.choice(["#", "#/", "#/x/y", "https://no.such/schema.json", "x", "#/$defs/d0/items"])},
            lambda: {"type": "array", "items": inner(), "minItems": low, "maxItems": high},
            lambda: {"type": "string", "minLength": low, "maxLength": high},
            lambda: {"type": "integer", "minimum": low, "maximum": high},
            lambda: {"type": "integer", "exclusiveMinimum": -(10**15) - low, "exclusiveMaximum": 10**15},
            lambda: {"type": "string", "pattern": "^" + self.pattern(rng.randrange(1, 30)) + "$"},
            lambda: {"type": "string", "format": rng.choice(["date", "time", "uuid", "date-time", "x"])},
            lambda: {"anyOf": [inner() for _ in range(rng.randrange(1, 5))]},
            lambda: {"oneOf": [inner() for _ in range(rng.randrange(1, 5))]},
            lambda: {"allOf": [inner() for _ in range(rng.randrange(1, 5))]},
            lambda: {"properties": {f"p{i}": inner() for i in range(rng.randrange(1, 9))},
                     "additionalProperties": inner(), "required": [f"p{i}" for i in range(rng.randrange(4))]},
            lambda: {"type": "object", "additionalProperties": inner()},
            lambda: {"prefixItems": [inner() for _ in range(rng.randrange(1, 9))]},
            lambda: {"enum": [1, "a", None, {"b": [low]}]},
            lambda: {"type": rng.choice(["null", "boolean", "number", "object", "no such", 5, None])},
            lambda: rng.choice([None, [], 5, "x", {"items": 5}, {"properties": []}, {"required": 3}]),
        ])()  # fmt: skip


def schema(rng: random.Random) -> Case:
    text = json.dumps(Schema(rng).make())
    if rng.random() < 0.05:
        n = repeat(rng)
        text = rng.choice(
            ["[" * n, '{"a":' * n, '{"a":[' * n, '"' * n, "1" * n, "-", "{", '{"enum": [' + "9" * n + "]}"]
        )
    return {"kind": "schema", "text": text}


def grammar(rng: random.Random) -> Case:
    n_rules = rng.choice([1, 2, 5, 20, 25, 300])
    names = ["root", *(f"r{i}" for i in range(n_rules))]

    def atom(i: int, depth: int) -> str:
        later = names[min(i + 1, n_rules)]
        return rng.choice([
            lambda: json.dumps(rng.choice(["a", "ab", "x" * 50, "é"])),
            lambda: rng.choice(["[a-z]", "[^a]", ".", '""', "[aab]", "[\\x00-\\U0010ffff]"]),
            lambda: later, lambda: later, lambda: rng.choice(names[i:]) if rng.random() < 0.9 else rng.choice(names),
            lambda: "(" + body(i, depth + 1) + ")" if depth < 3 else later,
            lambda: f"<[{rng.randrange(300)}]>",
        ])()  # fmt: skip

    def item(i: int, depth: int) -> str:
        low, high = sorted((abs(number(rng)), abs(number(rng))))
        return atom(i, depth) + rng.choice(
            ["", "", "", "?", "*", "+", "{3}", "{0,40}", f"{{{low},{high}}}", f"{{{low},}}"]
        )

    def body(i: int, depth: int = 0) -> str:
        return " | ".join(
            " ".join(item(i, depth) for _ in range(rng.randrange(1, 4))) for _ in range(rng.choice([1, 2, 2, 3]))
        )

    rules = [f"{name} ::= {body(i)}" for i, name in enumerate(names)]
    if rng.random() < 0.3:
        n = repeat(rng)
        rules = [
            rng.choice([
                "root ::= " + "(" * n + '"a"' + ")" * n, "root ::= " + "(" * n + '"a"' + ")?" * n,
                'root ::= "a"?' + ' "a"?' * n, "root ::= " + " | ".join(['"a"'] * n), 'root ::= ("a" | "b"?)' + "*" * n,
                "root ::= " + "\n".join(f'r{i} "a" | r{i} "b"\nr{i} ::= ' for i in range(min(n, 2000))) + '"c"',
                "root ::= " + "\n".join(f"r{i} | r{i}\nr{i} ::= " for i in range(min(n, 2000))) + '"c"',
                "root ::= " + "\n".join(f"r{i} r{i}\nr{i} ::= " for i in range(min(n, 2000))) + '"c"?',
                "root ::= " + " ".join(f"r{i}?" for i in range(min(n, 9000)))
                + "".join(f'\nr{i} ::= "a" r{i} | "a"' for i in range(min(n, 9000))),
                "#" * n, "root ::= [" + "a-z" * n + "]", 'root ::= "' + "\\x41" * n + '"', "root ::= root" + ' "a"' * n,
            ])
        ]  # fmt: skip
    lazy = [pattern_text(rng)] if rng.random() < 0.1 else None
    return {
        "kind": "grammar",
        "text": "\n".join(rules),
        "said": rng.choice(["aaaaaaaa", "ab" * 30, "a b", ""]),
        "lazy": lazy,
    }


def pattern_text(rng: random.Random) -> str:
    if rng.random() < 0.2:
        n = repeat(rng)
        a, b, c = rng.choice([("(", "a", ")"), ("(", "a", ")*"), ("(?:", "a", ")+"), ("(?=", "a", ")"), ("(?!", "a", ")"),  # noqa: E501
                              ("", "a", "?"), ("", "a", "{9}"), ("[", "a", "]"), ("(a|", "b", ")")])  # fmt: skip
        return a * n + b + c * n

    def body(depth: int) -> str:
        return "|".join("".join(item(depth) for _ in range(rng.randrange(1, 5))) for _ in range(rng.choice([1, 1, 2])))

    def item(depth: int) -> str:
        atom = rng.choice([
            lambda: rng.choice("aab Z<>"), lambda: rng.choice(["[a-z]", "[^a]", ".", "\\s", "[\\s\\S]", "\\w", "\\d"]),
            lambda: "(" + body(depth + 1) + ")" if depth < 4 else "a",
            lambda: "(?:" + body(depth + 1) + ")" if depth < 4 else "a",
            lambda: rng.choice(["(?=a)", "(?!ab)", "(?!" + body(depth + 1) + ")"]) if depth < 4 else "a",
            lambda: rng.choice(["^", "$", "\\b", "\\B", "\\1", "(?<=a)"]),
        ])()  # fmt: skip
        low, high = sorted((abs(number(rng)), abs(number(rng))))
        return atom + rng.choice(["", "", "*", "+", "?", "*?", "+?", "{2}", "{0,30}", f"{{{low},{high}}}"])

    return body(0) + rng.choice(["", "$", "Z"])


def pattern(rng: random.Random) -> Case:
    word = rng.choice(["a", "ab", " ", "aa b", "<", "x\n", "aé"])
    return {"kind": "pattern", "text": pattern_text(rng), "said": word * rng.choice([1, 30, 400, 3000])}


def override(rng: random.Random) -> Case:
    return {"kind": "override", "text": pattern_text(rng)[:1000]}


def text(rng: random.Random) -> Case:
    pieces = [
        "a",
        " ",
        "\n",
        "1",
        "é",
        "'s",
        "<|im_start|>",
        "\u200d",
        "漢",
        "\0",
        "﷽",
        "A",
        "\t",
        "🏳️‍🌈",
        "aaaa",
        ".,",
        "▁",
    ]
    n = int(10 ** rng.uniform(0, 4.8))
    some = [rng.choice(pieces) for _ in range(rng.choice([1, 1, 2, 3, 17]))]
    data = "".join(rng.choice(some) for _ in range(n)) if rng.random() < 0.5 else "".join(some) * (n // len(some) + 1)
    return {"kind": "text", "text": data, "special": rng.random() < 0.5, "model": rng.randrange(100)}


MAKERS: dict[str, Callable[[random.Random], Case]] = {
    "template": template, "schema": schema, "grammar": grammar, "pattern": pattern, "override": override, "text": text,
}  # fmt: skip
