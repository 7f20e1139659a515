"""Studies of a data set's exact field, without a network: the optimal loss, memorisation, how many charges count."""

from pfgm_fast.studies.memorization import Memorization, memorization
from pfgm_fast.studies.nearest import nearest_charges
from pfgm_fast.studies.optimal_loss import OptimalLoss, edm_weight, optimal_loss
from pfgm_fast.studies.weights import Truncated, effective_charges, truncated_mean

__all__ = [
    "Memorization",
    "OptimalLoss",
    "Truncated",
    "edm_weight",
    "effective_charges",
    "memorization",
    "nearest_charges",
    "optimal_loss",
    "truncated_mean",
]
