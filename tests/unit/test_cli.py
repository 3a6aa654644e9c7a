"""The command line, called in this process where that is enough and as a program where it is not."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import lloyal
from lloyal import cli, demo
from lloyal.generation import generate
from lloyal.sampling import Sampling
from tests.rpc import free_port, wait_until_it_listens

# One thread everywhere: two spin against whatever else runs on the machine.
RUN = ("run", "-m", "nano", "-t", "1")


def call(*args: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli.app, list(args), input=stdin)


def call_json(*args: str, **kwargs: Any) -> Any:
    result = call(*args, "--json", **kwargs)
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


@contextmanager
def program(*args: str, seconds: float = 120, **kwargs: Any) -> Iterator[subprocess.Popen[str]]:
    """``python -m lloyal``, killed if it is not done in time."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs
    command = [sys.executable, "-P", "-m", "lloyal", *args]
    with subprocess.Popen(command, text=True, encoding="utf-8", **pipes) as process:
        watchdog = threading.Timer(seconds, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


# What the commands do


def test_version():
    result = call("--version")
    assert result.exit_code == 0
    build = lloyal.build_info()
    assert result.stdout == f"lloyal {build['lloyal']} (llama.cpp {build['llama.cpp']})\n"


@pytest.mark.parametrize("args", [(), ("--help",)])
def test_help_names_every_command(args):
    result = call(*args)
    assert result.exit_code == 0
    for command in ("demo", "info", "run", "rpc-server"):
        assert command in result.stdout


@pytest.mark.parametrize("command", ["demo", "info", "run"])
def test_every_command_has_help_and_json(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_info_is_what_the_library_says():
    facts = call_json("info")
    assert facts["build"] == lloyal.build_info()
    assert facts["system"] == lloyal.system_info().strip()
    assert [device["name"] for device in facts["devices"]] == [device.name for device in lloyal.devices()]
    shown = call("info")
    assert shown.exit_code == 0
    assert facts["build"]["llama.cpp commit"] in shown.stdout


@pytest.mark.parametrize("name", lloyal.models.NAMES)
def test_info_of_a_model_is_what_the_model_says(request, name):
    model = request.getfixturevalue(name.replace("-", "_"))
    facts = call_json("info", name)
    assert facts["metadata"] == model.metadata
    assert facts["path"] == model.path
    assert facts["file_bytes"] == Path(model.path).stat().st_size
    for fact in ("n_params", "n_ctx_train", "n_layer", "n_embd", "n_head", "n_head_kv", "n_swa"):
        assert facts[fact] == getattr(model, fact)
    with lloyal.Context(model, n_ctx=256, n_threads=1) as ctx:
        assert facts["memory"] == ctx.memory.kind
    shown = call("info", name)
    assert shown.exit_code == 0
    assert facts["memory"] in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


@pytest.mark.parametrize("seed", [1, 2])
def test_run_generates_what_the_library_generates(nano, new_context, seed):
    generation = generate(
        new_context(nano), "def ", max_tokens=24, sampling=Sampling(seed=seed, temperature=0.7, top_k=30, min_p=0.1)
    )
    text = "".join(generation.text())
    args = (*RUN, "-p", "def ", "--max-tokens", "24", "--seed", str(seed))
    args += ("--temperature", "0.7", "--top-k", "30", "--min-p", "0.1")
    result = call_json(*args)
    assert (result["text"], result["tokens"]) == (text, generation.tokens)
    assert (result["seed"], result["stop_reason"]) == (seed, generation.stop_reason)
    assert result["n_prompt_tokens"] == len(generation.prompt)
    plain = call(*args)
    assert (plain.exit_code, plain.stdout, plain.stderr) == (0, text + "\n", "")


def test_run_reports_a_seed_that_repeats_it():
    first = call_json(*RUN, "-p", "def ", "--max-tokens", "16")
    again = call_json(*RUN, "-p", "def ", "--max-tokens", "16", "--seed", str(first["seed"]))
    assert again["tokens"] == first["tokens"]


def test_run_reads_the_prompt_from_stdin():
    args = (*RUN, "--max-tokens", "12", "--temperature", "0")
    text = "class Naïve:\n"
    assert call_json(*args, "-p", "-", stdin=text)["tokens"] == call_json(*args, "-p", text)["tokens"]


def test_run_reads_special_tokens_only_when_asked(nano):
    prompt = "<|im_start|>user\n"
    for options, special in (((), False), (("--special",), True)):
        result = call_json(*RUN, "-p", prompt, "--max-tokens", "1", *options)
        assert result["n_prompt_tokens"] == len(nano.vocab.tokenize(prompt, parse_special=special))


def test_run_stops_at_a_string():
    whole = call_json(*RUN, "-p", "def ", "--max-tokens", "32", "--temperature", "0")["text"]
    stop = whole[8:11]
    result = call_json(*RUN, "-p", "def ", "--max-tokens", "32", "--temperature", "0", "--stop", stop)
    assert result["text"] == whole[: whole.index(stop)]
    assert result["stop_reason"] == "stop"


def test_run_shows_continuations_side_by_side():
    args = (*RUN, "-p", "def ", "-n", "3", "--max-tokens", "12", "--seed", "5")
    result = call_json(*args)
    parts = result["continuations"]
    assert result["seed"] == 5
    assert [len(part["tokens"]) for part in parts] == [12, 12, 12]
    assert [part["stop_reason"] for part in parts] == ["length"] * 3
    assert len({part["text"] for part in parts}) == 3
    with lloyal.Model(lloyal.models.path("nano")) as model, lloyal.Context(model, n_ctx=256, n_threads=1) as ctx:
        for part in parts:
            assert part["text"] == model.vocab.detokenize(part["tokens"])
            scored = lloyal.score(ctx, [*model.vocab.tokenize("def "), *part["tokens"]])
            of_the_part = scored.logprobs[-12:]
            assert part["perplexity"] == pytest.approx(math.exp(-sum(of_the_part) / 12), rel=0.02)
    shown = call(*args)
    assert shown.exit_code == 0
    assert max(map(len, shown.stdout.splitlines())) <= 80
    for i, part in enumerate(parts):
        assert f"\u2500 {i} \u2500" in shown.stdout
        assert part["text"].splitlines()[0][:30] in shown.stdout


def test_an_embedded_name_is_its_file():
    args = ("-p", "def ", "--max-tokens", "8", "--temperature", "0", "-t", "1")
    by_name = call_json("run", "-m", "nano-draft", *args)
    assert by_name["tokens"] == call_json("run", "-m", lloyal.models.path("nano-draft"), *args)["tokens"]


@pytest.fixture(scope="module")
def toured() -> dict[str, Any]:
    return call_json("demo", "--tokens", "96")


def test_demo_finds_the_continuations_identical(toured):
    assert toured["identical"] is True
    assert [result["model"] for result in toured["models"]] == list(demo.MODELS)
    for result in toured["models"]:
        by_seed: dict[int, set[str]] = {}
        for way in result["continuations"]:
            if "seed" in way:
                by_seed.setdefault(way["seed"], set()).add(way["text"])
        assert [len(texts) for texts in by_seed.values()] == [1, 1]
        assert len(set.union(*by_seed.values())) == 2
        assert {way["seq_id"] for way in result["continuations"]} == {0, 1}
        # Sixteen checkpoints of attention share their rows; each of the hybrid's has a recurrent row of its own.
        assert sum(way.get("n_checkpoints", 0) for way in result["continuations"]) == demo.N_CHECKPOINTS
        assert 1.0 <= result["checkpoint_states"] < demo.N_CHECKPOINTS


def test_demo_measures(toured):
    for result in toured["models"]:
        assert result["n_prompt_tokens"] == 96
        times = [*result["save_seconds"].values(), *result["restore_seconds"].values(), result["read_seconds"]]
        assert all(0 < seconds < toured["seconds"] for seconds in times)
        # On the device only the description of the rows passes Python; on the host the rows themselves do.
        model = lloyal.Model(lloyal.models.path(result["model"]))
        with lloyal.Context(model, n_ctx=256, n_seq_max=2, n_threads=1) as ctx:
            lloyal.decoding.prefill(ctx, [5] * 95)
            assert result["python_bytes"]["host"] == ctx.state_seq_get_size_ext(0)
        assert result["python_bytes"]["device"] < result["python_bytes"]["host"]


def test_demo_fits_a_terminal():
    result = call("demo", "--tokens", "64")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("identical  " in line for line in lines) == 5 * len(demo.MODELS)


def test_demo_notices_a_difference(monkeypatch):
    # Without restoring, generation goes on from where the last one ended, and a token further.
    def forget_to_restore(self, where, seq_id=0):
        self.ctx.memory.seq_rm(seq_id, self.ctx.memory.seq_pos_max(seq_id), -1)
        lloyal.prefill(self.ctx, [5, 6], seq_id=seq_id)
        return 1e-3

    monkeypatch.setattr(demo._Guide, "_restore", forget_to_restore)
    monkeypatch.setattr(demo, "MODELS", ("nano",))
    result = call("demo", "--tokens", "64")
    assert result.exit_code == 1
    assert "NOT IDENTICAL" in result.stdout


# Bad input: one line on stderr that names the value, nothing on stdout, exit code 1, or 2 for the command line itself


@pytest.fixture(scope="module")
def bad_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, str]]:
    folder = tmp_path_factory.mktemp("models")
    nano = Path(lloyal.models.path("nano-draft")).read_bytes()
    (folder / "text.gguf").write_text("This is no model.\n")
    (folder / "empty.gguf").touch()
    (folder / "truncated.gguf").write_bytes(nano[: len(nano) // 2])
    (folder / "header.gguf").write_bytes(nano[:20])
    (folder / "loop.gguf").symlink_to(folder / "loop.gguf")
    (folder / "folder.gguf").mkdir()
    said = {
        "missing.gguf": "No such file",
        "text.gguf": "not a GGUF file",
        "empty.gguf": "is empty",
        "truncated.gguf": "truncated.gguf",
        "header.gguf": "header.gguf",
        "loop.gguf": "symbolic links",  # unreadable, for root too
        "folder.gguf": "is a directory",
        "text.gguf/model.gguf": "Not a directory",
    }
    return lambda name: (str(folder / name), said[name])


def assert_refused(result: Result, code: int, *said: str) -> None:
    assert result.exit_code == code
    assert result.stdout == ""
    line = result.stderr
    assert line.startswith("lloyal: ")
    assert line.count("\n") == 1
    for part in said:
        assert part in line


@pytest.mark.parametrize(
    "name",
    [
        "missing.gguf",
        "text.gguf",
        "empty.gguf",
        "truncated.gguf",
        "header.gguf",
        "loop.gguf",
        "folder.gguf",
        "text.gguf/model.gguf",
    ],
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_model_that_cannot_be_loaded(bad_models, name, options):
    path, said = bad_models(name)
    assert_refused(call("run", "-m", path, "-p", "x", *options), 1, path, said)
    assert_refused(call("info", path, *options), 1, path, said)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--temperature", "-1"), "temperature=-1.0"),
        (("--temperature", "nan"), "temperature=nan"),
        (("--top-k", "-3"), "top_k=-3"),
        (("--top-p", "1.5"), "top_p=1.5"),
        (("--min-p", "-0.5"), "min_p=-0.5"),
        (("--seed", "4294967295"), "seed=4294967295"),
        (("--stop", ""), "stop string is empty"),
        (("--n-gpu-layers", "-2"), "n_gpu_layers=-2"),
        (("--n-ctx", "99999999999"), "n_ctx=99999999999"),
    ],
)
def test_an_impossible_value(args, said):
    assert_refused(call(*RUN, "-p", "x", *args), 1, said)


def test_a_prompt_longer_than_the_context():
    assert_refused(call(*RUN, "-p", "x " * 2000, "-c", "256"), 1, "--n-ctx gives 256")


@pytest.mark.parametrize("n_ctx", [1, 4])
def test_a_tiny_context_is_rounded_up_as_llama_cpp_does(n_ctx):
    assert len(call_json(*RUN, "-p", "x", "--max-tokens", "20", "--temperature", "0", "-c", str(n_ctx))["tokens"]) <= 20


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("frobnicate",), "frobnicate"),
        (("--frobnicate",), "--frobnicate"),
        (("run", "--frobnicate"), "--frobnicate"),
        (("run", "-m", "nano"), "--prompt"),
        (("run", "-p", "x"), "--model"),
        ((*RUN, "-p", "x", "--max-tokens", "0"), "--max-tokens"),
        ((*RUN, "-p", "x", "--max-tokens", "many"), "--max-tokens"),
        ((*RUN, "-p", "x", "-n", "0"), "-n"),
        ((*RUN, "-p", "x", "--n-ctx", "0"), "--n-ctx"),
        ((*RUN, "-p", "x", "--temperature", "hot"), "--temperature"),
        (("run", "-m", "nano", "-p", "x", "-t", "0"), "--threads"),
        (("run", "-m", "nano", "-p", "x", "-t", "513"), "--threads"),
        ((*RUN, "-p", "x", "more"), "more"),
        (("info", "nano", "more"), "more"),
        (("info", "--threads", "1"), "--threads"),
        (("demo", "--tokens", "1"), "--tokens"),
        (("demo", "--tokens", "1000000"), "--tokens"),
        (("demo", "more"), "more"),
    ],
)
def test_a_wrong_command_line(args, said):
    assert_refused(call(*args), 2, said, "--help")


# As a program


def test_the_program_writes_only_its_result():
    with program(*RUN, "-p", "def ", "--max-tokens", "8", "--temperature", "0") as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out == call_json(*RUN, "-p", "def ", "--max-tokens", "8", "--temperature", "0")["text"] + "\n"


def test_the_program_fails_in_one_line():
    with program("run", "-m", "missing.gguf", "-p", "x") as process:
        out, err = process.communicate()
    assert (process.returncode, out, err) == (1, "", "lloyal: missing.gguf: No such file or directory\n")


def test_verbose_shows_the_native_log_on_stderr():
    with program("--verbose", "info", "nano-draft", "--json") as process:
        out, err = process.communicate()
    assert process.returncode == 0
    assert json.loads(out)["description"]
    assert "llama_model_loader" in err


@pytest.mark.parametrize("command", [("info", "nano"), ("demo", "--tokens", "64")])
def test_a_terminal_without_unicode(command):
    with program(*command, env=os.environ | {"PYTHONIOENCODING": "ascii"}) as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.isascii()


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str]:
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    return process.returncode, err


def test_ctrl_c_while_generating():
    with program(*RUN, "-p", "def ", "--max-tokens", "30000", "--temperature", "1.5") as process:
        assert process.stdout is not None
        process.stdout.read(1)
        assert interrupt(process) == (130, "")


def test_ctrl_c_while_reading(tmp_path):
    prompt = tmp_path / "prompt"
    prompt.write_text("x = 1\n" * 12000)
    with prompt.open() as stdin, program("--verbose", *RUN, "-p", "-", stdin=stdin) as process:
        assert process.stderr is not None
        assert any("llama_context" in line for line in process.stderr)  # the log of a context that is made
        time.sleep(0.5)
        code, err = interrupt(process)
    assert code == 130
    assert "Traceback" not in err


def test_a_closed_pipe_ends_it_quietly():
    with program(*RUN, "-p", "def ", "--max-tokens", "30000", "--temperature", "1.5") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


def test_ctrl_c_while_importing_is_quiet(tmp_path: Path) -> None:
    """Sent by a module that the command imports."""
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n")
    script = Path(sysconfig.get_path("scripts")) / "lloyal"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([script, "info"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (cli.INTERRUPTED, "", "")


def test_score():
    found = call_json("score", "-m", "nano", "-t", "1", "import sys\n", "-p", "import os\n", "--top", "2")
    with lloyal.Model(lloyal.models.path()) as model, lloyal.Context(model, n_ctx=256, n_threads=1) as ctx:
        expected = lloyal.score(ctx, "import sys\n", prompt="import os\n", top=2)
    assert [row["token"] for row in found["tokens"]] == expected.tokens
    assert found["total"] == pytest.approx(expected.total, abs=1e-3)
    assert all(len(row["top"]) == 2 for row in found["tokens"])
    shown = call(
        "score",
        "-m",
        "nano",
        "-t",
        "1",
        "-",
        stdin="import sys\n",
    )
    assert shown.exit_code == 0
    assert "log-probability" in shown.stdout
    assert "perplexity" in shown.stdout


def test_embed():
    rows = call_json("embed", "-m", "nano", "-t", "1", "import os", "import sys")
    assert [row["text"] for row in rows] == ["import os", "import sys"]
    assert sum(value**2 for value in rows[0]["embedding"]) == pytest.approx(1, abs=1e-3)
    shown = call("embed", "-m", "nano", "-t", "1", stdin="import os\n\nimport sys\n")
    assert "2 vectors" in shown.stdout
    assert shown.stdout.count("import sys") == 2
    many = call("embed", "-m", "nano", "-t", "1", "-", stdin=b"\r\n".join(b"text %d \xff" % i for i in range(20)))
    assert many.exit_code == 0
    assert max(map(len, many.stdout.splitlines())) <= 100
    assert call("embed", "-m", "nano", stdin="\n").exit_code != 0


# A server of this machine's devices


def test_rpc_server_serves_until_it_is_interrupted():
    endpoint = f"127.0.0.1:{free_port()}"
    with program("rpc-server", "--endpoint", endpoint, "--threads", "1") as process:
        assert "never expose it" in process.stderr.readline()
        wait_until_it_listens(endpoint, process)
        device = lloyal.llama.rpc_device(endpoint)[0]
        with lloyal.Model(lloyal.models.path("nano-draft"), devices=[device]) as model:
            assert model.n_layer > 0
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode in (-signal.SIGINT, cli.INTERRUPTED)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device", "no such"), "--device no such: there is none of that name, but CPU"),
        (("--endpoint", "somewhere"), "endpoint='somewhere'"),
        (("--endpoint", "192.0.2.1:50052"), "cannot listen on 192.0.2.1:50052"),
    ],
)
def test_rpc_server_refuses(arguments, said):
    result = call("rpc-server", *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert said in result.stderr


def test_run_answers_a_chat_in_json(tmp_path):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"]}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    for given in (str(file), json.dumps(schema)):
        result = call("run", "-m", "nano", "-p", "a number", "--chat", "--schema", given, "--seed", "1")
        assert result.exit_code == 0, result.stderr
        assert 0 <= json.loads(result.stdout)["n"] <= 9
    assert "--schema is not JSON" in call("run", "-m", "nano", "-p", "x", "--schema", "{").stderr


def test_what_a_command_line_gets_wrong_is_said_at_once(monkeypatch, tmp_path):
    class Drawn:
        canvas = SimpleNamespace(get_supported_filetypes=lambda: {"png": "", "svg": ""})

    monkeypatch.setattr("lloyal.bench.report.plotter", lambda: Drawn)
    assert "nano, nano-draft, nano-hybrid" in call("run", "-m", "nono", "-p", "x").stderr
    assert "--n-ctx 16 is 256" in call("run", "-m", "nano", "-p", "x", "--max-tokens", "2", "--n-ctx", "16").stderr
    assert call("info", "-m", "nano", "--json").stdout == call("info", "nano", "--json").stdout
    assert "give one model" in call("info", "nano", "-m", "nano").stderr
    for path, said in ((tmp_path / "no" / "x.png", "no folder"), (tmp_path / "x.txt", "must end in")):
        result = call("bench", "checkpoint", "--plot", str(path))
        assert said in result.stderr
        assert result.exit_code == 1


def test_the_demo_shows_any_model():
    result = call_json("demo", "--tokens", "64", "-m", lloyal.models.path("nano-draft"))
    assert [one["model"] for one in result["models"]] == ["nano-draft"]
    assert result["identical"]
