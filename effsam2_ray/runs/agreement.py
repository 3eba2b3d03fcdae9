"""How much the masks of two runs agree, image by image, added up.

A mask's *best IoU* is its highest IoU with any mask of the other run in the same image, 0 where that has none. It is
taken both ways, since a run with more masks always finds partners for the few of the other.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pycocotools import mask as coco_mask

from effsam2_ray.runs.joining import PLACE_COLUMN, UNIT_COLUMN, matched_batches
from effsam2_ray.runs.packed_masks import measure_masks, sound_rows, union_areas, without_nulls

COLUMNS = ("image_uid", "image_uri", "status", "width", "height", "num_prompts", "masks")
MATCH_IOUS = (0.5, 0.75, 0.9)
AREA_EDGES = (0.0, 0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Edges of the area histogram, shares of the picture; the last bin holds the whole picture."""


@dataclass(frozen=True)
class Side:
    """One run's figures over the images that are labelled in both.

    Attributes:
        masks, prompts: how many.
        zero_mask_images: images without a mask.
        coverage: sum over images of the share of the pixels that any mask covers.
        best_iou: sum over masks of the best IoU in the other run.
        image_best_iou: sum over images with masks of their masks' mean best IoU.
        images_with_masks: number of such images.
        matched: masks whose best IoU reaches each of `MATCH_IOUS`.
        areas: masks in each bin of `AREA_EDGES`.
    """

    masks: int = 0
    prompts: int = 0
    zero_mask_images: int = 0
    coverage: float = 0.0
    best_iou: float = 0.0
    image_best_iou: float = 0.0
    images_with_masks: int = 0
    matched: tuple[int, ...] = (0,) * len(MATCH_IOUS)
    areas: tuple[int, ...] = (0,) * (len(AREA_EDGES) - 1)

    def __add__(self, other: Side) -> Side:
        values: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            is_tuple = isinstance(mine, tuple)
            values[item.name] = tuple(map(sum, zip(mine, theirs, strict=True))) if is_tuple else mine + theirs
        return Side(**values)


@dataclass(frozen=True, order=True)
class Difference:
    """An image and how much the runs differ on it; larger ones sort later.

    Attributes:
        score: 1 - the mean of both ways' mean best IoU; 1 where only one run has masks, 0 where neither has.
        num_masks: of both runs, to order images of equal score.
        image_uid, image_uri: which image.
        place_a, place_b: (unit's position in the work list, row in its part), in each run.
    """

    score: float
    num_masks: int
    image_uid: int
    image_uri: str
    place_a: tuple[int, int]
    place_b: tuple[int, int]


@dataclass(frozen=True)
class Agreement:
    """Two runs' figures over some images.

    Attributes:
        rows_a, rows_b: rows of each run.
        num_both: images that have a row in both.
        statuses: `status in A / status in B` of those.
        num_compared: those labelled in both, with sound masks of the same size.
        a, b: each run's figures over those.
        differences: the images that differ most, most first.
    """

    rows_a: int = 0
    rows_b: int = 0
    num_both: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    num_compared: int = 0
    a: Side = Side()
    b: Side = Side()
    differences: tuple[Difference, ...] = ()


def add_agreements(parts: Iterable[Agreement], num_differences: int) -> Agreement:
    """Return the sum over disjoint images, with the `num_differences` that differ most."""
    total = Agreement()
    for part in parts:
        total = Agreement(
            rows_a=total.rows_a + part.rows_a,
            rows_b=total.rows_b + part.rows_b,
            num_both=total.num_both + part.num_both,
            statuses=total.statuses + part.statuses,
            num_compared=total.num_compared + part.num_compared,
            a=total.a + part.a,
            b=total.b + part.b,
            differences=tuple(heapq.nlargest(num_differences, (*total.differences, *part.differences))),
        )
    return total


def compare_tables(table_a: pa.Table | None, table_b: pa.Table | None, num_differences: int) -> Agreement:
    """Compare the images that two tables share.

    Args:
        table_a, table_b: rows of each run with `COLUMNS`, unit and place; None for no rows.
        num_differences: how many images to keep of those that differ most.
    """
    rows = Agreement(
        rows_a=table_a.num_rows if table_a is not None else 0, rows_b=table_b.num_rows if table_b is not None else 0
    )
    if table_a is None or table_b is None:
        return rows
    return add_agreements(
        [rows, *(_compare_batches(*pair) for pair in matched_batches(table_a, table_b))], num_differences
    )


def best_ious(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return each mask's best IoU with a mask of the other list, (N,) and (M,) float64.

    Args:
        first, second: N and M masks of one size as COCO's dictionaries.
    """
    if not first or not second:
        return np.zeros(len(first)), np.zeros(len(second))
    ious = np.asarray(coco_mask.iou(first, second, [0] * len(second))).reshape(len(first), len(second))
    return ious.max(axis=1), ious.max(axis=0)


def _compare_batches(batch_a: pa.RecordBatch, batch_b: pa.RecordBatch) -> Agreement:
    statuses = [batch.column("status").to_pylist() for batch in (batch_a, batch_b)]
    both_ok = np.array([first == second == "ok" for first, second in zip(*statuses, strict=True)], bool)
    sizes = [
        [batch.column(side).to_numpy(zero_copy_only=False) for side in ("width", "height")]
        for batch in (batch_a, batch_b)
    ]
    same_size = (np.array(sizes[0]) == np.array(sizes[1])).all(axis=0)
    usable = np.flatnonzero(both_ok & same_size & sound_rows(batch_a) & sound_rows(batch_b))
    counted = Agreement(
        num_both=batch_a.num_rows,
        statuses=Counter(f"{first} / {second}" for first, second in zip(*statuses, strict=True)),
        num_compared=len(usable),
    )
    if not len(usable):
        return counted
    batch_a, batch_b = batch_a.take(usable), batch_b.take(usable)
    best = [best_ious(*pair) for pair in zip(_segmentations(batch_a), _segmentations(batch_b), strict=True)]
    return dataclasses.replace(
        counted,
        a=_side(batch_a, [first for first, _ in best]),
        b=_side(batch_b, [second for _, second in best]),
        differences=tuple(_differences(batch_a, batch_b, best)),
    )


def _segmentations(batch: pa.RecordBatch) -> list[list[dict[str, Any]]]:
    return [[mask["segmentation"] for mask in masks] for masks in batch.column("masks").to_pylist()]


def _side(batch: pa.RecordBatch, best: list[np.ndarray]) -> Side:
    counts = np.array([len(values) for values in best])
    bounds = np.concatenate(([0], np.cumsum(counts)))
    measures = measure_masks(pc.struct_field(batch.column("masks").flatten(), "segmentation"))
    num_pixels = batch.column("width").to_numpy().astype(np.int64) * batch.column("height").to_numpy()
    shares = measures.areas / np.repeat(num_pixels, counts)
    all_best = np.concatenate(best)
    histogram, _ = np.histogram(shares, AREA_EDGES)
    return Side(
        masks=int(counts.sum()),
        prompts=int(without_nulls(batch.column("num_prompts"), 0).to_numpy(zero_copy_only=False).sum()),
        zero_mask_images=int((counts == 0).sum()),
        coverage=float((union_areas(measures, bounds) / num_pixels).sum()),
        best_iou=float(all_best.sum()),
        image_best_iou=float(sum(values.mean() for values in best if len(values))),
        images_with_masks=int((counts > 0).sum()),
        # An IoU that is one half in exact numbers may be a rounding error below it.
        matched=tuple(int((all_best >= iou - 1e-9).sum()) for iou in MATCH_IOUS),
        areas=tuple(histogram.tolist()),
    )


def _differences(
    batch_a: pa.RecordBatch, batch_b: pa.RecordBatch, best: list[tuple[np.ndarray, np.ndarray]]
) -> Iterable[Difference]:
    uids, uris = batch_a.column("image_uid").to_pylist(), batch_a.column("image_uri").to_pylist()
    places = [
        list(zip(batch.column(UNIT_COLUMN).to_pylist(), batch.column(PLACE_COLUMN).to_pylist(), strict=True))
        for batch in (batch_a, batch_b)
    ]
    for row, (first, second) in enumerate(best):
        means = [float(values.mean()) if len(values) else 0.0 for values in (first, second)]
        score = 1 - sum(means) / 2 if len(first) or len(second) else 0.0
        yield Difference(score, len(first) + len(second), uids[row], uris[row], places[0][row], places[1][row])
