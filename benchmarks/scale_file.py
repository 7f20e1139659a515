"""Charges in a file larger than memory allows: resident memory, rightness, and throughput beside the disk's and the kernel's.

    python -m benchmarks.scale_file write FILE --gigabytes 20     random bytes, N = 12,288 (64×64×3); asks for room first
    python -m benchmarks.scale_file open FILE                     the first opening, which reads it once and keeps the statistics
    python -m benchmarks.scale_file measure FILE --out scale-file.json [--device cuda]
    rm FILE*

`measure` compares a subset with one process that
holds it, and times parts of the file in turn by three ways: reading alone, the kernel alone on a block in memory, and both at once,
which is a call. Before each reading the part's pages are dropped from the page cache (posix_fadvise) and counted (mincore), so that the
disk is what is read. The bar: a call at 70% of the slower of the other two, the median over the parts. On a GPU a fourth way is the link: a
block in pinned memory sent over, again and again; the bar is then of the slowest of three.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import resource
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pfgm_fast as pf
from pfgm_fast.charges_file import BLOCK_BYTES, FileCharges, _aligned, _opened

DIM = 12288
BATCHES = (1, 8, 64)
SIGMA = 0.5
"""Of the queries: noise on some of the charges."""


def write(path: Path, count: int) -> None:
    """`count` charges of random bytes, on the disk when this returns."""
    room = shutil.disk_usage(path.parent).free
    if room < 1.2 * count * DIM:
        raise SystemExit(
            f"{path.parent} has {room / 1e9:.0f} GB free; {1.2 * count * DIM / 1e9:.0f} are wanted"
        )
    rng = np.random.Generator(np.random.SFC64(0))
    with path.open("wb") as file:
        for first in range(0, count, 4096):
            file.write(rng.bytes(min(4096, count - first) * DIM))
        file.flush()
        os.fsync(file.fileno())


def drop(path: Path, start: int, stop: int) -> float:
    """Take a part of a file out of the page cache. Returns the share of its pages that stayed."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        with mmap.mmap(
            file.fileno(), stop - first, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=first
        ) as view:
            pages = -(-(stop - first) // mmap.PAGESIZE)
            there = (ctypes.c_ubyte * pages)()
            address = ctypes.addressof(ctypes.c_char.from_buffer(view))
            if ctypes.CDLL(None, use_errno=True).mincore(
                ctypes.c_void_p(address), ctypes.c_size_t(stop - first), there
            ):
                raise OSError(ctypes.get_errno(), "mincore")
            return float((np.frombuffer(there, np.uint8) & 1).mean())


def read(path: Path, start: int, stop: int) -> float:
    """Seconds to read a part's whole pages into one block, over and over, in the way that a call reads."""
    buffer = memoryview(_aligned(BLOCK_BYTES, False).numpy())
    began = time.perf_counter()
    with _opened(path) as (file, _):
        place, last = start // mmap.PAGESIZE * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        file.seek(place)
        while place < last:
            place += file.readinto(buffer[: min(last - place, BLOCK_BYTES)])
    return time.perf_counter() - began


def send(device: torch.device, size: int) -> float:
    """Seconds to send so many bytes from pinned memory to a GPU, a block at a time; 0 where there is no link."""
    if device.type != "cuda":
        return 0.0
    block = torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=True)
    block.to(device)
    began = time.perf_counter()
    for _ in range(-(-size // BLOCK_BYTES)):
        block.to(device)
    torch.cuda.synchronize(device)
    return (time.perf_counter() - began) * size / (-(-size // BLOCK_BYTES) * BLOCK_BYTES)


def call(x: torch.Tensor, charges: pf.Charges) -> float:
    """Seconds of a posterior mean."""
    began = time.perf_counter()
    pf.posterior_mean(x, SIGMA, charges, float("inf")).cpu()
    return time.perf_counter() - began


def resident() -> float:
    """GB, the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def right(charges: FileCharges, x: torch.Tensor) -> dict[str, float]:
    """The largest relative difference of a subset's fields from one process that holds it in memory."""
    index = torch.linspace(0, len(charges) - 1, 4000).long().unique()
    whole, part = pf.Charges(charges.stored(index)), charges.rows(index)
    charges.release()
    found = {}
    for function in (pf.posterior_mean, pf.score, pf.log_density):
        expected = function(x, SIGMA, whole, float("inf")).double()
        difference = function(x, SIGMA, part, float("inf")).double() - expected
        found[function.__name__] = float(difference.norm() / expected.norm())
    return found


def throughput(charges: FileCharges, x: torch.Tensor, parts: int, rows: int) -> dict[str, Any]:
    """Bytes a second over parts of the file: disk, kernel, call; and the ratio of the call to the slower of the others."""
    block = charges.rows(torch.arange(BLOCK_BYTES // DIM))
    held = pf.Charges(block.stored(torch.arange(len(block))))
    held.center, held.sq_norms = block.center, block.sq_norms
    charges.release()  # what is mapped would not leave the cache
    call(x, held)  # what is built at first use
    seconds: dict[str, list[float]] = {"disk": [], "kernel": [], "call": [], "link": [], "pages_left": []}
    starts = np.linspace(0, len(charges) - rows, parts).astype(int)
    for start in starts:
        place = int(start) * DIM, int(start + rows) * DIM
        part = charges.rows(torch.arange(start, start + rows))
        seconds["pages_left"].append(drop(charges.path, *place))
        seconds["disk"].append(read(charges.path, *place))
        seconds["kernel"].append(call(x, held) * rows / len(held))
        seconds["link"].append(send(charges.device, rows * DIM))
        seconds["pages_left"].append(drop(charges.path, *place))
        seconds["call"].append(call(x, part))
    alone = zip(seconds["disk"], seconds["kernel"], seconds["link"], strict=True)
    ratios = [max(ways) / whole for ways, whole in zip(alone, seconds["call"], strict=True)]
    names = ("disk", "kernel", "call", *(("link",) if any(seconds["link"]) else ()))
    rates = {name: rows * DIM / statistics.median(seconds[name]) / 1e9 for name in names}
    return {
        "B": len(x),
        **{f"{name}_GB_s": rate for name, rate in rates.items()},
        "ratio": statistics.median(ratios),
        "ratios": sorted(ratios),
        "pages_left": max(seconds["pages_left"]),
    }


def first_opening(path: Path) -> dict[str, Any]:
    count = path.stat().st_size // DIM
    path.with_name(path.name + ".stats.safetensors").unlink(missing_ok=True)
    left = drop(path, 0, path.stat().st_size)
    began = time.perf_counter()
    FileCharges(path, shape=(count, DIM))
    taken = time.perf_counter() - began
    return {
        "charges": count, "bytes": count * DIM, "threads": torch.get_num_threads(), "pages_left": left,
        "first_opening_s": taken, "first_opening_GB_s": count * DIM / taken / 1e9, "resident_GB": resident(),
    }  # fmt: skip


def measure(path: Path, parts: int, gigabytes: float, device: torch.device) -> dict[str, Any]:
    count = path.stat().st_size // DIM
    charges: Any = FileCharges(path, shape=(count, DIM)).to(device)
    charges.release()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, count, (max(BATCHES),), generator=generator)
    noise = torch.randn(max(BATCHES), DIM, generator=generator).to(device)
    x = charges.values(rows) + SIGMA * noise
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    results: dict[str, Any] = {"device": where, "charges": count, "bytes": count * DIM}
    results["threads"] = torch.get_num_threads()
    results["difference"] = right(charges, x[:8])
    results["throughput"] = [
        throughput(charges, x[:batch], parts, int(gigabytes * 1e9) // DIM) for batch in BATCHES
    ]
    drop(path, 0, path.stat().st_size)
    began = time.perf_counter()
    mean = pf.posterior_mean(x[:8], SIGMA, charges, float("inf")).cpu()
    results["whole_file_s"] = time.perf_counter() - began
    behind = charges.values(rows[:8]).cpu()
    nearest = (mean - behind).norm(dim=1) / behind.norm(dim=1)
    results["distance_from_the_charge_behind"] = float(
        nearest.max()
    )  # random bytes: one charge has all the weight
    results["resident_GB"] = resident()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("write", "open", "measure"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--parts", type=int, default=6)
    parser.add_argument("--part-gigabytes", type=float, default=0.5)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, default=Path("scale-file.json"))
    options = parser.parse_args()
    if options.what == "write":
        return write(options.file, int(options.gigabytes * 1e9) // DIM)
    if options.what == "open":
        return print(json.dumps(first_opening(options.file), indent=1))
    results = measure(options.file, options.parts, options.part_gigabytes, options.device)
    options.out.write_text(json.dumps(results, indent=1))
    print(options.out.read_text())


if __name__ == "__main__":
    main()
