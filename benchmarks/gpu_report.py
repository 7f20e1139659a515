"""The GPU table's machine and its Markdown."""

from __future__ import annotations

import platform
from typing import Any

import torch

import pfgm_fast as pf
from benchmarks.commit import commit
from benchmarks.gpu_setting import Setting


def machine(setting: Setting) -> dict[str, Any]:
    """What belongs into every line: device, versions, commit."""
    triton = pf.info()["backends"]["triton"]
    return {
        "device": torch.cuda.get_device_name()
        if setting.device.type == "cuda"
        else platform.processor() or "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton,
        "commit": commit(),
        "rehearsal": setting.tiny,
    }


def _number(value: float | None, form: str = ".3g") -> str:
    return "" if value is None or value != value else format(value, form)  # NaN: no ceiling to refer to


def markdown(facts: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    lines = [f"# GPU benchmarks: {facts['device']}, torch {facts['torch']}, commit {facts['commit']}", ""]
    if facts["rehearsal"]:
        lines += ["**A rehearsal on small shapes: these numbers mean nothing.**", ""]
    lines += [
        "Errors: unit direction (or step) against float64. Slower by: median ratio to the case's first line. Share of copy: bytes of the",
        "charges (or of the step's arrays) over the time, against the copy bandwidth of the same run.",
        "",
        "| case | what | ms (p20 to p80) | slower by | error | share of copy | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = (
            f"{_number(row['ms'])} ({_number(row['p20'])} to {_number(row['p80'])})" if "ms" in row else ""
        )
        rate = f"{row['rate']:.3g} {row['unit']}" if "rate" in row else ""
        lines.append(
            f"| {row['case']} | {row['what']} | {spread} | {_number(row.get('speedup'))} | {_number(row.get('error'), '.1e') if row.get('error') is not None else ''} "
            f"| {_number(row.get('share_of_copy'), '.0%') if row.get('share_of_copy') is not None else ''} | {rate}{row.get('note', '')} |"
        )
    return "\n".join(lines) + "\n"
