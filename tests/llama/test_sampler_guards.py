"""What llama.cpp's samplers and grammars abort, hang or go wrong on: an error of ours instead, and life goes on."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from collections.abc import Callable

import numpy as np
import pytest

import lloyal
from lloyal.errors import InvalidArgument, InvalidGrammar, Unsupported
from lloyal.llama import Sampler
from tests.models import tiny

NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def vocab(nano: lloyal.Model) -> lloyal.Vocab:
    return nano.vocab


def in_a_process(program: str, timeout: float = 120) -> str:
    """Run a program with `Sampler`, `vocab` and NumPy at hand; what it printed. It must end well and keep stderr empty."""
    start = """
import numpy as np, lloyal
from lloyal.errors import *
from lloyal.llama import Sampler
model = lloyal.Model(lloyal.models.path("nano"), vocab_only=True)
vocab = model.vocab
n = len(vocab)
zeros = np.zeros(n, np.float32)
"""
    done = subprocess.run([sys.executable, "-P", "-W", "error", "-c", start + textwrap.dedent(program)], capture_output=True,
                          text=True, timeout=timeout, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


BAD_VALUES: list[tuple[str, Callable[[lloyal.Vocab], Sampler]]] = [
    ("seed=-1", lambda v: Sampler.dist(-1)),
    ("seed=4294967295", lambda v: Sampler.dist(2**32 - 1)),
    ("seed=4294967295", lambda v: Sampler.llama_dist(2**32 - 1)),
    ("k=9999999999", lambda v: Sampler.top_k(9999999999)),
    ("p=1.5", lambda v: Sampler.top_p(1.5)),
    ("p=nan", lambda v: Sampler.top_p(NAN)),
    ("p=-0.1", lambda v: Sampler.min_p(-0.1)),
    ("min_keep=-1", lambda v: Sampler.min_p(0.5, -1)),
    ("p=nan", lambda v: Sampler.typical(NAN)),
    ("t=nan", lambda v: Sampler.temp(NAN)),
    ("t=inf", lambda v: Sampler.temp(INF)),
    ("t=1e+39", lambda v: Sampler.temp(1e39)),
    ("delta=nan", lambda v: Sampler.temp_ext(1, NAN, 1)),
    ("exponent=-1", lambda v: Sampler.temp_ext(1, 0.5, -1)),
    ("t=2", lambda v: Sampler.xtc(0.5, 2)),
    ("n=nan", lambda v: Sampler.top_n_sigma(NAN)),
    ("n_vocab=0", lambda v: Sampler.mirostat(0, 1, 5, 0.1)),
    ("m=1", lambda v: Sampler.mirostat(10, 1, 5, 0.1, 1)),
    ("tau=inf", lambda v: Sampler.mirostat_v2(1, INF, 0.1)),
    ("eta=nan", lambda v: Sampler.mirostat_v2(1, 5, NAN)),
    ("penalty_last_n=-1", lambda v: Sampler.penalties(10, -1, 1.5)),
    ("penalty_last_n=2147483647", lambda v: Sampler.penalties(10, 2**31 - 1, 1.5)),
    ("penalty_repeat=0", lambda v: Sampler.penalties(10, 5, 0)),
    ("penalty_repeat=-1", lambda v: Sampler.penalties(10, 5, -1)),
    ("penalty_freq=nan", lambda v: Sampler.penalties(10, 5, 1.5, NAN)),
    ("penalty_present=inf", lambda v: Sampler.penalties(10, 5, 1.5, 0, INF)),
    ("dry_multiplier=nan", lambda v: Sampler.dry(v, NAN)),
    ("dry_base=0.5", lambda v: Sampler.dry(v, 1, 0.5)),
    ("dry_allowed_length=-1", lambda v: Sampler.dry(v, 1, 1.5, -1)),
    ("dry_penalty_last_n=-1", lambda v: Sampler.dry(v, 1, 1.5, 2, -1)),
    ("''", lambda v: Sampler.dry(v, 1, seq_breakers=[""])),
    ("40 bytes", lambda v: Sampler.dry(v, 1, seq_breakers=["x" * 41])),
    ("target=1.5", lambda v: Sampler.adaptive_p(1.5)),
    ("decay=1", lambda v: Sampler.adaptive_p(0.5, 1)),
    ("token=10", lambda v: Sampler.logit_bias(10, {10: 1})),
    ("token=-1", lambda v: Sampler.logit_bias(10, {-1: 1})),
    ("token 3=nan", lambda v: Sampler.logit_bias(10, {3: NAN})),
    ("token 3=inf", lambda v: Sampler.logit_bias(10, {3: INF})),
    ("never start", lambda v: Sampler.grammar_lazy_patterns(v, "root ::= [a]")),
    (r"'\('", lambda v: Sampler.grammar_lazy_patterns(v, "root ::= [a]", trigger_patterns=["("])),
    ("token 768", lambda v: Sampler.grammar_lazy_patterns(v, "root ::= [a]", trigger_tokens=[len(v)])),
]


@pytest.mark.parametrize(("named", "make"), BAD_VALUES, ids=[f"{i}-{named}" for i, (named, _) in enumerate(BAD_VALUES)])
def test_bad_value(vocab: lloyal.Vocab, named: str, make: Callable[[lloyal.Vocab], Sampler]) -> None:
    with pytest.raises(InvalidArgument, match=named):
        make(vocab)


def test_no_numbers(vocab: lloyal.Vocab) -> None:
    for make in (lambda: Sampler.top_k(1.5), lambda: Sampler.top_p("0.5"), lambda: Sampler.dist("1"), lambda: Sampler.temp(None),
                 lambda: Sampler.chain(Sampler.greedy(), None), lambda: Sampler.grammar(None, "root ::= [a]")):
        with pytest.raises(TypeError):
            make()


def test_without_a_tokenizer() -> None:
    model = lloyal.Model(tiny("llama"))
    if model.vocab.type.name != "NONE":
        assert Sampler.grammar(model.vocab, "root ::= [0-9a-f]+")
        with pytest.raises(Unsupported, match="EOT nor|neither"):
            Sampler.infill(model.vocab)


CHAIN_ONLY: list[Callable[[Sampler], object]] = [
    lambda s: s.chain_add(Sampler.greedy()), lambda s: s.chain_n(), lambda s: s.chain_get(0), lambda s: s.chain_remove(0),
    lambda s: s.perf(), lambda s: s.perf_reset(),
]


@pytest.mark.parametrize("call", CHAIN_ONLY)
def test_chain_functions_on_a_sampler_that_is_none(call: Callable[[Sampler], object]) -> None:
    for sampler in (Sampler.greedy(), Sampler.dist(1), Sampler.top_k(0)):
        with pytest.raises(InvalidArgument, match="not a chain"):
            call(sampler)


@pytest.mark.parametrize("i", [-1, 1, 2**31 - 1])
def test_chain_index(i: int) -> None:
    chain = Sampler.chain(Sampler.greedy())
    for call in (chain.chain_get, chain.chain_remove):
        with pytest.raises(InvalidArgument, match=f"index {i}"):
            call(i)
    assert chain.chain_n() == 1


def test_chains_nested_without_end() -> None:
    chain = Sampler.chain(Sampler.greedy())
    with pytest.raises(InvalidArgument, match="16 deep"):
        for _ in range(100):
            chain = Sampler.chain(chain)
    assert chain.apply([0.0, 1.0]).token == 1


def every_sampler(v: lloyal.Vocab) -> list[Sampler]:
    n = len(v)
    return [
        Sampler.greedy(), Sampler.dist(1), Sampler.llama_dist(1), Sampler.top_k(5), Sampler.top_p(0.5), Sampler.min_p(0.5),
        Sampler.typical(0.5), Sampler.temp(0.5), Sampler.temp_ext(1, 0.5, 1), Sampler.xtc(1, 0.1, 1, 1), Sampler.top_n_sigma(1),
        Sampler.mirostat(n, 1, 5, 0.1), Sampler.mirostat_v2(1, 5, 0.1), Sampler.grammar(v, "root ::= [a-z]+"),
        Sampler.grammar_lazy_patterns(v, "root ::= [a-z]+", trigger_patterns=["x"]), Sampler.penalties(n, 5, 1.5),
        Sampler.dry(v, 1.0), Sampler.adaptive_p(0.5, 0.5, 1), Sampler.logit_bias(n, {3: 1}), Sampler.infill(v), Sampler.chain(),
    ]


def test_candidates_that_no_sampler_can_take(vocab: lloyal.Vocab) -> None:
    for sampler in every_sampler(vocab):
        for logits in ([], [0.0, NAN], [INF, 0.0]):
            with pytest.raises(InvalidArgument, match="no candidates|candidate [01] is"):
                sampler.apply(logits)
        with pytest.raises(InvalidArgument, match="token -1"):
            sampler.apply([0.0, 1.0], [3, -1])
        with pytest.raises(InvalidArgument, match="1 ids for 2 logits"):
            sampler.apply([0.0, 1.0], [3])
        with pytest.raises(ValueError):
            sampler.apply([[0.0, 1.0]])
        with pytest.raises(InvalidArgument, match="token -1"):
            sampler.accept(-1)
        sampler.apply([-INF, -INF])  # nothing is possible: no sampler dies of it
        sampler.apply([1.0], [7])


def test_tokens_outside_the_vocabulary(vocab: lloyal.Vocab) -> None:
    n = len(vocab)
    for sampler in (Sampler.grammar(vocab, "root ::= [a-z]+"), Sampler.infill(vocab), Sampler.chain(Sampler.infill(vocab))):
        with pytest.raises(InvalidArgument, match=f"token {n} is outside the sampler's vocabulary of {n}"):
            sampler.apply([0.0, 1.0], [1, n])
        with pytest.raises(InvalidArgument, match=f"token {n}"):
            sampler.accept(n)


def test_sample_from_a_larger_vocabulary(nano: lloyal.Model, new_context: Callable[..., lloyal.Context]) -> None:
    with lloyal.Model(tiny("llama"), vocab_only=True) as small:
        sampler = Sampler.chain(Sampler.grammar(small.vocab, "root ::= [a-f]+"), Sampler.greedy())
    ctx = new_context(nano)
    batch = lloyal.Batch()
    batch.add(1, 0, 0, True)
    ctx.decode(batch)
    with pytest.raises(InvalidArgument, match="vocabulary of 128, these logits are of 768"):
        sampler.sample(ctx)


# Grammars.


BAD_GRAMMARS = {
    "empty": ("''", "no rule 'root'"),
    "only a comment": ("'# nothing'", "no rule 'root'"),
    "no root": ("'a ::= [x]'", "no rule 'root'"),
    "NUL": (r"'root ::= [a]\0'", "NUL"),
    "open string": ("'root ::= \"a'", "line 1: unexpected end"),
    "open class": ("'root ::= [a'", "line 1: unexpected end"),
    "open group": ("'root ::= (\"a\"'", "line 1: expecting"),
    "second line": ("'root ::= [a]\\nb ::= [c'", "line 2"),
    "no definition": ("'root [a]'", "line 1: expecting ::="),
    "unknown escape": (r"'root ::= \"\\q\"'", "unknown escape"),
    "undefined rule": ("'root ::= a b\\na ::= [x]'", "rule 'b' is used and not defined"),
    "undefined root": ("'a ::= root'", "rule 'root' is used and not defined"),
    "nothing to repeat": ("'root ::= *'", "line 1: expecting preceding item"),
    "backwards repetition": ("'root ::= \"a\"{5,2}'", r"\{5,2\} asks for fewer"),
    "backwards repetition, with spaces": ("'root ::= \"a\" { 5 ,\\n # so\\n 2 }'", r"\{5,2\} asks for fewer"),
    "huge repetition": ("'root ::= \"a\"{99999999999999999999999}'", "line 1"),
    "repeated repetition": ("'root ::= \"a\"{2000}{2000}'", "line 1"),
    "long repetitions": ("'root ::= ' + ' '.join(['\"' + 'x' * 2000 + '\"{2000}'] * 500)", "too long"),
    "too long": ("'root ::= [a]' + ' ' * 2**20", "1048576 are the limit"),
    "deep parentheses": ("'root ::= ' + '(' * 100000 + '[a]' + ')' * 100000", "200 deep"),
    "left recursion": ("'root ::= root [a] | [b]'", "rule 'root' can begin with itself"),
    "left recursion through another": ("'root ::= a\\na ::= b [x]\\nb ::= a [y] | [z]'", "can begin with itself"),
    "left recursion behind nothing": ("'root ::= a root \"x\" | \"y\"\\na ::= \"\"'", "can begin with itself"),
    "left recursion behind two nothings": ("'root ::= a root \"x\" | \"y\"\\na ::= b\\nb ::= \"\"'", "can begin with itself"),
    "left recursion in a repetition": ("'root ::= ([a]*)*'", "can begin with itself"),
    "a long chain": ("'root ::= r0\\n' + ''.join(f'r{i} ::= r{i+1}\\n' for i in range(6000)) + 'r6000 ::= [a]'", "too many to follow"),
    "a bush": ("'root ::= r0\\n' + ''.join(f'r{i} ::= r{i+1} [a] | r{i+1} [b]\\n' for i in range(60)) + 'r60 ::= [a]'",
               "too many to follow"),
    "huge token": ("'root ::= <[99999999999999]>'", "line 1"),
    "unknown token": ("'root ::= <no such token>'", "invalid token"),
    "half a character": (r"'root ::= [\ud800]'", "no valid text"),
}


def test_bad_grammars() -> None:
    """Each is refused, nothing is printed, and the process lives; some kill, hang or fill the memory of llama.cpp."""
    program = "".join(f"""
try:
    Sampler.grammar(vocab, {text})
    print("taken")
except InvalidGrammar as error:
    print(repr(str(error)))
""" for text, _ in BAD_GRAMMARS.values())
    lines = in_a_process(program).splitlines()
    wrong = {name: line for (name, (_, why)), line in zip(BAD_GRAMMARS.items(), lines, strict=True)
             if not __import__("re").search(why, line)}
    assert not wrong


def test_good_grammars(vocab: lloyal.Vocab) -> None:
    json = r"""
        root   ::= object
        value  ::= object | array | string | number | ("true" | "false" | "null") ws
        object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
        array  ::= "[" ws ( value ("," ws value)* )? "]" ws
        string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
        number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
        ws     ::= | " " | "\n" [ \t]{0,20}
    """
    good = [json, 'root ::= "" | "a" root', "root ::= [^\\n]{2,} .", "root ::= a{0,3}\na ::= [x]?", 'root ::= ("a"{3}){2} # end',
            "root ::= !<[5]> <[6]>*", 'root ::= "é" [à-ü] "😀"', "root::=[a-]|\n[^]-]"]
    zeros = np.zeros(len(vocab), np.float32)
    for text in good:
        Sampler.grammar(vocab, text).apply(zeros)
    chain = Sampler.grammar(vocab, json)
    for token in vocab.tokenize('{"a": [1, 2.5e3, {"b": null}], "c\\n": "x"}', False):
        chain.accept(token)
    assert vocab.eos is not None
    chain.accept(vocab.eos)


def test_damaged_grammars() -> None:
    """Random damage to grammars: refused, or one that can be used."""
    counts = in_a_process(r"""
        import random
        text = 'root ::= ws item ("," ws item){0,3}\nitem ::= [a-z]+ | "(" item? ")" | <[5]> | number\n' \
               'number ::= "-"? [0-9]{1,4} ("." [0-9]*)?\nws ::= " "* # spaces\n'
        rng = random.Random(1)
        refused = taken = 0
        for _ in range(1500):
            damaged = list(text)
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(damaged))
                damaged[at:at + rng.randint(0, 2)] = rng.choice(['', '(', ')', '*', '{2}', '"', '[', ']', '|', 'root', '\n', '::=', '?', '"" '])
            try:
                sampler = Sampler.grammar(vocab, ''.join(damaged))
            except InvalidGrammar:
                refused += 1
                continue
            taken += 1
            if taken % 10 == 0:
                for _ in range(3):
                    left = np.flatnonzero(sampler.apply(zeros).logits == 0)
                    if len(left):
                        sampler.accept(int(rng.choice(left)))
                sampler.clone().reset()
        print(refused, taken)
    """)
    refused, taken = map(int, counts.split())
    assert refused > 300
    assert taken > 100


def test_a_long_text_before_the_trigger() -> None:
    """llama.cpp searches all text for the trigger with a regular expression that recurses at every character."""
    out = in_a_process(r"""
        import struct
        sampler = Sampler.grammar_lazy_patterns(vocab, 'root ::= "<t>" [a]', trigger_patterns=[r"^[\s\S]*(<t>)$"])
        saved = sampler.state()
        # the state ends in the text so far (a length and bytes) and its tokens (none); the length of it all stands before
        def with_text(text):
            head = len(saved) - 8
            part = saved.index(struct.pack("<I", len(saved) - 22), 13) + 4
            body = saved[part:head] + struct.pack("<I", len(text)) + text + struct.pack("<I", 0)
            return saved[:part - 4] + struct.pack("<I", len(body)) + body
        assert with_text(b"") == saved
        letter = vocab.tokenize("a", False)[0]
        sampler.set_state(with_text(b"x" * 60_000))
        sampler.accept(letter)
        print("searched")
        sampler.set_state(with_text(b"x" * 1_000_000))
        try:
            sampler.accept(letter)
        except InvalidArgument as error:
            print(error)
        sampler.reset()
        for token in vocab.tokenize("abc <t>", False):
            sampler.accept(token)
        try:
            sampler.accept(vocab.tokenize("b", False)[0])
        except InvalidArgument:
            print("started")
    """)
    searched, refused, started = out.splitlines()
    assert (searched, started) == ("searched", "started")
    assert "1000000 bytes" in refused
