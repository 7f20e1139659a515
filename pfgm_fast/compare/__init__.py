"""PFGM against diffusion on the same network, data and budget: train, check, sample, measure, report."""

from pfgm_fast.compare.plan import PLANS, Model, Plan, Point, plan_for
from pfgm_fast.compare.report import write_report
from pfgm_fast.compare.results import Result
from pfgm_fast.compare.run import Comparison, Costs
from pfgm_fast.compare.verdicts import agreements, verdicts

__all__ = [
    "PLANS",
    "Comparison",
    "Costs",
    "Model",
    "Plan",
    "Point",
    "Result",
    "agreements",
    "plan_for",
    "verdicts",
    "write_report",
]
