"""The Hopper path of the first product (csrc/cuda/kernels/distance_gemm_hopper.cuh), executed on the host: whole numbers, so equality is
the test. And the emulator's Hopper part itself: each fault that it is there to find, planted, is found."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests import cuda_tools
from tests.test_cuda_bytes import _call, _case

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

PROGRAM = r"""
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include "kernels/distance_gemm_hopper.cuh"
using namespace pfgm;

std::string fault;

/// One warpgroup and a loading warp; sums of 64 × 256 over `stages` stages through two slots.
void planted(TensorMap a, TensorMap b, int stages, int32_t* out) {
  unsigned char* memory = &shared_memory<unsigned char[2 * 320 * 128 + 2048]>()[0];
  memory += (1024 - shared_address(memory) % 1024) % 1024;
  if (fault == "misaligned") memory += 64;
  Barrier* full = reinterpret_cast<Barrier*>(memory + 2 * 320 * 128);
  Barrier* empty = full + 2;
  const int t = threadIdx.x, warp = t / 32, lane = t % 32;
  if (t == 0 && fault != "not initialised")
    for (int i = 0; i < 2; ++i) barrier_init(full + i, 1), barrier_init(empty + i, 4);
  __syncthreads();
  if (warp == 4) {
    if (lane != 0) return;
    for (int k = 0; k < stages; ++k) {
      unsigned char* slot = memory + k % 2 * 320 * 128;
      if (fault != "overwritten") barrier_wait(empty + k % 2, (k / 2 & 1) ^ 1);
      barrier_expect(full + k % 2, fault == "too many announced" ? 320 * 128 + 16 : fault == "too few announced" ? 64 * 128 : 320 * 128);
      load_tile(slot, &a, 0, 128 * k, full + k % 2);
      load_tile(slot + 64 * 128, &b, 0, 128 * k, full + k % 2);
    }
    return;
  }
  int32_t sum[128];
  for (int k = 0; k < stages; ++k) {
    unsigned char* slot = memory + k % 2 * 320 * 128;
    if (fault != "not waited for") barrier_wait(full + k % 2, k / 2 & 1);
    if (fault != "no fence") group_fence();
    for (int step = 0; step < 4; ++step)
      multiply_group(sum, describe_tile(shared_address(slot)) + 2 * step, describe_tile(shared_address(slot + 64 * 128)) + 2 * step, k > 0 || step > 0);
    group_commit();
    const bool arrives = lane == 0 && fault != "never given back";
    if (arrives && fault == "given back early") barrier_arrive(empty + k % 2);
    if (fault != "sums not waited for" || k + 1 < stages) group_wait<0>();
    if (arrives && fault != "given back early") barrier_arrive(empty + k % 2);
    if (arrives && fault == "arrives twice") barrier_arrive(empty + k % 2);
  }
  for (int i = 0; i < 128; ++i)
    out[(16 * warp + lane / 4 + 8 * (i / 2 % 2)) * 256 + i / 4 * 8 + 2 * (lane % 4) + i % 2] = sum[i];
}

/// `batch` × `count` products of rows of `dim` bytes by plain loops.
bool right(const int8_t* x, const uint8_t* y, const int32_t* got, int64_t batch, int64_t count, int64_t dim) {
  for (int64_t i = 0; i < batch; ++i)
    for (int64_t j = 0; j < count; ++j) {
      int64_t sum = 0;
      for (int64_t k = 0; k < dim; ++k) sum += static_cast<int64_t>(x[i * dim + k]) * y[j * dim + k];
      if (sum != got[i * count + j]) return false;
    }
  return true;
}

/// The other digits of the first `open` queries of a shuffled list, by Hopper's kernel and by RestTile: all that is written, to the bit.
/// What is not multiplied lies beside what is; a query that is not finite is among them.
bool same_rest(DistanceGemmCall call, int open) {
  std::vector<int8_t> rest(rest_rows(call.batch) * call.dim, 77), digits(call.digits, call.digits + call.batch * call.dim);
  for (int digit = 1; digit < 3; ++digit)
    for (int64_t k = 0; k < call.batch * call.dim; ++k) digits.push_back(static_cast<int8_t>((k + digit) * (k + 5) * 2654435761u >> 13));
  std::vector<int> list(call.batch);
  for (int i = 0; i < call.batch; ++i) list[i] = static_cast<int>((i * 37 + 11) % call.batch);  // 37 does not divide a batch here
  std::vector<double> scale(call.batch), norms(call.count);
  for (int i = 0; i < call.batch; ++i) scale[i] = i == list[0] ? NAN : 1e-4 * (1 + i % 7) / 3;
  for (int64_t j = 0; j < call.count; ++j) norms[j] = 100.0 / (1 + j % 13);
  for (int64_t k = 0; k < call.batch * call.count; ++k) call.leading[k] = static_cast<int32_t>((k * k + 17) * 2246822519u) / 64;
  for (int64_t place = 0; place < open; ++place)
    for (int digit = 1; digit < 3; ++digit)
      memcpy(rest.data() + rest_row(place, digit) * call.dim, digits.data() + (digit * call.batch + list[place]) * call.dim, call.dim);
  auto* aligned = static_cast<int8_t*>(aligned_alloc(16, (rest.size() + 15) / 16 * 16));
  memcpy(aligned, rest.data(), rest.size());
  auto* all = static_cast<int8_t*>(aligned_alloc(16, digits.size()));
  memcpy(all, digits.data(), digits.size());
  call.digits = all, call.scale = scale.data(), call.sq_norms = norms.data(), call.splits = 1, call.divisor = 127.5;
  call.open = list.data(), call.open_count = &open;
  std::vector<double> gaps[2], least[2];
  for (int way = 0; way < 2; ++way) {
    gaps[way].assign(call.batch * call.count, -7), least[way].assign(call.batch * groups_of(call.count), -7);
    call.gaps = gaps[way].data(), call.least = least[way].data();
    if (way == 0) launch_distance_gemm<RestTile>(call, emulate::current_stream(0));
    else launch_rest_by_hopper(call, aligned, emulate::current_stream(0));
  }
  const auto equal = [](const std::vector<double>& a, const std::vector<double>& b) { return memcmp(a.data(), b.data(), 8 * a.size()) == 0; };
  const int64_t written = std::count_if(gaps[1].begin(), gaps[1].end(), [](double gap) { return gap != -7; });
  return equal(gaps[0], gaps[1]) && equal(least[0], least[1]) && written == open * call.count;
}

int main(int, char** arguments) {
  const int64_t batch = atoi(arguments[1]), count = atoi(arguments[2]), dim = atoi(arguments[3]);
  fault = arguments[4];
  auto* x = static_cast<int8_t*>(aligned_alloc(16, batch * dim));
  auto* y = static_cast<uint8_t*>(aligned_alloc(16, count * dim));
  for (int64_t k = 0; k < batch * dim; ++k) x[k] = static_cast<int8_t>(k * k * 2654435761u >> 16);
  for (int64_t k = 0; k < count * dim; ++k) y[k] = static_cast<uint8_t>((k + 7) * (k + 3) * 2246822519u >> 16);
  std::vector<int32_t> out(batch * count, -1);
  try {
    DistanceGemmCall call{};
    call.digits = x, call.charges = y, call.batch = batch, call.count = count, call.dim = dim, call.leading = out.data();
    if (fault.starts_with("rest ")) {
      std::printf(same_rest(call, atoi(fault.c_str() + 5)) ? "the same\n" : "not the same\n");
      return 0;
    }
    if (fault == "kernel") {
      launch_first_by_hopper(call, emulate::current_stream(0));
    } else {
      launch<planted>(1, 160, 2 * 320 * 128 + 2048, emulate::current_stream(0), make_tensor_map(x, batch, dim, 64), make_tensor_map(y, count, dim, 256),
             static_cast<int>(ceil_div<int64_t>(dim, 128)), out.data());
    }
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 0;
  }
  std::printf(right(x, y, out.data(), batch, count, dim) ? "right\n" : "wrong\n");
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hopper")
    (folder / "hopper.cpp").write_text(PROGRAM)
    command = ["g++", "-std=c++20", "-O2", "-U_FORTIFY_SOURCE", *cuda_tools.HOST_INCLUDES, "hopper.cpp"]
    subprocess.run([*command, "-Wno-unknown-pragmas", "-o", "hopper"], cwd=folder, check=True)
    return folder / "hopper"


def _run(program: Path, shape: tuple[int, int, int], fault: str, order: str = "forward") -> str:
    done = subprocess.run(
        [str(program), *map(str, shape), fault],
        env={"PFGM_FAST_EMULATOR_ORDER": order},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout.strip()


@pytest.mark.parametrize("order", ["forward", "backward", "1"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 16), (128, 256, 128), (130, 257, 144), (37, 771, 656), (300, 520, 272)],
    ids=str,  # one tile; a full one; edges; the ring of stages wraps; several tiles a block
)
def test_products_are_exact(program: Path, shape: tuple[int, int, int], order: str) -> None:
    assert _run(program, shape, "kernel", order) == "right"


@pytest.mark.parametrize(
    ("shape", "opens"),
    [
        ((1, 1, 16), (0, 1)),
        ((9, 33, 80), (0, 1, 7, 8, 9)),
        ((65, 300, 144), (1, 31, 32, 33, 63, 64, 65)),  # a warpgroup without rows; one tile of rows, and two
        ((129, 129, 16), (127, 128, 129)),
        ((20, 900, 656), (5, 20)),  # the ring of stages wraps; a last round of halves
        ((15, 1025, 16), (15,)),  # one of whole tiles
    ],
    ids=str,
)
def test_the_other_digits_are_the_same_bit_for_bit(
    program: Path, shape: tuple[int, int, int], opens: tuple[int, ...]
) -> None:
    for number, queries in enumerate(opens):
        order = ("forward", "backward", "1")[number % 3]
        assert _run(program, shape, f"rest {queries}", order) == "the same", queries


@pytest.mark.parametrize("order", ["forward", "backward", "1"])
def test_a_sound_pipeline_is_right(program: Path, order: str) -> None:
    assert _run(program, (64, 256, 592), "", order) == "right"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("not waited for", "wrong|more arrive|deadlock"),
        ("too many announced", "deadlock"),
        ("too few announced", "more bytes than were announced"),
        ("no fence", "without a fence"),
        ("given back early", "wrong"),
        ("overwritten", "wrong|more arrive|more bytes"),
        ("never given back", "deadlock"),
        ("arrives twice", "wrong|more arrive|deadlock"),
        ("sums not waited for", "in flight"),
        ("misaligned", "misaligned"),
        ("not initialised", "before it is initialised"),
    ],
)
def test_a_planted_fault_is_found(program: Path, fault: str, said: str) -> None:
    """In some order of threads, as for a race on a GPU."""
    outputs = [_run(program, (64, 256, 592), fault, order) for order in ("forward", "backward", "1")]
    assert any(part in output for part in said.split("|") for output in outputs), outputs


@pytest.mark.parametrize("shape", [(33, 420, 64), (131, 260, 96), (140, 1030, 592)], ids=str)
def test_the_field_is_the_same_bit_for_bit(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.ops.load_library(str(cuda_tools.host_library()))
    case = _case(*shape, 10.0)
    monkeypatch.setenv("PFGM_FAST_CUDA_HOPPER", "0")
    expected = _call("poisson_field", case)
    monkeypatch.delenv("PFGM_FAST_CUDA_HOPPER")
    for got, value in zip(_call("poisson_field", case), expected, strict=True):
        assert torch.equal(got, value)
