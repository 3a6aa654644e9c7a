"""What is done with a file that may lie: everything a user does with one. Errors of ours are expected."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import lloyal
import lloyal.llama as ll
from lloyal.errors import LloyalError
from lloyal.llama.quantize import FILE_TYPES

EXPECTED = (LloyalError, TypeError, ValueError, MemoryError, OverflowError, LookupError, OSError)
TEXTS = ("", "a", "the quick brown fox", "é\u2581\U0001f600 \n\t 123 <s></s>", "x" * 300, "\0", " " * 40, "the" * 50)

Say = Callable[[str], None]


def maybe(rng: random.Random, share: float) -> bool:
    return rng.random() < share


def model_params(rng: random.Random) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, share in (("use_mmap", 0.7), ("use_extra_bufts", 0.2), ("check_tensors", 0.2), ("load_mtp", 0.8)):
        params[name] = maybe(rng, share)
    return params


def context_params(rng: random.Random) -> dict[str, Any]:
    choose = rng.choice
    params: dict[str, Any] = {
        "n_ctx": choose([0, 64, 256, 256, 512]),
        "n_batch": choose([8, 32, 64, 256]),
        "n_ubatch": choose([4, 16, 32, 64]),
        "n_seq_max": choose([1, 2, 4, 4]),
        # Threads that wait for each other spin: on a loaded machine that is what takes the time.
        "n_threads": 2 if maybe(rng, 0.01) else 1,
        "n_threads_batch": 2 if maybe(rng, 0.01) else 1,
        "kv_unified": maybe(rng, 0.7),
        "swa_full": maybe(rng, 0.3),
        "n_rs_seq": choose([0, 0, 0, 2]),
        "embeddings": maybe(rng, 0.25),
        "flash_attn": choose(["auto", "auto", "on", "off"]),
    }
    if params["n_ctx"] == 0:
        params["n_ctx"] = 128
    if params["flash_attn"] == "on":
        params |= {
            "type_k": choose(["f16", "f32", "bf16", "q8_0", "q4_0"]),
            "type_v": choose(["f16", "f32", "q8_0", "q4_0"]),
        }
    if params["embeddings"]:
        params["pooling"] = choose(["unspecified", "none", "mean", "cls", "last", "rank"])
    if maybe(rng, 0.1):
        params["attention"] = choose(["causal", "non_causal"])
    if maybe(rng, 0.1):
        params["rope_scaling"] = choose(["none", "linear", "yarn", "longrope"])
    return params


def use_vocab(model: Any, rng: random.Random) -> list[int]:
    vocab = model.vocab
    found = [1, 2, 3]
    for text in rng.sample(TEXTS, 3):
        with contextlib.suppress(*EXPECTED):
            tokens = vocab.tokenize(text, maybe(rng, 0.5), maybe(rng, 0.5))
            found += tokens[:20]
            vocab.detokenize(tokens, maybe(rng, 0.5), maybe(rng, 0.5))
    n = vocab.n_tokens
    for token in (0, n - 1, n // 2, rng.randrange(max(n, 1))):
        with contextlib.suppress(*EXPECTED):
            vocab.token_to_piece(token)
            for of_token in (vocab.text, vocab.score, vocab.attr, vocab.is_eog):
                of_token(token)
    ask(vocab)
    return [token for token in found if 0 <= token < n] or ([0] if n > 0 else [])


def ask(thing: Any) -> None:
    """Every property."""
    for name in dir(type(thing)):
        if not name.startswith("_") and not callable(getattr(type(thing), name)):
            with contextlib.suppress(*EXPECTED):
                getattr(thing, name)


def use_info(model: Any) -> None:
    ask(model)
    with contextlib.suppress(*EXPECTED):
        model.chat_template()


def run_batch(
    ctx: Any, call: Callable[[Any], None], tokens: list[int], starts: list[int], n: int, rng: random.Random
) -> None:
    batch = lloyal.Batch()
    for seq, start in enumerate(starts):
        for i in range(n):
            batch.add(rng.choice(tokens), start + i, [seq], i == n - 1)
    call(batch)
    for seq in range(len(starts)):
        starts[seq] += n
    with contextlib.suppress(*EXPECTED):
        np.asarray(ctx.logits(-1)).sum()
    with contextlib.suppress(*EXPECTED):
        np.asarray(ctx.embeddings(-1)).sum()
    with contextlib.suppress(*EXPECTED):
        np.asarray(ctx.embeddings(seq_id=0)).sum()


def use_context(model: Any, tokens: list[int], rng: random.Random, say: Say, adapters: list[Any]) -> None:
    params = context_params(rng)
    if model.n_layer_nextn and maybe(rng, 0.3):
        params["type"] = "mtp"
    say("context")
    with lloyal.Context(model, **params) as ctx:
        if adapters:
            say("adapters")
            with contextlib.suppress(*EXPECTED):
                ctx.set_adapters_lora(adapters, [rng.choice([1.0, 0.5, -3.0])] * len(adapters))
        if maybe(rng, 0.15):
            say("control vector")
            with contextlib.suppress(*EXPECTED):
                ctx.set_adapter_cvec(np.ones((max(model.n_layer - 1, 1), model.n_embd), np.float32))
        n_seq = rng.randrange(1, ctx.n_seq_max + 1)
        starts = [0] * n_seq
        if not tokens:
            return
        if model.has_encoder:
            say("encode")
            with contextlib.suppress(*EXPECTED):
                run_batch(ctx, ctx.encode, tokens, [0] * n_seq, rng.choice([1, 4, 8]), rng)
        for n in (rng.choice([1, 5, 17]), 1, rng.choice([1, 2])):
            say("decode")
            with contextlib.suppress(*EXPECTED):
                run_batch(ctx, ctx.decode, tokens, starts, n, rng)
        if maybe(rng, 0.3):
            say("state")
            with contextlib.suppress(*EXPECTED):
                mark = ctx.checkpoint(0, where=rng.choice(["device", "host"]))
                mark.to_bytes()
                run_batch(ctx, ctx.decode, tokens, [starts[0]], 1, rng)
                mark.restore()
        if maybe(rng, 0.2):
            say("embedding rows")
            with contextlib.suppress(*EXPECTED):
                batch = lloyal.Batch()
                batch.extend_embd(np.zeros((3, model.n_embd_inp), np.float32), starts[0], 0, True)
                ctx.decode(batch)


def use_model(path: Path, rng: random.Random, say: Say, adapters: list[Path]) -> None:
    say("load")
    with lloyal.Model(path, **model_params(rng)) as model:
        say("vocabulary")
        tokens = use_vocab(model, rng)
        if maybe(rng, 0.2):
            say("properties")
            use_info(model)
        loaded = []
        for file in adapters:
            say("adapter")
            with contextlib.suppress(*EXPECTED):
                loaded.append(ll.LoraAdapter(model, file))
        for _ in range(rng.choice([1, 1, 2])):
            with contextlib.suppress(*EXPECTED):
                use_context(model, tokens, rng, say, loaded)
        for adapter in loaded:
            adapter.close()
        if maybe(rng, 0.05):
            say("save")
            with contextlib.suppress(*EXPECTED):
                model.save(path.with_name("saved.gguf"))


def use_vocabulary(path: Path, rng: random.Random, say: Say) -> None:
    say("load vocabulary")
    with lloyal.Model(path, vocab_only=True) as model:
        say("vocabulary")
        use_vocab(model, rng)
        if maybe(rng, 0.5):
            say("properties")
            use_info(model)


def use_quantize(path: Path, rng: random.Random, say: Say) -> None:
    say("quantize")
    options: dict[str, Any] = {"n_threads": rng.choice([1, 1, 2]), "allow_requantize": maybe(rng, 0.7)}
    for name, share in (("pure", 0.2), ("only_copy", 0.2), ("dry_run", 0.1), ("quantize_output_tensor", 0.8)):
        options[name] = maybe(rng, share)
    if maybe(rng, 0.2):
        options["token_embedding_type"] = rng.choice(["f16", "q8_0", "q4_k", "iq2_xs"])
    if maybe(rng, 0.1):
        options["prune_layers"] = [rng.randrange(6)]
    if maybe(rng, 0.15):
        from tests.fuzz.gguf_mutate import INTEGERS, arch_keys

        value = rng.choice([rng.choice(INTEGERS), 0.0, True, "x"])
        options["kv_overrides"] = {f"{rng.choice(['llama', 'lfm2', 'gpt2'])}.{rng.choice(arch_keys()).decode()}": value}
    target = path.with_name("quantized.gguf")
    try:
        ll.quantize(path, target, rng.choice(FILE_TYPES), **options)
    finally:
        target.unlink(missing_ok=True)


def use(path: Path, how: str, rng: random.Random, say: Say, other: Path | None) -> str:
    """Do with the file `path` what `how` says; the name of the error that ended it, or "used"."""
    warnings.simplefilter("ignore")
    try:
        if how == "adapter":
            assert other is not None
            use_model(other, rng, say, [path])
        elif how == "model":
            use_model(path, rng, say, [other] if other is not None else [])
        elif how == "vocabulary":
            use_vocabulary(path, rng, say)
        else:
            use_quantize(path, rng, say)
    except EXPECTED as error:
        if isinstance(error, MemoryError) or "bad_alloc" in str(error) or "length_error" in str(error):
            return f"memory: {error}"
        return type(error).__name__
    return "used"
