"""PFGMScheduler: this package's methods behind the scheduler interface of the library diffusers (extra [diffusers]).

A scheduler is a solver that is called once an evaluation of the network, from a loop that belongs to somebody else:

    scheduler.set_timesteps(18)
    x = scheduler.prior((16, 3, 32, 32), generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample

It holds no formulas of its own: each step asks the method's flow, as `pf.sample` does, with the network's answer put where the flow
would call the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.errors import ArgumentError
from pfgm_fast.extras import wanted
from pfgm_fast.flows import Flow, onto_data, per_image
from pfgm_fast.methods import PFGM, Method, from_dict
from pfgm_fast.methods.network import Denoiser

wanted("diffusers", "PFGMScheduler needs")
from diffusers.configuration_utils import ConfigMixin, register_to_config  # noqa: E402
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: E402
from diffusers.utils import BaseOutput  # noqa: E402

PREDICTIONS = ("network", "denoised")
SOLVERS = ("euler", "heun")


@dataclass
class PFGMSchedulerOutput(BaseOutput):  # type: ignore[misc]
    """prev_sample (B, *shape): the next input. pred_original_sample (B, *shape): the denoised image that the step was made of."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class _Answer:
    """A network whose answer is known: keeps what it was called with."""

    def __init__(self, output: Any = None) -> None:
        self.output = output

    def __call__(self, x: Tensor, condition: Tensor) -> Any:
        self.x, self.condition = x, condition
        return (torch.zeros_like(x), torch.zeros_like(condition)) if self.output is None else self.output


class PFGMScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """PFGM (arXiv 2209.11178), PFGM++ (arXiv 2302.04265), EDM (arXiv 2206.00364) and the SDEs for the loops of diffusers.

    `timesteps` are what the network is given beside x: z for PFGM, ln(σ)/4 for PFGM++ and EDM (r = σ√D), 999 t for the SDEs, σ for a
    denoiser. With "heun" each but the first comes twice, and `step` is called once an evaluation, 2 steps − 1 times, as with diffusers'
    own Heun. `from_method(pf.PFGM.from_data(charges))` makes one of a method.

    Args:
        method: Name and hyper-parameters, `Method.to_dict()`; None: PFGM's of CIFAR-10.
        solver: "euler" or "heun".
        prediction_type: "network": the method's raw network (PFGM: v_x (B, *shape), or (v_x, v_z (B,)); PFGM++ and EDM: F of the
            preconditioning; the SDEs: −ε); "denoised": E[y | x], in units of the data.
        denoise: End with the denoising step; None: as `pf.sample` has it for the method.
        num_train_timesteps: Times ≥ 1 of the grid before `set_timesteps` is called.

    Raises:
        ArgumentError: An unknown method, solver or prediction_type; values out of range.
        MissingPackageError: diffusers is not installed (at import).
    """

    _compatibles: list[str] = []  # noqa: RUF012 - diffusers' own declaration

    @register_to_config  # type: ignore[untyped-decorator, unused-ignore]
    def __init__(
        self,
        method: dict[str, Any] | None = None,
        solver: str = "euler",
        prediction_type: str = "network",
        denoise: bool | None = None,
        num_train_timesteps: int = 1000,
    ) -> None:
        for name, value, known in (
            ("solver", solver, SOLVERS),
            ("prediction_type", prediction_type, PREDICTIONS),
        ):
            if value not in known:
                raise ArgumentError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        self.method: Method = PFGM() if method is None else from_dict(method)
        self.order = 1 + (solver == "heun")
        self._denoise = self.method.denoises if denoise is None else denoise
        self.set_timesteps(checks.integer("num_train_timesteps", num_train_timesteps, 1))

    @classmethod
    def from_method(cls, method: Method, **settings: Any) -> PFGMScheduler:
        """The scheduler of a method; settings: solver, prediction_type, denoise, num_train_timesteps."""
        return cls(method=method.to_dict(), **settings)

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None, **_: Any
    ) -> None:
        """The times of `num_inference_steps` ≥ 1 steps, and at `timesteps` what the network is given at each evaluation."""
        self.num_inference_steps = checks.integer("num_inference_steps", num_inference_steps, 1)
        self._times = self._flow(_Answer()).grid(self.num_inference_steps, self._denoise)
        heun, last = self.order == 2, len(self._times) - 2
        # (step, whether the evaluation corrects it): Heun's last step, at the data, is Euler's
        self._calls = [
            (k, corrects) for k in range(last + 1) for corrects in (False, True)[: 1 + (heun and k < last)]
        ]
        evaluated = [self._times[k + corrects] for k, corrects in self._calls]
        self.timesteps = torch.stack([self._asked(torch.zeros(1, 1), t).condition[0] for t in evaluated])
        self.timesteps = self.timesteps.to(device)
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._predicted: tuple[Tensor, Any] | None = None

    def prior(self, shape: tuple[int, ...], **where: Any) -> Tensor:
        """The start (B, *shape), as the method draws it; where: device, dtype, generator."""
        return self.method.prior(shape, **where)

    @property
    def init_noise_sigma(self) -> float:
        """What loops multiply Gaussian noise with: the prior's σ. Exact for D = ∞ and the SDEs; for finite D the prior has a heavier
        tail about the same radius, and `prior` draws it."""
        return self._flow(_Answer()).marginal_prob(self._times[0])[1]

    @property
    def step_index(self) -> int | None:
        """The next evaluation, 0 …; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The evaluation that a pipeline begins with, where it said so."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin with this evaluation, whatever the first timestep."""
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """What the network is given for x (B, *shape): c_in x for PFGM++ and EDM, else x."""
        return self._asked(sample, self._time(self._index(timestep))).x

    def step(
        self,
        model_output: Tensor | tuple[Tensor, Tensor],  # (B, *shape), or with v_z (B,)
        timestep: Tensor | float,
        sample: Tensor,  # (B, *shape)
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        **_: Any,
    ) -> PFGMSchedulerOutput | tuple[Tensor, Tensor]:
        """From x at a timestep to the next, given what the network said there. Raises: ArgumentError after the last timestep."""
        index = self._index(timestep)
        if index >= len(self._calls):
            raise ArgumentError(f"all {len(self._calls)} timesteps are done: set_timesteps begins anew")
        (k, corrects), flow = self._calls[index], self._flow(_Answer(model_output))
        t, t_next = self._times[k], self._times[k + 1]
        value = flow.evaluate(sample, self._time(index))
        denoised = flow.denoised(sample, value, self._time(index))
        if corrects:
            if self._predicted is None:
                raise ArgumentError(
                    "Heun's correction needs the prediction before it: begin with an even timestep"
                )
            (x, first), self._predicted = self._predicted, None
            x = flow.heun(x, first, value, t, t_next)
        elif onto_data(t, t_next):
            x = denoised
        else:
            x = flow.euler(sample, value, t, t_next)
            self._predicted = (sample, value) if (k, True) in self._calls else None
        self._step_index = index + 1
        return PFGMSchedulerOutput(x, denoised) if return_dict else (x, denoised)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """a(t) y + s(t) ε (B, *shape) at each of timesteps (B,). noise: of unit scale, Gaussian for D = ∞ and the SDEs; for finite D
        `scheduler.method.kernel(shape, 1.0)` draws it."""
        flow, levels = self._flow(_Answer()), []
        for timestep in timesteps.flatten():
            levels.append(flow.marginal_prob(self._time(self._nearest(timestep))))
        scale, deviation = original_samples.new_tensor(levels).T
        return per_image(scale, noise) * original_samples + per_image(deviation, noise) * noise

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def _flow(self, net: _Answer) -> Flow:
        return self.method.flow(net if self.config.prediction_type == "network" else Denoiser(net))

    def _asked(self, x: Tensor, t: float) -> _Answer:
        """What the flow gives its network at (x, t)."""
        net = _Answer()
        if self.config.prediction_type == "denoised":
            net.output = torch.zeros_like(x)
        self._flow(net).evaluate(x, t)
        return net

    def _time(self, index: int) -> float:
        k, corrects = self._calls[index]
        return self._times[k + corrects]

    def _index(self, timestep: Tensor | float) -> int:
        if self._step_index is None:
            self._step_index = self._nearest(timestep) if self._begin_index is None else self._begin_index
        return self._step_index

    def _nearest(self, timestep: Tensor | float) -> int:
        """The evaluation at a timestep; where two are there, the one that begins a step."""
        distance = (self.timesteps.double().cpu() - float(timestep)).abs()
        near = (distance == distance.min()).nonzero().flatten().tolist()
        return next((i for i in near if not self._calls[i][1]), near[0])
