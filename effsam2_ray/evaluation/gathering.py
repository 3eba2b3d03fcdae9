"""Per-image scores, part by part -> columns of numbers for each line of the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from effsam2_ray.metrics import SCORE_COLUMNS, RecallCounts

MEASURES = (
    "best_iou",
    "label_map_iou",
    "num_prompts",
    "num_candidates",
    "num_masks",
    "latency_s",
    "coverage",
    "largest_share",
    "cluster_purity",
    "adjusted_rand_index",
)
SINGLE_OBJECT_MEASURES = tuple(
    name for name in SCORE_COLUMNS if name.startswith(("best_mask_", "union_")) and SCORE_COLUMNS[name] == "double"
)

LineKey = tuple[str, str]
"""(method, post)."""


@dataclass(frozen=True)
class Line:
    """The numbers of one method with one post.

    Attributes:
        image_uids: (I,) int64, ascending: the pictures that were labelled and scored.
        values: (I,) float64 by measure; nan where a picture has no such number.
        num_objects: (I,) int64 objects of each picture, over annotators.
        recall: counts over all pictures.
        failures: number of pictures by status, `ok` not among them.
    """

    image_uids: np.ndarray
    values: Mapping[str, np.ndarray]
    num_objects: np.ndarray
    recall: RecallCounts
    failures: Mapping[str, int]

    def measure(self, name: str) -> np.ndarray:
        """Return the numbers that there are of one measure, in the order of the pictures."""
        values = self.values[name]
        return values[~np.isnan(values)]

    def paired(self, other: Line, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return both lines' numbers of one measure for the pictures where both have one."""
        _, here, there = np.intersect1d(self.image_uids, other.image_uids, assume_unique=True, return_indices=True)
        mine, theirs = self.values[name][here], other.values[name][there]
        both = ~(np.isnan(mine) | np.isnan(theirs))
        return mine[both], theirs[both]


@dataclass
class _Growing:
    chunks: list[pa.Table] = field(default_factory=list)
    recall: RecallCounts = field(default_factory=RecallCounts.zero)
    failures: Counter[str] = field(default_factory=Counter)


_NUMBERS = ["image_uid", "num_objects", *MEASURES, *SINGLE_OBJECT_MEASURES]


def gather(tables: Iterable[pa.Table]) -> dict[LineKey, Line]:
    """Return the lines in tables of per-image scores; of each row only its numbers are kept.

    Args:
        tables: of `image_scores.SCORE_SCHEMA`, read one by one.
    """
    growing: dict[LineKey, _Growing] = {}
    for table in tables:
        keys = list(zip(table["method"].to_pylist(), table["post"].to_pylist(), strict=True))
        statuses = table["status"].to_pylist()
        for key in dict.fromkeys(keys):
            line = growing.setdefault(key, _Growing())
            mine = [place for place, other in enumerate(keys) if other == key]
            line.failures.update(statuses[place] for place in mine if statuses[place] != "ok")
            rows = table.take(pa.array([place for place in mine if statuses[place] == "ok"], pa.int64()))
            line.chunks.append(rows.select(_NUMBERS))
            for matched, objects in zip(
                rows["recall_matched"].to_pylist(), rows["recall_objects"].to_pylist(), strict=True
            ):
                line.recall = line.recall + RecallCounts.from_lists(matched, objects)
    return {key: _line(line) for key, line in growing.items()}


def _line(growing: _Growing) -> Line:
    table = pa.concat_tables(growing.chunks)
    image_uids = table["image_uid"].to_numpy()
    order = np.argsort(image_uids, kind="stable")
    values = {
        name: table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)[order]
        for name in (*MEASURES, *SINGLE_OBJECT_MEASURES)
    }
    num_objects = table["num_objects"].cast(pa.int64()).to_numpy()[order]
    return Line(image_uids[order], values, num_objects, growing.recall, dict(growing.failures))
