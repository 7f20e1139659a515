"""pfgm_fast: the exact empirical Poisson field of a whole data set, and the PFGM pipeline around it."""

from pfgm_fast import _command  # noqa: F401, I001 - first: what follows takes seconds
from pfgm_fast import plots
from pfgm_fast._version import __version__
from pfgm_fast.charges import Charges
from pfgm_fast.charges_distributed import DistributedCharges
from pfgm_fast.errors import (
    ArgumentError,
    BackendError,
    CheckpointError,
    DataError,
    DerivativeError,
    PfgmError,
    SolverError,
)
from pfgm_fast.field import (
    field_divergence,
    field_step,
    log_density,
    pfgm_target,
    poisson_field,
    posterior_mean,
    score,
)
from pfgm_fast.ideal import IdealDenoiser
from pfgm_fast.latents import encode, interpolate, round_trip
from pfgm_fast.likelihood import bits_per_dim, log_likelihood
from pfgm_fast.methods import EDM, PFGM, VESDE, VPSDE, PFGMpp, SubVPSDE
from pfgm_fast.methods.network import Denoiser
from pfgm_fast.ops import registration as _registration  # noqa: F401 - registers the operators
from pfgm_fast.ops.dispatch import info, use_backend
from pfgm_fast.sampling import Samples, sample
from pfgm_fast.seeds import image_seeds
from pfgm_fast.selftest import selftest
from pfgm_fast.steps import drift, euler_step, heun_step

__all__ = [
    "EDM",
    "PFGM",
    "VESDE",
    "VPSDE",
    "ArgumentError",
    "BackendError",
    "Charges",
    "CheckpointError",
    "DataError",
    "Denoiser",
    "DerivativeError",
    "DistributedCharges",
    "IdealDenoiser",
    "PFGMpp",
    "PfgmError",
    "Samples",
    "SolverError",
    "SubVPSDE",
    "__version__",
    "bits_per_dim",
    "drift",
    "encode",
    "euler_step",
    "field_divergence",
    "field_step",
    "heun_step",
    "image_seeds",
    "info",
    "interpolate",
    "log_density",
    "log_likelihood",
    "pfgm_target",
    "plots",
    "poisson_field",
    "posterior_mean",
    "round_trip",
    "sample",
    "score",
    "selftest",
    "use_backend",
]
