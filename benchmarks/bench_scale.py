"""Growth of a call's cost with M, N, B and ranks: scale.json and scale.png beside the other results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks import report, scale


def test_cost_growth(benchmark: Any) -> None:
    folder = Path(os.environ.get("PFGM_FAST_BENCH_OUT", "out/bench"))
    rows = benchmark.pedantic(scale.run, args=(folder / "scale",), rounds=1)
    content = {"machine": report.machine(), "rows": rows}
    (folder / "scale.json").write_text(json.dumps(content, indent=1))
    scale.draw(rows, folder / "scale.png")
    sent = {row["ranks"]: row["sent"] for row in rows if row["sweep"] == "ranks"}
    batch, _, dim = scale.RANKS
    for ranks, total in sent.items():  # what charges_distributed says, but for a row of padding a rank
        packed = 2 * (4 * dim + 8)
        assert abs(total - (ranks - 1) * (batch * packed + 48 * ranks)) <= ranks * ranks * packed
