"""Any Dataset, DataLoader, Hugging Face data set or iterable of images → ImageSet, streamed into one tensor of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.data.labels import class_indices
from pfgm_fast.data.policy import Policy, decodable, decode, from_pillow
from pfgm_fast.data.stack import Stack
from pfgm_fast.errors import ArgumentError, DataError

IMAGE_KEYS = ("image", "img", "images", "pixel_values", "x", "data")
LABEL_KEYS = ("label", "labels", "fine_label", "class", "target", "y")


def from_dataset(
    dataset: Any,
    *,
    size: int | str | tuple[int, int] | None = None,
    crop: int | str | tuple[int, int] | None = None,
    channels: int | None = None,
    background: int | tuple[int, int, int] = 255,
    value_range: tuple[float, float] = (0.0, 1.0),
    image_key: str | None = None,
    label_key: str | None = None,
    name: str | None = None,
) -> ImageSet:
    """Every item of a data set, one after the other, as bytes.

    Args:
        dataset: a torch Dataset (map-style or iterable) or DataLoader, a Hugging Face `datasets` object (streaming too), or any
            iterable. An item is a mapping with an image and, where there is one, a label; (image, label, …); or an image. An
            image is Pillow's, the bytes of a file, uint8 (H, W), (H, W, C) or (C, H, W), or floats (C, H, W) in value_range. A
            DataLoader's items are batches.
        size, crop, channels, background: as for `data.load`.
        value_range: the values of floats that become the bytes 0 and 255; (-1, 1) after torchvision's Normalize(0.5, 0.5).
        image_key, label_key: of mappings; None: the first known one (image, img, …; label, labels, …).
        name: of the set; None: that of its type.

    An order that is random (a shuffling DataLoader) and random augmentations give another digest each time.
    Raises: DataError naming the item that is no image, or has no label where others have one; ArgumentError for other arguments.
    What the data set itself raises passes through.
    """
    reader = _Reader(Policy.of(size, crop, channels, background), value_range, image_key, label_key)
    name = name or type(dataset).__name__
    batched = isinstance(dataset, torch.utils.data.DataLoader) and dataset.batch_size is not None
    length = None if batched else _length(dataset)
    stack, labels = Stack(reader.policy, length), []
    for i, item in enumerate(_single(dataset, reader) if batched else _items(dataset, length)):
        try:
            image, label = item if batched else reader.split(item)
            stack.add(f"item {i}", *reader.image(image))
        except DataError as error:
            raise DataError(f"{name}, item {i}: {error}") from error
        labels.append(label)
    if not labels:
        raise DataError(f"{name} has no items")
    without = [i for i, label in enumerate(labels) if label is None]
    if without and len(without) < len(labels):
        raise DataError(f"{name}: item {without[0]} has no label, others have one")
    found = None if without else class_indices([_number(label) for label in labels], name)
    classes = _classes(dataset, reader.label_key)
    if found is None or int(found.max()) >= len(classes):
        classes = ()
    return ImageSet(name, stack.images(), found, classes, tuple(stack.notes()))


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError, AttributeError):
        return None


def _items(dataset: Any, length: int | None) -> Iterator[Any]:
    if hasattr(dataset, "__iter__"):
        yield from dataset
    elif length is not None and hasattr(dataset, "__getitem__"):
        yield from (
            dataset[i] for i in range(length)
        )  # torch's map-style sets need not end with an IndexError
    else:
        raise ArgumentError(
            f"a data set must be iterable or have a length and items; got {type(dataset).__name__}"
        )


def _single(loader: Any, reader: _Reader) -> Iterator[tuple[Any, Any]]:
    """The items of a DataLoader's batches."""
    for batch in loader:
        images, labels = reader.split(batch)
        if labels is not None and len(labels) != len(images):
            raise DataError(f"a batch has {len(images)} images and {len(labels)} labels")
        yield from zip(images, [None] * len(images) if labels is None else labels, strict=True)


def _number(label: Any) -> Any:
    return label.tolist() if isinstance(label, (Tensor, np.ndarray, np.generic)) else label


def _classes(dataset: Any, key: str | None) -> tuple[str, ...]:
    """torchvision's `classes`, or the names of Hugging Face's ClassLabel."""
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping) and key in features:
        names = getattr(features[key], "names", None)
    else:
        names = getattr(getattr(dataset, "dataset", dataset), "classes", None)
    good = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return tuple(names) if good and names else ()


class _Reader:
    """Items to images and labels; remembers which key held the labels."""

    def __init__(
        self, policy: Policy, value_range: tuple[float, float], image_key: str | None, label_key: str | None
    ) -> None:
        low, high = (float(value) for value in value_range)
        if not (np.isfinite([low, high]).all() and low < high):
            raise ArgumentError(f"value_range must be (low, high), finite, low < high; got {value_range}")
        self.policy, self._low, self._high = policy, low, high
        self._image_key, self.label_key = image_key, label_key
        self._formats = decodable()[".png"]

    def split(self, item: Any) -> tuple[Any, Any]:
        """The image (or batch of images) and the label (or None) of an item."""
        if isinstance(item, Mapping):
            key = self._image_key or next((key for key in IMAGE_KEYS if key in item), None)
            if key not in item:
                raise DataError(f"it has no image among {list(item)}: name it by image_key=")
            if self.label_key is None:
                self.label_key = next((key for key in LABEL_KEYS if key in item), None)
            elif self.label_key not in item:
                raise DataError(f"it has no label {self.label_key!r} among {list(item)}")
            return item[key], None if self.label_key is None else item[self.label_key]
        if isinstance(item, (tuple, list)):
            if not item:
                raise DataError("it is empty")
            return item[0], item[1] if len(item) > 1 else None
        return item, None

    def image(self, image: Any) -> tuple[np.ndarray, list[str]]:
        """(H, W, C) bytes by the policy, and what was noticed."""
        if isinstance(image, Mapping) and isinstance(image.get("bytes"), bytes):  # Hugging Face, undecoded
            image = image["bytes"]
        if isinstance(image, bytes):
            return decode(image, self._formats, self.policy)
        if isinstance(image, Image.Image):
            return from_pillow(image, self.policy)
        if isinstance(image, Tensor):
            image = image.detach().cpu().float().numpy() if image.is_floating_point() else image.cpu().numpy()
        if not isinstance(image, np.ndarray):
            raise DataError(
                f"an image must be Pillow's, a file's bytes, a tensor or an array; got a {type(image).__name__}"
            )
        return self.policy.of_array(self._bytes(image)), []

    def _bytes(self, image: np.ndarray) -> np.ndarray:
        """(H, W, C) uint8; of two axes that could be the channels the first, if it is 1 or 3 (torch's order)."""
        if image.dtype.kind == "f":
            low, high = float(image.min()), float(image.max())
            if not self._low <= low <= high <= self._high:
                raise DataError(
                    f"floats from {low:g} to {high:g} are not in value_range ({self._low:g}, {self._high:g})"
                )
            image = np.rint((image - self._low) * (255 / (self._high - self._low))).astype(np.uint8)
        if image.dtype != np.uint8:
            raise DataError(f"an image must be uint8 or float; got {image.dtype}")
        if image.ndim == 2:
            return image[..., None]
        if image.ndim == 3 and image.shape[0] in (1, 3) and image.size:
            return image.transpose(1, 2, 0)
        if image.ndim == 3 and image.shape[2] in (1, 3, 4) and image.size:
            return image
        if image.ndim == 3 and image.shape[0] == 4 and image.size:
            return image.transpose(1, 2, 0)
        raise DataError(
            f"an image must be (H, W), (C, H, W) or (H, W, C) with C of 1, 3 or 4; got {image.shape}"
        )
