"""PFGM against diffusion on the same network, data and budget: train, sample over solvers and evaluations, report."""

from pfgm_fast.compare.plan import Plan, Point
from pfgm_fast.compare.report import write_report
from pfgm_fast.compare.run import run

__all__ = ["Plan", "Point", "run", "write_report"]
