"""Trigger patterns: what a lazy grammar starts at, against Python's own regular expressions."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lloyal
from lloyal.errors import InvalidArgument
from lloyal.llama import Sampler


@pytest.fixture(scope="module")
def letters(nano: lloyal.Model) -> dict[bytes, int]:
    """Tokens of one byte."""
    return {piece: t for t in range(len(nano.vocab)) if len(piece := nano.vocab.token_to_piece(t, False)) == 1}


# Bodies that may be repeated must not match nothing: engines differ in what a group holds after that.

ATOMS = ["a", "b", "c", " ", ".", "[ab]", "[^a]", r"\w", r"\s", r"\W", "[a-c]", "ab"]
CERTAIN = st.sampled_from(ATOMS)  # match something


def grow(body: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    joined = st.lists(body, min_size=1, max_size=3).map("".join)
    choice = st.lists(joined, min_size=1, max_size=3).map("|".join)
    return st.one_of(
        choice.map(lambda p: f"({p})"),
        choice.map(lambda p: f"(?:{p})"),
        st.tuples(choice, st.sampled_from(["+", "+?", "{2}", "{1,3}", "{2,}", "{1,2}?"])).map(
            lambda p: f"(?:{p[0]}){p[1]}"
        ),
        st.tuples(choice, st.sampled_from(["+", "+?", "{1,2}"])).map(lambda p: f"({p[0]}){p[1]}"),
    )


certain = st.recursive(CERTAIN, grow, max_leaves=8)
piece = st.one_of(
    certain,
    certain,
    st.tuples(certain, st.sampled_from(["*", "?", "*?", "??", "{0,2}"])).map(lambda p: f"(?:{p[0]}){p[1]}"),
    st.tuples(CERTAIN, st.sampled_from(["?", "*"])).map(lambda p: f"({p[0]}){p[1]}"),
    st.sampled_from(["^", "$", r"\b", r"\B", "(?=a)", "(?!ab)", "(?!a|b{1,3}?c)", "(?=[ab]{2})", "(?![ab]$)"]),
)
patterns = st.lists(st.lists(piece, min_size=1, max_size=4).map("".join), min_size=1, max_size=2).map("|".join)


def expected(pattern: str, text: str) -> tuple[int, int] | None:
    """How much of the text is needed, and where the grammar starts in it."""
    compiled = re.compile(pattern.replace("$", r"\Z").encode())
    for n in range(1, len(text) + 1):
        found = compiled.search(text[:n].encode())
        if found:
            groups = [i for i in range(1, compiled.groups + 1) if found.end(i) > found.start(i)]
            return n, found.start(groups[0] if groups else 0)
    return None


@settings(max_examples=400)
@given(pattern=patterns, text=st.text("aabbc .", min_size=1, max_size=14))
def test_a_grammar_starts_where_python_finds_its_pattern(
    nano: lloyal.Model, letters: dict[bytes, int], pattern: str, text: str
) -> None:
    try:
        want = expected(pattern, text)
    except re.error:  # a repeat of a repeat is a possessive one to Python
        return
    tail = text[want[1] : want[0]] if want else "none of this"
    # What the grammar takes is the text from where it must start; then only an end can follow.
    sampler = Sampler.grammar_lazy_patterns(nano.vocab, f'root ::= "{tail}"', "root", [pattern])
    zeros = np.zeros(len(nano.vocab), np.float32)
    for character in text[: want[0] if want else None]:
        assert np.isfinite(sampler.apply(zeros).logits).all()
        sampler.accept(letters[character.encode()])
    allowed = {t for t, logit in enumerate(sampler.apply(zeros).logits) if np.isfinite(logit)}
    if want:
        assert allowed
        assert all(nano.vocab.is_eog(t) for t in allowed)
    else:
        assert len(allowed) == len(nano.vocab)


def starts(nano: lloyal.Model, pattern: str, *texts: str) -> bool:
    sampler = Sampler.grammar_lazy_patterns(nano.vocab, "root ::= [^~]*", "root", [pattern])
    for text in texts:
        for token in nano.vocab.tokenize(text, False):
            sampler.accept(token)
    return not np.isfinite(sampler.apply(np.zeros(len(nano.vocab), np.float32)).logits).all()


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        # what llama.cpp's chat formats ask for
        (">>>(?!all)", "x>>>", True),
        ("^\\s+to$", "  to", True),
        ("^<\\|channel\\|>(?:commentary|analysis)\\s+to=functions$", "<|channel|>analysis to=functions", True),
        ("<\\|start\\|>assistant(\\s+to)", "<|start|>assistant to", True),
        ("(?:^|<\\|s\\|>a)( to=(?!self<m>)(?!user<m>)[^<]*?<m>)", " to=f<m>", True),
        ("(?:^|<\\|s\\|>a)( to=(?!self<m>)(?!user<m>)[^<]*?<m>)", " to=self<m>", False),
        ("[\\s\\S]*?(<tool>)[\\s\\S]*", "ab\nc<tool>", True),
        # what std::regex reads otherwise than Python
        ("[[:alpha:]]{3}", "12abc", True),
        ("[[:digit:]_]{3}", "1_2", True),
        ("\\x41\\u0042\\cI?\\/", "AB/", True),
        ("a]}", "a]}", True),
        ("[]", "abc", False),
        ("[^]b", "ab", True),
        ("é+", "caféé", True),
        ("", "a", True),
    ],
)
def test_patterns(nano: lloyal.Model, pattern: str, text: str, found: bool) -> None:
    if not pattern:
        with pytest.raises(InvalidArgument, match="empty"):
            starts(nano, pattern, text)
        return
    assert starts(nano, pattern, text) == found


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(a)\\1", "back reference"),
        ("(?<=a)b", "look-behind"),
        ("(?=a*)b", "look-ahead"),
        ("(?<name>a)", r"\(\?"),
        ("a{1001}{1001}", "steps"),
        ("(?:" * 101 + ")" * 101, "100 deep"),
        ("(a)" * 51, "50 groups"),
        ("a" * 20_000, "20000 bytes"),
        ("(a", "not closed"),
        ("a)", "closes nothing"),
        ("[a", "ends in"),
        ("a{2", "not closed"),
        ("a{3,2}", "fewer at most"),
        ("*a", "nothing that"),
        ("[z-a]", "range"),
        ("[[:no:]]", "no class"),
        ("[[.a.]]", "not supported"),
        ("\\u00e9", "write the character"),
        ("\\xg0", "no hexadecimal"),
        ("a\\", "ends in"),
    ],
)
def test_patterns_that_are_refused(nano: lloyal.Model, pattern: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        starts(nano, pattern)


@pytest.mark.parametrize("pattern", ["(a+)+$Z", "^((((((( )))))))*Z", "(a|a)*Z", "(a?){40}a{40}Z", "([ab]*[bc]*)*Z"])
def test_time_is_linear_in_the_text(nano: lloyal.Model, pattern: str) -> None:
    """These take std::regex exponential time, or a level of the stack per character."""
    vocab = nano.vocab
    token, space = (vocab.tokenize(text, False)[0] for text in ("a", " "))
    sampler = Sampler.grammar_lazy_patterns(vocab, 'root ::= "Z"', "root", [pattern])

    def accept(n: int) -> float:
        start = time.process_time()
        for i in range(n):
            sampler.accept(space if i % 2 and " " in pattern else token)
        return time.process_time() - start

    accept(1000)
    first = accept(2000)
    accept(6000)
    assert accept(2000) < 5 * first + 0.05


def test_a_search_goes_on_after_a_copy_and_a_state(nano: lloyal.Model) -> None:
    first, second = (nano.vocab.tokenize(text, False) for text in ("x <to", "ol>"))
    sampler = Sampler.grammar_lazy_patterns(nano.vocab, "root ::= [^~]*", "root", ["(<tool>)"])
    for token in first:
        sampler.accept(token)
    other = Sampler.grammar_lazy_patterns(nano.vocab, "root ::= [^~]*", "root", ["(<tool>)"])
    for token in nano.vocab.tokenize("something longer than that", False):
        other.accept(token)
    other.set_state(sampler.state())
    zeros = np.zeros(len(nano.vocab), np.float32)
    for going_on in (sampler.clone(), other, sampler):
        for token in second:
            assert np.isfinite(going_on.apply(zeros).logits).all()
            going_on.accept(token)
        assert not np.isfinite(going_on.apply(zeros).logits).all()
