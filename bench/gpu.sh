#!/usr/bin/env bash
# On a machine with a GPU, without a network, in at most nine minutes: build, test, compute-sanitizer, times, a profile.
# Every step runs whatever became of the others; FOLDER/gpu_NAME.json says how each went and what it found.
# Usage: bench/gpu.sh [FOLDER], by default bench/results.
# PYTHON names an interpreter that has torch, the dependencies of ahlm and of its tests, scikit-build-core and pybind11.
# Exit codes: 0, 1 a step failed, 3 no GPU.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
folder=${1:-$root/bench/results}
mkdir -p "$folder" && folder=$(realpath "$folder") || exit 1
cd "$root" || exit 1
python=${PYTHON:-python3}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
  echo "bench/gpu.sh: torch finds no GPU here; nothing was run" >&2
  exit 3
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

step() { # NAME SECONDS COMMAND...: at most so long, and no longer than the nine minutes
  local name=$1 seconds=$2 code=0 left=$((540 - SECONDS)) begin=$SECONDS
  shift 2
  [ "$seconds" -gt "$left" ] && seconds=$left
  if [ "$seconds" -le 0 ]; then
    code=124
  else
    timeout --kill-after=5 "$seconds" "$@" > "$work/$name.log" 2>&1 || code=$?
  fi
  printf '%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - begin))" >> "$work/steps.tsv"
  printf '== %s: exit code %s after %s s\n' "$name" "$code" "$((SECONDS - begin))"
  if [ "$code" -ne 0 ]; then
    failed=1
    tail -n 15 "$work/$name.log" 2> /dev/null
  fi
}

export PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=$PATH:/usr/local/cuda/bin # where CUDA installs its compiler
cuda=AUTO # without nvcc there are the Triton kernels to measure
command -v nvcc > /dev/null && cuda=ON
# a folder of its own: a build from before nvcc was there remembers that it was not
step build 150 env AHLM_CUDA=$cuda "$python" -m pip install --quiet --no-index --no-deps --no-build-isolation \
  --force-reinstall --config-settings=build-dir="$work/build" .
step resources 30 "$python" bench/gpu_scan.py resources --output "$work/resources.json"
step card 50 "$python" -m pytest -q -k on_the_card tests/kernels
step triton 90 "$python" -m pytest -v tests/kernels/triton_scans.py
for tool in memcheck synccheck; do
  step "$tool" 45 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" bench/gpu_scan.py small \
    --output "$work/small.json"
done
step times 200 "$python" bench/gpu_scan.py times --output "$work/times.json"
step profile 90 "$python" bench/gpu_scan.py profile --output "$work/profile.json"

driver=$(timeout 10 nvidia-smi --query-gpu=driver_version --format=csv,noheader 2> /dev/null)
"$python" - "$work" "$folder" "$driver" << 'PY' || failed=1
import csv, json, pathlib, re, sys, torch

work = pathlib.Path(sys.argv[1])
card = torch.cuda.get_device_properties(0)
result = {
    "device": card.name,
    "compute_capability": f"{card.major}.{card.minor}",
    "driver": sys.argv[3],
    "torch": torch.__version__,
    "cudnn": torch.backends.cudnn.version(),
    "steps": {},
}
with open(work / "steps.tsv") as file:
    for name, code, seconds in csv.reader(file, delimiter="\t"):
        log = work / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        result["steps"][name] = {"exit_code": int(code), "seconds": int(seconds), "last_lines": lines[-5:]}
for part in ("resources", "times", "profile"):
    if (work / f"{part}.json").is_file():
        result |= json.loads((work / f"{part}.json").read_text())
path = pathlib.Path(sys.argv[2]) / f"gpu_{re.sub('[^a-z0-9]+', '_', card.name.lower()).strip('_')}.json"
path.write_text(json.dumps(result, indent=1) + "\n")
print(path)
PY
exit "$failed"
