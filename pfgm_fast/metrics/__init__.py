"""How good samples are: from the samples and the data alone, and in the features of a classifier."""

from pfgm_fast.metrics.distances import energy_distance, nearest_neighbors, sliced_wasserstein
from pfgm_fast.metrics.frechet import (
    check_counts,
    check_inception,
    frechet_distance,
    frechet_interval,
    inception_metrics,
    precision_recall,
)

__all__ = [
    "check_counts",
    "check_inception",
    "energy_distance",
    "frechet_distance",
    "frechet_interval",
    "inception_metrics",
    "nearest_neighbors",
    "precision_recall",
    "sliced_wasserstein",
]
