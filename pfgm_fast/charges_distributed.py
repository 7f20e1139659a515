"""Charges spread over the ranks of a process group: each computes with its own part, and the parts' results are merged exactly.

A call sends no charges. With R ranks, B queries and P bytes of an operator's results a query (field and mean: N floats and lse, 4N + 8;
score: 8N + 16, at D = ∞ as the field; log density: 8), all ranks together send for each query

- replicated queries: (R − 1) 2P: each rank's partial results go to the rank that owns the query, which merges them in the ranks'
  order, and the result goes to all;
- sharded queries: (R − 1) (P + 4N + 4): the query goes to all ranks, their partial results come back;

and once a call, 48 bytes from each rank to each other, by which a call that differs between ranks is refused. Merged is in float64,
in the ranks' order (`partials`): results are the same on every rank to the bit, and differ by rounding alone between numbers of ranks.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.ops.schema import FIELD_OPERATORS, Query
from pfgm_fast.partials import Merge, MergedOperators, evaluate
from pfgm_fast.ranks import Ranks, checksum, even, pack, starts, unpack

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

MESSAGE_BYTES = 32 << 20
"""Bytes of partial results that a rank sends at a time: while they travel, the kernel computes the next."""

Queries = Literal["replicated", "sharded"]
Division = Literal["contiguous", "interleaved"]


class DistributedCharges(Charges):
    """`Charges` of which each rank holds a part; every field function, `pf.sample` and `pf.IdealDenoiser` take them.

    `Charges.shard(group)` makes them of charges that every rank has (also of a file: then each reads its part alone). This makes them of
    parts that were loaded separately. Every rank of the group must make the same calls in the same order: each is a collective.

    Of this rank's part alone: `local`, and the attributes `data`, `flat`, `labels`, `log_weights`, `center`, `sq_norms`. Of all:
    `len()`, `values(index)` and the fields. `ranks.sent` counts the bytes that this rank has sent. What one rank alone refuses at the
    door leaves the others waiting until the group's timeout; so does a solver that chooses its steps by its batch ("rk45") with sharded
    queries.

    Args:
        local: This rank's charges (M_local, *shape); None where it has none. The parts must be of one shape, dtype and value_range, all
            with weights or none, all with labels or none. On one kind of device.
        group: A ProcessGroup, a DeviceMesh of one dimension, or None, the default group.
        queries: "replicated": every rank asks the same B queries and gets all results. "sharded": each asks its own, as many as it
            likes, and gets their results.
        division: How the parts make up the whole, "contiguous" or "interleaved", as `Charges.shard` divides.
        device: Of a rank without charges; default the CPU.

    Raises:
        ArgumentError: The parts do not go together (on every rank); a call's operator, D or queries differ between ranks; what walks
            over all charges (`blocks`: nearest charges, rules of a method `from_data`).
        DerivativeError: x or r wants a gradient.
    """

    def __init__(
        self,
        local: Charges | None,
        group: ProcessGroup | DeviceMesh | None = None,
        *,
        queries: Queries = "replicated",
        division: Division = "contiguous",
        device: torch.device | str | None = None,
    ) -> None:
        if queries not in ("replicated", "sharded"):
            raise ArgumentError(f"queries must be 'replicated' or 'sharded'; got {queries!r}")
        where = torch.device("cpu" if device is None else device) if local is None else local.device
        self.ranks, self.queries, self.division = Ranks(group, where), queries, division
        self.local = local
        facts = self.ranks.objects(None if local is None else _facts(local))
        first = next((fact for fact in facts if fact is not None), None)
        if first is None:
            raise ArgumentError("there are no charges: every rank's part is empty")
        for rank, fact in enumerate(facts):
            if fact is not None and fact["of"] != first["of"]:
                raise ArgumentError(
                    f"the ranks' charges differ: {first['of']}, and on rank {rank} {fact['of']}"
                )
        kind = first["of"]
        self._resident = all(fact is None or fact["resident"] for fact in facts)
        self._counts = [0 if fact is None else fact["count"] for fact in facts]
        self._total = _logsumexp([fact["weight"] for fact in facts if fact is not None])
        self._classes: dict[int, tuple[list[int], float]] | None = None
        if kind["labels"]:
            known = [{} if fact is None else fact["classes"] for fact in facts]
            self._classes = {
                label: (
                    [classes.get(label, (0, 0.0))[0] for classes in known],
                    _logsumexp([classes[label][1] for classes in known if label in classes]),
                )
                for label in sorted({label for classes in known for label in classes})
            }
        self.divisor, self.offset = kind["divisor"], kind["offset"]
        empty = torch.empty((0, *kind["shape"]), dtype=kind["dtype"], device=where)
        self._hold(local, empty)

    def _hold(self, local: Charges | None, empty: Tensor) -> None:
        self.local = local
        self.data = empty if local is None else local.data
        self.flat = empty.reshape(0, math.prod(empty.shape[1:])) if local is None else local.flat
        self.labels = None if local is None else local.labels
        self.log_weights = None if local is None else local.log_weights
        self.center = (
            empty.new_zeros(self.flat.shape[1], dtype=self.value_dtype) if local is None else local.center
        )
        self.sq_norms = empty.new_zeros(0, dtype=torch.float64) if local is None else local.sq_norms
        self._by_label = {}

    def __len__(self) -> int:
        return sum(self._counts)

    def __repr__(self) -> str:
        ranks = f"rank {self.ranks.rank} of {self.ranks.size}, {self.queries} queries"
        return f"Distributed{super().__repr__()[:-1]}, {self._counts[self.ranks.rank]} here, {ranks})"

    @property
    def device(self) -> torch.device:
        return self.ranks.device

    collective = True

    @property
    def operators(self) -> Any:
        return MergedOperators(self._over_ranks)

    def _over_ranks(self, op: str, query: Query) -> tuple[Tensor, ...]:
        counts = self._agreed(op, query)
        x, r = query.x, query.r
        if self.queries == "sharded":
            packed = self.ranks.gather(pack((x, r)), counts)
            x, r = unpack(packed, (x, r))
        else:
            counts = even(len(x), self.ranks.size)
        merged = self._merged(op, query._replace(x=x, r=r), counts)
        if self.queries == "sharded":
            return merged
        return unpack(self.ranks.gather(pack(merged), counts), merged)

    def _agreed(self, op: str, query: Query) -> list[int]:
        """How many queries each rank has. Raises: ArgumentError, on every rank, where their calls differ."""
        same = self.queries == "replicated"
        mine = [
            FIELD_OPERATORS.index(op), len(query.x), query.x.element_size(), struct.unpack("<q", struct.pack("<d", query.aug_dim))[0],
            checksum(query.x) if same else 0, checksum(query.r) if same else 0,
        ]  # fmt: skip
        every = self.ranks.numbers(mine)
        skipped = () if same else (1,)
        names = ("operator", "number of queries", "dtype of x", "aug_dim", "x", "r")
        for k, name in enumerate(names):
            if k not in skipped and len({numbers[k] for numbers in every}) > 1:
                raise ArgumentError(
                    f"{name} differs between the ranks: every rank must make the same call"
                    + (", with the same queries (queries='sharded' lets each ask its own)" if same else "")
                )
        return [numbers[1] for numbers in every]

    def _merged(self, op: str, query: Query, counts: list[int]) -> tuple[Tensor, ...]:
        """An operator's results over all charges of this rank's own queries: counts[k] of those of `query` are rank k's."""
        first, rank = starts(counts), self.ranks.rank
        step = max(counts)
        if self._resident:
            row = self.ranks.size * (2 * query.x.shape[1] + 4) * query.x.element_size()
            step = min(step, max(1, MESSAGE_BYTES // row))
        done: list[tuple[Tensor, ...]] = []
        before: Callable[[], None] | None = None
        for start in range(0, max(1, max(counts)), max(1, step)):
            give = [max(0, min(step, count - start)) for count in counts]
            rows = torch.cat(
                [torch.arange(f + start, f + start + n) for f, n in zip(first[:-1], give, strict=True)]
            )
            whole = len(rows) == len(query.x)
            outputs = self._of_local(op, query if whole else query._replace(x=query.x[rows], r=query.r[rows]))
            arriving = self.ranks.exchange(pack(outputs), give, [give[rank]] * self.ranks.size)

            def merge(arriving: Any = arriving, like: tuple[Tensor, ...] = outputs) -> None:
                total = Merge()
                for part in arriving():
                    total.add(*unpack(part, like))
                done.append(total.result())

            if before is not None:
                before()  # while the next results travel
            before = merge
        assert before is not None
        before()
        return tuple(torch.cat(values) for values in zip(*done, strict=True)) if len(done) > 1 else done[0]

    def _of_local(self, op: str, query: Query) -> tuple[Tensor, ...]:
        """The operator over this rank's charges; of none, nothing with lse = −∞."""
        if self.local is not None:
            return evaluate(op, query, self.local.operators)
        one = query.x.new_empty((1, query.x.shape[1]), device="meta")
        on_meta = query._replace(
            x=query.x.to("meta"),
            r=query.r.to("meta"),
            charges=one,
            log_weights=None,
            center=None,
            sq_norms=None,
        )
        *values, lse = (torch.zeros_like(value, device=query.x.device) for value in evaluate(op, on_meta))
        return (*values, lse.fill_(-torch.inf))

    @property
    def classes(self) -> list[int]:
        return list(self._classes or {})

    def classes_among(self, labels: Tensor) -> list[int]:
        """The same on every rank: those of sharded queries are asked for by all."""
        mine = super().classes_among(labels)
        if self.queries == "replicated":
            return mine
        return sorted({label for some in self.ranks.objects(mine) for label in some})

    def of_label(self, label: int) -> tuple[Charges, Tensor]:
        """The charges of one class on all ranks, and their rows (K,) in this rank's part."""
        if self._classes is None:
            return Charges.of_label(self, label)  # which says that there are no labels
        if label not in self._classes:
            raise ArgumentError(f"no charge has the label {label}")
        if label not in self._by_label:
            part, rows = None, torch.empty(0, dtype=torch.int64, device=self.device)
            other = self._copy()
            other._counts, other._total = self._classes[label]
            other._classes = None
            if other._counts[self.ranks.rank]:
                assert self.local is not None
                part, rows = self.local.of_label(label)
            other._hold(part, self.data[:0])
            self._by_label[label] = other, rows
        return self._by_label[label]

    def mean_log_weight(self) -> float | Tensor:
        return self._total

    def values(self, index: Tensor | slice = slice(None), dtype: torch.dtype | None = None) -> Tensor:
        """Values (K, *shape) of charges by their numbers among all, wherever they are; each rank may ask for others. A collective.

        Numbers: rank 0's charges come first ("contiguous"), or charge j of all is on rank j mod R ("interleaved").
        """
        if isinstance(index, slice):
            index = torch.arange(*index.indices(len(self)))
        index = index.to(self.device).flatten().long()
        owner, place = self._owners(index)
        order = owner.argsort(stable=True)
        asked = torch.bincount(owner, minlength=self.ranks.size).tolist()
        given = [numbers[self.ranks.rank] for numbers in self.ranks.numbers(asked)]
        wanted = torch.cat(self.ranks.exchange(place[order], asked, given)())
        raw = self.data if self.local is None else self.local.stored(wanted)
        found = torch.cat(self.ranks.exchange(raw, given, asked)())
        back = torch.empty_like(found)
        back[order] = found
        return self._values(back, dtype or self.value_dtype)

    def _owners(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Rank and place there of charges (K,) by their numbers. Raises: ArgumentError for a number outside."""
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ArgumentError(f"charges are numbered from 0 to {len(self) - 1}")
        if self.division == "interleaved":
            return index % self.ranks.size, index // self.ranks.size
        first = torch.tensor(starts(self._counts), device=index.device)
        owner = torch.bucketize(index, first[1:], right=True)
        return owner, index - first[owner]

    def blocks(self) -> list[slice]:
        raise ArgumentError(
            "this walks over all charges, which are spread over ranks: give the method its hyper-parameters, or use charges of one "
            "process (each rank's own are `.local`)"
        )

    def to(self, device: torch.device | str) -> Charges:
        device = torch.device(device)
        if device == self.device or (device.index is None and device.type == self.device.type):
            return self
        local = None if self.local is None else self.local.to(device)
        return DistributedCharges(
            local, self.ranks.group, queries=self.queries, division=self.division, device=device
        )

    def reweighted(self, weights: Tensor) -> Charges:
        """weights: (M_k,) of this rank's part. A collective."""
        local = None if self.local is None else self.local.reweighted(weights)
        return DistributedCharges(
            local, self.ranks.group, queries=self.queries, division=self.division, device=self.device
        )

    def _copy(self) -> DistributedCharges:
        other = object.__new__(DistributedCharges)
        other.__dict__.update(self.__dict__)
        return other


def shard(charges: Charges, group: Any, queries: Queries, division: Division) -> DistributedCharges:
    """This rank's part of charges that every rank has; see `Charges.shard`."""
    if division not in ("contiguous", "interleaved"):
        raise ArgumentError(f"division must be 'contiguous' or 'interleaved'; got {division!r}")
    ranks = Ranks(group, charges.device)
    if division == "interleaved":
        rows = torch.arange(len(charges))[ranks.rank :: ranks.size]
    else:
        first = starts(even(len(charges), ranks.size))
        rows = torch.arange(first[ranks.rank], first[ranks.rank + 1])
    local = charges.rows(rows) if len(rows) else None
    return DistributedCharges(local, group, queries=queries, division=division, device=charges.device)


def _facts(local: Charges) -> dict[str, Any]:
    """What the other ranks must know of a part."""
    classes = {}
    for label in local.classes:
        here = torch.eq(local.labels, label)  # type: ignore[arg-type]
        count = int(here.sum())
        weight = math.log(count) if local.log_weights is None else float(local.log_weights[here].logsumexp(0))
        classes[label] = (count, weight)
    return {
        "of": {
            "shape": tuple(local.shape),
            "dtype": local.dtype,
            "device": local.device.type,
            "divisor": local.divisor,
            "offset": local.offset,
            "weights": local.log_weights is not None,
            "labels": local.labels is not None,
        },
        "count": len(local),
        "weight": float(local.mean_log_weight()),
        "classes": classes,
        "resident": local.resident,
    }


def _logsumexp(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).logsumexp(0))
