"""Lines of numbers -> `summary.json`: means with bootstrap intervals, and paired differences from a reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from effsam2_ray.config import Config
from effsam2_ray.evaluation.gathering import MEASURES, SINGLE_OBJECT_MEASURES, Line
from effsam2_ray.evaluation.methods import Method, Post
from effsam2_ray.metrics import Interval, average_recall, bootstrap_difference, bootstrap_mean

COMPARED = ("best_iou", "label_map_iou", "num_prompts", "latency_s")
COLLAPSED_SHARE = 0.5
"""A picture has collapsed when its largest merged mask joined more than this share of the candidates."""

# Too many resamples of many pictures take minutes and change the third digit of an interval.
_MOST_DRAWS = 200_000_000


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn.

    Attributes:
        seed: same seed, same intervals.
        num: resamples.
        level: share of them inside the interval.
    """

    seed: int = 0
    num: int = 1000
    level: float = 0.95

    def mean(self, values: np.ndarray) -> dict[str, float] | None:
        """Return the mean and its interval, None where there is no value."""
        if values.size == 0:
            return None
        return _plain(bootstrap_mean(values, self.seed, self._draws(values), self.level))

    def difference(self, first: np.ndarray, second: np.ndarray) -> dict[str, float] | None:
        """Return the mean of `first - second` and its interval, None where there is no pair."""
        if first.size == 0:
            return None
        return _plain(bootstrap_difference(first, second, self.seed, self._draws(first), self.level))

    def _draws(self, values: np.ndarray) -> int:
        return max(100, min(self.num, _MOST_DRAWS // values.size))


def find_reference(methods: Sequence[Method], name: str | None = None) -> str | None:
    """Return the name of the line that the others are compared with: the one asked for, else the largest grid's first.

    Raises:
        ValueError: no line has the name asked for.
    """
    lines = [(method.line_name(post), method) for method in methods for post in method.posts]
    if name is not None:
        if name not in dict(lines):
            raise ValueError(f"no line is called {name!r}; there are {', '.join(dict(lines))}")
        return name
    grids = [(method.config.prompts.count, line) for line, method in lines if method.config.prompts.source == "grid"]
    most = max((count for count, _ in grids), default=0)
    return next((line for count, line in grids if count == most), None)


def reference_for(method: Method, methods: Sequence[Method], reference: str) -> str:
    """Return the name of the line that a method is compared with.

    It is the reference, or the line with the reference's prompts and post and the method's own settings of decoding,
    where there is one: a method without score thresholds is to be compared with a grid without them.
    """
    lines = {other.line_name(post): (other, post) for other in methods for post in other.posts}
    base, base_post = lines[reference]
    if method.config.decode == base.config.decode:
        return reference
    for name, (other, post) in lines.items():
        alike = other.config.prompts == base.config.prompts and post.merge == base_post.merge
        if alike and other.config.decode == method.config.decode:
            return name
    return reference


def summarize_line(
    line: Line, config: Config, method: str, post: Post, bootstrap: Bootstrap, against: tuple[str, Line] | None = None
) -> dict[str, Any]:
    """Return one entry of `summary.json`'s `methods`.

    Args:
        line: its numbers.
        config: the method's resolved configuration.
        method: its name.
        post: the way from candidates to masks.
        bootstrap: how intervals are drawn.
        against: name and numbers of what it is compared with, picture by picture; None for the reference itself.
    """
    shares = line.measure("largest_share")
    entry: dict[str, Any] = {name: bootstrap.mean(line.measure(name)) for name in MEASURES if name != "largest_share"}
    # Pictures count by their objects here, not alike.
    entry["best_iou_over_objects"] = _weighted(line, "best_iou")
    entry["average_recall"] = average_recall(line.recall)
    if any(line.measure(name).size for name in SINGLE_OBJECT_MEASURES):
        entry["single_object"] = {name: bootstrap.mean(line.measure(name)) for name in SINGLE_OBJECT_MEASURES}
    entry |= {
        "method": method,
        "post": post.name,
        "num_images": len(line.image_uids),
        "num_images_with_objects": int(line.measure("best_iou").size),
        "failures": dict(line.failures),
        "collapsed": int(np.count_nonzero(shares > COLLAPSED_SHARE)) if post.merge.method == "merge" else 0,
        "block": config.attention.block if config.prompts.source == "clusters" else None,
        "head": config.attention.head if config.prompts.source == "clusters" else None,
        "config": {**config.to_dict(), "merge": dataclasses.asdict(post.merge)},
    }
    if against is not None:
        entry["against"], reference = against
        entry["difference"] = {name: bootstrap.difference(*line.paired(reference, name)) for name in COMPARED}
        entry["prompts_saved_frac"] = _saved(*line.paired(reference, "num_prompts"))
    return entry


def _weighted(line: Line, name: str) -> float | None:
    values, weights = line.values[name], line.num_objects
    known = ~np.isnan(values)
    return float(np.average(values[known], weights=weights[known])) if known.any() else None


def _saved(prompts: np.ndarray, reference: np.ndarray) -> float | None:
    total = float(reference.sum())
    return 1 - float(prompts.sum()) / total if total else None


def _plain(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def mean_of(entry: Mapping[str, Any], name: str) -> float:
    """Return the mean of one measure of an entry, nan where it has none."""
    value = entry.get(name)
    if isinstance(value, Mapping):
        value = value["mean"]
    return float("nan") if value is None else float(value)
