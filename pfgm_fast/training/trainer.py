"""Trainer: Adam with warm-up, clipping and averages over a method's loss; resumes to the bit on a CPU."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from pfgm_fast import data
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.methods import PFGM, Method
from pfgm_fast.methods import from_dict as method_from_dict
from pfgm_fast.nn import DDPMpp
from pfgm_fast.sampling import sample
from pfgm_fast.training import checkpoint as checkpoints
from pfgm_fast.training.checkpoint import Checkpoint
from pfgm_fast.training.config import RunConfig
from pfgm_fast.training.log import MetricsLog


class Trainer:
    """One run, in one folder: config.json, checkpoints/, metrics.csv, samples/.

    `Trainer(config, folder).run()` begins, or resumes where the folder holds a checkpoint; after a kill at any moment the next
    start goes on from the last checkpoint and gives the same losses as a run that was never stopped.

    images: the data set, where it is already in memory. Raises: DataError, ArgumentError for a network that does not fit the images,
    CheckpointError for a folder whose run had another config.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: str | Path,
        device: torch.device | str = "cpu",
        images: data.ImageSet | None = None,
    ) -> None:
        self.folder, self.device = Path(folder), torch.device(device)
        loaded = images or data.load(config.data, config.size)
        _fits(config, loaded)
        train = config.train
        self.images = loaded.with_flips() if train.flip else loaded
        self.charges: Charges = self.images.charges(labels=train.conditional).to(self.device)
        method = method_from_dict(config.method) if config.method else PFGM.from_data(self.charges)
        self.method: Method = method
        self.config = replace(config, method=method.to_dict())
        _same_run(self.folder, self.config)

        torch.manual_seed(train.seed)
        format_ = torch.channels_last if train.channels_last else torch.contiguous_format
        self.net = DDPMpp(config.network).to(self.device, memory_format=format_)  # type: ignore[call-overload]
        self.averages = [AveragedModel(self.net, multi_avg_fn=_ema(rate)) for rate in train.ema]
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=train.lr, foreach=True)
        self.generator = torch.Generator(self.device).manual_seed(train.seed + 1)
        self._step = 0
        saved = checkpoints.latest(self.folder)
        if saved is not None:
            self._restore(saved)
        self._network = torch.compile(self.net) if train.compile else self.net
        self._stop = False

    @property
    def step(self) -> int:
        """Updates done so far."""
        return self._step

    def run(self, until: int | None = None, progress: bool = True) -> None:
        """Train to `until` updates (default: the config's), checkpoint, and return; SIGINT and SIGTERM checkpoint and raise
        KeyboardInterrupt."""
        train = self.config.train
        until = min(until or train.steps, train.steps)
        self.config.save(self.folder)
        log = MetricsLog(self.folder, self._step, train.tensorboard)
        began, done, losses = time.perf_counter() - log.seconds, self._step, []
        with (
            _signals(self._request_stop),
            tqdm(
                total=until, initial=self._step, disable=not progress, unit="step", dynamic_ncols=True
            ) as bar,
        ):
            while self._step < until and not self._stop:
                loss, norm = self._update()
                losses.append(loss)
                self._step += 1
                bar.update()
                if train.log_every and (self._step % train.log_every == 0 or self._step == until):
                    seconds = time.perf_counter() - began
                    mean_loss = float(torch.stack(losses).mean())
                    images = (self._step - done) * train.batch
                    elapsed = max(seconds - log.seconds, 1e-9)
                    log.add(
                        {
                            "step": self._step,
                            "loss": mean_loss,
                            "gradient_norm": float(norm),
                            "lr": self._rate(self._step - 1),
                            "images_per_second": images / elapsed,
                            "seconds": seconds,
                        }
                    )
                    bar.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
                    log.seconds, done, losses = seconds, self._step, []
                if train.sample_every and self._step % train.sample_every == 0:
                    self._sample_grid(log)
                due = self._step % train.checkpoint_every == 0 or self._is_snapshot()
                if due and self._step < until:
                    self.save()
        self.save()
        log.close()
        if self._stop:
            raise KeyboardInterrupt(f"stopped at step {self._step}; the checkpoint is in {self.folder}")

    def ema_network(self, which: int = 0) -> DDPMpp:
        """The averaged network, in evaluation mode."""
        return self.averages[which].module.eval()  # type: ignore[return-value]

    def save(self) -> Path:
        """Checkpoint now. Raises: CheckpointError where the disk is full; earlier checkpoints stay."""
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        for i, average in enumerate(self.averages):
            tensors |= {f"ema.{i}.{k}": v for k, v in average.module.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        tensors["rng.perturbation"] = self.generator.get_state()
        tensors["rng.torch"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        saved = Checkpoint(self._step, tensors, {"torch": torch.__version__, "images": self._seen()})
        return checkpoints.save(self.folder, saved, self.config.train.keep, self.config.train.snapshot_every)

    def _is_snapshot(self) -> bool:
        every = self.config.train.snapshot_every
        return every > 0 and self._step % every == 0

    def _seen(self) -> int:
        return self._step * self.config.train.batch

    def _restore(self, saved: Checkpoint) -> None:
        checkpoints.load_weights(self.net, saved.part("net"), str(self.folder))
        for i, average in enumerate(self.averages):
            checkpoints.load_weights(average.module, saved.part(f"ema.{i}"), str(self.folder))
            average.n_averaged.fill_(saved.step)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in saved.part("adam").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
        state = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**state, "state": moments})
        self.generator.set_state(saved.tensors["rng.perturbation"])
        torch.set_rng_state(saved.tensors["rng.torch"])
        if self.device.type == "cuda" and "rng.cuda" in saved.tensors:
            torch.cuda.set_rng_state(saved.tensors["rng.cuda"], self.device)
        self._step = saved.step

    def _request_stop(self) -> None:
        self._stop = True

    def _rate(self, step: int) -> float:
        """lr of an update: linear warm-up, constant, half a cosine at the end."""
        train = self.config.train
        rate = train.lr * min(1.0, (step + 1) / max(1, train.warmup))
        left = (train.steps - step) / max(1.0, train.decay * train.steps)
        return rate * (0.5 - 0.5 * math.cos(math.pi * left)) if left < 1 else rate

    def _rows(self, step: int) -> Tensor:
        """Indices of an update's images: each epoch is one permutation, drawn from the seed and the epoch alone."""
        train, count = self.config.train, len(self.images)
        first = step * train.batch
        pieces, wanted = [], train.batch
        while wanted:
            epoch, place = divmod(first, count)
            generator = torch.Generator().manual_seed(train.seed * 1_000_003 + epoch)
            piece = torch.randperm(count, generator=generator)[place : place + wanted]
            pieces.append(piece)
            first, wanted = first + len(piece), wanted - len(piece)
        return torch.cat(pieces)

    def _seen_charges(self, index: Tensor) -> tuple[Charges, Tensor]:
        """The charges of this update, and the batch's rows among them."""
        limit = self.config.train.field_charges
        if limit is None or limit >= len(self.charges):
            return self.charges, index
        others = torch.randint(
            len(self.charges), (max(0, limit - len(index)),), generator=self.generator, device=self.device
        )
        rows = torch.cat([index, others])
        labels = None if self.charges.labels is None else self.charges.labels[rows]
        return Charges(self.charges.data[rows], labels=labels), torch.arange(len(index), device=self.device)

    def _update(self) -> tuple[Tensor, Tensor]:
        train = self.config.train
        self.net.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self._step)
        index = self._rows(self._step).to(self.device)
        charges, own = self._seen_charges(index)
        total = torch.zeros((), device=self.device)
        for part in own.chunk(train.accumulate):
            images = charges.values(part)
            labels = None if charges.labels is None else charges.labels[part]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
                losses = self.method.loss(self._network, images, part, charges, self.generator, labels)
            loss = losses.mean() / train.accumulate
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(
            self.net.parameters(), train.clip if train.clip else math.inf, foreach=True
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for average in self.averages:
            average.update_parameters(self.net)
        return total, norm

    def _sample_grid(self, log: MetricsLog) -> None:
        from pfgm_fast.plots import image_grid, save_image

        generator = torch.Generator(self.device).manual_seed(self.config.train.seed + 2)
        labels = None
        if self.config.train.conditional:
            labels = torch.arange(64, device=self.device) % self.config.network.classes
        out = sample(
            self.ema_network(),
            (64, *self.images.shape),
            "euler",
            50,
            method=self.method,
            generator=generator,
            labels=labels,
        )
        grid = image_grid(out.x)
        save_image(grid, self.folder / "samples" / f"step-{self._step:07d}.png")
        log.add_images("samples", grid, self._step)


def _ema(rate: float) -> Callable[..., None]:
    """AveragedModel's hook: average ← d·average + (1 − d)·weights with d = min(rate, (1 + n)/(10 + n))."""

    @torch.no_grad()
    def average(averages: Any, weights: Any, count: Tensor | int) -> None:
        done = int(count)
        torch._foreach_lerp_(averages, weights, 1 - min(rate, (1 + done) / (10 + done)))

    return average


def _fits(config: RunConfig, images: data.ImageSet) -> None:
    network = config.network
    channels, height, width = images.shape
    if (channels, height, width) != (network.channels, network.image_size, network.image_size):
        raise ArgumentError(
            f"the network is for images of {network.channels}×{network.image_size}×{network.image_size}, "
            f"{images.name} has {channels}×{height}×{width}"
        )
    if config.train.conditional and network.classes < 1:
        raise ArgumentError("conditional training needs a network with classes (UNetConfig.classes)")
    if config.train.conditional and images.labels is not None and int(images.labels.max()) >= network.classes:
        raise ArgumentError(
            f"the network has {network.classes} classes, {images.name} a label {int(images.labels.max())}"
        )


def _same_run(folder: Path, config: RunConfig) -> None:
    """A folder's checkpoint belongs to its config; only how long to go on and what to report may change."""
    if not checkpoints.available(folder):
        return
    free = {"steps", "log_every", "sample_every", "checkpoint_every", "keep", "snapshot_every", "tensorboard"}

    def essential(run: RunConfig) -> dict[str, Any]:
        values = run.to_dict()
        train = {k: v for k, v in values.pop("train").items() if k not in free}
        return {k: v for k, v in {**values, **train}.items() if k != "data"}

    before, now = essential(RunConfig.load(folder)), essential(config)
    for name, value in now.items():
        if before.get(name) != value:
            raise checkpoints.CheckpointError(
                f"{folder} holds a run with {name} = {before.get(name)!r}, not {value!r}: "
                "resume with its own settings, or choose another folder"
            )


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM ask for a stop after the current update; the old handlers come back."""
    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda *_: stop())
    except ValueError:  # not the main thread: signals are its business
        pass
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
