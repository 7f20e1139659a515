"""pfgm-fast info: what was built, found and chosen, and why not."""

from __future__ import annotations

import argparse
import os
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("info", help="what was built, what runs where, and why not")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import json

    from pfgm_fast import info
    from pfgm_fast.ops import first_use

    facts = info()
    if options.json:
        print(json.dumps(facts, indent=2, default=str))
        return
    print(f"pfgm_fast {facts['version']}, torch {facts['torch']}, Python {facts['python']}")
    print(f"GPUs: {', '.join(facts['gpus']) or 'none that PyTorch sees'}")
    for name, title, build in (("cpu", "C++", facts["build"]), ("cuda", "CUDA", facts["cuda_build"])):
        print(f"{title} library: {'' if build else 'none: ' + facts['not_built'][name]}".rstrip())
        for key, value in (build or {}).items():
            print(f"  {key:<12} {value}")
    print(f"backends (chosen: {facts['chosen']})")
    for name, state in facts["backends"].items():
        print(f"  {name:<12} {state}")
    print("what `auto` takes")
    for name, backend in facts["devices"].items():
        print(f"  {name:<12} {backend}")
    print("checks at first use of a GPU backend")
    for what, verdict in facts["checks"].items():
        print(f"  {what}: {verdict}")
    if not facts["checks"]:
        off = os.environ.get(first_use.ENVIRONMENT) == "0"
        print(f"  {f'off: {first_use.ENVIRONMENT}=0' if off else 'none was made: no GPU backend was asked'}")
