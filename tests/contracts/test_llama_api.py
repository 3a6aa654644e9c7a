"""Every function of llama.h is bound, or declined with a reason.

Bound means: our C++ or Cython calls it, or a method of ours does the same by another way (`BY_ANOTHER_WAY`). Reads
source text only.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "vendor" / "llama.cpp" / "include" / "llama.h"

# What a method of ours does without calling the function: the file, and the method.
BY_ANOTHER_WAY = {
    # the memory is spoken to directly, so that provenance and the rollback ring are kept and out-of-range is an error
    "llama_memory_clear": ("memory.pyx", "clear"),
    "llama_memory_seq_rm": ("memory.pyx", "seq_rm"),
    "llama_memory_seq_cp": ("memory.pyx", "seq_cp"),
    "llama_memory_seq_keep": ("memory.pyx", "seq_keep"),
    "llama_memory_seq_add": ("memory.pyx", "seq_add"),
    "llama_memory_seq_div": ("memory.pyx", "seq_div"),
    "llama_memory_seq_pos_min": ("memory.pyx", "seq_pos_min"),
    "llama_memory_seq_pos_max": ("memory.pyx", "seq_pos_max"),
    # the forms without flags, as upstream
    "llama_state_seq_get_size": ("context.pyx", "state_seq_get_size"),
    "llama_state_seq_get_data": ("context.pyx", "state_seq_get_data"),
    "llama_state_seq_set_data": ("context.pyx", "state_seq_set_data"),
    # the same files, read and written by us: upstream aborts on a truncated one
    "llama_state_load_file": ("state.pyx", "state_load_file"),
    "llama_state_save_file": ("state.pyx", "state_save_file"),
    "llama_state_seq_load_file": ("state.pyx", "state_seq_load_file"),
    "llama_state_seq_save_file": ("state.pyx", "state_seq_save_file"),
    # batches own their memory and grow
    "llama_batch_init": ("batch.pyx", "add"),
    "llama_batch_free": ("batch.pyx", "clear"),
    "llama_batch_get_one": ("batch.pyx", "extend"),
    "llama_batch_ext_add": ("batch_ext.pyx", "add"),
    "llama_batch_ext_clear": ("batch_ext.pyx", "clear"),
    "llama_batch_ext_set_output_embd": ("batch_ext.pyx", "set_output_embd"),
    # its regular expressions backtrack without end
    "llama_sampler_init_grammar_lazy_patterns": ("sampler.pyx", "grammar_lazy_patterns"),
    # numbers instead of lines in a log
    "llama_perf_context_print": ("context.pyx", "perf"),
    "llama_perf_sampler_print": ("sampler.pyx", "perf"),
    # what the object knows of itself
    "llama_get_model": ("context.pxd", "model"),
    "llama_sampler_get_seed": ("sampler.pyx", "seed"),
    "llama_sampler_sample": ("sampler.pyx", "sample"),
    "llama_get_sampled_candidates_count_ith": ("sampler_backend.pyx", "sampled_candidates"),
    # parameters are words, checked against the header's names by the loader and by other contracts
    "llama_load_mode_name": ("params.py", "use_mmap"),
    "llama_load_mode_from_str": ("params.py", "use_mlock"),
    "llama_model_meta_key_str": ("model.pyx", "metadata"),
    "llama_model_meta_val_str": ("model.pyx", "metadata"),
    "llama_state_set_data": ("state.pyx", "state_set_data"),
    "llama_flash_attn_type_name": ("context.pyx", "flash_attn"),
    # the log goes to the module `logging`; nobody else's callback is replaced
    "llama_log_get": ("backend.pyx", "drain_logs"),
}

DECLINED = {
    "llama_opt_param_filter_all": "training is not here",
    "llama_opt_init": "training is not here",
    "llama_opt_epoch": "training is not here",
    "llama_numa_init": "changes the whole process, and only before its first thread: start Python with numactl",
    "llama_attach_threadpool": "each context makes its own pool; a shared one would tie their lifetimes together",
    "llama_detach_threadpool": "as llama_attach_threadpool",
    "llama_backend_free": "would pull the back ends from under everybody else in the process; it only matters with MPI",
    "llama_model_init_from_user": "models come from files, which the gguf package writes",
    "llama_model_load_from_file_ptr": "paths only: a FILE* has no Python form",
    "llama_adapter_lora_init_from_file_ptr": "as llama_model_load_from_file_ptr",
    "llama_batch_ext_set_embd_state": "upstream's is a stub that always fails",
}


def without_comments(text: str, *, python: bool = False) -> str:
    if python:
        text = re.sub(r'"""(?:.|\n)*?"""', "", text)
        return re.sub(r"#[^\n]*", "", text)
    text = re.sub(r"/\*(?:.|\n)*?\*/", "", text)
    return re.sub(r"//[^\n]*", "", text)


def functions() -> dict[str, bool]:
    """Names of all functions of llama.h, and whether they are deprecated."""
    text = without_comments(HEADER.read_text())
    found: dict[str, bool] = {}
    for statement in text.split(";"):
        if "LLAMA_API" not in statement:
            continue
        for call in re.finditer(r"\b(llama_\w+)\s*\(", statement):
            found[call.group(1)] = "DEPRECATED" in statement
            break
    return found


def our_source() -> str:
    ring1 = sorted((ROOT / "lloyal" / "llama").glob("*.pyx"))
    parts = [without_comments(path.read_text(), python=True) for path in ring1]
    parts += [without_comments(path.read_text()) for path in sorted((ROOT / "lloyal" / "_cpp").rglob("*.[ch]pp"))]
    return "\n".join(parts)


def called() -> set[str]:
    return set(re.findall(r"\bllama_\w+", our_source()))


def test_the_header_is_understood() -> None:
    # as many functions as LLAMA_API occurs in front of one
    text = re.sub(r"^\s*#.*$", "", without_comments(HEADER.read_text()), flags=re.MULTILINE)
    assert len(functions()) == len(re.findall(r"\bLLAMA_API\b", text)) > 200


def test_every_function_is_bound_or_declined() -> None:
    current = {name for name, deprecated in functions().items() if not deprecated}
    missing = current - called() - BY_ANOTHER_WAY.keys() - DECLINED.keys()
    assert not missing, f"functions of llama.h that are neither bound nor declined: {sorted(missing)}"


def test_the_tables_hold_nothing_else() -> None:
    known, ours = functions(), called()
    for name in BY_ANOTHER_WAY.keys() | DECLINED.keys():
        assert name in known, f"{name} is not in llama.h any more"
        assert not known[name], f"{name} is deprecated: no entry is needed"
        assert name not in ours, f"{name} is called by us now: remove it from the table"
    assert not BY_ANOTHER_WAY.keys() & DECLINED.keys()
    assert len(DECLINED) <= 11


def test_deprecated_functions_are_not_called() -> None:
    deprecated = {name for name, old in functions().items() if old}
    assert deprecated
    assert not deprecated & called()


@pytest.mark.parametrize(("name", "place"), sorted(BY_ANOTHER_WAY.items()))
def test_the_other_way_exists(name: str, place: tuple[str, str]) -> None:
    file, method = place
    text = (ROOT / "lloyal" / "llama" / file).read_text()
    assert re.search(
        rf"^\s*(?:(?:cp)?def (?:\w+ )?{method}\(|cdef readonly object {method}\b|{method}: )", text, re.MULTILINE
    ), name
