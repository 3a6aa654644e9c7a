"""Grammars: what they allow, when lazy ones start, and the texts that llama.cpp's parser dies or hangs on."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import lloyal
from lloyal.errors import InvalidArgument
from lloyal.llama import Candidates, Sampler


@pytest.fixture(scope="module")
def vocab(nano: lloyal.Model) -> lloyal.Vocab:
    return nano.vocab


def kept(result: Candidates) -> set[int]:
    return {int(token) for token, logit in zip(result.ids, result.logits, strict=True) if logit > -math.inf}


def in_a_process(program: str, timeout: float = 120) -> str:
    """What a program printed that has `Sampler`, `vocab` and NumPy at hand. It must end well and keep stderr empty."""
    start = """
import numpy as np, lloyal
from lloyal.errors import *
from lloyal.llama import Sampler
model = lloyal.Model(lloyal.models.path("nano"), vocab_only=True)
vocab = model.vocab
n = len(vocab)
zeros = np.zeros(n, np.float32)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", start + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def pieces(vocab: lloyal.Vocab) -> dict[int, bytes]:
    return {t: vocab.token_to_piece(t) for t in range(len(vocab)) if not vocab.is_eog(t)}


def test_grammar_allows_exactly_what_it_says(vocab: lloyal.Vocab) -> None:
    digits = {t for t, piece in pieces(vocab).items() if piece and set(piece) <= set(b"0123456789")}
    ends = {t for t in range(len(vocab)) if vocab.is_eog(t)}
    sampler = Sampler.grammar(vocab, "root ::= [0-9]+")
    zeros = np.zeros(len(vocab), np.float32)
    assert kept(sampler.apply(zeros)) == digits
    sampler.accept(min(digits))
    assert kept(sampler.apply(zeros)) == digits | ends
    sampler.accept(min(ends))


def test_grammar_with_another_root_and_comments(vocab: lloyal.Vocab) -> None:
    text = '# first a comment\r\n\n  digit ::= [0-9]  # and one behind\r\nroot ::= ("x" | digit){2,3} "!"?\n'
    sampler = Sampler.grammar(vocab, text, root="digit")
    single = {t for t, piece in pieces(vocab).items() if piece in {b"%d" % d for d in range(10)}}
    assert kept(sampler.apply(np.zeros(len(vocab), np.float32))) == single
    assert len(kept(Sampler.grammar(vocab, text).apply(np.zeros(len(vocab), np.float32)))) > len(single)


def test_a_token_that_the_grammar_does_not_allow_changes_nothing(vocab: lloyal.Vocab) -> None:
    letter, digit, end = vocab.tokenize("q", False)[0], vocab.tokenize("7", False)[0], vocab.eos
    assert end is not None
    sampler = Sampler.chain(Sampler.penalties(len(vocab), 8, 1.5), Sampler.grammar(vocab, "root ::= [0-9]+"))
    before = sampler.state()
    for token in (letter, end):
        with pytest.raises(InvalidArgument, match=f"token {token}"):
            sampler.accept(token)
        assert sampler.state() == before
    sampler.accept(digit)
    sampler.accept(end)


def test_lazy_grammar_waits_for_its_pattern(vocab: lloyal.Vocab) -> None:
    sampler = Sampler.grammar_lazy_patterns(vocab, 'root ::= "<n>" [0-9]+ "</n>"', trigger_patterns=["(<n>)"])
    zeros = np.zeros(len(vocab), np.float32)
    everything = set(range(len(vocab)))
    for token in vocab.tokenize("some text <n", False):
        sampler.accept(token)
        assert kept(sampler.apply(zeros)) == everything
    sampler.accept(vocab.tokenize(">", False)[0])
    digits = {t for t, piece in pieces(vocab).items() if piece and set(piece) <= set(b"0123456789")}
    assert kept(sampler.apply(zeros)) >= digits
    assert vocab.tokenize("x", False)[0] not in kept(sampler.apply(zeros))
    sampler.reset()
    assert kept(sampler.apply(zeros)) == everything


def test_repetitions_of_what_may_be_empty(vocab: lloyal.Vocab) -> None:
    """They come back to themselves without a character, as grammars of published chat formats do."""
    sampler = Sampler.grammar(vocab, 'root ::= ("a"? "b"?)* "c"')
    for token in vocab.tokenize("abbac", False):
        sampler.accept(token)
    with pytest.raises(InvalidArgument):
        sampler.accept(vocab.tokenize("a", False)[0])


def test_lazy_grammar_starts_at_a_token(vocab: lloyal.Vocab) -> None:
    trigger = vocab.tokenize("{", False)[0]
    sampler = Sampler.grammar_lazy_patterns(vocab, 'root ::= "{" "}"', trigger_tokens=[trigger])
    sampler.accept(vocab.tokenize("a", False)[0])
    sampler.accept(trigger)
    assert kept(sampler.apply(np.zeros(len(vocab), np.float32))) == {
        t for t, piece in pieces(vocab).items() if piece == b"}"
    }


def test_a_trigger_on_text_the_grammar_refuses_changes_nothing(vocab: lloyal.Vocab) -> None:
    sampler = Sampler.grammar_lazy_patterns(vocab, 'root ::= "yes"', trigger_patterns=["(no)"])
    first, *_, last = vocab.tokenize("n o", False)[0], vocab.tokenize("o", False)[0]
    sampler.accept(first)
    before = sampler.state()
    with pytest.raises(InvalidArgument, match="does not match the grammar"):
        sampler.accept(last)
    assert sampler.state() == before


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
    "left recursion behind nothing": ('\'root ::= a root "x" | "y"\\na ::= ""\'', "can begin with itself"),
    "left recursion behind two nothings": (
        '\'root ::= a root "x" | "y"\\na ::= b\\nb ::= ""\'',
        "can begin with itself",
    ),
    "a long chain": (
        "'root ::= r0\\n' + ''.join(f'r{i} ::= r{i+1}\\n' for i in range(6000)) + 'r6000 ::= [a]'",
        "too many to follow",
    ),
    "a bush": (
        "'root ::= r0\\n' + ''.join(f'r{i} ::= r{i+1} [a] | r{i+1} [b]\\n' for i in range(60)) + 'r60 ::= [a]'",
        "too many to follow",
    ),
    "huge token": ("'root ::= <[99999999999999]>'", "line 1"),
    "unknown token": ("'root ::= <no such token>'", "invalid token"),
    "half a character": (r"'root ::= [\ud800]'", "no valid text"),
}


def test_bad_grammars() -> None:
    """Each is refused, nothing is printed, and the process lives; some kill, hang or fill the memory of llama.cpp."""
    program = "".join(
        f"""
try:
    Sampler.grammar(vocab, {text})
    print("taken")
except InvalidGrammar as error:
    print(repr(str(error)))
"""
        for text, _ in BAD_GRAMMARS.values()
    )
    lines = in_a_process(program).splitlines()
    wrong = {
        name: line
        for (name, (_, why)), line in zip(BAD_GRAMMARS.items(), lines, strict=True)
        if not re.search(why, line)
    }
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
    good = [
        json,
        'root ::= "" | "a" root',
        "root ::= [^\\n]{2,} .",
        "root ::= a{0,3}\na ::= [x]?",
        'root ::= ("a"{3}){2} # end',
        "root ::= !<[5]> <[6]>*",
        'root ::= "é" [à-ü] "😀"',
        "root::=[a-]|\n[^\\]-]",
    ]
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
        pieces = ['', '(', ')', '*', '{2}', '"', '[', ']', '|', 'root', '\n', '::=', '?', '"" ']
        rng = random.Random(1)
        refused = taken = 0
        for _ in range(1500):
            damaged = list(text)
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(damaged))
                damaged[at:at + rng.randint(0, 2)] = rng.choice(pieces)
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
    """llama.cpp would search all text, at every token, with a regular expression that recurses at every character."""
    out = in_a_process(r"""
        import struct
        sampler = Sampler.grammar_lazy_patterns(vocab, 'root ::= "<t>" [a]', trigger_patterns=[r"^[\s\S]*(<t>)$"])
        saved = sampler.state()
        # the state ends in the text so far (a length and bytes) and its tokens (none); its length stands before
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
        for _ in range(3):
            sampler.accept(letter)
        print("searched")
        sampler.reset()
        for token in vocab.tokenize("abc <t>", False):
            sampler.accept(token)
        try:
            sampler.accept(vocab.tokenize("b", False)[0])
        except InvalidArgument:
            print("started")
    """)
    assert out.split() == ["searched", "searched", "started"]
