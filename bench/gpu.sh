#!/usr/bin/env bash
# On a machine with a GPU, without a network, in at most nine minutes: build, test, compute-sanitizer, times, a profile.
# Every step runs whatever became of the others; FOLDER/gpu_NAME.json says how each went and what it found, and
# gpu_NAME.log beside it what each printed.
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
  last_code=$code
  printf '%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - begin))" >> "$work/steps.tsv"
  printf '== %s: exit code %s after %s s\n' "$name" "$code" "$((SECONDS - begin))"
  if [ "$code" -ne 0 ]; then
    failed=1
    tail -n 15 "$work/$name.log" 2> /dev/null
  fi
}

# a verdict of the self-check belongs to this run; a build from before nvcc was there remembers that it was not
export PIP_DISABLE_PIP_VERSION_CHECK=1 AHLM_CACHE="$work/cache" PATH=$PATH:/usr/local/cuda/bin # where CUDA installs nvcc
# what is installed already may be older, and its folder read-only
export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" TRITON_CACHE_DIR="$work/triton"
install=("$python" -m pip install --quiet --no-index --no-deps --no-build-isolation --upgrade --target "$work/site"
  --config-settings=build-dir="$work/build" .)
cuda=AUTO # without nvcc there are the Triton kernels to measure
command -v nvcc > /dev/null && cuda=ON
step build 150 env AHLM_CUDA=$cuda "${install[@]}"
if [ "$last_code" -ne 0 ]; then
  step build_without_cuda 60 env AHLM_CUDA=OFF "${install[@]}"
fi
# and not beside it: parts of an older installation would be measured in its place
step parts 30 "$python" -c 'import sys
from ahlm import _core
from ahlm.kernels import cuda
library = cuda.installed()
sys.exit(not _core.__file__.startswith(sys.argv[1]) or bool(library and not str(library.path).startswith(sys.argv[1])))
' "$work/site"
step resources 30 "$python" bench/gpu_scan.py resources --output "$work/resources.json"
# skipped tests end well too, so first: is there something to test
step card 50 bash -c '"$0" -c "import sys, torch; from ahlm.kernels import cuda; sys.exit(cuda.obstacle(torch.device(\"cuda\")))" &&
  "$0" -m pytest -v -W default -k on_the_card tests/kernels/test_cuda_*.py' "$python"
step triton 90 "$python" -m pytest -v -W default tests/kernels/triton_scans.py
for part in baselines cuda triton; do
  step "times_$part" 90 "$python" bench/gpu_scan.py $part --output "$work/times_$part.json"
done
for kernel in triton cuda reference; do
  step "steps_$kernel" 40 "$python" bench/gpu_scan.py steps --kernel $kernel --output "$work/steps_$kernel.json"
done
step profile 45 "$python" bench/gpu_scan.py profile --output "$work/profile.json"
for check in "memcheck cuda" "synccheck cuda" "memcheck triton"; do
  read -r tool kernel <<< "$check"
  # each tensor in memory of its own, so that what lies past its end is nobody's
  step "${tool}_$kernel" 45 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" \
    --report-api-errors no --error-exitcode 9 "$python" bench/gpu_scan.py small --kernel "$kernel" \
    --output "$work/small.json"
done

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
def of(part):
    path = work / f"{part}.json"
    return json.loads(path.read_text()) if path.is_file() else None


result["resources"] = of("resources")
result["times"] = [row for part in ("baselines", "cuda", "triton") for row in of(f"times_{part}") or []]
result["training_step_ms"] = [row for kernel in ("triton", "cuda", "reference") for row in of(f"steps_{kernel}") or []]
result["training_step"] = of("profile")
path = pathlib.Path(sys.argv[2]) / f"gpu_{re.sub('[^a-z0-9]+', '_', card.name.lower()).strip('_')}.json"
path.write_text(json.dumps(result, indent=1) + "\n")
with path.with_suffix(".log").open("w") as all_logs:
    for log in sorted(work.glob("*.log"), key=lambda log: log.stat().st_mtime):
        all_logs.write(f"== {log.stem}\n{log.read_text(errors='replace')}\n")
print(path)
PY
exit "$failed"
