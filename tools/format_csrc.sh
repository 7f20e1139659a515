#!/bin/sh
# tools/format_csrc.sh [--check]: clang-format (pip install clang-format) over csrc; --check changes nothing and fails where it would.
cd "$(dirname "$0")/.." || exit 1
files=$(find csrc/common csrc/cpu csrc/cuda csrc/build_info.cpp tests/cuda_host -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
if [ "$1" = --check ]; then clang-format --dry-run --Werror $files; else clang-format -i $files; fi
