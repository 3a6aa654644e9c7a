"""Changes to GGUF files that a liar would make, and ones he would not think of."""

from __future__ import annotations

import functools
import os
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.gguf_file import (
    ARRAY,
    BLOCKS,
    BOOL,
    F32,
    F64,
    FORMATS,
    I32,
    RANGES,
    STRING,
    U16,
    U32,
    Array,
    Bytes,
    File,
    Pair,
    Tensor,
    encode,
    n_bytes,
)

VENDORED = Path(__file__).resolve().parents[2] / "vendor" / "llama.cpp"
SOURCE = Path(os.environ.get("LLOYAL_LLAMA_CPP_DIR") or VENDORED) / "src"

INTEGERS = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 33, 64, 100, 127, 128, 255, 256, 257, 511, 512, 513, 1000, 4096,
            65535, 65536, 10**6, 2**24, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63,
            2**64 - 1, -1, -2, -(2**31), -(2**63))  # fmt: skip
REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-5, 1e-30, 1e30, 3e38, float("inf"), float("-inf"), float("nan"), 10000.0, 2.0)
TEXTS = (b"", b"\0", b"a", b" ", b"\xff\xfe", b"\xc3", "é\u2581".encode(), b"<unk>", b"<s>", b"</s>", b"<0x0A>",
         b"<0xZZ>", b"a b", b"x" * 300, b"general.architecture", b"{{ bos }}" * 50)  # fmt: skip


@functools.cache
def words(file: str, pattern: str) -> list[bytes]:
    """What a pattern finds in llama.cpp's source: names that mean something to it."""
    found = re.findall(pattern, (SOURCE / file).read_text(encoding="utf-8"))
    assert found, f"{file} holds no {pattern}"
    return sorted({word.encode() for word in found})


def arch_keys() -> list[bytes]:
    return words("llama-arch.cpp", r'"%s\.([a-z_0-9.]+)"')


def other_keys() -> list[bytes]:
    return words("llama-arch.cpp", r'"((?:tokenizer|general|split|adapter)\.[a-zA-Z_0-9.]+)"')


def tensor_names() -> list[bytes]:
    return words("llama-arch.cpp", r'\{ LLM_TENSOR_\w+,\s+"([a-z_0-9.%]+)"')


def arch_names() -> list[bytes]:
    return words("llama-arch.cpp", r'\{ LLM_ARCH_\w+,\s+"([a-z_0-9.\-]+)"')


def pre_tokenizers() -> list[bytes]:
    return words("llama-vocab.cpp", r'tokenizer_pre == "([^"]+)"')


def integer(rng: random.Random, near: int | None = None) -> int:
    if near is not None and rng.random() < 0.5:
        return rng.choice([near - 1, near + 1, near * 2, near // 2, near * 3, -near, near + 256, near ^ 1])
    return rng.choice(INTEGERS)


def random_value(rng: random.Random, kind: int, near: object = None) -> object:
    if kind == STRING:
        if isinstance(near, bytes) and near and rng.random() < 0.5:
            at = rng.randrange(len(near))
            return near[:at] + bytes([rng.randrange(256)]) + near[at + rng.randrange(2) :]
        return rng.choice(TEXTS)
    if kind in (F32, F64):
        return rng.choice(REALS)
    if kind == BOOL:
        return rng.choice([0, 1, 1, 2, 255])
    return integer(rng, near if isinstance(near, int) else None)


def random_kind(rng: random.Random) -> int:
    return rng.choice([*FORMATS, STRING, U32, U32, I32])


def random_array(rng: random.Random) -> Array:
    kind = random_kind(rng)
    return Array(kind, [random_value(rng, kind) for _ in range(rng.choice([0, 1, 2, 3, 4, 5, 8, 128, 600]))])


# Metadata.


def change_value(rng: random.Random, file: File) -> None:
    pair = rng.choice(file.pairs)
    value = pair.value
    if not isinstance(value, Array):
        pair.value = random_value(rng, pair.kind, value)
    elif value.values and rng.random() < 0.6:
        for _ in range(rng.choice([1, 1, 1, 3, 20])):
            i = rng.choice([0, len(value.values) - 1, rng.randrange(len(value.values))])
            value.values[i] = random_value(rng, value.kind, value.values[i])
    else:
        n = len(value.values)
        wanted = rng.choice([0, 1, max(n - 1, 0), n + 1, n // 2, n * 2, 4, 600])
        filler = value.values[-1] if value.values else random_value(rng, value.kind)
        value.values = (value.values + [filler] * wanted)[:wanted]


def change_size_of_model(rng: random.Random, file: File) -> None:
    """A number of the architecture, which is what divides, loops and allocates."""
    mine = [pair for pair in file.pairs if pair.key.startswith(file.arch + b".")]
    if mine:
        pair = rng.choice(mine)
        if isinstance(pair.value, Array):
            pair.value.values = [random_value(rng, pair.value.kind, v) for v in pair.value.values]
        else:
            pair.value = random_value(rng, pair.kind, pair.value)


def change_kind(rng: random.Random, file: File) -> None:
    pair = rng.choice(file.pairs)
    if rng.random() < 0.3:
        pair.kind = ARRAY
        kind = random_kind(rng)
        pair.value = Array(kind, [random_value(rng, kind) for _ in range(rng.choice([0, 1, 4, 9]))])
    elif isinstance(pair.value, Array) and rng.random() < 0.7:
        pair.value = Array(kind := random_kind(rng), [random_value(rng, kind) for _ in pair.value.values])
    else:
        pair.kind = random_kind(rng)
        value = pair.value
        pair.value = value if isinstance(value, (int, float)) and pair.kind != STRING else random_value(rng, pair.kind)


def add_key(rng: random.Random, file: File) -> None:
    key = file.arch + b"." + rng.choice(arch_keys()) if rng.random() < 0.75 else rng.choice(other_keys())
    kind = rng.choice([U32, U32, U32, F32, STRING, ARRAY, BOOL, random_kind(rng)])
    value: object = random_array(rng) if kind == ARRAY else random_value(rng, kind)
    file.pairs.insert(rng.randrange(len(file.pairs) + 1), Pair(key, kind, value))


def drop_key(rng: random.Random, file: File) -> None:
    del file.pairs[rng.randrange(len(file.pairs))]


def repeat_key(rng: random.Random, file: File) -> None:
    pair = rng.choice(file.pairs)
    file.pairs.append(Pair(pair.key, pair.kind, pair.value))


def rename_key(rng: random.Random, file: File) -> None:
    pair = rng.choice(file.pairs)
    pair.key = rng.choice([rng.choice(TEXTS), rng.choice(file.pairs).key, file.arch + b"." + rng.choice(arch_keys())])


def change_arch(rng: random.Random, file: File) -> None:
    """Another architecture's code over these tensors."""
    old, new = file.arch, rng.choice(arch_names())
    for pair in file.pairs:
        if pair.key == b"general.architecture":
            pair.value = new
        elif pair.key.startswith(old + b"."):
            pair.key = new + pair.key[len(old) :]


def align(rng: random.Random, file: File) -> None:
    kind = rng.choice([U32, U32, U32, random_kind(rng)])
    value = rng.choice([0, 1, 2, 3, 8, 16, 24, 33, 64, 4096, 2**20, 2**31, 2**32 - 1])
    file.pairs.append(Pair(b"general.alignment", kind, value if kind != STRING else b"32"))
    if rng.random() < 0.7:
        file.alignment = value


def split(rng: random.Random, file: File) -> None:
    for key in (b"split.no", b"split.count", b"split.tensors.count"):
        if rng.random() < 0.8:
            kind = rng.choice([U16, U16, I32, random_kind(rng)])
            file.pairs.append(Pair(key, kind, random_value(rng, kind)))


# Tokenizers.


def change_tokenizer(rng: random.Random, file: File) -> None:
    ours = [pair for pair in file.pairs if pair.key.startswith(b"tokenizer.")]
    what = rng.randrange(8)
    if what == 0:
        kinds = [b"none", b"no_vocab", b"llama", b"bert", b"gpt2", b"t5", b"rwkv", b"plamo2", b"gemma4", b"test", b"x"]
        _set(file, b"tokenizer.ggml.model", STRING, rng.choice(kinds))
    elif what == 1:
        _set(file, b"tokenizer.ggml.pre", STRING, rng.choice(pre_tokenizers()))
    elif what == 2:
        name = rng.choice([b"bos", b"eos", b"eot", b"eom", b"unknown", b"seperator", b"padding", b"mask", b"fim_pre"])
        _set(file, b"tokenizer.ggml." + name + b"_token_id", U32, integer(rng))
    elif what == 3:
        n = rng.choice([0, 1, 127, 128, 129, 2000])
        kind = rng.choice([I32, I32, U32, F32])
        _set(file, b"tokenizer.ggml.token_type", ARRAY, Array(kind, [rng.randrange(-1, 8) for _ in range(n)]))
    elif what == 4:
        charsmap = bytes(rng.randrange(256) for _ in range(rng.choice([0, 1, 3, 4, 5, 8, 64, 1000])))
        if rng.random() < 0.5:
            charsmap = struct.pack("<I", rng.choice([0, 4, len(charsmap), 2**32 - 1])) + charsmap
        _set(file, b"tokenizer.ggml.precompiled_charsmap", ARRAY, Array(rng.choice([0, 1]), list(charsmap)))
    elif what == 5:
        merges = [
            rng.choice([b"a b", b"ab", b" ", b"", b"a  b", b"t h", b"x" * 80]) for _ in range(rng.choice([0, 1, 9]))
        ]
        _set(file, b"tokenizer.ggml.merges", ARRAY, Array(STRING, merges))
    elif what == 6:
        text = rng.choice([b"{{ messages }}" * 10**4, b"{%" * 1000, b"", b"\xff" * 100, b"chatml"])
        _set(file, b"tokenizer.chat_template", STRING, text)
    elif ours:
        pair = rng.choice(ours)
        if isinstance(pair.value, Array) and pair.value.values:
            for _ in range(rng.choice([1, 5, 50])):
                i = rng.randrange(len(pair.value.values))
                pair.value.values[i] = random_value(rng, pair.value.kind, rng.choice(pair.value.values))


def _set(file: File, key: bytes, kind: int, value: object) -> None:
    if (pair := file.find(key)) is not None:
        pair.kind, pair.value = kind, value
    else:
        file.pairs.append(Pair(key, kind, value))


# Tensors.


def resize(data: bytes, wanted: int) -> bytes:
    """`data` repeated or cut; as it is where nobody has that many bytes."""
    if not 0 <= wanted <= 2**24:
        return data
    return (data * (wanted // max(len(data), 1) + 1) + bytes(wanted if not data else 0))[:wanted]


def change_type(rng: random.Random, file: File) -> None:
    tensor = rng.choice(file.tensors)
    retype(tensor, rng.choice([*BLOCKS, *BLOCKS, rng.randrange(64)]), rng)


def retype(tensor: Tensor, kind: int, rng: random.Random | None = None) -> None:
    """Another type, with as many bytes as it takes. Zeros are a value of every type."""
    tensor.kind = kind
    keep = rng is not None and rng.random() < 0.5
    tensor.data = resize(tensor.data if keep else b"\0", n_bytes(tensor.shape, kind))


def change_shape(rng: random.Random, file: File) -> None:
    tensor = rng.choice(file.tensors)
    what = rng.randrange(5)
    if what == 0 and tensor.shape:
        i = rng.randrange(len(tensor.shape))
        tensor.shape[i] = max(0, integer(rng, tensor.shape[i]))
    elif what == 1:
        rng.shuffle(tensor.shape)
    elif what == 2:
        tensor.shape.append(rng.choice([1, 1, 2, 0, 2**32, 2**63 - 1]))
    elif what == 3 and tensor.shape:
        tensor.shape.pop(rng.randrange(len(tensor.shape)))
    else:
        tensor.shape = [rng.choice([1, 2, 32, 64, 128, 256]) for _ in range(rng.choice([0, 1, 2, 3, 4, 5]))]
    if rng.random() < 0.8:
        tensor.data = resize(tensor.data, n_bytes(tensor.shape, tensor.kind))


def change_dimension_everywhere(rng: random.Random, file: File) -> None:
    """One extent becomes another wherever it occurs, and so do the numbers that name it: a file that fits itself."""
    extents = sorted({extent for tensor in file.tensors for extent in tensor.shape})
    if not extents:
        return
    old = rng.choice(extents)
    new = rng.choice([1, 2, 3, 8, 16, 31, 32, 33, 48, 64, 96, 128, 160, old + 1, max(old - 1, 1), old * 2])
    for tensor in file.tensors:
        if old in tensor.shape:
            tensor.shape = [new if extent == old else extent for extent in tensor.shape]
            tensor.data = resize(tensor.data, n_bytes(tensor.shape, tensor.kind))
    for pair in file.pairs:
        if pair.value == old and pair.kind in RANGES:
            pair.value = new


def change_names(rng: random.Random, file: File) -> None:
    a, b = rng.choice(file.tensors), rng.choice(file.tensors)
    what = rng.randrange(4)
    if what == 0:
        a.name, b.name = b.name, a.name
    elif what == 1:
        a.name = b.name
    elif what == 2:
        a.name = rng.choice(
            [b"", b"x", b"x" * 63, b"x" * 64, b"x" * 2000, b"\xff", a.name + b"\0", b"blk.99.ffn_up.weight"]
        )
    else:
        file.tensors.remove(a)


def swap_contents(rng: random.Random, file: File) -> None:
    a, b = rng.choice(file.tensors), rng.choice(file.tensors)
    a.shape, a.kind, a.data, b.shape, b.kind, b.data = b.shape, b.kind, b.data, a.shape, a.kind, a.data


def add_tensor(rng: random.Random, file: File) -> None:
    """One that the architecture may take, of another's shape: biases, scales, norms, factors, heads."""
    name = rng.choice(tensor_names()).replace(b"%d", str(rng.choice([0, 0, 1, 2, 3, 4])).encode())
    name += rng.choice([b".weight", b".weight", b".bias", b".scale", b""])
    like = rng.choice(file.tensors)
    shape = rng.choice([like.shape, like.shape[:1], like.shape[1:2], [1], [16], [32], [64], [2, 64], [64, 2]])
    kind = rng.choice([0, 0, 0, rng.choice(list(BLOCKS))])
    n = min(n_bytes(list(shape), kind), 1 << 20)  # a shape may be a lie by now
    file.tensors.append(Tensor(name, list(shape), kind, bytes(n)))


def move_data(rng: random.Random, file: File) -> None:
    tensor = rng.choice(file.tensors)
    tensor.offset = rng.choice([0, 32, 1, 31, 2**20, 2**32, 2**63, 2**64 - 1, 2**64 - 32, 64])
    if rng.random() < 0.2:
        tensor.data = tensor.data[: rng.randrange(len(tensor.data) + 1)]


def change_data(rng: random.Random, file: File) -> None:
    tensor = rng.choice(file.tensors)
    what = rng.randrange(4)
    n = len(tensor.data)
    if what == 0:
        tensor.data = struct.pack("<f", rng.choice(REALS)) * (n // 4) + bytes(n % 4)
    elif what == 1:
        tensor.data = bytes([rng.randrange(256)]) * n
    elif what == 2:
        tensor.data = rng.randbytes(n)
    else:
        data = bytearray(tensor.data)
        for _ in range(min(n, 8)):
            data[rng.randrange(n)] = rng.randrange(256)
        tensor.data = bytes(data)


STRUCTURAL: list[tuple[Callable[[random.Random, File], None], int]] = [
    (change_value, 4),
    (change_size_of_model, 10),
    (change_kind, 2),
    (add_key, 8),
    (drop_key, 2),
    (repeat_key, 1),
    (rename_key, 1),
    (change_arch, 2),
    (align, 1),
    (split, 1),
    (change_tokenizer, 5),
    (change_type, 8),
    (change_shape, 3),
    (change_dimension_everywhere, 4),
    (change_names, 2),
    (swap_contents, 2),
    (add_tensor, 6),
    (move_data, 1),
    (change_data, 2),
]


def damage(rng: random.Random, made: Bytes) -> str:
    """Change bytes of the file that has been written; the name of what was done."""
    data = made.data
    what = rng.randrange(4)
    if what == 0:
        at, size = rng.choice(made.spots)
        near = int.from_bytes(data[at : at + size], "little")
        data[at : at + size] = (integer(rng, near) % 2 ** (8 * size)).to_bytes(size, "little")
        return "number"
    if what == 1:
        del data[rng.choice([rng.randrange(len(data)), rng.randrange(made.n_header)]) :]
        return "truncate"
    if what == 2:
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(made.n_header)] = rng.randrange(256)
        return "header bytes"
    data += rng.randbytes(rng.choice([1, 31, 1000]))
    return "more bytes"


def mutate(rng: random.Random, genuine: File) -> tuple[bytes, list[str]]:
    """A changed copy of a genuine file, and what was changed."""
    file = genuine.copy()
    done = []
    kinds = [kind for kind, _ in STRUCTURAL]
    weights = [weight for _, weight in STRUCTURAL]
    for _ in range(rng.choice([1, 1, 1, 1, 2, 2, 3, 5])):
        (kind,) = rng.choices(kinds, weights)
        if file.pairs and (file.tensors or kind in kinds[:11]):
            kind(rng, file)
            done.append(kind.__name__)
    made = encode(file)
    if rng.random() < 0.08:
        done.append(damage(rng, made))
    return bytes(made.data), done
