#!/bin/sh
# tools/format_csrc.sh [--check]: clang-format (pip install clang-format) over csrc; --check changes nothing and fails where it would.
cd "$(dirname "$0")/.." || exit 1
files=$(find csrc/common csrc/cpu csrc/build_info.cpp -name '*.cpp' -o -name '*.h' -o -name '*.inl')
if [ "$1" = --check ]; then clang-format --dry-run --Werror $files; else clang-format -i $files; fi
