"""Charges: the data set, prepared once for many calls."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.backends.reference import decode
from pfgm_fast.byte_codes import ByteCodes, byte_codes
from pfgm_fast.errors import ArgumentError
from pfgm_fast.ops import front
from pfgm_fast.ops.schema import Query

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    from pfgm_fast.charges_distributed import DistributedCharges

_HALF = (torch.bfloat16, torch.float16)
_BLOCK_ELEMENTS = 1 << 22
_SHORTEST_CODES = 128
"""Smallest N for which bytes are read faster than floats."""


class Charges:
    """The data points y_j as positive charges on the plane where the extra coordinates are 0.

    What is prepared, once, in blocks: the mean of the charges and each one's squared distance from it (float64); and, on the
    CPU, the bytes of float32 charges whose values are bytes' values to the bit, as those of most images are: M N bytes more,
    and the same field read from a quarter of the memory. Neither data nor weights may be changed in place afterwards. Units
    are the data's own.

    Args:
        data: (M, *shape), M ≥ 1: float32, float64, or uint8. Bytes stay bytes, in memory and in the kernels; a byte's value
            is `byte / divisor + offset` with divisor = 255/(high − low), offset = low. bfloat16 and float16 become
            float32.
        weights: (M,) q_j > 0, any scale; None: all equal.
        labels: (M,) integer class of each charge; a query with a label sees only the charges of its class.
        value_range: The values (low, high) of the bytes 0 and 255, low < high; only for uint8. The default gives byte/127.5 − 1.

    Raises:
        ArgumentError: A wrong shape or dtype, no charges, data that are not finite, weights that are not finite and > 0.
        DerivativeError: Data or weights that want a gradient.
        BackendError: A device that no backend serves.
    """

    def __init__(
        self,
        data: Tensor,  # (M, *shape)
        weights: Tensor | None = None,  # (M,)
        labels: Tensor | None = None,  # (M,)
        *,
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        data = checks.batch("charges", data, (*checks.REAL, torch.uint8, *_HALF))
        data = checks.constant("charges", data).detach()
        if data.shape[0] == 0:
            raise ArgumentError(
                f"there are no charges: data has shape {tuple(data.shape)}; at least one is needed"
            )
        low, high = value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ArgumentError(f"value_range must be (low, high), finite, low < high; got {value_range}")
        if data.dtype in _HALF:
            data = data.float()
        byte = data.dtype == torch.uint8
        self.divisor = 255.0 / (high - low) if byte else 1.0
        self.offset = float(low) if byte else 0.0
        self.data = data.contiguous()
        self.flat = checks.flat(self.data)
        self.log_weights = None if weights is None else self._log_weights(weights)
        self.labels = None if labels is None else self._labels(labels)
        self._by_label: dict[int, tuple[Charges, Tensor]] = {}
        self.center, self.sq_norms = self._prepare()
        self._codes = self._encode()

    _codes: ByteCodes | None = None
    """The bytes of float charges, where they have some."""

    def _encode(self) -> ByteCodes | None:
        if self.dtype != torch.float32 or self.device.type != "cpu" or self.dim < _SHORTEST_CODES:
            return None
        return byte_codes(self.flat, self.blocks())

    @classmethod
    def from_dataset(cls, dataset: Any, *, labels: bool = False, **reading: Any) -> Charges:
        """Every image of a torch Dataset or DataLoader, a Hugging Face data set or an iterable, in bytes; with their labels
        where asked. reading: as for `pfgm_fast.data.from_dataset`. Raises: DataError."""
        from pfgm_fast.data import from_dataset

        return from_dataset(dataset, **reading).charges(labels)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **reading: Any) -> Charges:
        """The charges of a .npy, .safetensors or raw file that need not fit in memory, streamed in blocks at each call. reading: as
        for `pfgm_fast.charges_file.FileCharges`, docs/scale.md. Raises: DataError, ArgumentError."""
        from pfgm_fast.charges_file import FileCharges

        return FileCharges(path, **reading)

    def shard(
        self,
        group: ProcessGroup | DeviceMesh | None = None,
        *,
        queries: Literal["replicated", "sharded"] = "replicated",
        division: Literal["contiguous", "interleaved"] = "contiguous",
    ) -> DistributedCharges:
        """These charges, which every rank of a group has, spread over the ranks: each keeps its part, and results are merged exactly.

        A collective, as every call of the result is (`charges_distributed.DistributedCharges` says what is sent). group: None is the
        default group of torch.distributed. division: M/R charges in a row each, the first ranks one more, or every R-th. Of a file each
        rank reads its own part, "contiguous". Ranks without charges, where M < R, take part like the others.
        Raises: ArgumentError.
        """
        from pfgm_fast.charges_distributed import shard

        return shard(self, group, queries, division)

    def _log_weights(self, weights: Tensor) -> Tensor:
        weights = checks.tensor("weights", weights, (*checks.REAL, *_HALF))
        weights = checks.constant("weights", weights)
        if weights.shape != (len(self),):
            raise ArgumentError(f"weights must have shape ({len(self)},); got {tuple(weights.shape)}")
        checks.same_device("weights", weights, "data", self.data)
        weights = weights.detach().double()
        bad = ~(torch.isfinite(weights) & (weights > 0))
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            raise ArgumentError(f"weights must be finite and > 0; weights[{at}] is {weights[at].item()}")
        return weights.log()

    def _labels(self, labels: Tensor) -> Tensor:
        labels = checks.tensor("labels", labels, (torch.int64, torch.int32, torch.uint8))
        if labels.shape != (len(self),):
            raise ArgumentError(f"labels must have shape ({len(self)},); got {tuple(labels.shape)}")
        checks.same_device("labels", labels, "data", self.data)
        return labels.to(torch.int64)

    def blocks(self) -> list[slice]:
        """Slices of rows that cut the charges into pieces of a few megabytes."""
        rows = max(1, _BLOCK_ELEMENTS // self.dim)
        return [slice(i, min(i + rows, len(self))) for i in range(0, len(self), rows)]

    def _prepare(self) -> tuple[Tensor, Tensor]:
        center = torch.zeros(self.dim, dtype=torch.float64, device=self.device)
        for block in self.blocks():
            center += self._values(self.flat[block], torch.float64).sum(0)
        center /= len(self)
        if not bool(torch.isfinite(center).all()):
            bad = (~torch.isfinite(self.flat)).nonzero()
            where = f"charge {int(bad[0, 0])} holds one" if len(bad) else "their sum overflows"
            raise ArgumentError(f"charges must be finite (no NaN or infinity); {where}")
        # The kernels use the centre in the queries' dtype: the norms are those around the rounded centre.
        center = center.to(self.value_dtype)
        return center, torch.cat([self._norms(self.flat[b], center) for b in self.blocks()])

    def _norms(self, raw: Tensor, center: Tensor) -> Tensor:
        """‖y − μ‖² (K,) float64 of raw rows (K, N)."""
        return (self._values(raw, torch.float64) - center).square().sum(1)

    def _values(self, raw: Tensor, dtype: torch.dtype) -> Tensor:
        """Values of raw rows, as the kernels see them."""
        return decode(raw, self.divisor, self.offset, dtype)

    resident = True
    """The charges are in memory: a call over some of the queries costs only its share."""
    collective = False
    """A call takes part in calls of other processes, which wait for it, even where it has no queries."""

    @property
    def operators(self) -> Any:
        """The field operators over these charges, by their names; each takes a `Query` that `query` made."""
        return front

    @property
    def shape(self) -> torch.Size:
        """Shape of one charge."""
        return self.data.shape[1:]

    @property
    def dim(self) -> int:
        """N, the number of elements of one charge."""
        return self.flat.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        return self.data.device

    @property
    def dtype(self) -> torch.dtype:
        """Storage dtype: float32, float64 or uint8."""
        return self.data.dtype

    @property
    def value_dtype(self) -> torch.dtype:
        """Dtype of the values: float32 for bytes."""
        return torch.float32 if self.dtype == torch.uint8 else self.dtype

    def __len__(self) -> int:
        """M, the number of charges."""
        return self.data.shape[0]

    def __repr__(self) -> str:
        extras = [
            word
            for word, there in (("weights", self.log_weights), ("labels", self.labels))
            if there is not None
        ]
        with_ = f", with {' and '.join(extras)}" if extras else ""
        return f"Charges(M={len(self)}, shape={tuple(self.shape)}, {self.dtype}, {self.device}{with_})"

    def values(self, index: Tensor | slice = slice(None), dtype: torch.dtype | None = None) -> Tensor:
        """Values of the charges at index: (K, *shape), float; by default in `value_dtype`."""
        return self._values(self.stored(index), dtype or self.value_dtype)

    def stored(self, index: Tensor | slice) -> Tensor:
        """The charges at index as they are kept: (K, *shape) in `dtype`, on `device`."""
        return self.data[index]

    def to(self, device: torch.device | str) -> Charges:
        """The same charges on another device; nothing is prepared again. Returns self where nothing moves."""
        device = torch.device(device)
        if device == self.device or (device.index is None and device.type == self.device.type):
            return self
        other = self._derive(lambda value: value.to(device))
        other._codes = None
        return other

    def _derive(self, change: Any) -> Charges:
        other = object.__new__(Charges)
        for name, value in vars(self).items():
            setattr(other, name, change(value) if isinstance(value, Tensor) else value)
        other.flat = checks.flat(other.data)
        other._by_label = {}
        return other

    def of_label(self, label: int) -> tuple[Charges, Tensor]:
        """The charges of one class, and their rows (K,) in this object. Built once for each class.

        Raises: ArgumentError where these charges have no labels, or none of this class.
        """
        if self.labels is None:
            raise ArgumentError(
                "a query label was given, but the charges have no labels: Charges(data, labels=...)"
            )
        if label not in self._by_label:
            rows = (self.labels == label).nonzero().flatten()
            if len(rows) == 0:
                raise ArgumentError(f"no charge has the label {label}")
            part = self.rows(rows)
            part.labels = None
            self._by_label[label] = part, rows
        return self._by_label[label]

    @property
    def classes(self) -> list[int]:
        """The labels that occur, ascending; none where the charges have no labels."""
        return [] if self.labels is None else self.labels.unique().tolist()

    def classes_among(self, labels: Tensor) -> list[int]:
        """The classes for which queries with labels (B,) ask."""
        return labels.unique().tolist()

    def rows(self, index: Tensor) -> Charges:
        """Some of these charges, by their indices (K,), K ≥ 1; nothing is prepared again."""
        index = index.to(self.device)
        part = object.__new__(Charges)
        part.__dict__.update(self.__dict__)
        part.data, part._by_label = self.data[index], {}
        part.flat = checks.flat(part.data)
        part.labels = None if self.labels is None else self.labels[index]
        part.log_weights = None if self.log_weights is None else self.log_weights[index]
        part.sq_norms = self.sq_norms[index]  # around this object's centre, which the part keeps
        if self._codes is not None:
            part._codes = self._codes._replace(codes=self._codes.codes[index])
        return part

    def reweighted(self, weights: Tensor) -> Charges:
        """The same charges with other weights (M,), > 0; nothing else is prepared again."""
        other = self._derive(lambda value: value)
        other.log_weights = self._log_weights(weights)
        return other

    def centred(self, center: Tensor) -> Charges:
        """The same charges around a given centre μ (N,), in `value_dtype`: any shift that keeps the kernels' products small will do."""
        other = self.rows(torch.arange(len(self)))
        other.center = center.to(self.value_dtype)
        other.sq_norms = torch.cat([self._norms(self.flat[b], other.center) for b in self.blocks()])
        return other

    def put(self, index: Tensor, stored: Tensor, labels: Tensor | None = None) -> None:
        """Replace the charges at index (K,), as they are kept (K, *shape), and their labels, in place; the centre stays.

        For an owner to whom these charges belong alone: parts and copies made of them before do not follow.
        Raises: ArgumentError for charges of a file or of several ranks, which stay as they are, and for another shape or dtype.
        """
        if not self.resident or self.collective:
            where = "spread over ranks" if self.collective else "in a file"
            raise ArgumentError(f"put replaces charges in memory; these are {where}, and stay as they are")
        if stored.shape != (len(index), *self.shape) or stored.dtype != self.dtype:
            raise ArgumentError(
                f"stored must be {(len(index), *self.shape)} of {checks.names((self.dtype,))}; "
                f"got {tuple(stored.shape)} of {checks.names((stored.dtype,))}"
            )
        rows = checks.flat(stored)
        self.data[index] = stored
        self.sq_norms[index] = self._norms(rows, self.center)
        self._codes = None if self._codes is None else self._codes.put(index, rows)
        if self.labels is not None and labels is not None:
            self.labels[index] = labels
        self._by_label = {}

    def query(self, x: Tensor, r: Tensor, aug_dim: float) -> Query:
        """The operators' `Query` for x (B, *shape) and r (B,), both already checked by themselves.

        Raises: ArgumentError where x's row shape, dtype or device are not the charges'.
        """
        if x.shape[1:] != self.shape:
            raise ArgumentError(f"x's rows have shape {tuple(x.shape[1:])}, the charges {tuple(self.shape)}")
        checks.same_device("x", x, "charges", self.center)
        if self.dtype != torch.uint8 and x.dtype != self.dtype:
            raise ArgumentError(
                f"x is {checks.names((x.dtype,))}, the charges {checks.names((self.dtype,))}: convert one of them"
            )
        flat, divisor, offset = self._codes or (self.flat, self.divisor, self.offset)
        return Query(
            checks.flat(x), r, flat, self.log_weights, self.center.to(x.dtype), self.sq_norms,
            divisor, offset, aug_dim,
        )  # fmt: skip

    def mean_log_weight(self) -> float | Tensor:
        """log Σ q_j, what normalises a density."""
        return math.log(len(self)) if self.log_weights is None else torch.logsumexp(self.log_weights, 0)


class _OfOneCall(Charges):
    """Not read often enough to be worth encoding."""

    def _encode(self) -> None:
        return None


def as_charges(charges: Charges | Tensor) -> Charges:
    """Charges as they are; a plain tensor is prepared for this one call."""
    return charges if isinstance(charges, Charges) else _OfOneCall(charges)
