"""A study's points on disk: a JSON line each, appended as they are measured, so that what was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pfgm_fast.files import write_beside


class Point(Protocol):
    @property
    def key(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


P = TypeVar("P", bound=Point)


class PointFile(Generic[P]):
    """Points by their key. A line that was cut off while it was written is dropped, from the file too. The folder is made with the first
    point."""

    def __init__(self, path: Path, from_dict: Callable[[dict[str, Any]], P]) -> None:
        self.path = path
        self.points: dict[str, P] = {}
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines:
            try:
                point = from_dict(json.loads(line))
            except (ValueError, TypeError, KeyError):
                continue
            self.points[point.key] = point
        if len(self.points) != len(lines):
            kept = "".join(json.dumps(point.to_dict()) + "\n" for point in self.points.values())
            write_beside(path, kept.encode())

    def get(self, key: str, measure: Callable[[], P]) -> tuple[P, bool]:
        """The point of a key, measured and appended where it is not there yet; and whether it was measured now."""
        if key in self.points:
            return self.points[key], False
        self.points[key] = point = measure()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(point.to_dict(), allow_nan=False) + "\n")
        return point, True
