"""Train a network: config → Trainer → a run's folder of checkpoints, metrics and sample grids."""

from pfgm_fast.training.checkpoint import load_network
from pfgm_fast.training.config import RunConfig, TrainConfig
from pfgm_fast.training.log import loss_picture
from pfgm_fast.training.trainer import Trainer

__all__ = ["RunConfig", "TrainConfig", "Trainer", "load_network", "loss_picture"]
