"""Tokens, text, and vocabularies that have neither."""

from __future__ import annotations

import random

import lloyal
from lloyal.errors import InvalidArgument, Unsupported
from tests.abuse.lab import Lab, case, check
from tests.abuse.models import without_tokenizer
from tests.models import N_VOCAB, tiny, tokens


@case("24", "tokenizing with a model that has no tokenizer", upstream="GGML_ASSERT", ours="Unsupported")
def no_tokenizer(lab: Lab) -> None:
    path = without_tokenizer(tiny("llama"), lab.folder / "none.gguf")
    model = lloyal.Model(path)
    vocab = model.vocab
    check(len(vocab) == N_VOCAB, f"the vocabulary has {len(vocab)} tokens")
    calls = (
        lambda: vocab.tokenize("text"),
        lambda: vocab.detokenize([1, 2]),
        lambda: vocab.token_to_piece(1),
        lambda: vocab.text(1),
        lambda: vocab.score(1),
        lambda: vocab.attr(1),
    )
    for call in calls:
        with lab.refused(Unsupported, "tokenizer"):
            call()
    check(not vocab.is_eog(1) and not vocab.is_control(1), "a token means something")
    for attribute in ("bos", "eos", "eot", "sep", "nl", "pad", "mask"):
        check(getattr(vocab, attribute) is None, f"{attribute} is {getattr(vocab, attribute)}")
    lab.feed(lab.context(model), (0, 0, tokens(5)))
    lab.check()
    lab.watched.pop().ctx.close()


@case(
    "25",
    "token ids that are not in the vocabulary",
    upstream="exception through the C ABI: terminate",
    ours="InvalidArgument",
)
def tokens_outside_the_vocabulary(lab: Lab) -> None:
    vocab = lab.model("llama").vocab
    calls = (
        vocab.text,
        vocab.score,
        vocab.attr,
        vocab.token_to_piece,
        vocab.is_eog,
        vocab.is_control,
        lambda t: vocab.detokenize([1, t]),
    )
    for token in (-1, N_VOCAB, 2**31 - 1, -(2**31), 2**40):
        for call in calls:
            with lab.refused(InvalidArgument, token):
                call(token)


@case(
    "72",
    "text that is not UTF-8",
    upstream="exception through the C ABI: terminate, for some bytes",
    ours="tokens, or InvalidArgument",
)
def text_that_is_not_utf8(lab: Lab) -> None:
    with lloyal.Model(lloyal.models.path("nano")) as model:
        vocab = model.vocab
        rng = random.Random(1)
        refused = 0
        for _ in range(2000):
            data = rng.randbytes(rng.randrange(60))
            try:
                vocab.tokenize(data, True, True)
            except InvalidArgument as error:
                check("UTF-8" in str(error) and str(len(data)) in str(error), str(error))
                refused += 1
        check(0 < refused < 2000, f"{refused} of 2000 were refused")
        with lab.refused(InvalidArgument, "4 bytes"):
            vocab.tokenize(b"\xf7\xbf\xbf\xbf")  # past the last code point
        text = "déjà vu €😀"
        check(vocab.tokenize(text) == vocab.tokenize(text.encode()), "str and bytes differ")
        check(vocab.detokenize(vocab.tokenize(text), remove_special=True) == text, "the text does not come back")
        for value in (5, None, ["text"], 1.5):
            try:
                vocab.tokenize(value)
            except TypeError as error:
                check(type(value).__name__ in str(error), str(error))
            else:
                raise AssertionError(f"{value!r} was tokenized")


@case("73", "very long text of one character", upstream="-", ours="tokens")
def very_long_text(lab: Lab) -> None:
    with lloyal.Model(lloyal.models.path("nano")) as model:
        for character in ("a", " ", "1", "\n", "é"):
            text = character * 200_000
            check(
                model.vocab.detokenize(model.vocab.tokenize(text), remove_special=True) == text,
                f"{character!r} does not come back",
            )
