"""What is checked of a model file before anything computes with it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lloyal
import lloyal.llama as ll
from lloyal.errors import LoadFailed, Unsupported
from lloyal.llama.quantize import FILE_TYPES
from tests.fuzz.gguf_file import File, Pair, encode, parse
from tests.fuzz.gguf_mutate import retype
from tests.fuzz.gguf_seeds import adapter, models
from tests.models import N_EMBD, llama, tiny, tokens

F16, Q4_0, Q8_1, I32 = 1, 2, 9, 26


def write(file: File, path: Path) -> Path:
    path.write_bytes(encode(file).data)
    return path


def changed(file: File, name: str, kind: int) -> File:
    file = file.copy()
    retype(next(tensor for tensor in file.tensors if tensor.name == name.encode()), kind)
    return file


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("blk.1.attn_norm.weight", F16, f"'blk.1.attn_norm.weight' (f16 [{N_EMBD}])"),
        ("blk.0.attn_q.weight", I32, "'blk.0.attn_q.weight' (i32 "),
        ("token_embd.weight", Q8_1, "'token_embd.weight' (q8_1 "),
        ("output.weight", Q8_1, "'output.weight' (q8_1 "),
    ],
)
def test_a_type_that_does_not_suit_its_use_is_named(tmp_path: Path, name: str, kind: int, said: str) -> None:
    path = write(changed(parse(tiny("llama").read_bytes()), name, kind), tmp_path / "m.gguf")
    with pytest.raises(LoadFailed) as refused:
        lloyal.Context(lloyal.Model(path), n_ctx=256, n_threads=1)
    assert said in str(refused.value)
    assert " cannot be used in " in str(refused.value)


def test_an_adapter_of_a_type_that_does_not_multiply_is_named(tmp_path: Path) -> None:
    path = write(changed(adapter(), "blk.0.attn_q.weight.lora_b", I32), tmp_path / "a.gguf")
    with lloyal.Model(tiny("llama")) as model, pytest.raises(LoadFailed, match=r"attn_q.*i32"):
        ll.LoraAdapter(model, path)


def test_an_encoder_is_checked_before_it_computes(tmp_path: Path) -> None:
    """Its graph is not among those that are planned with a context."""
    file = changed(models()["t5"], "enc.blk.0.attn_norm.weight", F16)
    with lloyal.Model(write(file, tmp_path / "m.gguf")) as model, lloyal.Context(model, n_ctx=64, n_threads=1) as ctx:
        batch = lloyal.Batch()
        batch.extend([1, 2, 3], 0, 0, True)
        with pytest.raises(LoadFailed, match=r"'enc.blk.0.attn_norm.weight' \(f16"):
            ctx.encode(batch)


def quantized(name: str, ftype: str, folder: Path) -> Path:
    rng = np.random.default_rng(0)
    source = lloyal.models.path(name)
    file = parse(Path(source).read_bytes())
    imatrix = {
        tensor.name.decode(): rng.uniform(0.5, 1.5, tensor.shape[0]).astype(np.float32)
        for tensor in file.tensors
        if len(tensor.shape) == 2
    }
    path = folder / f"{name}-{ftype}.gguf"
    ll.quantize(source, path, ftype, imatrix=imatrix, n_threads=1)
    return path


# Blocks of q1_0 divide no row of this model.
OFTEN = ("f16", "q4_0", "q4_k_m", "q8_0", "iq2_xxs", "tq1_0")
SELDOM = sorted(set(FILE_TYPES) - {*OFTEN, "q1_0"})


@pytest.mark.parametrize("ftype", [*OFTEN, *(pytest.param(ftype, marks=pytest.mark.full) for ftype in SELDOM)])
def test_what_quantize_writes_loads_and_computes(ftype: str, tmp_path: Path) -> None:
    path = quantized("nano-draft", ftype, tmp_path)
    with lloyal.Model(path) as model, lloyal.Context(model, n_ctx=256, n_threads=1) as ctx:
        batch = lloyal.Batch()
        batch.extend(tokens(8), 0, 0, "last")
        ctx.decode(batch)
        assert np.isfinite(ctx.logits(copy=True)).all()


def sample_of(path: str | Path | list[Path], **keywords: bool) -> str:
    with lloyal.Model(path, **keywords) as model:
        return model.fingerprint["tensors"]


def test_a_fingerprint_does_not_depend_on_how_weights_are_kept(tmp_path: Path) -> None:
    path = quantized("nano-draft", "q4_0", tmp_path)
    plain = sample_of(path)
    assert sample_of(path, use_extra_bufts=True) == plain
    assert sample_of(path, use_mmap=False) == plain
    with lloyal.Model(path, use_extra_bufts=True) as model, lloyal.Context(model, n_ctx=256, n_threads=1) as ctx:
        path.unlink()
        lloyal.prefill(ctx, [5, 6, 7])
        assert ctx.checkpoint(0).to_bytes()
    assert sample_of(quantized("nano-draft", "q4_1", tmp_path)) != plain


def test_a_fingerprint_does_not_depend_on_the_number_of_files(tmp_path: Path) -> None:
    whole = parse(tiny("llama").read_bytes())
    half = len(whole.tensors) // 2
    paths = []
    for i, tensors in enumerate((whole.tensors[:half], whole.tensors[half:])):
        pairs = whole.pairs if i == 0 else [pair for pair in whole.pairs if pair.key == b"general.architecture"]
        counts = ((b"split.no", 2, i), (b"split.count", 2, 2), (b"split.tensors.count", 5, len(whole.tensors)))
        part = File([*pairs, *(Pair(*count) for count in counts)], tensors)
        paths.append(write(part, tmp_path / ll.split_path("m", i, 2)))
    assert sample_of(paths[0]) == sample_of(paths) == sample_of(tiny("llama"))


def test_a_tensor_of_another_value_has_another_fingerprint(tmp_path: Path) -> None:
    recipe = llama(0)
    recipe.tensors["blk.2.ffn_up.weight"] = recipe.tensors["blk.2.ffn_up.weight"] * 2
    recipe.write(tmp_path / "m.gguf")
    shutil.copy(tiny("llama"), tmp_path / "same.gguf")
    assert sample_of(tmp_path / "m.gguf") != sample_of(tiny("llama")) == sample_of(tmp_path / "same.gguf")


@pytest.mark.parametrize("key", ["llama.block_count", "llama.expert_count", "llama.attention.head_count"])
def test_quantize_takes_no_sizes_that_cannot_be(key: str, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed):
        ll.quantize(tiny("llama"), tmp_path / "q.gguf", "q8_0", kv_overrides={key: 2**40 - 1}, n_threads=1)
    assert not list(tmp_path.iterdir())


def test_quantize_takes_no_divisor_of_zero(tmp_path: Path) -> None:
    overrides = {"qwen35.full_attention_interval": 0}
    with pytest.raises(LoadFailed, match=r"llama\.cpp divides by it"):
        ll.quantize(tiny("qwen35"), tmp_path / "q.gguf", "q8_0", kv_overrides=overrides, n_threads=1)


@pytest.mark.parametrize("vocab_only", [False, True])
def test_a_vocabulary_that_its_tokenizer_does_not_end_with_is_refused(tmp_path: Path, vocab_only: bool) -> None:
    """RWKV's takes the longest match; where only a first byte matches, it starts over."""
    file = parse(tiny("llama").read_bytes())
    for pair in file.pairs:
        if pair.key == b"tokenizer.ggml.model":
            pair.value = b"rwkv"
    with pytest.raises(LoadFailed, match=r"begin with byte 116"):
        lloyal.Model(write(file, tmp_path / "m.gguf"), vocab_only=vocab_only)


def test_a_vocabulary_without_tokens_is_refused(tmp_path: Path) -> None:
    file = parse(tiny("llama").read_bytes())
    for pair in file.pairs:
        if pair.key == b"tokenizer.ggml.tokens":
            pair.value.values.clear()
    with pytest.raises(LoadFailed, match="holds no tokens"):
        lloyal.Model(write(file, tmp_path / "m.gguf"), vocab_only=True)


def test_a_tensor_without_values_is_refused(tmp_path: Path) -> None:
    file = parse(tiny("llama").read_bytes())
    file.tensors[1].shape, file.tensors[1].data = [0, 64], b""
    path = write(file, tmp_path / "m.gguf")
    with pytest.raises(LoadFailed, match="holds no values"):
        lloyal.Model(path)
    with pytest.raises(LoadFailed, match="holds no values"):
        ll.quantize(path, tmp_path / "q.gguf", "q8_0", n_threads=1)


@pytest.mark.parametrize("side", ["enc", "dec"])
def test_an_optional_tensor_that_is_needed_is_named(side: str, tmp_path: Path) -> None:
    file = models()["t5"]
    name = f"{side}.blk.0.attn_rel_b.weight"
    file.tensors = [tensor for tensor in file.tensors if tensor.name != name.encode()]
    with pytest.raises(LoadFailed, match=f"'{name}' is missing"):
        lloyal.Model(write(file, tmp_path / "m.gguf"))


def refusal(model: lloyal.Model, path: Path) -> str | None:
    try:
        model.save(path)
    except Unsupported as error:
        return str(error)
    return None


def test_repacked_weights_are_not_saved(tmp_path: Path) -> None:
    path = write(changed(models(wide=True)["llama"], "blk.1.attn_q.weight", Q4_0), tmp_path / "m.gguf")
    saved = tmp_path / "saved.gguf"
    with lloyal.Model(path, use_extra_bufts=True) as model:
        refused = refusal(model, saved)
    if refused is None:  # a processor that repacks nothing
        assert sample_of(saved) == sample_of(path)
    else:
        assert "cannot be read back" in refused
        assert not saved.exists()


def test_the_name_of_an_embedded_model_is_explained() -> None:
    with pytest.raises(LoadFailed, match=r"lloyal\.models\.path\('nano'\)"):
        lloyal.Model("nano")


def outcome(code: str, *arguments: object) -> str:
    """What a process says that may die of it."""
    command = [sys.executable, "-P", "-c", f"import sys, lloyal, lloyal.errors\n{code}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_count_that_llama_cpp_divides_by_is_refused_at_zero() -> None:
    code = "lloyal.Model(sys.argv[1], kv_overrides={'qwen35.full_attention_interval': 0})"
    assert outcome(code, tiny("qwen35")).startswith("lloyal.errors.LoadFailed")


def test_a_tensor_that_only_the_graph_misses_is_refused(tmp_path: Path) -> None:
    file = parse(tiny("falcon-h1").read_bytes())
    file.tensors = [tensor for tensor in file.tensors if not tensor.name.endswith(b"ssm_conv1d.bias")]
    said = outcome("lloyal.Context(lloyal.Model(sys.argv[1]), n_ctx=256)", write(file, tmp_path / "m.gguf"))
    assert said.startswith("lloyal.errors.LoadFailed")
    assert "missing" in said


def test_signals_are_handled_as_before_after_a_load() -> None:
    code = (
        "import signal, os\n"
        "lloyal.Model(sys.argv[1]).close()\n"
        "print(signal.getsignal(signal.SIGSEGV))\n"
        "os.kill(os.getpid(), signal.SIGFPE)"
    )
    command = [sys.executable, "-P", "-c", f"import sys, lloyal\n{code}", str(tiny("llama"))]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGFPE


@pytest.mark.skipif(sys.platform != "linux", reason="signals are handled on Linux only")
@pytest.mark.parametrize(
    "code",
    [
        "lloyal.Model(sys.argv[1], progress=lambda share: faulthandler.enable() or ctypes.string_at(0))",
        "lloyal.Model(sys.argv[1], progress=lambda share: faulthandler.enable())\n"
        "lloyal.Model(sys.argv[1])\n"
        "ctypes.string_at(0)",
    ],
    ids=["during", "after"],
)
def test_a_fault_in_the_callers_code_is_the_callers(code: str) -> None:
    """And reaches the handler that was installed while a model was loaded."""
    command = [sys.executable, "-P", "-c", f"import ctypes, faulthandler, sys, lloyal\n{code}", str(tiny("llama"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr


def test_a_batch_is_not_made_of_tokens() -> None:
    for arguments in (([1, 2, 3],), (512,)):
        with pytest.raises(TypeError, match=r"batch\.extend\(tokens"):
            lloyal.Batch(*arguments)


def test_more_layers_than_tensors_are_refused(tmp_path: Path) -> None:
    file = models()["t5"]
    file = file.copy()
    file.pairs.append(Pair(b"t5.decoder_block_count", 4, 1_000_000))
    with pytest.raises(LoadFailed, match=r"decoder_block_count is 1000000"):
        lloyal.Model(write(file, tmp_path / "m.gguf"))


def test_more_tokens_than_memory_holds_are_refused(tmp_path: Path) -> None:
    file = models()["llama"].copy()
    for pair in file.pairs:
        if pair.key == b"tokenizer.ggml.model":
            pair.value = b"no_vocab"
        if pair.key == b"llama.vocab_size":
            pair.value = 2**32 - 1
    with pytest.raises(LoadFailed, match=r"vocab_size is 4294967295.*at most 4194304"):
        lloyal.Model(write(file, tmp_path / "m.gguf"))
    with pytest.raises(LoadFailed, match=r"vocab_size is 134217728.*at most 4194304"):
        lloyal.Model(tiny("llama"), kv_overrides={"llama.vocab_size": 2**27})


def test_embeddings_that_are_shorter_than_promised_are_not_read(tmp_path: Path) -> None:
    file = models()["llama"].copy()
    file.pairs.append(Pair(b"llama.embedding_length_out", 4, 127))
    with lloyal.Model(write(file, tmp_path / "m.gguf")) as model:
        with pytest.raises(LoadFailed, match=f"embeddings of {N_EMBD} values, its metadata promises 127"):
            lloyal.Context(model, n_ctx=256, embeddings=True, n_threads=1)
        with lloyal.Context(model, n_ctx=256, n_threads=1) as ctx, pytest.raises(LoadFailed, match="promises 127"):
            ctx.set_embeddings(True)


def test_heads_that_no_weight_has_are_refused_before_a_cache_is_made(tmp_path: Path) -> None:
    file = models()["starcoder"].copy()
    file.pairs.append(Pair(b"starcoder.attention.key_length", 4, 1_000_000))
    with pytest.raises(LoadFailed, match="1000000 values"):
        lloyal.Model(write(file, tmp_path / "m.gguf"))
