"""A byte's value by the kernels (csrc/cuda/device.h, Values), all 256 of them: equal to division and addition, bit for bit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests import cuda_tools

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

PROGRAM = r"""
#include <cstdio>
#include <random>
#include "device.h"
using namespace pfgm;

/// Bytes of which the two ways differ.
template <class T>
int different(T divisor, T offset) {
  const Values<T> values(divisor, offset);
  int count = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const volatile T quotient = static_cast<T>(byte) / divisor;
    if (values(static_cast<uint8_t>(byte)) != quotient + offset) ++count;
  }
  return count;
}
template <class T>
int all(int random_divisors) {
  int count = 0;
  for (const T divisor : {T(127.5), T(255), T(1), T(85), T(51), T(0.1), T(1) / T(3), T(1e-3), T(12345.678)})
    for (const T offset : {T(0), T(-1), T(0.5), T(-3)}) count += different(divisor, offset);
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> exponent(-20, 20);
  for (int i = 0; i < random_divisors; ++i) count += different(static_cast<T>(std::exp2(exponent(random))), T(0));
  return count;
}
int main() {
  // What PyTorch on CUDA does with `byte / 127.5`, for comparison: times the reciprocal.
  int by_reciprocal = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const volatile float product = static_cast<float>(byte) * (1.0f / 127.5f), quotient = static_cast<float>(byte) / 127.5f;
    by_reciprocal += product != quotient ? 1 : 0;
  }
  std::printf("%d %d %d\n", all<float>(50000), all<double>(5000), by_reciprocal);
}
"""


def test_every_byte_is_divided_to_the_bit(tmp_path: Path) -> None:
    (tmp_path / "values.cpp").write_text(PROGRAM)
    command = ["g++", "-std=c++20", "-O2", "-ffp-contract=off", *cuda_tools.HOST_INCLUDES, "values.cpp"]
    subprocess.run([*command, "-Wno-unknown-pragmas", "-o", "values"], cwd=tmp_path, check=True)
    done = subprocess.run([str(tmp_path / "values")], capture_output=True, text=True, check=True)
    in_float, in_double, by_reciprocal = map(int, done.stdout.split())
    assert (in_float, in_double) == (0, 0)
    assert by_reciprocal > 0  # the comparison sees the fault that it is there to find
