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
from . import distill, recipe, tokenizer, train
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


def lessons(
    target: Decoder, rows: train.Rows, course: recipe.Course, name: str, folder: Path, say: distill.Say | None = None
) -> distill.Lessons:
    """The lessons of one course, kept in the work folder."""
    saved = folder / f"{name}-lessons.pt"
    if not saved.exists():
        made = distill.make_lessons(target, rows, course.batches, course.rows, course.seed, folder / "lessons.log", say)
        torch.save(vars(made), saved)
    return distill.Lessons(**torch.load(saved))


def paired(vocab: Vocab, corpus: Corpus, folder: Path) -> tuple[Decoder, Decoder]:
    """Target and draft, each trained on the corpus alone and then taught to agree."""
    base = from_corpus(recipe.NANO, recipe.NANO_PLANS, vocab, corpus, folder)
    draft = from_corpus(recipe.DRAFT, recipe.DRAFT_PLANS, vocab, corpus, folder)

    def rows(course: recipe.Course) -> train.Rows:
        return train.Rows(vocab, corpus, course.plan, folder / "tokens.pt")

    def taught(
        course: recipe.Course, name: str, teacher: Decoder, say: distill.Say | None, reading: train.Plan | None = None
    ) -> Decoder:
        model = stored(recipe.DRAFT, name, folder)
        if model is None:
            course_lessons = lessons(teacher, rows(course), course, name, folder, say)
            long_texts = train.Rows(vocab, corpus, reading, folder / "tokens.pt") if reading else None
            model = distill.teach_draft(
                draft,
                course_lessons,
                course.plan,
                folder / f"{name}.log",
                distill.read_along(teacher, long_texts) if long_texts else None,
            )
            torch.save(model.state_dict(), folder / f"{name}.pt")
            share = distill.agreement(model, course_lessons)
            print(f"{name}: agrees on {share:.3f} of the lessons' tokens", flush=True)
        return model

    for number, (lenience, course) in enumerate(recipe.ROUNDS):
        draft = taught(course, f"draft-round-{number}", base, distill.Say(draft, lenience))
    target = stored(recipe.NANO, "target", folder)
    if target is None:
        course = recipe.TARGET_COURSE
        say = distill.Say(draft, recipe.ROUNDS[-1][0])
        taught_target = distill.teach_target(
            base,
            lessons(base, rows(course), course, "target", folder, say),
            rows(course),
            course.plan,
            folder / "target.log",
        )
        target = distill.blend(base, taught_target, recipe.TARGET_SHARE)
        torch.save(target.state_dict(), folder / "target.pt")
    return target, taught(recipe.DRAFT_COURSE, "draft", target, None, recipe.DRAFT_READING)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.train_nano", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the GGUF files")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/train_nano"),
        help="folder for logs, checkpoints and finished stages; delete it to start over",
    )
    parser.add_argument("--only", choices=("pair", "hybrid"), help="make nano and nano-draft, or nano-hybrid")
    parser.add_argument("--threads", type=int, default=recipe.THREADS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)

    corpus = corpora.load()
    print(
        f"Python {platform.python_version()}: {len(corpus.train)} training files, "
        f"{len(corpus.held_out)} held out, {corpus.n_bytes} bytes, sha256 {corpus.sha256}"
    )
    saved_vocab = args.work / "tokenizer.json"
    if not saved_vocab.exists():
        tokenizer.train(corpus.train).save(saved_vocab)
    vocab = tokenizer.load(saved_vocab)

    def finish(model: Decoder) -> None:
        name = model.config.name
        size = write_gguf(model, vocab, args.out / f"{name}.gguf")
        loss, bits = train.held_out(model, vocab, corpus.held_out)
        print(
            f"{name}: {model.n_params()} parameters, {size} bytes, held-out loss {loss:.4f} nats per token, "
            f"{bits:.4f} bits per byte",
            flush=True,
        )

    if args.only != "pair":
        finish(from_corpus(recipe.HYBRID, recipe.HYBRID_PLANS, vocab, corpus, args.work))
    if args.only != "hybrid":
        for model in paired(vocab, corpus, args.work):
            finish(model)


if __name__ == "__main__":
    main()
