#!/usr/bin/env bash
# Everything that needs a GPU, in parts, with the machine's own Python and no network: see benchmarks/gpu_suite.py.
#
#   tools/gpu.sh [PART...]      all parts, or those named (again): tools/gpu.sh --list names them with their planned seconds
#
# Results go to $OUT (default: out/gpu), first of all $OUT/summary.md. REHEARSE=1 goes through it without a GPU.
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-out/gpu} exec "${PYTHON:-python3}" -m benchmarks.gpu_suite "$@"
