"""One row of a run and the truth about its picture -> one row of scores for each post."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from effsam2_ray.config import FilterSettings
from effsam2_ray.errors import MaskError
from effsam2_ray.evaluation.budget import cut_prompts
from effsam2_ray.evaluation.methods import Post
from effsam2_ray.metrics import (
    SCORE_COLUMNS,
    ImageTruth,
    adjusted_rand_index,
    cluster_purity,
    patch_labels,
    score_image,
    truth_label_map,
)
from effsam2_ray.postprocess import finish
from effsam2_ray.schema import candidates_of

SCORING_VERSION = 1
"""Raised whenever the same candidates and truth would give other scores."""

_ARROW_TYPES = {"int64": pa.int64(), "double": pa.float64(), "list<int64>": pa.list_(pa.int64())}

SCORE_SCHEMA = pa.schema(
    [
        ("image_uid", pa.int64()),
        ("image_uri", pa.string()),
        ("method", pa.string()),
        ("post", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("num_prompts", pa.int64()),
        ("num_candidates", pa.int64()),
        ("largest_share", pa.float64()),
        ("latency_s", pa.float64()),
        ("cluster_purity", pa.float64()),
        ("adjusted_rand_index", pa.float64()),
        *((name, _ARROW_TYPES[kind]) for name, kind in SCORE_COLUMNS.items()),
    ]
)
"""Schema of `per_image/*.parquet`: one row for each image, method and post; see `score_rows`."""

ROW_COLUMNS = (
    "image_uid",
    "image_uri",
    "width",
    "height",
    "status",
    "error",
    "num_prompts",
    "prompts",
    "cluster_map",
    "candidates",
    "step_s",
)
"""Columns of a run's part that scoring reads."""


@dataclass(frozen=True)
class KnownTruth:
    """The truth about one picture, or why there is none.

    Attributes:
        truth: None where it could not be read.
        error: what went wrong, "" where nothing did.
    """

    truth: ImageTruth | None
    error: str = ""

    def patches(self, grid_hw: tuple[int, int]) -> list[np.ndarray]:
        """Return the object of each patch by every annotator who marked any: (rows, columns), 0 background, -1 void."""
        if self.truth is None:
            return []
        marked = [number for number, annotator in enumerate(self.truth.annotators) if annotator.masks]
        return [patch_labels(truth_label_map(self.truth, number), grid_hw) for number in marked]


def scoring_digest(
    posts: Sequence[Post], limits: FilterSettings, *, truth: str, with_single_object: bool, among: str
) -> str:
    """Return a digest of all that decides a method's scores, given its candidates.

    Args:
        posts: the method's.
        limits: the method's filters.
        truth: digest of what is known of the pictures.
        with_single_object: see `score_rows`.
        among: names of the methods that share prompts equally, "" where none do.
    """
    values = [repr(posts), repr(limits), truth, with_single_object, among, SCORING_VERSION]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def score_rows(
    row: Mapping[str, Any],
    known: KnownTruth,
    method: str,
    posts: Sequence[Post],
    limits: FilterSettings,
    *,
    budget: int | None = None,
    truth_patches: Sequence[np.ndarray] = (),
    with_single_object: bool = False,
) -> list[dict[str, Any]]:
    """Return one row of scores for each post, as `SCORE_SCHEMA` names them.

    `latency_s` is the sum of the picture's steps, from decoding its bytes to its final masks: what it costs alone,
    without waiting for other pictures. The final step is timed here, for each post.

    Args:
        row: one row of a run with candidates (`ROW_COLUMNS`).
        known: the truth about the picture.
        method: name of the method.
        posts: how candidates become masks.
        limits: filters on final masks.
        budget: most prompts where a post wants equal ones.
        truth_patches: each annotator's object of each patch, for clusters; none leaves their columns null.
        with_single_object: also S-measure and its like, where the picture has one object.
    """
    base = {"image_uid": row["image_uid"], "image_uri": row["image_uri"], "method": method}
    failure = _failure(row, known)
    if failure is not None or known.truth is None:
        status, error = failure or ("truth", known.error)
        return [{**base, "post": post.name, "status": status, "error": error} for post in posts]
    truth, image = known.truth, candidates_of(dict(row))
    clusters = _cluster_scores(image.cluster_map, truth_patches)
    rows = []
    for post in posts:
        chosen = image if not post.equal_prompts or budget is None else cut_prompts(image, budget)
        final = finish(chosen, post.merge, limits)
        try:
            scores = score_image(
                [mask.segmentation for mask in final.masks],
                [mask.predicted_iou for mask in final.masks],
                truth,
                with_single_object=with_single_object,
            )
        except MaskError as error:
            rows.append({**base, "post": post.name, "status": "truth", "error": str(error)})
            continue
        latency_s = sum(seconds for seconds in final.step_s.values() if seconds is not None)
        rows.append(
            {
                **base,
                "post": post.name,
                "status": "ok",
                "num_prompts": len(final.prompts),
                "num_candidates": len(final.candidates),
                "largest_share": final.largest_share,
                "latency_s": None if post.equal_prompts else latency_s,
                **clusters,
                **scores.to_row(),
            }
        )
    return rows


def _failure(row: Mapping[str, Any], known: KnownTruth) -> tuple[str, str] | None:
    """Return (status, reason) of a picture that cannot be scored, None of one that can."""
    if row["status"] != "ok":
        return row["status"], row["error"] or ""
    if known.truth is None:
        return "truth", known.error
    size_hw = (row["height"], row["width"])
    if size_hw != tuple(known.truth.size_hw):
        return "truth", f"the picture is {size_hw} (height, width), its annotation {tuple(known.truth.size_hw)}"
    return None


def _cluster_scores(cluster_map: np.ndarray | None, truth_patches: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Return purity and adjusted Rand index, means over the annotators."""
    if cluster_map is None or not truth_patches:
        return {}
    scores = {
        "cluster_purity": [cluster_purity(cluster_map, patches) for patches in truth_patches],
        "adjusted_rand_index": [adjusted_rand_index(cluster_map, patches) for patches in truth_patches],
    }
    return {name: None if np.isnan(values).all() else float(np.nanmean(values)) for name, values in scores.items()}
