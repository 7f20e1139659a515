"""Trainer: Adam with warm-up, clipping and averages over a method's loss; resumes to the bit on a CPU."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pfgm_fast import data
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.methods import Method
from pfgm_fast.methods.network import check_network
from pfgm_fast.nn import AugmentPipe
from pfgm_fast.precision import network_precision, single
from pfgm_fast.sampling import sample
from pfgm_fast.training import checkpoint as checkpoints
from pfgm_fast.training.averages import Averages
from pfgm_fast.training.batches import batches
from pfgm_fast.training.captured import CapturedPasses
from pfgm_fast.training.checkpoint import Checkpoint
from pfgm_fast.training.config import DataRecord, RunConfig, absolute
from pfgm_fast.training.guards import (
    fits,
    method_for,
    newest,
    refuse_nonfinite,
    same_data,
    same_run,
    settings_of_run,
    with_own_network,
)
from pfgm_fast.training.lock import RunLock
from pfgm_fast.training.log import OPTIMAL, MetricsLog
from pfgm_fast.training.loggers import Logger, of_settings
from pfgm_fast.training.networks import build
from pfgm_fast.training.optimal import OptimalLoss
from pfgm_fast.training.parallel import Parallel, SilentLog
from pfgm_fast.training.state import restore, tensors_of
from pfgm_fast.training.stop import on_signals
from pfgm_fast.training.watch import Watch, duration

TIMED = 10
"""Updates after which the time of one and the time left are said."""


class Trainer:
    """One run, in one folder: config.json, checkpoints/, metrics.csv, samples/ (docs/runs.md).

    `Trainer(config, folder).run()` begins, or resumes where the folder holds a checkpoint; after a kill at any moment the next
    start goes on from the last checkpoint and gives the same losses as a run that was never stopped. Nothing is written before the
    first update is done.

    images: the data set, where it is not to be read from `config.data` (which is then its name): an `ImageSet`, or any Dataset,
        DataLoader, Hugging Face data set or iterable, read once by `data.from_dataset`.
    net: any network in the place of the one that `config.network` describes, under the contract of `methods.network`: called as
        net(x (B, C, H, W), condition (B,)[, labels (B,)]) it returns (v_x, v_z), v_x alone, or is a denoiser (`pf.Denoiser`). It is
        trained in place; the first update holds it to the contract. Its run is read by `load_network(run, net=…)`.
    loggers: get the figures and grids too (`training.loggers`), beside those of TrainConfig.

    Raises: DataError, ArgumentError for a network that does not fit the images or breaks the contract, CheckpointError for a folder
    whose run had another config, network or data.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: str | Path,
        device: torch.device | str = "cpu",
        images: data.ImageSet | Any = None,
        *,
        net: torch.nn.Module | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self.folder, self.device = Path(folder), torch.device(device)
        size: Any = config.size
        loaded = config.images() if images is None else images
        if not isinstance(loaded, (data.ImageSet, data.ImageStream)):
            loaded = data.from_dataset(
                loaded, size=size, crop=config.crop, channels=config.channels, name=config.data
            )
        if config.train.reservoir is not None and isinstance(loaded, data.ImageSet):
            loaded = data.of_set(loaded)
        if net is not None:
            config = with_own_network(config, net, loaded)
            check_network(net, loaded.labels if config.train.conditional else None)
        same_run(self.folder, config, looked_at=False)
        fits(config, loaded)
        train = config.train
        record = DataRecord.of(loaded)
        same_data(self.folder, record)
        self.images = loaded.with_flips() if train.flip else loaded
        self.batches = batches(self.images, train, self.device)
        settings = settings_of_run(self.folder, config.method)
        self.method: Method = method_for(settings, self.batches.sample, whole=train.reservoir is None)
        self.config = replace(
            config, method=self.method.to_dict(), dataset=record, data=absolute(config.data)
        )
        same_run(self.folder, self.config)
        self.parallel = Parallel(train, self.device, self.folder)
        self._loggers = [*of_settings(self.config, self.folder), *loggers] if self.writes else []

        torch.manual_seed(train.seed)
        format_ = torch.channels_last if train.channels_last else torch.contiguous_format
        if net is None:
            with single():
                net = build(config, self.method)
        self.net: torch.nn.Module = net.to(self.device, memory_format=format_)  # type: ignore[call-overload]
        self.averages = Averages(self.net, train)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=train.lr, fused=True)
        self.generator = torch.Generator(self.device).manual_seed(train.seed + 1)
        self._step = 0
        self._saved: int | None = None
        saved = checkpoints.latest(self.folder)
        if saved is not None:
            restore(self, saved)
            self._step = self._saved = saved.step
        self._seen_on_disk = newest(self.folder)
        self.parallel.agree(self._step)
        self.parallel.own_draws({} if saved is None else saved.tensors, self._step)
        network = torch.compile(self.net) if train.compile else self.net
        self._network = self.parallel.wrap(network, own=self.config.own_network is not None)
        self._augment = AugmentPipe(train.augment) if train.augment else None
        self._optimal = OptimalLoss(self.method, self.parallel.total) if train.optimal_every else None
        self._parameters = list(self.net.parameters())
        self._captured = self._capturing() if train.cuda_graph and self.device.type == "cuda" else None
        self._asked = self._stop = False

    def _capturing(self) -> CapturedPasses:
        """Raises: ArgumentError where several processes train together."""
        if self.parallel.world.size > 1:
            raise ArgumentError(
                "cuda_graph is for one process: gradients are averaged over the ranks on the way"
            )
        return CapturedPasses(self._passes, self._parameters, self.generator)

    @property
    def charges(self) -> Charges:
        """The charges in memory."""
        return self.batches.charges

    @property
    def step(self) -> int:
        """Updates done so far."""
        return self._step

    @property
    def writes(self) -> bool:
        """This process writes the folder: the only one, or rank 0."""
        return self.parallel.world.writer

    def run(self, until: int | None = None, progress: bool = True) -> None:
        """Train to `until` updates (≥ 0; default, and at most: the config's), checkpoint, and return.

        Raises: KeyboardInterrupt, after a checkpoint, on SIGINT, SIGTERM and SIGHUP. NonFiniteError where losses or gradients are
        not finite (TrainConfig.skip_nonfinite). CheckpointError where another process trains in the folder, or the disk is full.
        """
        until = self.config.train.steps if until is None else until
        if until < 0:
            raise ArgumentError(f"until must be ≥ 0 updates; got {until}")
        until = min(until, self.config.train.steps)
        shown = progress and self.writes
        with (
            self.parallel.watched(lambda: self._saved),
            RunLock(self.folder).held() if self.writes else nullcontext(RunLock(self.folder)) as lock,
            on_signals(self._request_stop),
            tqdm(total=until, initial=self._step, disable=not shown, unit="step", dynamic_ncols=True) as bar,
        ):
            self._refuse_if_overtaken()
            optimal = self._optimal is not None
            log = MetricsLog(self.folder, self._step, self._loggers, optimal) if self.writes else SilentLog()
            try:
                self._loop(until, log, bar, lock)
            finally:
                log.close()
            self.parallel.world.wait()
        if self._stop:
            raise KeyboardInterrupt(f"stopped at step {self._step}; the checkpoint is in {self.folder}")

    def _loop(self, until: int, log: MetricsLog | SilentLog, bar: Any, lock: RunLock) -> None:
        train = self.config.train
        watch = Watch(self.folder, train.skip_nonfinite)
        began, start, done, first = time.perf_counter() - log.seconds, self._step, self._step, True
        warm = began
        while self._step < until and not self._stop:
            self.parallel.ask(self._asked)
            loss, norm = self._update()
            self._stop = self.parallel.stop(self._asked)
            watch.add(self._step + 1, self._rate(self._step), loss, norm)
            self._step += 1
            logged = train.log_every > 0 and (self._step % train.log_every == 0 or self._step == until)
            sampled = train.sample_every > 0 and self._step % train.sample_every == 0
            saved = self._step % train.checkpoint_every == 0 or self._is_snapshot() or self._step == until
            if first or logged or sampled or saved or watch.due or self._stop:
                watch.look(self._saved)
            if first:
                first, warm = False, time.perf_counter()
                self._save_config()
                log.begin()
            bar.update()
            lock.renew()
            if not bar.disable and self._step - start == TIMED:
                each = (time.perf_counter() - warm) / (TIMED - 1)
                bar.write(f"time      {each:.3g} s an update, {duration(each * (until - self._step))} left")
            if logged and (figures := watch.take()) is not None:
                seconds = time.perf_counter() - began
                images = (self._step - done) * train.batch
                elapsed = max(seconds - log.seconds, 1e-9)
                row = {
                    "step": self._step,
                    "loss": figures[0],
                    "gradient_norm": figures[1],
                    "lr": self._rate(self._step - 1),
                    "images_per_second": images / elapsed,
                    "seconds": seconds,
                }
                if self._optimal is not None and (measured := self._optimal.take()) is not None:
                    row |= dict(zip(OPTIMAL, measured, strict=True))
                log.add(row)
                bar.set_postfix(loss=f"{figures[0]:.4f}", refresh=False)
                log.seconds, done = seconds, self._step
            if sampled and self.writes:
                self._sample_grid(log)
            if saved and self._step < until:
                self.save()
        if first:  # nothing was left to do
            self._save_config()
        if self._saved != self._step:
            self.save()

    def _save_config(self) -> None:
        if self.writes:
            self.config.save(self.folder)

    def _refuse_if_overtaken(self) -> None:
        """Raises: CheckpointError where the folder went on since this trainer read it."""
        last = newest(self.folder)
        if last is not None and last > max(self._step, self._seen_on_disk or 0):
            raise checkpoints.CheckpointError(
                f"{self.folder} was trained on to step {last} by another process meanwhile: start again to go on from there"
            )

    def ema_network(self, which: int = 0) -> torch.nn.Module:
        """The averaged network, in evaluation mode."""
        network: Any = self.averages[which].module
        return network.eval()

    def save(self) -> None:
        """Checkpoint now, on every rank at once; rank 0 writes. Raises: CheckpointError where the disk is full, NonFiniteError where weights are not finite; earlier
        checkpoints stay."""
        refuse_nonfinite(self.net, *self.averages, step=self._step, folder=self.folder)
        others = self.parallel.draws()
        if not self.writes:
            self._saved = self._step
            return
        tensors = tensors_of(self) | others
        saved = Checkpoint(self._step, tensors, {"torch": torch.__version__, "images": self._seen()})
        train = self.config.train
        checkpoints.save(self.folder, saved, train.keep, train.snapshot_every)
        self._saved = self._step

    def _is_snapshot(self) -> bool:
        every = self.config.train.snapshot_every
        return every > 0 and self._step % every == 0

    def _seen(self) -> int:
        return self._step * self.config.train.batch

    def _request_stop(self) -> None:
        self._asked = True
        self._stop = self._stop or self.parallel.alone

    def _rate(self, step: int) -> float:
        """lr of an update: linear warm-up, constant, half a cosine at the end."""
        train = self.config.train
        rate = train.lr * min(1.0, (step + 1) / max(1, train.warmup))
        left = (train.steps - step) / max(1.0, train.decay * train.steps)
        return rate * (0.5 - 0.5 * math.cos(math.pi * left)) if left < 1 else rate

    def _update(self) -> tuple[Tensor, Tensor]:
        train = self.config.train
        self.net.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self._step)
        charges, own = self.batches.at(self._step, self.generator)
        measured = (
            self._optimal if train.optimal_every and (self._step + 1) % train.optimal_every == 0 else None
        )
        total = torch.zeros((), device=self.device, dtype=torch.float32)
        parts = own.chunk(train.accumulate)
        for k, part in enumerate(parts):
            images = charges.values(part)
            labels = None if charges.labels is None else charges.labels[part]
            more: dict[str, Any] = dict(self.parallel.rows(len(part)))
            if self._augment is not None:
                more["augmentation"] = self._augment.draw(
                    len(part), self.generator, device=self.device, group=train.augment_group
                )
            before = self.generator.get_state() if measured is not None else None
            with self.parallel.synced(k + 1 == len(parts)):
                if self._captured is not None:
                    losses = self._captured(images, part, labels)
                else:
                    losses = self._passes(images, part, labels, charges, len(parts), more)
            if measured is not None and before is not None:
                measured.measure(self.charges, before, losses, images, part, charges, labels, **more)
            total += losses.sum() * (1 / (len(part) * len(parts)))
        total = self.parallel.total(total)
        norm = torch.nn.utils.clip_grad_norm_(
            self._parameters, train.clip if train.clip else math.inf, foreach=True
        )
        # A bad update is left out on the device: Adam's fused kernel changes neither weights nor moments where found_inf is 1.
        self.optimizer.found_inf = Watch.bad(total, norm)  # type: ignore[attr-defined]
        self.optimizer.step()
        if self._captured is None:  # else the graph writes them anew
            self.optimizer.zero_grad(set_to_none=True)
        self.averages.update(self.net)
        return total, norm

    def _passes(
        self,
        images: Tensor,
        rows: Tensor,
        labels: Tensor | None,
        charges: Charges | None = None,
        parts: int = 1,
        more: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Losses (B,) of one of an update's `parts`, and its share of the gradients. charges: all in memory where None; more: for the method's loss."""
        with network_precision(self.config.train.precision, self.device):
            losses = self.method.loss(
                self._network,
                images,
                rows,
                self.charges if charges is None else charges,
                self.generator,
                labels,
                **(more or {}),
            )
        loss = losses.sum() * (1 / (len(rows) * parts))
        (loss * self.parallel.world.size).backward()  # gradients are averaged over the ranks
        return losses.detach()

    def _sample_grid(self, log: MetricsLog | SilentLog) -> None:
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
        good = out.x.flatten(1).isfinite().all(1)
        if not bool(good.all()):
            warnings.warn(
                f"step {self._step}: {int((~good).sum())} of {len(good)} samples are not finite and left out of the grid",
                stacklevel=3,
            )
        if not bool(good.any()):
            return
        grid = image_grid(out.x[good])
        save_image(grid, self.folder / "samples" / f"step-{self._step:07d}.png")
        log.add_images("samples", grid, self._step)
