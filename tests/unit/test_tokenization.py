"""Streaming detokenizer and stop strings: whatever the pieces, together they are the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lloyal
from lloyal.errors import InvalidArgument
from lloyal.tokenization import StopStrings, StreamDecoder

# The models share one vocabulary of this size; a token is drawn before the model is known to the test.
N_VOCAB = 768
TOKENS = st.lists(st.integers(0, N_VOCAB - 1), max_size=40)


@pytest.fixture(scope="module", params=lloyal.models.NAMES)
def vocab(request: pytest.FixtureRequest) -> lloyal.Vocab:
    return request.getfixturevalue(request.param.replace("-", "_")).vocab


@given(tokens=TOKENS, special=st.booleans())
def test_pieces_are_the_whole_text(vocab, tokens, special):
    decoder = StreamDecoder(vocab, special=special)
    text = "".join(map(decoder.feed, tokens)) + decoder.flush()
    assert text == vocab.detokenize(tokens, unparse_special=special)


@given(text=st.text(max_size=40))
def test_text_arrives_as_soon_as_its_bytes_do(vocab, text):
    decoder = StreamDecoder(vocab)
    data, shown = b"", ""
    for token in vocab.tokenize(text, add_special=False):
        data += vocab.token_to_piece(token)
        shown += decoder.feed(token)
        assert shown == _whole_characters(data)
    assert shown == text
    assert decoder.flush() == ""


def _whole_characters(data: bytes) -> str:
    """The start of valid UTF-8 that can be decoded, by trying."""
    for cut in range(4):
        try:
            return data[: len(data) - cut].decode()
        except UnicodeDecodeError:
            continue
    raise AssertionError(f"{data!r} is not the start of UTF-8")


@given(first=TOKENS, second=TOKENS)
def test_a_flushed_decoder_is_as_new(vocab, first, second):
    decoder = StreamDecoder(vocab)
    for token in first:
        decoder.feed(token)
    decoder.flush()
    fresh = StreamDecoder(vocab)
    assert [decoder.feed(token) for token in second] == [fresh.feed(token) for token in second]
    assert decoder.flush() == fresh.flush()


@pytest.mark.parametrize("token", [-1, N_VOCAB, 2**31 - 1])
def test_a_token_outside_the_vocabulary(vocab, token):
    with pytest.raises(InvalidArgument, match=str(token)):
        StreamDecoder(vocab).feed(token)


def test_vocabulary_size(vocab):
    assert len(vocab) == N_VOCAB


# A small alphabet, so that strings begin inside each other.
SHORT = st.text("ab", min_size=1, max_size=4)


@given(pieces=st.lists(st.text("ab", max_size=4), max_size=8), stops=st.lists(SHORT, max_size=3))
def test_stop_strings_do_not_depend_on_the_pieces(pieces, stops):
    shown, found = _cut("".join(pieces), stops)
    filter_ = StopStrings(stops)
    assert "".join(map(filter_.feed, pieces)) + filter_.flush() == shown
    assert filter_.found == found


def _cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """By definition: the string that ends first, of those the one that began first."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(pieces=st.lists(st.text("ab", max_size=4), max_size=8), stops=st.lists(SHORT, max_size=3))
def test_only_what_may_become_a_stop_string_is_held_back(pieces, stops):
    filter_ = StopStrings(stops)
    fed, shown = "", ""
    for piece in pieces:
        fed += piece
        shown += filter_.feed(piece)
        if filter_.found is not None:
            return
        held = fed[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_single_string_is_one_stop_string():
    stops = StopStrings("ab")
    assert [stops.feed("xaab"), stops.found] == ["xa", "ab"]
    assert stops.feed("more") == ""


def test_an_empty_stop_string_is_refused():
    with pytest.raises(InvalidArgument, match="empty"):
        StopStrings(["a", ""])
