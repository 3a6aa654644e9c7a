"""Lines for the monkey: the public API found by introspection, with arguments drawn from a pool."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import random
import sys
from pathlib import Path
from typing import Any

import lloyal
import lloyal.llama as ll
from tests.fuzz.monkey_pool import DTYPES, EMBEDDED, MODELS, QUANTIZED

ROOT = Path(__file__).resolve().parents[2]

# What takes the process, the network or the terminal, and the hooks of tests.
LEAVE_OUT = {
    "rpc_serve",
    "rpc_device",
    "fault_arm",
    "main",
    "app",
    "drain_logs",
}
MODULES_LEFT_OUT = (
    "lloyal.cli",
    "lloyal.bench",
    "lloyal.demo",
    "lloyal.terminal",
    "lloyal.__main__",
    "lloyal.libllama",
)
DUNDERS = (
    "__len__",
    "__getitem__",
    "__iter__",
    "__repr__",
    "__eq__",
    "__hash__",
    "__array__",
    "__reduce__",
    "__enter__",
)
KINDS = ("Model", "Context", "Batch", "BatchExt", "Sampler", "Vocab", "Memory", "Logits", "Checkpoint", "Checkpoints")
OTHERS = (
    "LoraAdapter",
    "Device",
    "Tenancy",
    "ChatTemplates",
    "Tokenizer",
    "Sampling",
    "bytes",
    "ndarray",
    "Candidates",
)

Callables = list[tuple[str, Any]]

# How often a method is taken, where not once: what everything has, and what ends an object.
WEIGHTS = dict.fromkeys(DUNDERS, 0.25) | {"close": 0.3, "release": 0.3, "__exit__": 0.3, "release_all": 0.3}
WEIGHTS |= dict.fromkeys(
    ("decode", "encode", "process", "sample", "restore", "seq_cp", "seq_rm", "state_seq_set_data_ext"), 3.0
)
WEIGHTS |= dict.fromkeys(
    ("set_sampler", "apply", "embeddings", "set_adapter_cvec", "add_embd", "extend_embd", "set_pos"), 3.0
)

WEIGHTS |= dict.fromkeys(("state_get_data", "state_seq_get_data", "state_seq_get_data_ext", "state_set_data"), 4.0)

Parameters = list[tuple[str, str, bool, bool]]  # name, annotation, may be left out, keyword only


def modules() -> list[Any]:
    names = ["lloyal", "lloyal.llama"]
    names += [f"lloyal.{m.name}" for m in pkgutil.iter_modules(lloyal.__path__)]
    names += [f"lloyal.llama.{m.name}" for m in pkgutil.iter_modules(ll.__path__)]
    return [importlib.import_module(name) for name in sorted(set(names)) if not name.startswith(MODULES_LEFT_OUT)]


def public_calls() -> tuple[Callables, dict[str, Callables], dict[str, list[str]]]:
    """Functions and classes by the text that reaches them, and methods and properties by class."""
    functions: Callables = []
    methods: dict[str, Callables] = {}
    properties: dict[str, list[str]] = {}
    for module in modules():
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if (
                name in LEAVE_OUT
                or inspect.ismodule(value)
                or (inspect.isclass(value) and issubclass(value, BaseException))
            ):
                continue
            text = f"__import__('importlib').import_module({module.__name__!r}).{name}"
            if callable(value):
                functions.append((text, value))
            if inspect.isclass(value):
                for attribute in dir(value):
                    if (attribute.startswith("_") and attribute not in DUNDERS) or attribute in LEAVE_OUT:
                        continue
                    if issubclass(value, tuple) and hasattr(tuple, attribute):
                        continue  # Python's own
                    member = inspect.getattr_static(value, attribute, None)
                    if callable(getattr(value, attribute, None)):
                        methods.setdefault(name, []).append((attribute, getattr(value, attribute)))
                        if isinstance(member, (staticmethod, classmethod)):
                            functions.append((f"{text}.{attribute}", getattr(value, attribute)))
                    else:
                        properties.setdefault(name, []).append(attribute)
    return functions, methods, properties


@functools.cache
def parameters_of(function: Any) -> Parameters | None:
    """What a function or class takes; of a compiled class, what its stub says. None if nobody knows."""
    if inspect.isclass(function) and (stub := stub_of(function)) is not None:
        return stub
    try:
        given = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    found = []
    for parameter in given:
        if parameter.name in ("self", "cls") or parameter.kind is parameter.VAR_KEYWORD:
            continue
        star = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        optional = parameter.default is not parameter.empty
        found.append(
            (star + parameter.name, str(parameter.annotation), optional, parameter.kind is parameter.KEYWORD_ONLY)
        )
    return found


def stub_of(kind: type) -> Parameters | None:
    for base in kind.__mro__:
        module = sys.modules.get(base.__module__)
        stub = Path(getattr(module, "__file__", None) or "none").with_suffix("")
        stub = stub.with_name(stub.name.split(".")[0] + ".pyi")
        source = ROOT / "lloyal" / "llama" / stub.name
        if not base.__module__.startswith("lloyal.llama.") or not source.exists():
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ClassDef) and node.name == base.__name__:
                for item in node.body:
                    if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                        spec = item.args
                        n_plain = len(spec.args) - len(spec.defaults)
                        found = [
                            (a.arg, ast.unparse(a.annotation) if a.annotation else "", i >= n_plain, False)
                            for i, a in enumerate(spec.args)
                        ]
                        found += [
                            (a.arg, ast.unparse(a.annotation or ast.Constant("")), True, True) for a in spec.kwonlyargs
                        ]
                        return found[1:]
    return None


class Lines:
    """An endless source of lines for one seed."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)
        self.functions, self.methods, self.properties = public_calls()
        self.kinds = [kind for kind in (*KINDS, *OTHERS) if kind in self.methods or kind in ("bytes", "ndarray")]

    # Values, as text.

    def number(self) -> str:
        r = self.rng
        return r.choice(
            [
                *map(str, (0, 1, 2, 3, 5, 7, 63, 64, 100, 127, 128, 255, 256, -1, -2, -100)),
                *(
                    "2**31-1",
                    "2**31",
                    "-2**31",
                    "-2**31-1",
                    "2**32-1",
                    "2**32",
                    "2**62",
                    "2**63",
                    "-2**63",
                    "2**64",
                    "10**30",
                ),
                *(
                    "LyingInt(10**12)",
                    "LyingInt(-1)",
                    "LyingInt(3)",
                    "LyingInt(2**31)",
                    "True",
                    "np.int64(3)",
                    "np.int32(-1)",
                ),
                *("Two(5, 10**6)", "Two(0, -1)", "Two(1, 2**40)", "Bomb()"),
                *(self.reach_back("Two") for _ in range(6)),
            ]
        )

    def small(self) -> str:
        return str(self.rng.choice((0, 0, 0, 1, 1, 2, 3, 4, 7, 16, -1)))

    def real(self) -> str:
        return self.rng.choice(
            [
                "0.0",
                "0.5",
                "1.0",
                "-1.0",
                "1e-9",
                "1e30",
                "3e38",
                "1e308",
                "float('nan')",
                "float('inf')",
                "-float('inf')",
                "LyingFloat('nan')",
                "LyingFloat(5)",
                "10**400",
                "Two(0.5, 9e99)",
                "np.float32(0.5)",
                "np.float16('inf')",
            ]
        )

    def text(self) -> str:
        return self.rng.choice(
            [
                "''",
                "'x'",
                "'Once upon a time'",
                "'\\0'",
                "'\\ud800'",
                "'é😀' * 9",
                "'a' * 5000",
                "LyingStr('zzz')",
                "'device'",
                "'host'",
                "'cells'",
                "'auto'",
                "'last'",
                "'decode'",
                "'q8_0'",
                "'CPU'",
                "'chatml'",
                "'root ::= \"a\"*'",
                "'{}'",
            ]
        )

    def data(self) -> str:
        r = self.rng
        shape = r.choice(
            ["()", "0", "1", "5", "64", "128", "256", "(3, 64)", "(1, 128)", "(0, 64)", "(2, 3, 4)", "4096"]
        )
        layout = r.choice(["plain", "plain", "strided", "turned", "reversed", "readonly", "nan", "ones"])
        return r.choice(
            [
                f"array({shape}, {r.choice(DTYPES)!r}, {layout!r})",
                f"array({shape}, {r.choice(('f4', 'f4', 'i4', 'u1'))!r}, {layout!r})",
                *("b''", "b'x' * 100", "bytearray(300000)", "memoryview(bytearray(64))", "memoryview(b'abc')[::2]"),
                f"pick('bytes', {r.randrange(9)})",
                f"pick('ndarray', {r.randrange(9)})",
                f"pick('Logits', {r.randrange(9)})",
                self.reach_back("Buffer"),
            ]
        )

    def items(self) -> str:
        return self.rng.choice(
            [
                "[]",
                "()",
                "[0]",
                "[1, 2, 3]",
                "list(range(40))",
                "range(5)",
                "[None]",
                "[2**40]",
                "[-1]",
                "[1.5]",
                "['x']",
                "{}",
                "{0: 1.0}",
                "{1: None}",
                "{'a': 1}",
                "[[1, 2]]",
                "[('user', 'hi')]",
                "[{'role': 'user', 'content': 'hi'}]",
                "Bomb()",
                "iter([1, 2])",
                "[Two(1, 2**40)]",
                "[LyingInt(10**12)]",
                self.reach_back("TwoList"),
                "[Bomb()]",
                f"[{self.number()}, {self.number()}]",
                f"[{self.thing()}]",
                f"[{self.thing()}, None]",
            ]
        )

    def path(self) -> str:
        return self.rng.choice(
            [
                "path('new')",
                "path('state')",
                "path('state')",
                "path('none/new')",
                "path('')",
                "'/dev/null/x'",
                "1",
                "0",
                "2",
                f"file({self.file()!r})",
                f"file({self.file()!r})",
                "b'bytes'",
                "TwoPath('a', 'b')",
                "Bomb()",
                "''",
                "'\\0'",
            ]
        )

    def file(self) -> str:
        r = self.rng
        quantized = [f"nano-draft:{ftype}" for ftype in QUANTIZED]
        return r.choice([*MODELS, *EMBEDDED, *EMBEDDED, *quantized])

    def thing(self, kind: str | None = None) -> str:
        return f"pick({kind or self.rng.choice(self.kinds)!r}, {self.rng.randrange(9)})"

    def reach_back(self, kind: str) -> str:
        """A value that does something to an object while it is converted."""
        r = self.rng
        target, method, *arguments = r.choice(
            [
                ("Context", "close"),
                ("Model", "close"),
                ("Batch", "clear"),
                ("BatchExt", "clear"),
                ("Sampler", "close"),
                ("Checkpoint", "release"),
                ("Memory", "clear"),
                ("Context", "abort"),
                ("Sampler", "reset"),
                ("Context", "synchronize"),
            ]
        )
        value = {"TwoPath": "path('new')"}.get(kind, str(r.choice((0, 1, 5, 199, -1))))
        return f"{kind}({value}, {value}, act({target!r}, {r.randrange(9)}, {method!r}{''.join(arguments)}))"

    def anything(self) -> str:
        r = self.rng
        return r.choice(
            [self.number, self.real, self.text, self.data, self.items, self.path, self.thing, self.thing, self.odd]
        )()

    def odd(self) -> str:
        return self.rng.choice(
            ["None", "None", "True", "False", "object()", "int", "lambda *a: None", "...", "Bomb()", "slice(0, 3)"]
        )

    def argument(self, name: str, annotation: str) -> str:
        """A value that might be right for a parameter; sometimes anything."""
        r = self.rng
        if r.random() < 0.15:
            return self.anything()
        for kind in (*self.kinds, "Sampler"):
            if kind in annotation:
                return self.thing(kind)
        if "path" in name or "Path" in annotation or name in ("source", "target"):
            return self.path()
        if name in ("ctx", "context", "model", "vocab", "sampler", "batch", "checkpoint"):
            return self.thing({"ctx": "Context"}.get(name, name.capitalize()))
        if "bool" in annotation:
            return r.choice(["True", "False", "False", "None"])
        if "int" in annotation and "Iterable" not in annotation and "Mapping" not in annotation:
            return self.small() if r.random() < 0.6 else self.number()
        if "float" in annotation:
            return self.real()
        if "Literal" in annotation or "str" in annotation:
            return self.text()
        if name == "out" and r.random() < 0.5:
            return f"array({r.choice(('768', '128', '65536', '500000'))}, {r.choice((*DTYPES, 'O', 'O'))!r})"
        if name in ("data", "out", "embd", "rows", "logits", "ids") or "Buffer" in annotation or "Array" in annotation:
            return self.data()
        if "Iterable" in annotation or "Sequence" in annotation or "Mapping" in annotation or "list" in annotation:
            return self.items()
        return self.anything()

    def arguments(self, function: Any) -> str:
        r = self.rng
        given = parameters_of(function)
        if given is None or r.random() < 0.03:
            return ", ".join(self.anything() for _ in range(r.randrange(4)))
        words = []
        by_name = False
        for name, annotation, optional, keyword in given:
            if name[0] == "*":
                words += [self.thing("Sampler") for _ in range(r.randrange(3))]
                by_name = True
                continue
            if optional and r.random() < 0.5:
                by_name = True
                continue
            value = self.argument(name, annotation)
            words.append(f"{name}={value}" if by_name or keyword else value)
        return ", ".join(words)

    # Lines.

    def parameters(self, kind: Any) -> str:
        """Keywords of a context or model: some fields, mostly with values that could be meant."""
        r = self.rng
        choices = {
            "n_ctx": ["256", "64", "512", "300", "1"],
            "n_batch": ["1", "7", "64", "256"],
            "n_ubatch": ["1", "7", "64", "512"],
            "n_seq_max": ["1", "2", "3", "5", "8", "64"],
            "n_rs_seq": ["0", "2", "4"],
            "n_outputs_max": ["0", "1", "8", "64"],
            "n_outputs_max_per_seq": ["0", "1", "3"],
            "type_k": ["'f16'", "'f32'", "'bf16'", "'q8_0'", "'q4_0'", "'q5_1'", "'iq4_nl'"],
            "flash_attn": ["'auto'", "'on'", "'off'", "True", "False"],
            "pooling": ["'none'", "'mean'", "'cls'", "'last'", "'rank'", "'unspecified'"],
            "attention": ["'causal'", "'non_causal'", "'unspecified'"],
            "rope_scaling": ["'none'", "'linear'", "'yarn'", "'longrope'"],
            "n_threads": [
                "1",
                "1",
                "2",
            ],  # threads that wait for each other on a busy machine take more than a line may
            "split_mode": ["'none'", "'layer'", "'row'", "'tensor'"],
            "type": ["'default'", "'mtp'"],
            "parent": [self.thing("Context"), "None"],
            "samplers": [f"{{0: {self.thing('Sampler')}}}", "{}", f"{{2**31: {self.thing('Sampler')}}}"],
            "devices": ["[]", "['CPU']", "[None]", "['nope']"],
            "tensor_split": ["[1.0]", "[0.0]", "[LyingFloat('nan')]", "[1.0] * 99"],
            "kv_overrides": ["{'llama.context_length': 64}", "{'x': LyingInt(2**70)}", "{'llama.block_count': 1}"],
            "tensor_buft_overrides": ["{'.*': 'CPU'}", "{'(': 'CPU'}"],
            "progress": ["lambda p: None", "lambda p: False", "Bomb()", "None"],
        }
        choices["type_v"] = choices["type_k"]
        choices["n_threads_batch"] = choices["n_threads"]
        words = []
        for field in dataclasses.fields(kind):
            if r.random() < (0.25 if len(choices) else 0):
                known = choices.get(field.name) or (["True", "False"] if field.type == "bool" else [self.real()])
                odd = self.number if r.random() < 0.6 else self.anything
                value = r.choice(known) if r.random() < 0.9 else odd()
                words.append(f"{field.name}={value}")
        return ", ".join(words)

    def line(self) -> str:
        r = self.rng
        roll = r.random()
        if roll < 0.05:
            parameters = self.parameters(ll.ModelParams) if r.random() < 0.5 else ""
            return f"keep(lloyal.Model(file({self.file()!r}), {parameters}))"
        if roll < 0.10:
            return f"context({self.thing('Model')}, {self.parameters(ll.ContextParams)})"
        if roll < 0.20:
            n, seq, outputs = r.choice((1, 1, 3, 20, 70)), r.choice((0, 0, 1, 2)), r.choice((True, False))
            return f"feed({self.thing('Context')}, {n}, {seq}, {outputs})"
        if roll < 0.23:
            return f"keep({self.thing('Context')}.logits({self.small()}))"
        if roll < 0.26:
            name, keys = r.choice(
                [
                    ("greedy", ""),
                    ("top_k", "3"),
                    ("dist", "1"),
                    ("llama_dist", "1"),
                    ("keyed", "1"),
                    ("temp", "0.5"),
                    ("top_p", "0.5"),
                ]
            )
            return f"keep(ll.Sampler.chain(ll.Sampler.{name}({keys}), ll.Sampler.greedy()))"
        if roll < 0.32:
            lines = ", ".join(repr(self.call()) for _ in range(r.choice((2, 3))))
            return f"together({lines})"
        return self.call()

    def call(self) -> str:
        r = self.rng
        if r.random() < 0.25:
            text, function = r.choice(self.functions)
            return f"keep({text}({self.arguments(function)}))"
        kind = r.choice([kind for kind in self.kinds if kind in self.methods])
        if kind in self.properties and r.random() < 0.2:
            name = r.choice(self.properties[kind])
            if r.random() < 0.2:
                return f"setattr({self.thing(kind)}, {name!r}, {self.anything()})"
            return f"keep({self.thing(kind)}.{name})"
        known = self.methods[kind]
        name, function = r.choices(known, [WEIGHTS.get(name, 1.0) for name, _ in known])[0]
        return f"keep({self.thing(kind)}.{name}({self.arguments(function)}))"


# What every history begins with.
OPENING = (
    "keep(lloyal.Model(file('nano-draft')))",
    "context(pick('Model', 0), n_ctx=512, n_threads=1)",
    "context(pick('Model', 0), n_ctx=256, n_seq_max=2, n_threads=1)",
    "keep(pick('Model', 0).vocab)",
    "keep(pick('Context', 0).memory)",
    "keep(ll.BatchExt(pick('Context', 0)))",
    "[pick('BatchExt', 0).add_token(0, 5) for _ in range(200)]",
    "keep(ll.Sampler.chain(ll.Sampler.top_k(5), ll.Sampler.dist(1)))",
    "keep(pick('Context', 0).checkpoint(0))",
    "keep(pick('Context', 0).checkpoints)",
    "keep(pick('Context', 0).logits())",
    "keep(pick('Context', 0).state_seq_get_data(0))",
    "keep(lloyal.devices())",
    "keep(pick('Sampler', 0).apply(np.zeros(10, 'f4')))",
    "keep(__import__('lloyal.chat').chat.ChatTemplates(pick('Model', 0), 'chatml'))",
    "keep(lloyal.Sampling())",
    "keep(__import__('lloyal.kv').kv.Tenancy(pick('Context', 1)))",
)
