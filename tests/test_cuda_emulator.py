"""The emulator itself: each fault that it is there to find, planted in a small kernel, is found; without the fault it is silent."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests import cuda_tools

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

PROGRAM = r"""
#include <cstdio>
#include <string>
#include "kernels/tensor_core.cuh"
using namespace pfgm;

constexpr int kThreads = 64;
struct Shared { alignas(16) float value[kThreads]; };

std::string fault;

/// out[t] = in[63 - t], through shared memory.
void reverse(const float* in, float* out) {
  Shared& shared = shared_memory<Shared>();
  const int t = threadIdx.x;
  if (fault == "overrun") shared.value[t + kThreads] = in[t];
  else if (fault == "copy unwaited" || fault == "copy") {
    if (t % 4 == 0) copy_async(&shared.value[t], in + t, true);
    commit_copies();
    if (fault == "copy") wait_copies<0>();
  }
  else if (!(fault == "unwritten" && t == 5)) shared.value[t] = in[t];
  if (fault == "divergent" && t < 32) { __syncthreads(); }
  else if (fault == "divergent") { if (t >= 32)
    __syncthreads(); }
  else if (fault == "one warp" && t >= 32) return;
  else if (fault == "lane") { if (t != 3) warp_reduce(1.0f, Sum{}); __syncthreads(); }
  else if (fault != "no barrier") __syncthreads();
  out[t] = shared.value[kThreads - 1 - t];
}

int main(int count, char** arguments) {
  fault = count > 1 ? arguments[1] : "";
  alignas(16) float in[kThreads], out[kThreads];
  for (int t = 0; t < kThreads; ++t) in[t] = static_cast<float>(t + 1), out[t] = -1;
  try {
    launch<reverse>(3, kThreads, sizeof(Shared), emulate::current_stream(0), in, out);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 2;
  }
  for (int t = 0; t < kThreads; ++t)
    if (out[t] != in[kThreads - 1 - t]) { std::printf("wrong\n"); return 1; }
  std::printf("right\n");
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emulator")
    (folder / "planted.cpp").write_text(PROGRAM)
    command = ["g++", "-std=c++20", "-O1", "-U_FORTIFY_SOURCE", *cuda_tools.HOST_INCLUDES, "planted.cpp"]
    subprocess.run([*command, "-Wno-unknown-pragmas", "-o", "planted"], cwd=folder, check=True)
    return folder / "planted"


def _run(program: Path, fault: str, order: str = "forward") -> str:
    done = subprocess.run(
        [str(program), fault],
        env={"PFGM_FAST_EMULATOR_ORDER": order},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 1, 2), done
    return done.stdout.strip()


@pytest.mark.parametrize("order", ["forward", "backward", "1", "2"])
@pytest.mark.parametrize("sound", ["", "copy"])
def test_a_sound_kernel_is_right_in_every_order(program: Path, sound: str, order: str) -> None:
    assert _run(program, sound, order) == "right"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no barrier", "wrong"),  # a thread reads what another has not written: poison
        ("unwritten", "wrong"),
        ("overrun", "wrote behind its shared memory"),
        ("copy unwaited", "copies in flight|wrong"),
        ("divergent", "different barriers"),
        ("one warp", "wrong"),  # the barrier opens for the living; what the others did not do shows
        ("lane", "deadlock"),
    ],
)
def test_a_planted_fault_is_found(program: Path, fault: str, said: str) -> None:
    output = _run(program, fault)
    assert any(part in output for part in said.split("|")), output
