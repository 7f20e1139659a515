"""Charges that stay in a file: .npy, safetensors or raw bytes, read in blocks by a thread while the kernel runs.

One call reads the file once, B queries at a time, so its cost is M·N bytes of disk and one kernel pass, whatever B; ask for many
queries a call. Resident: two blocks of BLOCK_BYTES, 8 bytes a charge of norms (as much again for weights, labels or a class), and
what the kernel and the results take.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from pfgm_fast import checks
from pfgm_fast.backends.reference import byte_values
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError, DataError
from pfgm_fast.files import write_beside
from pfgm_fast.ops.schema import Query
from pfgm_fast.partials import Merge, MergedOperators, evaluate

BLOCK_BYTES = 64 << 20
"""Bytes of a block; two are held."""
CACHED_SHARE = 0.5
"""Of the machine's memory: larger files are read past the page cache, which copies, and could not keep them from call to call."""
_PAGE = mmap.PAGESIZE
_SAMPLED = 4096
_DTYPES = {"|u1": torch.uint8, "<f4": torch.float32, "<f8": torch.float64}
_SAFETENSORS = {"U8": "|u1", "F32": "<f4", "F64": "<f8"}


class Layout(NamedTuple):
    """Where the charges lie in their file."""

    offset: int  # bytes before the first charge
    shape: tuple[int, ...]  # (M, *shape)
    kind: str  # NumPy's name of the dtype: |u1, <f4, <f8


class FileCharges(Charges):
    """`Charges` of a file; `Charges.from_file` makes them, and every function that takes Charges takes these.

    Args:
        path: .npy (C order), .safetensors, or any other file: raw values, row after row.
        shape: (M, *shape), only of a raw file. dtype: of a raw file; uint8 (default), float32 or float64, little-endian.
        key: the tensor of a safetensors file; None: "data", or its only tensor.
        weights, labels, value_range: as for `Charges`.
        progress: a bar for the first pass, which makes the statistics.
        cache: keep the statistics beside the file, as NAME.stats.safetensors, with its digest; a folder that cannot be written to
            costs the pass again.

    The statistics are those that kernels need: a centre μ, the mean of up to 4,096 charges spread evenly (not of all: a shift that
    keeps products small), and each charge's ‖y − μ‖² (float64). The digest covers the file's size, modification time, layout,
    value_range and 64 pieces of 64 KiB spread evenly: a change elsewhere that keeps size and time is not seen.

    Raises: DataError for a file that is missing, truncated, of another dtype or order; ArgumentError as `Charges`;
    DerivativeError, at a call, where x or r wants a gradient.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        shape: tuple[int, ...] | None = None,
        dtype: torch.dtype = torch.uint8,
        key: str | None = None,
        weights: Tensor | None = None,  # (M,)
        labels: Tensor | None = None,  # (M,)
        value_range: tuple[float, float] = (-1.0, 1.0),
        progress: bool = False,
        cache: bool = True,
    ) -> None:
        self.path = Path(path)
        self.layout = _layout(self.path, shape, dtype, key)
        self._selection: Tensor | None = None  # (K,) ascending rows of the file; None: all
        size = self.layout.offset + math.prod(self.layout.shape) * np.dtype(self.layout.kind).itemsize
        if self.path.stat().st_size < size:
            raise DataError(f"{self.path} is truncated: {self.path.stat().st_size} bytes, {size} are needed")
        mapped = np.memmap(self.path, self.layout.kind, "c", self.layout.offset, self.layout.shape)
        self._value_range = value_range
        self._mapped, self._map = torch.from_numpy(mapped), mapped._mmap  # type: ignore[attr-defined]
        # What a file has in common with a tensor is checked where a tensor is: on its first row.
        first = Charges(self._mapped[:1].clone(), value_range=value_range)
        self.divisor, self.offset = first.divisor, first.offset
        self.data, self.flat = self._mapped, self._mapped.view(self.layout.shape[0], -1)
        self._by_label = {}
        self.log_weights = None if weights is None else self._log_weights(weights)
        self.labels = None if labels is None else self._labels(labels)
        self.center, self.sq_norms = self._statistics(progress, cache)

    def __len__(self) -> int:
        return self.layout.shape[0] if self._selection is None else len(self._selection)

    @property
    def device(self) -> torch.device:
        """Where the blocks are sent and the queries must be."""
        return self.center.device

    resident = False

    @property
    def operators(self) -> Any:
        return MergedOperators(self._over_blocks)

    def _over_blocks(self, op: str, query: Query) -> tuple[Tensor, ...]:
        merge = Merge()
        for here, block in self.read():
            merge.add(
                *evaluate(
                    op,
                    query._replace(
                        charges=block.to(query.x.device),
                        log_weights=None if query.log_weights is None else query.log_weights[here],
                        sq_norms=self.sq_norms[here],
                    ),
                )
            )
        return merge.result()

    def read(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks (K, N) as they are stored, and the slice of these charges that each is. A block is overwritten after the next one."""
        row = self.flat.shape[1] * self.flat.element_size()
        rows = min(self.layout.shape[0], max(1, BLOCK_BYTES // row))
        parts = self._parts(rows)
        buffers = [_aligned(rows * row + 2 * _PAGE, self.device.type == "cuda") for _ in range(2)]
        with _opened(self.path) as (file, direct), ThreadPoolExecutor(1) as reader:

            def ask(k: int) -> Future[Tensor]:
                return reader.submit(self._fill, file, buffers[k % 2], *parts[k][1], direct)

            after = [ask(0)]
            for k, (here, (start, _)) in enumerate(parts):
                block = after.pop().result()
                if k + 1 < len(parts):
                    after.append(ask(k + 1))
                if self._selection is not None and len(block) != here.stop - here.start:
                    block = block[self._selection[here] - start]
                yield here, block

    def _parts(self, rows: int) -> list[tuple[slice, tuple[int, int]]]:
        """(which of these charges, which rows of the file), of at most `rows` rows; what holds none of these charges is not read."""
        if self._selection is None:
            return [
                (slice(i, min(i + rows, len(self))), (i, min(i + rows, len(self))))
                for i in range(0, len(self), rows)
            ]
        parts, i = [], 0
        while i < len(self):
            start = int(self._selection[i])
            end = int(torch.searchsorted(self._selection, start + rows))
            parts.append((slice(i, end), (start, int(self._selection[end - 1]) + 1)))
            i = end
        return parts

    def _fill(self, file: BinaryIO, buffer: Tensor, start: int, stop: int, direct: bool) -> Tensor:
        """Rows start … stop of the file (K, N), in a buffer of bytes. direct: whole pages are read."""
        row = self.dim * self.flat.element_size()
        first, size = self.layout.offset + start * row, (stop - start) * row
        skip = first % _PAGE if direct else 0
        end = -(-(skip + size) // _PAGE) * _PAGE if direct else size
        view, done = memoryview(buffer.numpy()), 0  # type: ignore[arg-type]
        file.seek(first - skip)
        while done < skip + size:
            got = file.readinto(view[done:end])  # type: ignore[attr-defined]
            if not got:
                raise DataError(f"{self.path} became shorter while it was read")
            done += got
        block = buffer[skip : skip + size]
        if skip % self.flat.element_size():
            block = block.clone()
        return block.view(self.dtype).view(-1, self.dim)

    def stored(self, index: Tensor | slice) -> Tensor:
        """Rows through the mapped file: in memory, so ask for few at a time. A slice stays mapped until `release`."""
        here = index.cpu() if isinstance(index, Tensor) else index  # where the file is
        rows = here if self._selection is None else self._selection[here]
        if not isinstance(rows, Tensor):
            return self._mapped[rows].to(self.device)
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        return self._picked(rows.flatten()).to(self.device).view(*rows.shape, *self.shape)

    def _picked(self, rows: Tensor) -> Tensor:
        """Rows (K,) of the file. A page that is read brings its neighbours, which would count as resident too: few at a time."""
        parts = []
        for part in rows.split(max(1, (1 << 22) // self.dim)):
            parts.append(self._mapped[part])
            self.release()
        return torch.cat(parts)

    def release(self) -> None:
        """Give the pages back that `values` and `stored` have read through the mapped file: they count as resident until then."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def to(self, device: torch.device | str) -> Charges:
        """The same file, its blocks sent to another device."""
        other = self._view(self._selection)
        for name in ("center", "sq_norms", "log_weights", "labels"):
            value = getattr(self, name)
            setattr(other, name, None if value is None else value.to(device))
        return other

    def _derive(self, change: Any) -> Charges:
        return self._view(self._selection)

    def _view(self, selection: Tensor | None) -> FileCharges:
        other = object.__new__(FileCharges)
        other.__dict__.update(self.__dict__)
        other._selection, other._by_label = selection, {}
        return other

    def rows(self, index: Tensor) -> FileCharges:
        """Some of these charges, by their indices (K,) in ascending order, K ≥ 1, without reading any.

        Raises: ArgumentError for indices in another order: a file is read from its beginning to its end.
        """
        index = index.to(self.device)
        here = index.cpu()
        if bool((here[1:] < here[:-1]).any()):
            raise ArgumentError("rows of a file must be asked for in ascending order: sort the index first")
        other = self._view(here if self._selection is None else self._selection[here])
        other.sq_norms = self.sq_norms[index]
        other.log_weights = None if self.log_weights is None else self.log_weights[index]
        other.labels = None if self.labels is None else self.labels[index]
        return other

    def _statistics(self, progress: bool, cache: bool) -> tuple[Tensor, Tensor]:
        kept, digest = self.path.with_name(self.path.name + ".stats.safetensors"), self.digest()
        try:
            with safe_open(kept, "pt") as file:
                if (file.metadata() or {}).get("digest") == digest:
                    return file.get_tensor("center"), file.get_tensor("sq_norms")
        except (OSError, SafetensorError):
            pass  # none there, or not whole: made again
        center, norms = self._one_pass(progress)
        if cache:
            with contextlib.suppress(OSError):  # a folder that is only read
                write_beside(kept, save({"center": center, "sq_norms": norms}, {"digest": digest}))
        return center, norms

    def _one_pass(self, progress: bool) -> tuple[Tensor, Tensor]:
        count = self.layout.shape[0]
        picked = torch.linspace(0, count - 1, min(count, _SAMPLED), dtype=torch.float64).round().long()
        total = torch.zeros(self.dim, dtype=torch.float64)
        for part in picked.split(max(1, (1 << 22) // self.dim)):
            total += self._values(self._picked(part), torch.float64).flatten(1).sum(0)
        # A charge that is not finite shows in its own norm, not through the centre in all.
        self.center = (total / len(picked)).nan_to_num(0.0, 0.0, 0.0).to(self.value_dtype)
        self.release()
        norms, workers = np.empty(count), max(1, torch.get_num_threads())
        with (
            tqdm(total=count, unit=" charges", desc=self.path.name, disable=not progress) as bar,
            ThreadPoolExecutor(workers) as pool,
        ):
            for here, block in self.read():
                rows, share = block.numpy(), -(-len(block) // workers)
                done = pool.map(self._block_norms, [rows[i : i + share] for i in range(0, len(rows), share)])
                norms[here] = np.concatenate(list(done))
                bar.update(len(block))
        if not np.isfinite(norms).all():
            bad = int((~np.isfinite(norms)).argmax())
            raise ArgumentError(f"charges must be finite (no NaN or infinity); charge {bad} holds one")
        return self.center, torch.from_numpy(norms)

    def _block_norms(self, raw: np.ndarray) -> np.ndarray:
        """‖y − μ‖² (K,) float64 of rows (K, N) as they are stored."""
        # The table as kernels see a byte's value; float64 after it.
        table = byte_values(self.divisor, self.offset, torch.float64).numpy()
        center = self.center.double().numpy()
        step = max(1, (1 << 18) // self.dim)  # what a core's cache holds
        away, norms = np.empty((min(step, len(raw)), self.dim)), np.empty(len(raw))
        for i in range(0, len(raw), step):
            part = raw[i : i + step]
            here = away[: len(part)]
            if self.dtype == torch.uint8:
                np.take(table, part, out=here, mode="clip")
            else:
                here[:] = part
            here -= center
            norms[i : i + len(part)] = np.einsum("ij,ij->i", here, here)
        return norms

    def digest(self) -> str:
        """Of what the class says."""
        state = self.path.stat()
        known = [state.st_size, state.st_mtime_ns, *self.layout, list(self._value_range)]
        total = hashlib.blake2b(json.dumps(known).encode(), digest_size=16)
        with self.path.open("rb") as file:
            for k in range(64):
                file.seek(k * max(0, state.st_size - (1 << 16)) // 63)
                total.update(file.read(1 << 16))
        return total.hexdigest()


def _aligned(size: int, pinned: bool) -> Tensor:
    """(size,) bytes that begin on a page."""
    whole = torch.empty(size + _PAGE, dtype=torch.uint8, pin_memory=pinned)
    skip = -whole.data_ptr() % _PAGE
    return whole[skip : skip + size]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """A file to be read once through, and whether past the page cache: so where the cache could not keep it for the next call, and the
    file system can."""
    memory = os.sysconf("SC_PHYS_PAGES") * _PAGE if hasattr(os, "sysconf") else math.inf
    direct: Any = None
    if hasattr(os, "O_DIRECT") and path.stat().st_size > CACHED_SHARE * memory:
        with contextlib.suppress(OSError):  # a file system that has no such way
            direct = open(  # noqa: SIM115 - closed below
                path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_DIRECT)
            )
    if direct is not None:
        with direct:
            yield direct, True
        return
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        yield file, False


def _layout(path: Path, shape: tuple[int, ...] | None, dtype: torch.dtype, key: str | None) -> Layout:
    try:
        with path.open("rb") as file:
            if path.suffix == ".npy":
                layout = _npy(file)
            elif path.suffix == ".safetensors":
                layout = _tensor_of(path, file, key)
            else:
                kinds = {value: name for name, value in _DTYPES.items()}
                if shape is None or dtype not in kinds:
                    raise DataError(
                        f"{path}: a raw file needs shape=(M, ...), and dtype uint8, float32 or float64"
                    )
                return _checked(path, Layout(0, tuple(shape), kinds[dtype]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as charges: {error}") from error
    if shape is not None and tuple(shape) != layout.shape:
        raise DataError(f"{path} holds {layout.shape}, not {tuple(shape)}")
    return _checked(path, layout)


def _checked(path: Path, layout: Layout) -> Layout:
    if layout.kind not in _DTYPES:
        raise DataError(f"{path} is of {layout.kind}: uint8, float32 or float64, little-endian, are streamed")
    if len(layout.shape) < 2 or not all(checks.integer("shape", n, 1) for n in layout.shape):
        raise DataError(f"{path}: charges have shape (M, ...); this is {layout.shape}")
    return layout


def _npy(file: BinaryIO) -> Layout:
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = header(file)
    if fortran and len(shape) > 1:
        raise ValueError("it is in Fortran order; save np.ascontiguousarray of it")
    return Layout(file.tell(), shape, kind.str)


def _tensor_of(path: Path, file: BinaryIO, key: str | None) -> Layout:
    length = int.from_bytes(file.read(8), "little")
    if length > path.stat().st_size:
        raise ValueError("its header is not whole")
    header = json.loads(file.read(length))
    names = [name for name in header if name != "__metadata__"]
    key = key or ("data" if "data" in names else names[0] if len(names) == 1 else None)
    if key not in names:
        raise ValueError(f"which tensor? key= one of {names}")
    entry = header[key]
    return Layout(
        8 + length + entry["data_offsets"][0],
        tuple(entry["shape"]),
        _SAFETENSORS.get(entry["dtype"], entry["dtype"]),
    )
