"""Features of a small classifier trained here on the data set itself: what FID needs where no Inception weights are at hand."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfgm_fast.data import ImageSet
from pfgm_fast.errors import ArgumentError, CheckpointError, DataError
from pfgm_fast.files import beside
from pfgm_fast.precision import full, single

FEATURES = 64


class Classifier(nn.Module):
    """Three convolutions with pooling, then FEATURES numbers, then classes. images (B, C, H, W) in [−1, 1]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (32, 64, 128):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            channels = width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, FEATURES))
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, FEATURES), after the last non-linearity."""
        return F.relu(self.body(images))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(self.features(images))


def _classifier(images: ImageSet) -> Classifier:
    """For a labelled set; in float32, whatever PyTorch's default is."""
    assert images.labels is not None
    with single():
        return Classifier(images.shape[0], int(images.labels.max()) + 1)


@full()
def train_classifier(
    images: ImageSet, epochs: int = 3, batch: int = 128, seed: int = 0, device: torch.device | str = "cpu"
) -> Classifier:
    """Adam with a one-cycle schedule on the labelled set; deterministic on a CPU. Raises: DataError without labels."""
    if images.labels is None:
        raise DataError(f"{images.name} has no labels: the feature network is a classifier of them")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _classifier(images).to(device)
    values = images.charges()
    steps = epochs * -(-len(images) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(images), generator=generator).split(batch):
                loss = F.cross_entropy(net(values.values(rows).to(device)), images.labels[rows].to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
    return net.eval()


def cached_classifier(images: ImageSet, cache: Path, epochs: int = 3) -> Classifier:
    """The classifier of this very data set: read from `cache`, or trained and written there.

    Raises: DataError without labels, CheckpointError where the cached file is not one of ours.
    """
    if images.labels is None:
        raise DataError(f"{images.name} has no labels: the feature network is a classifier of them")
    path = cache / f"classifier-{digest(images.images, images.labels)}-{epochs}.safetensors"
    weights = _cached(path, lambda: train_classifier(images, epochs).state_dict())
    net = _classifier(images)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} is not the classifier that was expected; remove it ({error})"
        ) from error
    return net.eval()


def cached_features(net: Classifier, images: ImageSet, cache: Path) -> Tensor:
    """(M, FEATURES) of a data set in this very network, what Fréchet distance, precision and recall need of it: read from `cache`,
    or computed and written there. Raises: CheckpointError where the cached file is not one of ours.
    """
    path = cache / f"features-{digest(images.images)}-{digest(*net.state_dict().values())}.safetensors"
    found = _cached(path, lambda: {"features": features_of(net, images.charges().values())}).get("features")
    if found is None or found.shape != (len(images), FEATURES):
        raise CheckpointError(
            f"{path} is not the features that were expected; remove it to compute them anew"
        )
    return found


def digest(*tensors: Tensor) -> str:
    """Sixteen hexadecimal digits that name these very values."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(str(tuple(tensor.shape)).encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def _cached(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in a file, which is written first where it is not there, and can be."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    if not path.exists():
        made = {name: value.contiguous() for name, value in make().items()}
        try:
            with beside(path) as partial:
                save_file(made, partial)
        except (OSError, SafetensorError) as error:
            warnings.warn(f"{path} cannot be written ({error}): it will be computed anew", stacklevel=3)
            return made
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not what was cached there; remove it to make it anew ({error})"
        ) from error


@full()
def features_of(net: Classifier, images: Tensor, batch: int = 512) -> Tensor:
    """(M, FEATURES) of images (M, C, H, W) in [−1, 1], on the CPU. Raises: ArgumentError for images that are not finite."""
    bad = int((~images.flatten(1).isfinite().all(1)).sum())
    if bad:
        raise ArgumentError(
            f"{bad} of {len(images)} images are not finite (NaN or infinite): they have no features"
        )
    where = next(net.parameters()).device
    return torch.cat([net.features(part.to(where)).cpu() for part in images.split(batch)])


@full()
def accuracy(net: Classifier, images: ImageSet, batch: int = 512) -> float:
    """Share of the images that get their own label."""
    assert images.labels is not None
    values, right = images.charges(), 0
    for rows in torch.arange(len(images)).split(batch):
        right += int((net(values.values(rows)).argmax(1) == images.labels[rows]).sum())
    return right / len(images)
