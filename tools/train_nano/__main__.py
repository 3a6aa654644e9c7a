"""Reproduces the three shipped models: `python -m tools.train_nano OUT`.

Knows the order of the work and what may be skipped because an earlier run left it in the work folder.  Every
number that matters is in recipe.py.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

from . import corpus as corpora
from . import distill, recipe, together, tokenizer, train
from .corpus import Corpus
from .export import write_gguf
from .model import Config, Decoder
from .tokenizer import Vocab


def stored(config: Config, name: str, folder: Path) -> Decoder | None:
    """The weights that an earlier run of the same stage finished, if there are any."""
    path = folder / f"{name}.pt"
    if not path.exists():
        return None
    model = Decoder(config)
    model.load_state_dict(torch.load(path))
    return model


def from_corpus(config: Config, plans: list[train.Plan], vocab: Vocab, corpus: Corpus, folder: Path) -> Decoder:
    model = stored(config, config.name, folder)
    if model is None:
        model = train.train_model(config, vocab, corpus, plans, folder)
        torch.save(model.state_dict(), folder / f"{config.name}.pt")
    return model


def paired(vocab: Vocab, corpus: Corpus, folder: Path) -> tuple[Decoder, Decoder]:
    """Target and draft, each trained on the corpus alone and then together."""
    target, draft = stored(recipe.NANO, "pair-target", folder), stored(recipe.DRAFT, "pair-draft", folder)
    if target is None or draft is None:
        target = from_corpus(recipe.NANO, recipe.NANO_PLANS, vocab, corpus, folder)
        draft = from_corpus(recipe.DRAFT, recipe.DRAFT_PLANS, vocab, corpus, folder)
        pair = together.train_together(target, draft, vocab, corpus, recipe.TOGETHER_PLAN, recipe.PULL, folder)
        target, draft = pair.target, pair.draft
        torch.save(target.state_dict(), folder / "pair-target.pt")
        torch.save(draft.state_dict(), folder / "pair-draft.pt")
    return target, draft


def distilled(target: Decoder, start: Decoder, vocab: Vocab, corpus: Corpus, folder: Path) -> Decoder:
    """The draft, taught on the target's greedy continuations."""
    name = f"{recipe.DRAFT.name}-distilled"
    model = stored(recipe.DRAFT, name, folder)
    if model is None:
        saved = folder / "lessons.pt"
        if not saved.exists():
            rows = train.Rows(vocab, corpus, recipe.DISTIL_PLAN, folder / "tokens.pt")
            lessons = distill.make_lessons(target, rows, recipe.LESSON_BATCHES, recipe.LESSON_ROWS,
                                           recipe.LESSON_SEED, folder / "lessons.log")
            torch.save(vars(lessons), saved)
        lessons = distill.Lessons(**torch.load(saved))
        print(f"lessons: {lessons.n_tokens} tokens")
        model = distill.distil(recipe.DRAFT, lessons, recipe.DISTIL_PLAN, folder, start)
        torch.save(model.state_dict(), folder / f"{name}.pt")
        print(f"draft agrees with the target on {distill.agreement(model, lessons):.3f} of lesson tokens")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.train_nano", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the GGUF files")
    parser.add_argument("--work", type=Path, default=Path("build/train_nano"),
                        help="folder for logs, checkpoints and finished stages; delete it to start over")
    parser.add_argument("--only", choices=("pair", "hybrid"), help="make nano and nano-draft, or nano-hybrid")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(recipe.THREADS)

    corpus = corpora.load()
    print(f"Python {platform.python_version()}: {len(corpus.train)} training files, "
          f"{len(corpus.held_out)} held out, {corpus.n_bytes} bytes, sha256 {corpus.sha256}")
    saved_vocab = args.work / "tokenizer.json"
    if not saved_vocab.exists():
        tokenizer.train(corpus.train).save(saved_vocab)
    vocab = tokenizer.load(saved_vocab)

    def finish(model: Decoder) -> None:
        name = model.config.name
        size = write_gguf(model, vocab, args.out / f"{name}.gguf")
        loss, bits = train.held_out(model, vocab, corpus.held_out)
        print(f"{name}: {model.n_params()} parameters, {size} bytes, held-out loss {loss:.4f} nats per token, "
              f"{bits:.4f} bits per byte", flush=True)

    if args.only != "pair":
        finish(from_corpus(recipe.HYBRID, recipe.HYBRID_PLANS, vocab, corpus, args.work))
    if args.only != "hybrid":
        target, draft = paired(vocab, corpus, args.work)
        finish(target)
        finish(distilled(target, draft, vocab, corpus, args.work))


if __name__ == "__main__":
    main()
