"""The command line: `pfgm-fast` or `python -m pfgm_fast`. One file a subcommand, each with `add(subparsers)`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pfgm_fast._version import __version__
from pfgm_fast.cli import bench, compare, demo, evaluate, info, sample, study, train
from pfgm_fast.errors import PfgmError

COMMANDS = (demo, train, sample, evaluate, compare, study, bench, info)

EPILOG = """\
examples
  pfgm-fast demo --out out/demo                      learn and draw handwritten digits, about 4 minutes on 2 cores
  pfgm-fast train --preset cifar10 --data cifar-10-batches-py --out runs/cifar
  pfgm-fast sample runs/cifar --count 64 --solver heun --steps 20 --out samples.png
  pfgm-fast evaluate runs/cifar --count 2048
  pfgm-fast compare --data mnist-folder --out reports/mnist
  pfgm-fast bench --charges 4096 --dim 3072          the field kernel against the alternatives, here
  pfgm-fast info                                     what was built, what runs where, and why not
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="pfgm-fast",
        description="Poisson Flow Generative Models: exact fields of whole data sets, training, sampling, study.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"pfgm-fast {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for command in COMMANDS:
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 2 for bad arguments or files (one line on stderr), 130 when interrupted."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except PfgmError as error:
        print(f"pfgm-fast {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(
            f"pfgm-fast {options.command}: interrupted{f': {error}' if str(error) else ''}", file=sys.stderr
        )
        return 130
    return 0
