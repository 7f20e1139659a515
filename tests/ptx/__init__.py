"""A small machine that executes compiled PTX on the host.

What it is for: kernels are checked on the host by the emulator too, but there the meaning of `mma`, `ldmatrix` and `wgmma` is written in
C++ beside the kernels, and a fragment layout misread in both would not show. Here the *compiled* PTX runs, by the instruction
set's own description (PTX ISA 8.x), and the same machine runs Triton's compiled int8 `tl.dot` (sm_80: `mma`, `ldmatrix`, `cp.async`;
sm_90: `wgmma` with descriptors in three swizzles), whose layouts real devices have proven, and this package's byte kernels in Triton.

What it leaves out: the memory model (threads of a block run in lockstep, the least program counter first, so races within a block do not
show; blocks run one after another; fences between proxies are taken as given), `ptxas` (it executes PTX, not machine code), caches,
denormal flushing (`.ftz` and `.approx` are computed exactly), clusters and multicast, and every time. Of Hopper it knows what the byte
path uses: barriers in one block, two-dimensional tensor maps of bytes in the 128-byte swizzle, byte products of both operands in shared
memory. How the driver encodes a tensor map is left out too (`make_tensor_map` in csrc/cuda/kernels/hopper.cuh): the host's own
description takes its place. Products of floats are unknown to it, so Triton's sums of weights (bfloat16) do not run here.

  program.py   PTX text → kernels: parameters, registers, instructions
  machine.py   a block of threads: registers, control flow, barriers, memory
  instructions.py  what each instruction does to them
  scalar.py    arithmetic of one thread's registers
  matrix.py    what a warp does together: shuffles, ldmatrix, mma
  hopper.py    mbarrier, tensor-map loads, wgmma
"""
