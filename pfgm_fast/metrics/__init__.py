"""How good samples are, from the samples and the data alone."""

from pfgm_fast.metrics.distances import energy_distance, nearest_neighbors, sliced_wasserstein

__all__ = ["energy_distance", "nearest_neighbors", "sliced_wasserstein"]
