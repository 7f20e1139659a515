#!/usr/bin/env bash
# Everything that needs a GPU, in parts, with the machine's own Python and no network:
#
#   tools/gpu.sh [PART...]      all parts, or those named: build tests memcheck racecheck bench
#
# A part that has already succeeded in $OUT (default: out/gpu) is not run again; FRESH=1 runs it all the same. A part that
# fails does not stop the later ones; the exit status is the number of failed parts. A part that this machine cannot run is
# skipped, with the reason. Each part has a time limit, and all of them together stay below nine minutes.
# DATA names the images of the CIFAR-10 rows (default: shared/ in or beside the checkout, else random images); BENCH holds
# arguments for benchmarks.gpu (BENCH="--device cpu --tiny" rehearses that part without a GPU).
# Written to $OUT: PART.log, gpu.jsonl, gpu.md, summary.txt.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-out/gpu}
BENCH=${BENCH:-}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
if [ -z "${DATA:-}" ]; then
  for DATA in shared/data/cifar10-jpeg-train.zip ../shared/data/cifar10-jpeg-train.zip ""; do [ -e "$DATA" ] && break; done
fi
[ -d shared ] && export PFGM_FAST_SHARED=${PFGM_FAST_SHARED:-$PWD/shared}
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PFGM_FAST_OUT="$OUT"
readonly SKIPPED=77

machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv
  nvcc --version | tail -2
  "$PYTHON" -c 'import sys, torch, triton; print(sys.version); print("torch", torch.__version__, "triton", triton.__version__); assert torch.cuda.is_available(), "PyTorch sees no CUDA device"; print(torch.cuda.get_device_properties(0))'
}
build() {
  machine
  PFGM_FAST_CUDA=1 PFGM_FAST_CPU=1 "$PYTHON" setup.py build_ext --inplace
  "$PYTHON" -m pfgm_fast info
}
tests() {
  "$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "PyTorch sees no CUDA device: every test would be skipped"'
  local parallel=()
  "$PYTHON" -c 'import xdist' 2>/dev/null && parallel=(-n 4)  # Triton compiles on the processor, a kernel at a time
  "$PYTHON" -m pytest tests/gpu -m gpu -q -rs --durations=5 -p no:cacheprovider "${parallel[@]}"
}
sanitize() {  # TOOL: runs it, or says why it cannot run here
  if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is not on the PATH: it comes with the CUDA toolkit"
    return $SKIPPED
  fi
  local said
  if ! said=$(compute-sanitizer --tool "$1" --error-exitcode 1 "$PYTHON" -c 'import torch; torch.zeros(1, device="cuda").add_(1).item()' 2>&1); then
    echo "$said"
    echo "compute-sanitizer does not run on this machine: $(grep -m1 -iE 'error|not supported' <<<"$said" || tail -n 1 <<<"$said")"
    return $SKIPPED
  fi
  compute-sanitizer --tool "$1" --error-exitcode 1 --launch-timeout 60 "$PYTHON" -m tests.gpu.sanitize
}
memcheck() { PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitize memcheck; }  # caching would hide accesses behind the end of an array
racecheck() { sanitize racecheck; }
bench() { "$PYTHON" -m benchmarks.gpu --out "$OUT" ${DATA:+--data "$DATA"} $BENCH; }

declare -A LIMIT=([build]=180 [tests]=110 [memcheck]=60 [racecheck]=60 [bench]=125)
PARTS=("$@")
[ ${#PARTS[@]} -gt 0 ] || PARTS=(build tests memcheck racecheck bench)
export -f machine build tests sanitize memcheck racecheck bench
export PYTHON OUT DATA BENCH SKIPPED

failed=0
for part in "${PARTS[@]}"; do
  if [ -z "${LIMIT[$part]:-}" ]; then
    echo "tools/gpu.sh: no part '$part' (parts: ${!LIMIT[*]})" >&2
    failed=$((failed + 1))
    continue
  fi
  if [ -z "${FRESH:-}" ] && grep -q "^$part ok" "$OUT/summary.txt" 2>/dev/null; then
    echo "== $part: done before"
    continue
  fi
  echo "== $part"
  began=$SECONDS
  timeout --kill-after=5 "${LIMIT[$part]}" bash -c "set -e; $part" >"$OUT/$part.log" 2>&1
  code=$?
  [ -f "$OUT/summary.txt" ] && sed -i "/^$part /d" "$OUT/summary.txt"
  if [ $code -eq 0 ]; then
    echo "$part ok $((SECONDS - began)) s" | tee -a "$OUT/summary.txt"
  elif [ $code -eq $SKIPPED ]; then
    echo "$part skipped: $(tail -n 1 "$OUT/$part.log")" | tee -a "$OUT/summary.txt"
  else
    failed=$((failed + 1))
    echo "$part FAILED ($code) $((SECONDS - began)) s" | tee -a "$OUT/summary.txt"
    tail -n 30 "$OUT/$part.log"
  fi
done
[ -f "$OUT/gpu.md" ] && cat "$OUT/gpu.md"
cat "$OUT/summary.txt"
exit $failed
