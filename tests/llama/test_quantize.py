"""Quantizing files: against the `gguf` package's own arithmetic, and everything llama.cpp would abort on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

import lloyal.llama as ll
from lloyal.errors import InvalidArgument, LoadFailed, Unsupported
from tests.models import N_EMBD, N_VOCAB, llama, tiny

SOURCE = "llama"


def tensors(path: str | Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def field(path: str | Path, key: str) -> Any:
    found = gguf.GGUFReader(path).fields.get(key)
    return None if found is None else found.contents()


def columns(path: str | Path) -> dict[str, np.ndarray]:
    """An importance of 1 for every column of every matrix."""
    return {name: np.ones(int(t.shape[0]), np.float32) for name, t in tensors(path).items() if len(t.shape) == 2}


def source_of_256(path: Path) -> Path:
    """A model whose rows divide into the blocks of 256 that the smallest types have."""
    recipe = llama(0)
    rng = np.random.default_rng(0)
    for name, tensor in recipe.tensors.items():
        if tensor.ndim == 2:
            rows, cols = (256 if n == N_EMBD else 512 if n == 96 else n for n in tensor.shape)
            recipe.tensors[name] = rng.normal(0, 0.05, (rows, cols))
        else:
            recipe.tensors[name] = np.ones(256)
    recipe.keys |= {"embedding_length": 256, "feed_forward_length": 512, "rope.dimension_count": 128}
    recipe.write(path)
    return path


@pytest.mark.parametrize(
    ("ftype", "kind"), [("q8_0", Type.Q8_0), ("q4_0", Type.Q4_0), ("Q5_1", Type.Q5_1), ("f16", Type.F16)]
)
def test_the_values_are_those_of_the_gguf_package(tmp_path: Path, ftype: str, kind: Type) -> None:
    target = tmp_path / "out.gguf"
    assert ll.quantize(tiny(SOURCE), target, ftype, pure=True, n_threads=2) == [str(target)]
    before, after = tensors(tiny(SOURCE)), tensors(target)
    assert before.keys() == after.keys()
    quantized = 0
    for name, tensor in after.items():
        if len(tensor.shape) < 2:
            np.testing.assert_array_equal(tensor.data, before[name].data)
            continue
        assert tensor.tensor_type == kind
        want = gguf.dequantize(gguf.quantize(before[name].data, kind), kind)
        got = gguf.dequantize(tensor.data, kind)
        # rounding of a tie may differ: one step of the block, here at most its largest value over 7 bits or 3
        np.testing.assert_allclose(got, want, atol=np.abs(want).max() / (7 if kind == Type.Q4_0 else 15))
        assert np.mean(got == want) > 0.99
        quantized += 1
    assert quantized == 30
    with ll.Model(target) as model:
        assert model.ftype.startswith(ftype.upper())


def test_the_target_may_be_the_source(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(Path(tiny(SOURCE)).read_bytes())
    ll.quantize(path, path, "q8_0")
    assert path.stat().st_size < 0.5 * Path(tiny(SOURCE)).stat().st_size
    with ll.Model(path) as model:
        assert model.ftype == "Q8_0"
    assert os.listdir(tmp_path) == ["model.gguf"]


def test_named_types_and_metadata(tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    ll.quantize(
        tiny(SOURCE), target, "q8_0", output_tensor_type="f16", token_embedding_type="BF16",
        tensor_types={r"blk\.1\..*ffn_up": "q4_0"},
        kv_overrides={"general.name": "renamed", "my.flag": True, "my.size": 7},
    )  # fmt: skip
    kinds = {name: tensor.tensor_type for name, tensor in tensors(target).items()}
    assert kinds["output.weight"] == Type.F16
    assert kinds["token_embd.weight"] == Type.BF16
    assert kinds["blk.1.ffn_up.weight"] == Type.Q4_0
    assert kinds["blk.0.ffn_up.weight"] == Type.Q8_0
    assert field(target, "general.name") == "renamed"
    assert field(target, "my.flag") is True
    assert field(target, "my.size") == 7


def test_layers_can_be_left_out(tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    ll.quantize(tiny(SOURCE), target, "f32", prune_layers=[2, 1])
    assert field(target, "llama.block_count") == 2
    before, after = tensors(tiny(SOURCE)), tensors(target)
    np.testing.assert_array_equal(after["blk.1.attn_q.weight"].data, before["blk.3.attn_q.weight"].data)
    with ll.Model(target) as model:
        assert model.n_layer == 2


def test_copy_and_dry_run(tmp_path: Path) -> None:
    assert ll.quantize(tiny(SOURCE), tmp_path / "dry.gguf", "q4_0", dry_run=True) == []
    assert os.listdir(tmp_path) == []
    copy = tmp_path / "copy.gguf"
    ll.quantize(tiny(SOURCE), copy, only_copy=True)
    before, after = tensors(tiny(SOURCE)), tensors(copy)
    assert all(np.array_equal(after[name].data, tensor.data) for name, tensor in before.items())
    again = tmp_path / "again.gguf"
    ll.quantize(tiny(SOURCE), again, "q8_0")
    with pytest.raises(LoadFailed, match="requantizing from type q8_0 is disabled"):
        ll.quantize(again, tmp_path / "twice.gguf", "q4_0")
    ll.quantize(again, tmp_path / "twice.gguf", "q4_0", allow_requantize=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ftype": "q3"}, "ftype='q3' must be one of f32, f16"),
        ({"n_threads": 0}, "n_threads=0"),
        ({"n_threads": 513}, "n_threads=513"),
        ({"max_buf_size": -1}, "max_buf_size=-1"),
        ({"output_tensor_type": "i32"}, "output_tensor_type='i32' must be one of"),
        ({"output_tensor_type": "q8_K"}, "output_tensor_type='q8_K' must be one of"),
        ({"token_embedding_type": "q4_K"}, "q4_K needs rows of a multiple of 256 values, token_embd.weight has 64"),
        ({"output_tensor_type": "q6_K"}, "q6_K needs rows of a multiple of 256 values, token_embd.weight has 64"),
        ({"tensor_types": {"(": "q8_0"}}, "'\\(' is no regular expression"),
        ({"tensor_types": {"a": "none"}}, "tensor_types\\['a'\\]='none'"),
        ({"imatrix": {"output.weight": np.ones(0, np.float32)}}, "imatrix\\['output.weight'\\] is empty"),
        ({"kv_overrides": {"general.alignment": 64}}, "general.alignment"),
        ({"kv_overrides": {"": 1}}, "1 to 127 bytes"),
        ({"kv_overrides": {"a": "x" * 128}}, "1 to 127 bytes"),
        ({"kv_overrides": {"a": [1]}}, "must be a bool, int, float or str"),
        ({"prune_layers": [-1]}, "prune_layers=-1 is out of range"),
        ({"prune_layers": [1], "keep_split": True}, "use keep_split=False"),
    ],
)
def test_arguments_that_cannot_be(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        ll.quantize(tiny(SOURCE), tmp_path / "out.gguf", **arguments)
    assert os.listdir(tmp_path) == []


def test_files_that_cannot_be(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(LoadFailed, match="No such file"):
        ll.quantize(tmp_path / "none.gguf", out)
    with pytest.raises(LoadFailed, match="is not a directory: there is nowhere to write"):
        ll.quantize(tiny(SOURCE), tmp_path / "nowhere" / "out.gguf")
    whole = Path(tiny(SOURCE)).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (10, 1000, len(whole) - 1000):
        cut.write_bytes(whole[:size])
        with pytest.raises(LoadFailed):
            ll.quantize(cut, out)
    assert not out.exists()
    assert os.listdir(tmp_path) == ["cut.gguf"]


def test_another_alignment_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_custom_alignment(64)
    writer.add_tensor("token_embd.weight", np.ones((N_VOCAB, N_EMBD), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Unsupported, match="aligned to 64 bytes"):
        ll.quantize(source, tmp_path / "out.gguf")


def test_names_of_parts() -> None:
    name = ll.split_path("/models/big", 1, 3)
    assert name == "/models/big-00002-of-00003.gguf"
    assert ll.split_prefix(name, 1, 3) == "/models/big"
    assert ll.split_prefix(name, 0, 3) is None
    assert ll.split_prefix("big.gguf", 0, 3) is None
    for index in (-1, 3):
        with pytest.raises(InvalidArgument, match=f"split_no={index} is out of range: it must be from 0"):
            ll.split_path("big", index, 3)


def test_parts_stay_parts(tmp_path: Path) -> None:
    prefix = tmp_path / "model"
    _write_parts(prefix, 2)
    written = ll.quantize(ll.split_path(prefix, 0, 2), tmp_path / "small", "q8_0", keep_split=True)
    assert written == [ll.split_path(tmp_path / "small", i, 2) for i in range(2)]
    with ll.Model(written[0]) as parts, ll.Model(tiny(SOURCE)) as whole:
        assert (parts.n_params, parts.ftype) == (whole.n_params, "Q8_0")
    joined = ll.quantize(ll.split_path(prefix, 0, 2), tmp_path / "joined.gguf", "q8_0")
    assert len(tensors(joined[0])) == len(tensors(tiny(SOURCE)))


def _write_parts(prefix: Path, count: int) -> None:
    """Split the tiny model as llama-gguf-split does."""
    reader = gguf.GGUFReader(tiny(SOURCE))
    per_part = -(-len(reader.tensors) // count)
    for part in range(count):
        writer = gguf.GGUFWriter(ll.split_path(prefix, part, count), "llama")
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        if part == 0:
            for entry in reader.fields.values():
                if entry.name.startswith("GGUF.") or entry.name == "general.architecture":
                    continue
                sub_type = entry.types[-1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(entry.name, entry.contents(), entry.types[0], sub_type)
        for tensor in reader.tensors[part * per_part : (part + 1) * per_part]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
