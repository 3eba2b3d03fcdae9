"""Accuracy against cost: which settings no other beats, and which to take for a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effsam2_ray.errors import ConfigError
from effsam2_ray.evaluation.summary import mean_of

ACCURACIES = ("best_iou", "label_map_iou")


@dataclass(frozen=True)
class Point:
    """One line as a point of the trade-off.

    Attributes:
        name: its name.
        best_iou, label_map_iou: means; nan where no picture has objects.
        num_prompts: mean a picture.
        latency_s: mean seconds a picture.
    """

    name: str
    best_iou: float
    label_map_iou: float
    num_prompts: float
    latency_s: float

    def accuracy(self, name: str) -> float:
        """Return `best_iou` or `label_map_iou`, -inf where there is none."""
        value = self.best_iou if name == "best_iou" else self.label_map_iou
        return -math.inf if math.isnan(value) else value


@dataclass(frozen=True)
class Suggestion:
    """What to take.

    Attributes:
        point: the settings.
        within: whether it keeps to the budget; if not, it is the nearest that there is.
        text: the same in a sentence.
    """

    point: Point
    within: bool
    text: str


def points(entries: Mapping[str, Mapping[str, Any]]) -> list[Point]:
    """Return the points of some lines of a summary."""
    names = ("best_iou", "label_map_iou", "num_prompts", "latency_s")
    return [Point(name, *(mean_of(entry, measure) for measure in names)) for name, entry in entries.items()]


def front(candidates: Sequence[Point], accuracy: str = "best_iou") -> list[str]:
    """Return the names of the points that none beats: as few prompts and more accurate, or fewer and as accurate."""
    kept = []
    for point in candidates:
        mine = (point.num_prompts, -point.accuracy(accuracy))
        others = [(other.num_prompts, -other.accuracy(accuracy)) for other in candidates]
        if not any(other != mine and other[0] <= mine[0] and other[1] <= mine[1] for other in others):
            kept.append(point.name)
    return kept


def suggest(
    candidates: Sequence[Point],
    *,
    target_prompts: float | None = None,
    target_s: float | None = None,
    accuracy: str = "best_iou",
) -> Suggestion:
    """Return the most accurate point within the budget; where none is, the one that goes over it least.

    Of equally accurate ones the one with fewer prompts is taken, then the faster one.

    Args:
        candidates: at least one.
        target_prompts: most prompts a picture, on average.
        target_s: most seconds a picture, on average.
        accuracy: one of `ACCURACIES`.

    Raises:
        ConfigError: no candidate, no budget, or another measure.
    """
    budgets = {"num_prompts": target_prompts, "latency_s": target_s}
    limits = {name: limit for name, limit in budgets.items() if limit is not None}
    if not candidates or not limits or accuracy not in ACCURACIES:
        raise ConfigError(
            "a suggestion needs settings to choose from, a target of prompts or seconds, and one of "
            f"{', '.join(ACCURACIES)}"
        )

    def excess(point: Point) -> float:
        return max(getattr(point, name) / limit if limit > 0 else math.inf for name, limit in limits.items())

    fitting = [point for point in candidates if excess(point) <= 1]
    if fitting:
        best = min(fitting, key=lambda point: (-point.accuracy(accuracy), point.num_prompts, point.latency_s))
    else:
        best = min(candidates, key=lambda point: (excess(point), -point.accuracy(accuracy)))
    wanted = " and ".join(
        f"{limit:g} {'prompts' if name == 'num_prompts' else 'seconds'}" for name, limit in limits.items()
    )
    start = f"For at most {wanted} a picture" if fitting else f"Nothing tried keeps to {wanted} a picture; the nearest"
    text = (
        f"{start}: {best.name} ({best.num_prompts:.1f} prompts, {best.latency_s:.2f} s, best_iou {best.best_iou:.3f}, "
        f"label_map_iou {best.label_map_iou:.3f})."
    )
    return Suggestion(best, bool(fitting), text)
