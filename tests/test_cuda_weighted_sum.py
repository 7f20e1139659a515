"""The second product of byte charges (csrc/cuda/kernels/weighted_sum.cuh, weighted_sum_hopper.cuh), executed on the host: whole numbers,
so equality with plain sums is the test. And what the emulator must see of Hopper's products from registers, each fault planted."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests import cuda_tools

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

PROGRAM = r"""
#include <cstdio>
#include <cstdlib>
#include <string>
#include "kernels/weighted_sum_hopper.cuh"
using namespace pfgm;

std::string fault;

/// One warpgroup: 64 rows of A from registers, 48 rows of digits, two steps.
void planted(const uint8_t* from, int32_t* out) {
  unsigned char* memory = &shared_memory<unsigned char[48 * 128 + 2048]>()[0];
  memory += (1024 - shared_address(memory) % 1024) % 1024;
  Barrier* full = reinterpret_cast<Barrier*>(memory + 48 * 128);
  const int t = threadIdx.x;
  if (t == 0) barrier_init(full, 128);
  __syncthreads();
  for (int chunk = t; chunk < 48 * 8; chunk += 128)
    copy_async(memory + chunk / 8 * 128 + (chunk % 8 ^ chunk / 8 % 8) * 16, from + 16 * chunk, true);
  commit_copies();
  if (fault != "copies not waited for") wait_copies<0>();
  if (fault != "no proxy fence") proxy_fence();
  barrier_arrive(full);
  barrier_wait(full, 0);
  int32_t sum[24];
  uint32_t a[1][4];
  for (int step = 0; step < 2; ++step) {
    if (step > 0 && fault != "registers changed") group_wait<0>();
    for (int i = 0; i < 4; ++i) a[0][i] = t * 16777619u + 2654435761u * i + step;
    if (fault != "no fence") group_fence(a);
    multiply_group(sum, a[0], describe_tile(shared_address(memory)) + 2 * step, step > 0);
    group_commit();
  }
  if (fault == "sums used early") for (int i = 0; i < 24; ++i) out[24 * t + i] = sum[i];
  group_wait<0>();
  if (fault != "sums used early") for (int i = 0; i < 24; ++i) out[24 * t + i] = sum[i];
  if (fault == "copies not waited for") wait_copies<0>();
}
int run_planted() {
  auto* from = static_cast<uint8_t*>(aligned_alloc(16, 48 * 128));
  for (int k = 0; k < 48 * 128; ++k) from[k] = static_cast<uint8_t>((k + 7) * (k + 3) * 2246822519u >> 16);
  std::vector<int32_t> out(128 * 24);
  launch<planted>(1, 128, 48 * 128 + 2048, emulate::current_stream(0), from, out.data());
  for (int t = 0; t < 128; ++t)
    for (int i = 0; i < 24; ++i) {
      int64_t sum = 0;  // row 16 w + lane / 4 (+ 8), whose k lie with the four lanes of the row
      for (int k = 0; k < 64; ++k) {
        const uint32_t word = (t / 4 * 4 + k % 16 / 4) * 16777619u + 2654435761u * (i / 2 % 2 + 2 * (k % 32 / 16)) + k / 32;
        sum += static_cast<int64_t>(word >> 8 * (k % 4) & 255) * from[(8 * (i / 4) + 2 * (t % 4) + i % 2) * 128 + k];
      }
      if (sum != out[24 * t + i]) return 1;
    }
  return 0;
}

/// The sums of a call's dense queries, from wherever they lie; -1 behind the scratch memory stays.
std::vector<int64_t> sums_of(WeightedSumCall call, int64_t elements, bool hopper) {
  std::vector<int64_t> memory(elements + 16, -1), result;
  call.partial = memory.data();
  const Stream stream = emulate::current_stream(0);
  hopper ? launch_weighted_sum_hopper(call, stream) : launch_weighted_sum(call, stream);
  for (int i = 0; i < 16; ++i)
    if (memory[elements + i] != -1) throw std::logic_error("wrote behind its scratch memory");
  const int dense = *call.weight_digits.dense;
  for (int64_t slot = 0; slot < dense; ++slot)
    for (int64_t column = 0; column < call.dim; ++column) {
      int64_t sum = 0;
      visit_partial_sums(call, dense, slot, column, [&](const int64_t* part) {
        if (part < memory.data() || part >= memory.data() + elements) throw std::logic_error("a sum lies outside");
        sum += *part;
      });
      result.push_back(sum);
    }
  return result;
}

int main(int, char** arguments) {
  fault = arguments[1];
  try {
    if (fault != "kernel" && fault != "largest") {
      std::printf(run_planted() == 0 ? "right\n" : "wrong\n");
      return 0;
    }
    const int64_t batch = atoi(arguments[2]), count = atoi(arguments[3]), dim = atoi(arguments[4]);
    int dense = atoi(arguments[5]);
    const int blocks = atoi(arguments[6]);
    const int64_t stride = ceil_div<int64_t>(count, 64) * 64;
    auto* charges = static_cast<uint8_t*>(aligned_alloc(16, count * dim));
    auto* digits = static_cast<uint8_t*>(aligned_alloc(16, 3 * batch * stride));
    for (int64_t k = 0; k < count * dim; ++k)
      charges[k] = fault == "largest" ? 255 : static_cast<uint8_t>((k + 7) * (k + 3) * 2246822519u >> 16);
    for (int64_t k = 0; k < 3 * batch * stride; ++k)
      digits[k] = k % stride >= count ? 0 : fault == "largest" ? 255 : static_cast<uint8_t>(k * k * 2654435761u >> 16);
    std::vector<int> queries(batch);
    for (int64_t i = 0; i < batch; ++i) queries[i] = static_cast<int>((batch - 1 - i + batch / 3) % batch);
    WeightedSumCall call{charges, {}, nullptr, batch, count, dim, weighted_sum_splits(batch, count, dim), 0};
    call.weight_digits.digits = digits, call.weight_digits.stride = stride;
    call.weight_digits.dense = &dense, call.weight_digits.queries = queries.data();
    std::vector<int64_t> expected;
    if (fault == "kernel") expected = sums_of(call, call.splits * batch * dim, false);
    else expected.assign(dense * dim, count * 255 * (int64_t{255} * 65793));
    for (int i = 0; i < 3 && fault == "kernel" && dense > 0; ++i) {  // plain sums of a few
      const int64_t slot = (i + 1) * 7 % dense, column = (i + 1) * 61 % dim;
      int64_t sum = 0;
      for (int64_t j = 0; j < count; ++j) {
        const uint8_t* w = digits + queries[slot] * stride + j;
        sum += ((int64_t{w[0]} * 256 + w[batch * stride]) * 256 + w[2 * batch * stride]) * charges[j * dim + column];
      }
      if (sum != expected[slot * dim + column]) throw std::logic_error("wrong: the portable kernel");
    }
    call.blocks = blocks;
    const auto got = sums_of(call, sum_elements(batch, count, dim, blocks), true);
    std::printf(got == expected ? "right\n" : "wrong\n");
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
  }
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weighted_sum")
    (folder / "sum.cpp").write_text(PROGRAM)
    command = ["g++", "-std=c++20", "-O2", "-U_FORTIFY_SOURCE", *cuda_tools.HOST_INCLUDES, "sum.cpp"]
    subprocess.run([*command, "-Wno-unknown-pragmas", "-o", "sum"], cwd=folder, check=True)
    return folder / "sum"


def _run(program: Path, what: str, *numbers: int, order: str = "forward") -> str:
    done = subprocess.run(
        [str(program), what, *map(str, numbers)],
        env={"PFGM_FAST_EMULATOR_ORDER": order},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("batch", "count", "dim", "dense", "blocks"),
    [
        (5, 300, 64, 0, 3),  # nobody
        (3, 1, 64, 1, 3),  # one charge
        (20, 130, 80, 17, 3),  # edges of 16 queries, a stage, a chunk
        (
            64,
            700,
            272,
            33,
            2,
        ),  # a second column tile whose second warpgroup has no columns; pieces cut a tile
        (48, 257, 400, 48, 5),  # a whole tile of queries, and more blocks than work
        (90, 640, 128, 49, 3),  # two tiles of queries, one of them almost empty
        (130, 1100, 144, 65, 7),  # groups of two blocks, one block left over
        (128, 900, 96, 128, 2),  # more tiles of queries than blocks
        (40, 2000, 528, 40, 4),  # the ring of stages goes on from piece to piece
    ],
    ids=str,
)
def test_sums_are_exact(program: Path, batch: int, count: int, dim: int, dense: int, blocks: int) -> None:
    for order in ("forward", "backward", "1"):
        assert _run(program, "kernel", batch, count, dim, dense, blocks, order=order) == "right"


def test_the_largest_sums_fit(program: Path) -> None:
    """All bytes 255 over more charges than int32 holds products of: the one block cuts them in parts."""
    assert _run(program, "largest", 1, 33100, 64, 1, 1) == "right"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("", "right"),
        ("registers changed", "wrong"),
        ("sums used early", "wrong"),
        ("no fence", "without a fence"),
        ("no proxy fence", "may not see"),
        ("copies not waited for", "wrong"),
    ],
    ids=lambda value: value or "sound",
)
def test_a_planted_fault_is_found(program: Path, fault: str, said: str) -> None:
    for order in ("forward", "backward", "1"):
        assert said in _run(program, fault, order=order)
