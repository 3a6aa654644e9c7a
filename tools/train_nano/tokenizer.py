"""The byte-level BPE vocabulary shared by the nano models.

Knows how the vocabulary is trained, its reserved tokens and its chat template.  Does not know GGUF
(export.py) nor how token streams are cut into batches (train.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus import SourceFile

BOS, EOS, IM_START, IM_END = "<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPARES = [f"<|spare_{i}|>" for i in range(16)]
RESERVED = [BOS, EOS, IM_START, IM_END, *SPARES]
BOS_ID, EOS_ID, IM_START_ID, IM_END_ID = range(4)
VOCAB_SIZE = 768

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Vocab:
    """A trained vocabulary: ids 0..19 are reserved, then 256 single bytes, then merged pieces."""

    tokenizer: Tokenizer
    tokens: list[str]
    merges: list[tuple[str, str]]

    def encode(self, text: str) -> list[int]:
        """Ids of a text; reserved spellings in it become reserved ids, as with parse_special."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """`encode` of many texts, on all threads."""
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def save(self, path: Path) -> None:
        path.write_text(self.tokenizer.to_str(pretty=True))


def _wrap(tokenizer: Tokenizer) -> Vocab:
    state = json.loads(tokenizer.to_str())["model"]
    by_id = sorted(state["vocab"].items(), key=lambda item: item[1])
    merges = [tuple(m.split(" ")) if isinstance(m, str) else (m[0], m[1]) for m in state["merges"]]
    return Vocab(tokenizer, [piece for piece, _ in by_id], merges)


def train(files: list[SourceFile], vocab_size: int = VOCAB_SIZE) -> Vocab:
    """Learn the merges from `files`; the result depends on nothing else."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in RESERVED],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f.text for f in files), trainer)
    vocab = _wrap(tokenizer)
    if vocab.tokens[: len(RESERVED)] != RESERVED or len(vocab.tokens) != vocab_size:
        raise RuntimeError("the trained vocabulary is not laid out as expected")
    return vocab


def load(path: Path) -> Vocab:
    """Read back what `Vocab.save` wrote."""
    return _wrap(Tokenizer.from_file(str(path)))


def chat_text(request: str, answer: str) -> str:
    """One exchange, spelt as CHAT_TEMPLATE spells it."""
    return f"{IM_START}user\n{request}{IM_END}\n{IM_START}assistant\n{answer}{IM_END}\n"
