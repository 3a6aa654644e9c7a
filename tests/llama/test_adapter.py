"""LoRA adapters and control vectors against the same arithmetic done on the weights."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import lloyal.llama as ll
from lloyal.errors import Closed, InvalidArgument, LoadFailed, Unsupported
from tests.models import HEAD, N_EMBD, N_FF, N_HEAD, N_LAYER, N_VOCAB, llama, tiny, tokens

RANK = 4
ALPHA = 8.0
TARGETS = {
    "blk.0.attn_q.weight": (N_EMBD, N_EMBD),
    "blk.2.ffn_down.weight": (N_FF, N_EMBD),
    "blk.3.attn_v.weight": (N_EMBD, HEAD * N_HEAD),
    "output.weight": (N_EMBD, N_VOCAB),
}
TOKENS = tokens(24, 3)

Halves = dict[str, tuple[np.ndarray, np.ndarray]]


def halves(seed: int) -> Halves:
    """A and B of each target: A (rank, n_in), B (n_out, rank)."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            rng.normal(0, 0.3, (RANK, n_in)).astype(np.float32),
            rng.normal(0, 0.3, (n_out, RANK)).astype(np.float32),
        )
        for name, (n_in, n_out) in TARGETS.items()
    }


def write_adapter(
    path: Path,
    pairs: Halves,
    *,
    arch: str = "llama",
    keys: Callable[[gguf.GGUFWriter], None] | None = None,
    general_type: str | None = "adapter",
    adapter_type: str | None = "lora",
    alpha: float | None = ALPHA,
) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    if general_type is not None:
        writer.add_string("general.type", general_type)
    if adapter_type is not None:
        writer.add_string("adapter.type", adapter_type)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_name("tiny adapter")
    if keys is not None:
        keys(writer)
    for name, (a, b) in pairs.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_merged(path: Path, changes: dict[str, np.ndarray]) -> Path:
    recipe = llama(0)
    for name, change in changes.items():
        recipe.tensors[name] = recipe.tensors[name].astype(np.float32) + change
    recipe.write(path)
    return path


def logits(ctx: ll.Context) -> np.ndarray:
    ctx.memory.clear()
    batch = ll.Batch()
    batch.extend(TOKENS, 0, 0, logits="last")
    ctx.decode(batch)
    return np.asarray(ctx.logits(copy=True))


def context(model: ll.Model) -> ll.Context:
    return ll.Context(model, n_ctx=256, n_seq_max=2, n_threads=1)


@pytest.fixture
def model() -> Iterator[ll.Model]:
    with ll.Model(tiny("llama")) as model:
        yield model


@pytest.mark.parametrize(("alpha", "factor"), [(ALPHA, ALPHA / RANK), (None, 1.0)])
def test_an_adapter_is_the_product_of_its_halves(
    model: ll.Model, tmp_path: Path, alpha: float | None, factor: float
) -> None:
    scale = 0.7
    first, second = halves(1), halves(2)
    changes = {name: scale * factor * (first[name][1] @ first[name][0]) - factor * (second[name][1] @ second[name][0])
               for name in TARGETS}  # fmt: skip
    with ll.Model(write_merged(tmp_path / "merged.gguf", changes)) as merged, context(merged) as ctx:
        expected = logits(ctx)
    adapters = [
        ll.LoraAdapter(model, write_adapter(tmp_path / f"{i}.gguf", pairs, alpha=alpha))
        for i, pairs in enumerate((first, second))
    ]
    with context(model) as ctx:
        plain = logits(ctx)
        ctx.set_adapters_lora(adapters, [scale, -1.0])
        assert ctx.adapters_lora == ((adapters[0], scale), (adapters[1], -1.0))
        got = logits(ctx)
        np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max())
        assert np.abs(got - plain).max() > 0.1
        ctx.set_adapters_lora([])
        assert ctx.adapters_lora == ()
        np.testing.assert_array_equal(logits(ctx), plain)


def test_a_scale_of_zero_is_no_adapter(model: ll.Model, tmp_path: Path) -> None:
    adapter = ll.LoraAdapter(model, write_adapter(tmp_path / "a.gguf", halves(1)))
    with context(model) as ctx:
        plain = logits(ctx)
        ctx.set_adapters_lora([adapter], [0.0])
        assert ctx.adapters_lora == ()
        np.testing.assert_array_equal(logits(ctx), plain)


def test_an_embedding_can_be_adapted(model: ll.Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    a = rng.normal(0, 0.3, (N_VOCAB, RANK)).astype(np.float32)  # looked up by token
    b = rng.normal(0, 0.3, (N_EMBD, RANK)).astype(np.float32)
    path = write_adapter(tmp_path / "embedding.gguf", {"token_embd.weight": (a, b)}, alpha=None)
    with (
        ll.Model(write_merged(tmp_path / "merged.gguf", {"token_embd.weight": a @ b.T})) as merged,
        context(merged) as ctx,
    ):
        expected = logits(ctx)
    with context(model) as ctx:
        ctx.set_adapters_lora([ll.LoraAdapter(model, path)])
        np.testing.assert_allclose(logits(ctx), expected, atol=2e-3 * np.abs(expected).max())


def test_metadata(model: ll.Model, tmp_path: Path) -> None:
    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_string("general.description", "grüße " * 50)
        writer.add_array("adapter.alora.invocation_tokens", np.array([5, 6, 7], dtype=np.uint32).tolist())

    path = write_adapter(tmp_path / "a.gguf", halves(1))
    with ll.LoraAdapter(model, path) as adapter:
        assert adapter.metadata["general.type"] == "adapter"
        assert adapter.metadata["adapter.lora.alpha"] == "8.000000"
        assert adapter.alora_invocation_tokens == []
    described = write_adapter(
        tmp_path / "b.gguf", halves(1), keys=lambda w: w.add_string("general.description", "grüße " * 50)
    )
    with ll.LoraAdapter(model, described) as adapter:
        assert adapter.metadata["general.description"] == "grüße " * 50
        assert adapter.meta_val_str("general.description") == "grüße " * 50
        assert adapter.meta_val_str("no.such.key") is None


def test_invocation_tokens(model: ll.Model, tmp_path: Path) -> None:
    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_key_value(
            "adapter.alora.invocation_tokens", [5, 6, 7], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32
        )

    with ll.LoraAdapter(model, write_adapter(tmp_path / "a.gguf", halves(1), keys=keys)) as adapter:
        assert adapter.alora_invocation_tokens == [5, 6, 7]


def test_any_order_of_closing(model: ll.Model, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.gguf", halves(1))
    own = ll.Model(tiny("llama"))
    adapter = ll.LoraAdapter(own, path)
    ctx = context(own)
    ctx.set_adapters_lora([adapter], [0.5])
    expected = logits(ctx)
    own.close()
    adapter.close()
    adapter.close()
    assert ll.live_handles()["adapters"] == 1
    np.testing.assert_array_equal(logits(ctx), expected)
    with pytest.raises(Closed, match=r"adapter .* is closed"):
        ctx.set_adapters_lora([adapter])
    ctx.set_adapters_lora([])
    gc.collect()
    assert ll.live_handles()["adapters"] == 0
    ctx.close()


def test_loading_and_freeing_beside_contexts_that_work(model: ll.Model, tmp_path: Path) -> None:
    # llama.cpp keeps the adapters of a model in a list that a context walks whenever it plans its memory
    path = write_adapter(tmp_path / "a.gguf", halves(1))
    errors: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            with ll.LoraAdapter(model, path) as mine, context(model) as ctx:
                while not stop.is_set():
                    ctx.set_adapters_lora([mine])
                    logits(ctx)
                    ctx.set_adapters_lora([])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        ll.LoraAdapter(model, path).close()
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors


def _add_expert_dimension(pairs: Halves) -> Halves:
    return {name: (np.stack([a, a]), np.stack([b, b])) for name, (a, b) in pairs.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general_type": "model"}, "expect general.type to be 'adapter'"),
        ({"general_type": None}, "expect general.type"),
        ({"adapter_type": "ia3"}, "expect adapter.type to be 'lora'"),
        ({"arch": "gemma3"}, "arch mismatch"),
        ({"arch": "no such"}, "arch mismatch"),
        (
            {"general_type": None, "keys": lambda w: w.add_uint32("general.type", 1)},
            "general.type is of type u32, not str",
        ),
        (
            {"adapter_type": None, "keys": lambda w: w.add_float32("adapter.type", 1)},
            "adapter.type is of type f32, not str",
        ),
        (
            {"alpha": None, "keys": lambda w: w.add_string("adapter.lora.alpha", "8")},
            "adapter.lora.alpha is of type str, not f32",
        ),
        ({"keys": lambda w: w.add_string("adapter.alora.invocation_tokens", "1")}, "invalid gguf type"),
    ],
)
def test_files_that_are_no_adapter(model: ll.Model, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_adapter(tmp_path / "a.gguf", halves(1), **change)
    with pytest.raises(LoadFailed, match=message) as caught:
        ll.LoraAdapter(model, path)
    assert message.split()[0] in str(caught.value) + str(caught.value.native_log)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"no.such.weight": halves(1)["output.weight"]}, "does not exist in base model"),
        ({"output.weight": halves(1)["blk.2.ffn_down.weight"]}, "incorrect shape"),
        (_add_expert_dimension(halves(1)), "holds 2 matrices"),
        (
            {"output.weight": tuple(np.ones(h.shape, dtype=np.int32) for h in halves(1)["output.weight"])},
            "no matrix product",
        ),
        ({"token_embd.weight": (np.ones((N_VOCAB, 4), np.float32), np.ones((N_EMBD, 8), np.float32))}, "ranks 4 and 8"),
    ],
)
def test_tensors_that_do_not_fit(model: ll.Model, tmp_path: Path, pairs: Halves, message: str) -> None:
    with pytest.raises(LoadFailed, match=message):
        ll.LoraAdapter(model, write_adapter(tmp_path / "a.gguf", pairs))
    assert ll.live_handles()["adapters"] == 0


def test_an_output_that_is_the_embedding_cannot_be_adapted(tmp_path: Path) -> None:
    recipe = llama(0)
    del recipe.tensors["output.weight"]
    recipe.write(tmp_path / "tied.gguf")
    pair = (np.ones((N_VOCAB, RANK), np.float32), np.ones((N_EMBD, RANK), np.float32))
    path = write_adapter(tmp_path / "a.gguf", {"token_embd.weight": pair})
    with ll.Model(tmp_path / "tied.gguf") as tied, pytest.raises(Unsupported, match="output matrix too"):
        ll.LoraAdapter(tied, path)


def test_missing_truncated_and_foreign_files(model: ll.Model, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.gguf", halves(1))
    cut = tmp_path / "cut.gguf"
    for size in (2, 100, 1000, path.stat().st_size - 100):
        cut.write_bytes(path.read_bytes()[:size])
        with pytest.raises(LoadFailed):
            ll.LoraAdapter(model, cut)
    with pytest.raises(LoadFailed, match="No such file"):
        ll.LoraAdapter(model, tmp_path / "none.gguf")
    with pytest.raises(LoadFailed, match=r"expect general.type to be 'adapter'"):
        ll.LoraAdapter(model, tiny("llama"))
    with ll.Model(tiny("llama"), vocab_only=True) as vocab_only, pytest.raises(InvalidArgument, match="vocab_only"):
        ll.LoraAdapter(vocab_only, path)


def test_adapters_that_cannot_be_set(model: ll.Model, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.gguf", halves(1))
    adapter = ll.LoraAdapter(model, path)
    with ll.Model(tiny("llama")) as twin, context(model) as ctx:
        foreign = ll.LoraAdapter(twin, path)
        ctx.set_adapters_lora([adapter], [0.5])
        expected = logits(ctx)
        for adapters, scales, message in [
            ([foreign], None, "adapter 0 was loaded for another model"),
            ([adapter, adapter], [0.5, 0.5], "adapter 1 is given twice"),
            ([adapter], [float("nan")], "scale 0 is nan"),
            ([adapter], [float("inf")], "scale 0 is inf"),
            ([adapter], [1.0, 2.0], "1 adapters, but 2 scales"),
        ]:
            with pytest.raises(InvalidArgument, match=message):
                ctx.set_adapters_lora(adapters, scales)
            assert ctx.adapters_lora == ((adapter, 0.5),)
        np.testing.assert_array_equal(logits(ctx), expected)
        with pytest.raises(TypeError):
            ctx.set_adapters_lora([None])


def test_a_control_vector_is_added_to_a_layer(model: ll.Model, tmp_path: Path) -> None:
    # Layer 2's output goes into the norms of layer 3: a vector added there equals a bias of its down projection,
    # which the model has not; so compare with the sum seen as the input of the next layer.
    rng = np.random.default_rng(9)
    rows = rng.normal(0, 1, (N_LAYER - 1, N_EMBD)).astype(np.float32)
    with context(model) as ctx:
        plain = logits(ctx)
        ctx.set_embeddings_layer_inp(3, True)
        logits(ctx)
        before = np.stack([ctx.embeddings_layer_inp(3, i, copy=True) for i in range(len(TOKENS))])
        ctx.set_adapter_cvec(rows, 2, 2)
        changed = logits(ctx)
        after = np.stack([ctx.embeddings_layer_inp(3, i, copy=True) for i in range(len(TOKENS))])
        np.testing.assert_allclose(after - before, np.broadcast_to(rows[1], before.shape), atol=1e-4)
        assert np.abs(changed - plain).max() > 0.1
        ctx.set_adapter_cvec(rows)  # all layers
        assert np.abs(logits(ctx) - changed).max() > 0.1
        ctx.set_adapter_cvec(None)
        np.testing.assert_allclose(logits(ctx), plain, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "layers", "message"),
    [
        ((3, N_EMBD + 1), (1, 1), "rows of 65 values, the model's have 64"),
        ((3, N_EMBD), (0, 1), "layers 0 to 1"),
        ((3, N_EMBD), (2, 1), "layers 2 to 1"),
        ((3, N_EMBD), (1, N_LAYER), "layers 1 to 4"),
        ((1, N_EMBD), (1, 2), "has 1 rows, layers up to 2 need 2"),
        ((2, N_EMBD), (1, None), "has 2 rows, layers up to 3 need 3"),
        ((0, N_EMBD), (1, 1), "the control vector is empty"),
    ],
)
def test_control_vectors_that_do_not_fit(
    model: ll.Model, shape: tuple[int, int], layers: tuple[int, int | None], message: str
) -> None:
    with context(model) as ctx:
        plain = logits(ctx)
        with pytest.raises(InvalidArgument, match=message):
            ctx.set_adapter_cvec(np.ones(shape, np.float32), *layers)
        np.testing.assert_array_equal(logits(ctx), plain)
