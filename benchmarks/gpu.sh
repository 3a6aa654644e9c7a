#!/usr/bin/env bash
# The checks that need a GPU, in steps that can be run one by one:
#
#     benchmarks/gpu.sh build     a CUDA build into .venv-gpu, without build isolation
#     benchmarks/gpu.sh test      the tests marked gpu
#     benchmarks/gpu.sh copy      what a device-to-device copy reaches on this card
#     benchmarks/gpu.sh bench     lloyal bench checkpoint, and its bandwidth against that copy and the raw flag
#     benchmarks/gpu.sh all       everything, in this order
#
# NOT YET RUN ON A GPU: no session so far had one. `copy` compiles with nvcc 13.0; the rest is what runs on the CPU.
# MODEL=file.gguf takes another model; TOKENS=n another length. Figures go to build/gpu/*.json; the dated table belongs
# in benchmarks/RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv-gpu}
python=$venv/bin/python
out=${OUT:-build/gpu}
mkdir -p "$out"

build() {
    nvcc --version
    # What the machine already has is used; where it reaches no registry, PIP_NO_INDEX=1 PIP_FIND_LINKS=folder brings the rest.
    [ -x "$python" ] || "${PYTHON:-python3}" -m venv --system-site-packages "$venv"
    # The build's own needs, then the package without isolation: a second build reuses build/ and takes seconds.
    "$python" -m pip install 'scikit-build-core>=0.11' 'cython>=3.1' 'cmake>=3.24' ninja pip
    "$python" -m pip install --no-build-isolation -C cmake.define.LLOYAL_CUDA=ON \
        -C cmake.define.CMAKE_CUDA_ARCHITECTURES="${CUDA_ARCH:-native}" -C build-dir=build/gpu-cuda '.[test,plot]'
    "$python" -P -m lloyal info
}

run_tests() {
    "$python" -P -m pytest -m gpu -ra
}

copy() {
    nvcc -O2 -o "$out/device_copy" benchmarks/cpp/device_copy.cu
    "$out/device_copy" | tee "$out/device_copy.txt"
}

bench() {
    # Large states, where the copies decide: the rows of a real model. The embedded one fills a few megabytes only.
    "$python" -P -m lloyal bench checkpoint --model "${MODEL:-nano}" --n-tokens "${TOKENS:-16384}" --json > "$out/checkpoint.json"
    "$python" -P - "$out/checkpoint.json" "$out/device_copy.txt" <<'PYTHON'
import json
import sys

result = json.load(open(sys.argv[1]))
try:
    best = max(float(line.split()[2]) for line in open(sys.argv[2]))
except FileNotFoundError:
    sys.exit("run `benchmarks/gpu.sh copy` first: there is nothing to compare with")
length = result["lengths"][-1]
ways = {way["name"]: way for way in length["ways"]}
ours, raw = ways["checkpoint, device"], ways.get("llama.cpp, ON_DEVICE")
print(f"{result['model']}, {length['n_tokens']} tokens, {length['state_bytes'] / 1e6:.1f} MB of state; a copy reaches {best:.0f} GB/s")
for what in ("save", "restore"):
    seconds = ours[what]["median"]
    speed = length["state_bytes"] / seconds / 1e9
    against = f", {seconds / raw[what]['median']:.3f} of the raw flag's time" if raw else ""
    print(f"{what:8} {seconds * 1e3:9.3f} ms  {speed:8.1f} GB/s, {speed / best:.2f} of the copy{against}")
print("every restored state is identical" if result["identical"] else "A RESTORED STATE DIFFERS")
PYTHON
}

case ${1:-} in
    build) build ;;
    test) run_tests ;;
    copy) copy ;;
    bench) bench ;;
    all) build && run_tests && copy && bench ;;
    *) sed -n '2,12p' "$0"; exit 2 ;;
esac
