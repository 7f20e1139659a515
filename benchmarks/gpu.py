"""The GPU table: ours (CUDA C++) against Triton, the Gram product with cuBLAS float32 and the authors' formula, in one run.

    python -m benchmarks.gpu --out out/gpu [--data cifar10.zip] [--only NAME] [--device cpu --tiny]

Writes gpu.jsonl (one measurement a line, the machine in each) and gpu.md. A time stands only where the same case's error
against float64 is within the bar; out of memory is a result. Times are CUDA events, after warm-up, alternatives interleaved round
by round: median, and the 20th and 80th percentile; ratios are medians of the rounds' ratios. `--tiny` runs the same code on
small shapes on any device: a rehearsal, whose numbers mean nothing and are marked so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path

import torch

from benchmarks.gpu_cases import cases
from benchmarks.gpu_records import POISONED, device_lost
from benchmarks.gpu_report import machine, markdown
from benchmarks.gpu_setting import Setting, read_ahead


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument(
        "--data", help="images for the CIFAR-10 rows; default: random images with natural images' spectrum"
    )
    parser.add_argument("--only", help="run the cases whose name contains this")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="rehearse on small shapes")
    parser.add_argument(
        "--seconds", type=float, default=115, help="stop to begin new cases after so long (default 115)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="leave out the cases that gpu.jsonl has, and go on with the next",
    )
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: PyTorch sees no CUDA device (--device cpu --tiny rehearses)", file=sys.stderr)
        return 2
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu is a rehearsal: give --tiny too")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = (
        4  # of the ways to compute a convolution that are tried, the likeliest
    )
    options.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(torch.device(options.device), options.tiny, options.data)
    if setting.data:
        read_ahead(setting.data)
    facts, failed = machine(setting), 0
    file = options.out / "gpu.jsonl"
    rows = _rows_before(file) if options.resume else []
    done = {row["case"] for row in rows}
    began = time.monotonic()
    with file.open("a" if options.resume else "w") as lines:
        for name, case in cases(setting).items():
            if name in done or (options.only and options.only not in name):
                continue
            if time.monotonic() - began > options.seconds:
                found = [{"case": name, "what": "not run", "note": f"over {options.seconds:.0f} s already"}]
                failed += 1
            else:
                found, broke = _run(name, case)
                failed += broke
            for row in found:
                rows.append(row)
                lines.write(json.dumps(facts | row) + "\n")
                lines.flush()
                print(json.dumps(row), flush=True)
            (options.out / "gpu.md").write_text(markdown(facts, rows))
            if options.device == "cuda" and device_lost():
                print(
                    f"# {name}: the device is lost to this process (--resume goes on in another)", flush=True
                )
                return POISONED
            if options.device == "cuda":
                torch.cuda.empty_cache()
    print((options.out / "gpu.md").read_text())
    return 1 if failed else 0


def _rows_before(file: Path) -> list[dict]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]


def _run(name, case) -> tuple[list[dict], int]:
    """A case's measurements; what breaks is a row of its own, and the others go on."""
    began = time.monotonic()
    try:
        found = [{"case": name, **row} for row in case()]
    except Exception as error:
        traceback.print_exc()
        return [{"case": name, "what": "failed", "note": f"{type(error).__name__}: {str(error)[:200]}"}], 1
    bad = sum(row.get("failed", False) for row in found)
    print(f"# {name}: {time.monotonic() - began:.1f} s", flush=True)
    return found, bad


if __name__ == "__main__":
    sys.exit(main())
