"""The kernels of the fused steps: out = [x +] a v [+ b v'] [+ c x], numbers of a row that depend on ‖v‖ and ‖v'‖; BOUNDED, where the
charges are known to lie in a ball, also on the row's products with x (`reference.bounded`), and only then there is a c.

`reference` defines each operator; csrc/cuda/kernels/step_kernels.cuh is the same in CUDA C++. What an operator lacks (x, v', z') is
None, so each gets a kernel without it. Arrays are (rows, dim) and contiguous; v may be of any floating dtype, everything else
happens in T, the dtype of x. Three ways, from the length of a row and the number of rows (`steps.plan`):

| kernel | a program has | reads, writes of (rows, dim) | launches |
|---|---|---|---|
| `row_kernel` | ROWS whole rows in registers | v, v', x once; out once | 1 |
| `sweep_kernel` | a row, twice: the norm, then backwards the update, which begins with what is still in cache | v, v' twice; x, out once | 1 |
| `square_kernel`, `segment_kernel` | a segment of a row; squares meet in memory, are added in a fixed order | v, v' twice; x, out once | 2 |

Where no row needs a norm (z ≥ z_exp) the second and third way read v once. Bound by memory: about 6 operations an element
against 12 bytes (float32). Sums of squares are trees over a tile after at most dim/BLOCK additions an element, in T.
"""

from __future__ import annotations

from pfgm_fast.backends.triton.runtime import jit, tl
from pfgm_fast.backends.triton.step_factors import factors


@jit
def normed(row, dim, z, z_next, z_stride, z_next_stride, z_exp, HEUN: tl.constexpr, ALWAYS: tl.constexpr):
    """dim, the columns whose squares count, or 0 where no factor of this row asks for a norm: z (HEUN: and z') ≥ z_exp."""
    if ALWAYS:
        end = dim
    else:
        end = tl.where(tl.load(z + row * z_stride) < z_exp, dim, 0)
        if HEUN:
            end = tl.where(tl.load(z_next + row * z_next_stride) < z_exp, dim, end)
    return end


@jit
def tile(pointer, at, inside, T: tl.constexpr, KEEP: tl.constexpr):
    """A tile in T, 0 outside; None of None. KEEP: it will soon be read again."""
    POLICY: tl.constexpr = "evict_last" if KEEP else "evict_first"
    values = None
    if pointer is not None:
        values = tl.load(pointer + at, mask=inside, other=0.0, eviction_policy=POLICY).to(T)
    return values


@jit
def squared(values, like):
    """values², or 0 in the shape of `like` where values is None."""
    if values is None:
        return tl.zeros_like(like)
    else:
        return values * values


@jit
def moved(x, v, v_next, a, b, c, ADDS: tl.constexpr, BOUNDED: tl.constexpr):
    """[x +] a v [+ b v'] [+ c x]."""
    change = a * v
    if v_next is not None:
        change += b * v_next
    if BOUNDED:
        change += (1 + c if ADDS else c) * x
    elif ADDS:
        change += x
    return change


@jit(do_not_specialize=["rows", "z_stride", "z_next_stride"])
def row_kernel(
    x,  # (rows, dim), or None
    v,  # (rows, dim)
    v_next,  # (rows, dim), or None
    out,  # (rows, dim); may be x
    vz,  # (rows,); read, or written where NORMALIZE
    vz_next,  # (rows,), or None
    z,  # (rows,) with a stride of 1 or 0
    z_next,  # the same, or None
    rows,
    dim: tl.int64,
    z_stride,
    z_next_stride,
    root: tl.float64,  # √dim
    gamma: tl.float64,
    z_exp: tl.float64,
    radius: tl.float64,  # with its slack; where BOUNDED
    T: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BOUNDED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,  # ≥ dim
):
    """ROWS rows a program, all in registers: everything is asked for before the sum that the update waits for."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mine = row < rows
    column = tl.arange(0, BLOCK)
    at = row[:, None] * dim + column[None, :]
    inside = mine[:, None] & (column < dim)[None, :]
    here = tile(v, at, inside, T, False)
    there = tile(v_next, at, inside, T, False)
    base = tile(x, at, inside, T, False)
    vv, ww = tl.sum(here * here, 1), tl.sum(squared(there, here), 1)
    xx, xv, xw, vw = vv, vv, vv, vv
    if BOUNDED:
        xx, xv = tl.sum(base * base, 1), tl.sum(base * here, 1)
        if v_next is not None:
            xw, vw = tl.sum(base * there, 1), tl.sum(here * there, 1)
    a, b, c = factors(
        vv,
        ww,
        xx,
        xv,
        xw,
        vw,
        row,
        mine,
        mine,
        vz,
        vz_next,
        z,
        z_next,
        z_stride,
        z_next_stride,
        root,
        gamma,
        z_exp,
        radius,
        T,
        NORMALIZE,
        BOUNDED,
    )
    tl.store(
        out + at,
        moved(base, here, there, a[:, None], b[:, None], c[:, None], z_next is not None, BOUNDED),
        mask=inside,
        eviction_policy="evict_first",
    )


@jit(do_not_specialize=["z_stride", "z_next_stride"])
def sweep_kernel(
    x,
    v,
    v_next,
    out,
    vz,
    vz_next,
    z,
    z_next,
    dim: tl.int64,
    z_stride,
    z_next_stride,
    root: tl.float64,
    gamma: tl.float64,
    z_exp: tl.float64,
    radius: tl.float64,  # with its slack; where BOUNDED
    T: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BOUNDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row a program, arguments as in `row_kernel`: forwards for the norm, backwards for the update."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    squares, squares_next = tl.zeros([BLOCK], T), tl.zeros([BLOCK], T)
    xx, xv, xw, vw = squares, squares, squares, squares
    end = normed(
        row, dim, z, z_next, z_stride, z_next_stride, z_exp, vz_next is not None, NORMALIZE or BOUNDED
    )
    for start in range(0, end, BLOCK):
        inside = start + column < dim
        at = row * dim + start + column
        here = tile(v, at, inside, T, True)
        there = tile(v_next, at, inside, T, True)
        squares += here * here
        squares_next += squared(there, here)
        if BOUNDED:
            base = tile(x, at, inside, T, True)
            xx += base * base
            xv += base * here
            if v_next is not None:
                xw += base * there
                vw += here * there
    a, b, c = factors(
        tl.sum(squares, 0),
        tl.sum(squares_next, 0),
        tl.sum(xx, 0),
        tl.sum(xv, 0),
        tl.sum(xw, 0),
        tl.sum(vw, 0),
        row,
        True,
        True,
        vz,
        vz_next,
        z,
        z_next,
        z_stride,
        z_next_stride,
        root,
        gamma,
        z_exp,
        radius,
        T,
        NORMALIZE,
        BOUNDED,
    )
    tiles = tl.cdiv(dim, BLOCK)
    for done in range(0, tiles):
        start = (tiles - 1 - done) * BLOCK
        inside = start + column < dim
        at = row * dim + start + column
        here = tile(v, at, inside, T, False)
        there = tile(v_next, at, inside, T, False)
        base = tile(x, at, inside, T, False)
        tl.store(
            out + at,
            moved(base, here, there, a, b, c, z_next is not None, BOUNDED),
            mask=inside,
            eviction_policy="evict_first",
        )


@jit(do_not_specialize=["rows", "z_stride", "z_next_stride"])
def square_kernel(
    x,
    v,
    v_next,
    z,
    z_next,
    partial,  # (1 or 2; BOUNDED: 3 or 6, rows, segments) in T
    rows,
    dim: tl.int64,
    z_stride,
    z_next_stride,
    z_exp: tl.float64,
    T: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BOUNDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A segment of a row a program: v², v'², x², x v, x v' and v v', as far as there are, summed where the row needs them, else 0."""
    segments = tl.cdiv(dim, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    row, column = program // segments, program % segments * BLOCK + tl.arange(0, BLOCK)
    inside = column < normed(
        row, dim, z, z_next, z_stride, z_next_stride, z_exp, v_next is not None, NORMALIZE or BOUNDED
    )
    here = tile(v, row * dim + column, inside, T, True)
    tl.store(partial + program, tl.sum(here * here, 0))
    if v_next is not None:
        there = tile(v_next, row * dim + column, inside, T, True)
        tl.store(partial + rows * segments + program, tl.sum(there * there, 0))
    if BOUNDED:
        base = tile(x, row * dim + column, inside, T, True)
        KINDS: tl.constexpr = 1 if v_next is None else 2
        tl.store(partial + KINDS * rows * segments + program, tl.sum(base * base, 0))
        tl.store(partial + (KINDS + 1) * rows * segments + program, tl.sum(base * here, 0))
        if v_next is not None:
            tl.store(partial + 4 * rows * segments + program, tl.sum(base * there, 0))
            tl.store(partial + 5 * rows * segments + program, tl.sum(here * there, 0))


@jit
def added(partial, segments, T: tl.constexpr):
    """The sum of a row's partial sums, in an order that depends on their number only."""
    lane = tl.arange(0, 64)
    total = tl.zeros([64], T)
    for start in range(0, segments, 64):
        total += tl.load(partial + start + lane, mask=start + lane < segments, other=0.0)
    return tl.sum(total, 0)


@jit(do_not_specialize=["rows", "z_stride", "z_next_stride"])
def segment_kernel(
    x,
    v,
    v_next,
    out,
    vz,
    vz_next,
    z,
    z_next,
    partial,
    rows,
    dim: tl.int64,
    z_stride,
    z_next_stride,
    root: tl.float64,
    gamma: tl.float64,
    z_exp: tl.float64,
    radius: tl.float64,  # with its slack; where BOUNDED
    T: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BOUNDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The update of a segment a program, after `square_kernel`; arguments as in `row_kernel`."""
    segments = tl.cdiv(dim, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    row, column = program // segments, program % segments * BLOCK + tl.arange(0, BLOCK)
    inside, at = column < dim, row * dim + column
    here = tile(v, at, inside, T, False)
    there = tile(v_next, at, inside, T, False)
    base = tile(x, at, inside, T, False)
    squares = added(partial + row * segments, segments, T)
    squares_next = squares
    if v_next is not None:
        squares_next = added(partial + (rows + row) * segments, segments, T)
    xx, xv, xw, vw = squares, squares, squares, squares
    if BOUNDED:
        KINDS: tl.constexpr = 1 if v_next is None else 2
        xx = added(partial + (KINDS * rows + row) * segments, segments, T)
        xv = added(partial + ((KINDS + 1) * rows + row) * segments, segments, T)
        if v_next is not None:
            xw = added(partial + (4 * rows + row) * segments, segments, T)
            vw = added(partial + (5 * rows + row) * segments, segments, T)
    a, b, c = factors(
        squares,
        squares_next,
        xx,
        xv,
        xw,
        vw,
        row,
        True,
        program % segments == 0,
        vz,
        vz_next,
        z,
        z_next,
        z_stride,
        z_next_stride,
        root,
        gamma,
        z_exp,
        radius,
        T,
        NORMALIZE,
        BOUNDED,
    )
    tl.store(
        out + at,
        moved(base, here, there, a, b, c, z_next is not None, BOUNDED),
        mask=inside,
        eviction_policy="evict_first",
    )
