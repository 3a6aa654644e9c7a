"""One side of `bench_real.py`: a library in a process of its own, which is told what to do line by line.

    python real_side.py NAME SETTINGS

NAME is a key of `SIDES`, SETTINGS an object in JSON. Each line of the input is a request and gets one line of answer,
both in JSON. It runs under the interpreter that has the library, where lloyal need not be.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol


@dataclasses.dataclass
class Way:
    """One way to keep the whole state of the sequence and bring it back."""

    save: Callable[[], Any]
    restore: Callable[[Any], object]
    size: Callable[[Any], int] = len
    release: Callable[[Any], object] = lambda state: None


class Side(Protocol):
    """A model and its only sequence, at one thread; everything else as the library has it by default."""

    package: str

    @property
    def ways(self) -> Mapping[str, Way]: ...

    def trim(self, n: int) -> None:
        """Keep the first `n` tokens."""

    def read(self, tokens: list[int]) -> None:
        """Decode tokens behind what is there."""

    def generate(self, prompt: list[int]) -> Iterator[int]:
        """Go on greedily from there; the first token is after the prompt."""

    def settings(self) -> dict[str, Any]:
        """What its defaults came to."""


class Lloyal:
    package = "lloyal"

    def __init__(self, path: str, n_ctx: int, **keywords: Any) -> None:
        import lloyal

        of_model = {field.name for field in dataclasses.fields(lloyal.ModelParams)} & keywords.keys()
        of_context = keywords.keys() - of_model
        self.lloyal = lloyal
        self.model = lloyal.Model(path, **{name: keywords[name] for name in of_model})
        self.ctx = lloyal.Context(self.model, n_ctx=n_ctx, n_threads=1, **{name: keywords[name] for name in of_context})
        self.ways = {
            "device": self.checkpoints("device"),
            "host": self.checkpoints("host"),
            "bytes": Way(self.to_bytes, self.from_bytes),
            "raw": Way(lambda: self.ctx.state_seq_get_data(0), lambda data: self.ctx.state_seq_set_data(data, 0)),
        }

    def checkpoints(self, where: Any) -> Way:
        return Way(
            lambda: self.ctx.checkpoint(where=where),
            lambda checkpoint: checkpoint.restore(),
            lambda checkpoint: checkpoint.nbytes,
            lambda checkpoint: checkpoint.release(),
        )

    def to_bytes(self) -> bytes:
        with self.ctx.checkpoint() as checkpoint:
            return checkpoint.to_bytes()

    def from_bytes(self, data: bytes) -> None:
        with self.lloyal.Checkpoint.from_bytes(self.ctx, data) as checkpoint:
            checkpoint.restore()

    def trim(self, n: int) -> None:
        self.ctx.memory.seq_rm(0, n)

    def read(self, tokens: list[int]) -> None:
        self.lloyal.prefill(self.ctx, tokens)
        self.ctx.synchronize()

    def generate(self, prompt: list[int]) -> Iterator[int]:
        return self.lloyal.generate(self.ctx, prompt, sampling=self.lloyal.Sampling(temperature=0.0))

    def settings(self) -> dict[str, Any]:
        return {"use_extra_bufts": self.model.params.use_extra_bufts, "flash_attn": self.ctx.flash_attn}


class LlamaCppPython:
    package = "llama_cpp_python"

    def __init__(self, path: str, n_ctx: int) -> None:
        import llama_cpp

        self.llama = llama_cpp.Llama(path, n_ctx=n_ctx, n_threads=1, n_threads_batch=1, verbose=False)
        self.ways = {"": Way(self.llama.save_state, self.llama.load_state, self.size)}

    def size(self, state: Any) -> int:
        return int(state.llama_state_size + state.scores.nbytes + state.input_ids.nbytes)

    def trim(self, n: int) -> None:
        self.llama.n_tokens = n  # the cells go with the next `eval`, and here: a state may be saved before it
        self.llama._ctx.kv_cache_seq_rm(-1, n, -1)

    def read(self, tokens: list[int]) -> None:
        self.llama.eval(tokens)

    def generate(self, prompt: list[int]) -> Iterator[int]:
        tokens: Iterator[int] = self.llama.generate(prompt, temp=0.0, reset=False)
        return tokens

    def settings(self) -> dict[str, Any]:
        return {"flash_attn": bool(self.llama.context_params.flash_attn_type)}


class Cyllama:
    """The loop and the parameters of `cyllama.LLM`, which takes text only and no number of threads."""

    package = "cyllama"

    def __init__(self, path: str, n_ctx: int) -> None:
        from cyllama.llama import llama_cpp as api

        api.disable_logging()
        api.ggml_backend_load_all()
        self.api = api
        self.model = api.LlamaModel(path, api.LlamaModelParams())
        params = api.LlamaContextParams()
        params.n_ctx, params.n_threads, params.n_threads_batch, params.no_perf = n_ctx, 1, 1, True
        self.ctx = api.LlamaContext(self.model, params)
        self.ctx.install_cancel_callback()
        self.n_batch = self.ctx.n_batch
        self.n_tokens = 0
        self.ways = {"": Way(self.save, self.restore, lambda state: len(state[0]))}

    def save(self) -> tuple[bytes, int]:
        return self.ctx.get_state_seq_data(0), self.n_tokens

    def restore(self, state: tuple[bytes, int]) -> None:
        self.ctx.set_state_seq_data(state[0], 0)
        self.n_tokens = state[1]

    def trim(self, n: int) -> None:
        self.ctx.memory_seq_rm(0, n, -1)
        self.n_tokens = n

    def read(self, tokens: list[int]) -> None:
        for part in (tokens[i : i + self.n_batch] for i in range(0, len(tokens), self.n_batch)):
            self.ctx.decode(self.api.llama_batch_get_one(part, self.n_tokens))
            self.n_tokens += len(part)
        self.ctx.synchronize()

    def generate(self, prompt: list[int]) -> Iterator[int]:
        params = self.api.LlamaSamplerChainParams()
        params.no_perf = True
        sampler = self.api.LlamaSampler(params)
        sampler.add_greedy()
        self.read(prompt)
        while True:
            token: int = sampler.sample(self.ctx, -1)
            yield token
            self.ctx.decode(self.api.llama_batch_get_one([token], self.n_tokens))
            self.n_tokens += 1

    def settings(self) -> dict[str, Any]:
        return {}


SIDES: dict[str, Callable[..., Side]] = {
    "lloyal": Lloyal,
    "llama-cpp-python": LlamaCppPython,
    "cyllama": Cyllama,
}


class Answers:
    """What a side can be asked for. Seconds are those of the work alone."""

    def __init__(self, side: Side, clock: Callable[[], float]) -> None:
        self.side, self.clock = side, clock

    def trim(self, keep: int) -> dict[str, Any]:
        self.side.trim(keep)
        return {}

    def read(self, keep: int, tokens: list[int]) -> dict[str, Any]:
        self.side.trim(keep)
        return {"seconds": self.timed(self.side.read, tokens)[0]}

    def generate(self, keep: int, prompt: list[int], n: int) -> dict[str, Any]:
        """The first token, and the seconds of `n` more: reading the prompt is not counted."""
        self.side.trim(keep)
        generation = self.side.generate(prompt)
        first = list(itertools.islice(generation, 1))
        seconds, tokens = self.timed(list, itertools.islice(generation, n))
        return {"seconds": seconds, "tokens": first + tokens}

    def ways(self) -> dict[str, Any]:
        return {"ways": list(self.side.ways)}

    def save(self, way: str) -> dict[str, Any]:
        how = self.side.ways[way]
        seconds, state = self.timed(how.save)
        size = how.size(state)
        how.release(state)
        return {"seconds": seconds, "bytes": size}

    def restore(self, way: str) -> dict[str, Any]:
        """Into a sequence that holds nothing."""
        how = self.side.ways[way]
        state = how.save()
        self.side.trim(0)
        seconds, _ = self.timed(how.restore, state)
        how.release(state)
        return {"seconds": seconds}

    def timed(self, work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
        began = self.clock()
        result = work(*arguments)
        return self.clock() - began, result


def main() -> int:
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    answers_to = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    try:
        side = SIDES[name](settings["path"], settings["n_ctx"], **settings["keywords"])
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": f"not installed: {error}"}), file=answers_to)
        return 0
    version = importlib.metadata.version(side.package)
    print(json.dumps({"version": version, "settings": side.settings()}), file=answers_to)
    answers = Answers(side, time.process_time if settings["process_time"] else time.perf_counter)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(answers, request.pop("do"))(**request)), file=answers_to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
