"""Fragments, descriptors and swizzles of the matrix instructions, exhaustively, against tables that are written here as the public
documents have them: the PTX ISA's (sections "Matrix fragments for mma.m16n8k32", "ldmatrix", "wgmma.mma_async: register
fragments", "Matrix descriptor format", "Swizzling modes") and CuTe's published layouts (mma_traits_sm80.hpp,
mma_traits_sm90_gmma.hpp, mma_sm90_desc.hpp, swizzle.hpp). What is tested: the emulator's instructions, and the kernels' own
addresses (fragment_lane, fragment_pair_lane, describe_tile). A planted permutation shows that each comparison sees a fault."""

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
#include "kernels/hopper.cuh"
using namespace pfgm;

std::string fault;
int failures = 0;
void expect(bool right, const char* what) {
  if (!right && ++failures == 1) std::printf("wrong: %s\n", what);
}

// ---- the PTX ISA's tables ----------------------------------------------------------------------------------------------
struct Place { int row, column; };
/// mma.m16n8k32, 8-bit types: element i (0 to 15) of a lane's A.
Place isa_a(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  const bool upper = (0 <= i && i < 4) || (8 <= i && i < 12);
  return {upper ? group : group + 8, i < 8 ? in_group * 4 + (i & 3) : in_group * 4 + (i & 3) + 16};
}
/// Element i (0 to 7) of a lane's B: row is k.
Place isa_b(int lane, int i) { return {i < 4 ? lane % 4 * 4 + (i & 3) : lane % 4 * 4 + (i & 3) + 16, lane >> 2}; }
/// Element i (0 to 3) of a lane's C and D.
Place isa_c(int lane, int i) { return {i < 2 ? lane >> 2 : (lane >> 2) + 8, lane % 4 * 2 + (i & 1)}; }
/// wgmma m64nNk32, 32-bit D: element i of a thread of the warpgroup.
Place isa_d(int thread, int i) {
  return {thread / 32 * 16 + thread % 32 / 4 + (i % 4 >= 2 ? 8 : 0), i / 4 * 8 + thread % 4 * 2 + i % 2};
}

// ---- CuTe's layouts: (thread, value) → index in a column-major tile ------------------------------------------------------
struct Mode { int shape, stride; };
template <size_t kModes>
int offset(int at, const Mode (&modes)[kModes]) {
  int result = 0;
  for (const Mode& mode : modes) result += at % mode.shape * mode.stride, at /= mode.shape;
  return result;
}
constexpr Mode kAThread[] = {{4, 64}, {8, 1}}, kAValue[] = {{4, 16}, {2, 8}, {2, 256}};   // SM80_16x8x32_S32U8S8S32_TN::ALayout
constexpr Mode kBThread[] = {{4, 32}, {8, 1}}, kBValue[] = {{4, 8}, {2, 128}};            // BLayout
constexpr Mode kCThread[] = {{4, 32}, {8, 1}}, kCValue[] = {{2, 16}, {2, 8}};             // SM80_16x8_Row
constexpr Mode kDThread[] = {{4, 128}, {8, 1}, {4, 16}}, kDValue[] = {{2, 64}, {2, 8}, {32, 512}};  // GMMA CLayout_64x256
/// Swizzle<3, 4, 3>: GMMA::Layout_K_SW128_Atom.
int cute_swizzle(int x) { return x ^ ((x & (7 << 7)) >> 3); }

void tables_agree() {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 16; ++i) expect(isa_a(lane, i).row + 16 * isa_a(lane, i).column == offset(lane, kAThread) + offset(i, kAValue), "A: ISA and CuTe");
    for (int i = 0; i < 8; ++i) expect(isa_b(lane, i).column + 8 * isa_b(lane, i).row == offset(lane, kBThread) + offset(i, kBValue), "B: ISA and CuTe");
    for (int i = 0; i < 4; ++i) expect(isa_c(lane, i).row + 16 * isa_c(lane, i).column == offset(lane, kCThread) + offset(i, kCValue), "C: ISA and CuTe");
  }
  for (int thread = 0; thread < 128; ++thread)
    for (int i = 0; i < 128; ++i) expect(isa_d(thread, i).row + 64 * isa_d(thread, i).column == offset(thread, kDThread) + offset(i, kDValue), "D: ISA and CuTe");
}

// ---- mma: every element of A alone, against a B of 256 different bytes ----------------------------------------------------
template <bool kSigned>
void every_element() {
  const int lane = threadIdx.x;
  uint32_t b[2] = {};
  for (int i = 0; i < 8; ++i) b[i / 4] |= static_cast<uint32_t>(isa_b(lane, i).row * 8 + isa_b(lane, i).column) << 8 * (i % 4);
  for (int owner = 0; owner < 32; ++owner)
    for (int element = 0; element < 16; ++element) {
      uint32_t a[4] = {};
      if (lane == owner) a[element / 4] = 255u << 8 * (element % 4);  // 255: an unsigned operand
      int32_t c[4] = {};
      multiply<kSigned>(c, a, b);
      Place one = isa_a(owner, element);
      if (fault == "mma") one.row ^= 8;
      for (int i = 0; i < 4; ++i) {
        const Place at = isa_c(lane, i);
        const int code = one.column * 8 + at.column;
        expect(c[i] == (at.row == one.row ? 255 * (kSigned ? static_cast<int8_t>(code) : code) : 0), "mma.m16n8k32");
      }
    }
}

// ---- ldmatrix, and the kernels' addresses of A and pairs of B in a swizzled tile -----------------------------------------
struct Tile { alignas(16) uint8_t at[64 * kDepth]; };
void matrices() {
  Tile& tile = shared_memory<Tile>();
  const int lane = threadIdx.x;
  const auto code = [](int row, int k) { return static_cast<uint8_t>(row * 67 + k * 5 + row * k); };
  for (int row = lane; row < 64; row += 32)
    for (int k = 0; k < kDepth; ++k) tile.at[swizzled(row, k / kChunk) + k % kChunk] = code(row, k);
  __syncthreads();
  // x4, plain: lane 8 m + i names row i of matrix m; register m of lane t is row t / 4, 16-bit elements 2 (t % 4) and the next.
  uint32_t got[4];
  load_matrix(got, tile.at + swizzled(lane, 0));
  for (int m = 0; m < 4; ++m)
    for (int byte = 0; byte < 4; ++byte) {
      const int row = 8 * m + lane / 4 + (fault == "ldmatrix" ? 1 : 0);
      expect(static_cast<uint8_t>(got[m] >> 8 * byte) == code(row, 4 * (lane % 4) + byte), "ldmatrix.x4");
    }
  for (int step = 0; step < kDepth / 32; ++step)
    for (int first = 0; first < 48; first += 16) {
      uint32_t a[4], pair[4];
      load_matrix(a, tile.at + first * kDepth + (fragment_lane() ^ 32 * step));
      load_matrix(pair, tile.at + first * kDepth + (fragment_pair_lane() ^ 32 * step));
      for (int i = 0; i < 16; ++i) {
        const Place at = isa_a(lane, i);
        expect(static_cast<uint8_t>(a[i / 4] >> 8 * (i % 4)) == code(first + at.row, 32 * step + at.column), "fragment_lane: A");
      }
      for (int i = 0; i < 8; ++i) {
        const Place at = isa_b(lane, i);
        expect(static_cast<uint8_t>(pair[i / 4] >> 8 * (i % 4)) == code(first + at.column, 32 * step + at.row), "fragment_pair_lane: left");
        expect(static_cast<uint8_t>(pair[2 + i / 4] >> 8 * (i % 4)) == code(first + 8 + at.column, 32 * step + at.row), "fragment_pair_lane: right");
      }
    }
}

// ---- wgmma: descriptor, swizzle, sums ------------------------------------------------------------------------------------
int descriptor_bits(uint64_t descriptor, int begin, int end) { return static_cast<int>(descriptor >> begin & ((1ull << (end - begin + 1)) - 1)); }
int8_t left(int row, int k) { return static_cast<int8_t>(row * 37 + k * 11 + (row * k >> 2)); }
uint8_t right(int row, int k) { return static_cast<uint8_t>(row * 29 + k * 3 + (row * k >> 1)); }
void warpgroup() {
  unsigned char* memory = &shared_memory<unsigned char[320 * 128 + 1024]>()[0];
  memory += (1024 - shared_address(memory) % 1024) % 1024;
  const uint32_t base = shared_address(memory);
  const int thread = threadIdx.x;
  for (int row = thread; row < 320; row += 128)
    for (int k = 0; k < 128; ++k)
      memory[cute_swizzle(row * 128 + k)] = row < 64 ? static_cast<uint8_t>(left(row, k)) : right(row - 64, k);
  __syncthreads();
  for (int step = 0; step < 4; ++step) {
    const uint64_t a = describe_tile(base) + 2 * step, b = describe_tile(base + 64 * 128) + 2 * step;
    expect(descriptor_bits(a, 0, 13) == static_cast<int>((base + 32 * step & 0x3ffff) >> 4), "descriptor: start address");
    expect(descriptor_bits(b, 0, 13) == static_cast<int>((base + 64 * 128 + 32 * step & 0x3ffff) >> 4), "descriptor: start address");
    expect(descriptor_bits(a, 32, 45) == 1024 / 16, "descriptor: stride between groups of eight rows");
    expect(descriptor_bits(a, 49, 51) == 0, "descriptor: base offset of an aligned tile");
    expect(descriptor_bits(a, 62, 63) == 1, "descriptor: 128-byte swizzle");
    expect(descriptor_bits(a, 14, 15) == 0 && descriptor_bits(a, 30, 31) == 0 && descriptor_bits(a, 46, 48) == 0 && descriptor_bits(a, 52, 61) == 0, "descriptor: zeros");
    int32_t sum[128];
    group_fence();
    multiply_group(sum, a, b, false);
    group_commit();
    group_wait<0>();
    for (int i = 0; i < 128; ++i) {
      const Place at = isa_d(thread, i);
      const int column = at.column ^ (fault == "wgmma" ? 1 : 0);
      int product = 0;
      for (int k = 32 * step; k < 32 * step + 32; ++k) product += left(at.row, k) * right(column, k);
      expect(sum[i] == product, "wgmma.m64n256k32");
    }
  }
}

int main(int, char** arguments) {
  fault = arguments[1];
  const auto stream = emulate::current_stream(0);
  try {
    tables_agree();
    for (int row = 0; row < 256; ++row)
      for (int byte = 0; byte < 128; ++byte) {
        const uint32_t address = row * 128 + byte;
        const int chunk = (byte / 16) ^ (row % 8) ^ (fault == "swizzle" ? 1 : 0);  // the ISA's figure: chunks of 16 bytes, crossed with the row
        expect(cute_swizzle(address) == row * 128 + chunk * 16 + byte % 16, "swizzle: ISA and CuTe");
        expect(static_cast<int>(emulate::swizzled_address(address)) == cute_swizzle(address), "swizzle");
      }
    launch<every_element<true>>(1, 32, 0, stream);
    launch<every_element<false>>(1, 32, 0, stream);
    launch<matrices>(1, 32, sizeof(Tile), stream);
    launch<warpgroup>(1, 128, 320 * 128 + 1024, stream);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 2;
  }
  if (failures == 0) std::printf("right\n");
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "layouts.cpp").write_text(PROGRAM)
    command = ["g++", "-std=c++20", "-O1", "-U_FORTIFY_SOURCE", *cuda_tools.HOST_INCLUDES, "layouts.cpp"]
    subprocess.run([*command, "-Wno-unknown-pragmas", "-o", "layouts"], cwd=folder, check=True)
    return folder / "layouts"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("", "right"),
        ("mma", "wrong: mma.m16n8k32"),
        ("ldmatrix", "wrong: ldmatrix.x4"),
        ("wgmma", "wrong: wgmma.m64n256k32"),
        ("swizzle", "wrong: swizzle: ISA and CuTe"),
    ],
    ids=lambda value: value or "as published",
)
def test_layouts_are_the_published_ones(program: Path, fault: str, said: str) -> None:
    done = subprocess.run([str(program), fault], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == said, done
