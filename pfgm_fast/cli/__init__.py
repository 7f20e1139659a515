"""The command line: `pfgm-fast` or `python -m pfgm_fast`. One file a subcommand, each with `add(subparsers)`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pfgm_fast._version import __version__
from pfgm_fast.cli import bench, compare, console, demo, evaluate, info, ranks, sample, selftest, study, train

COMMANDS = (demo, train, sample, evaluate, compare, study, bench, selftest, info)

EPILOG = """\
examples
  pfgm-fast demo --out out/demo                      learn and draw handwritten digits, about 4 minutes on 2 cores
  pfgm-fast train --preset cifar10 --data cifar-10-batches-py --out runs/cifar
  pfgm-fast sample runs/cifar --count 64 --solver heun --steps 20 --out samples.png
  pfgm-fast evaluate runs/cifar --count 2048
  torchrun --nproc-per-node 8 -m pfgm_fast train …   the same on 8 processes; also sample, evaluate, study
  pfgm-fast compare --data mnist-folder --size 16 --out reports/mnist
  pfgm-fast bench --charges 4096 --dim 3072          the field kernel against the alternatives, here
  pfgm-fast selftest                                 is what is installed right? two minutes at most
  pfgm-fast info                                     what was built, what runs where, and why not
"""


def parser() -> argparse.ArgumentParser:
    top = console.Parser(
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
    """Run a command. Returns the exit status: 0; 1 where `selftest` finds a miss; 2 for whatever went wrong, in one line on stderr; 130 when interrupted;
    141 where the output's reader went away."""
    console.any_encoding()
    console.interruptible()
    command = "pfgm-fast"
    try:
        options = parser().parse_args(arguments)
        command = f"pfgm-fast {options.command}{console.rank()}"
        with console.warnings_in_one_line(command), ranks.taking_part(options):
            status = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        return console.closed()
    except KeyboardInterrupt as error:
        return console.interrupted(command, error)
    except Exception as error:  # a user's mistake or ours: never a page of frames
        return console.failed(command, error)
    return status or 0
