"""The output table: one row an image, with an explicit Arrow schema that is the same in every part.

The schema is versioned in the file metadata (`effsam2_ray.schema_version`). A mask's `segmentation` is what
`pycocotools.mask.decode` takes. Masks and prompts are in the frame of the picture as a viewer shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from effsam2_ray.masks import Mask
from effsam2_ray.prompts import Prompts
from effsam2_ray.results import ImageCandidates, LabelledImage
from effsam2_ray.rle import Rle

SCHEMA_VERSION = "1"

STEPS = (
    "load_s",
    "encode_s",
    "attention_s",
    "distances_s",
    "spanning_tree_s",
    "tree_select_s",
    "medoids_s",
    "decode_s",
    "select_s",
    "merge_s",
)
"""Keys of the `step_s` column: seconds of each step of one image; null where a step was not needed."""

_SEGMENTATION = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
_MASK_FIELDS = [
    ("segmentation", _SEGMENTATION),
    ("area", pa.int64()),
    ("bbox", pa.list_(pa.float32())),
    ("predicted_iou", pa.float32()),
    ("stability_score", pa.float32()),
    ("point_coords", pa.list_(pa.list_(pa.float32()))),
    ("members", pa.list_(pa.int32())),
]
_PROMPT = pa.struct(
    [("x", pa.float32()), ("y", pa.float32()), ("cluster_size", pa.int32()), ("persistence", pa.float32())]
)
_CLUSTER_MAP = pa.struct([("size", pa.list_(pa.int32())), ("labels", pa.list_(pa.int16()))])

_IDENTITY = [
    ("image_uid", pa.int64()),
    ("image_id", pa.string()),
    ("image_uri", pa.string()),
    ("shard_uri", pa.string()),
    ("member", pa.string()),
    ("row", pa.int64()),
    ("size_bytes", pa.int64()),
    ("etag", pa.string()),
]
_RESULT = [
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("status", pa.string()),
    ("error", pa.string()),
    ("preset", pa.string()),
    ("weights", pa.string()),
    ("num_prompts", pa.int32()),
    ("prompts", pa.list_(_PROMPT)),
    ("cluster_map", _CLUSTER_MAP),
    ("num_candidates", pa.int32()),
    ("merge_largest_share", pa.float32()),
    ("masks", pa.list_(pa.struct(_MASK_FIELDS))),
]
_CANDIDATES = ("candidates", pa.list_(pa.struct([*_MASK_FIELDS, ("merged_into", pa.int32())])))
_STEP_S = ("step_s", pa.struct([(step, pa.float32()) for step in STEPS]))

RESERVED_COLUMNS = frozenset(name for name, _ in [*_IDENTITY, *_RESULT, _CANDIDATES, _STEP_S])
"""Names that a kept column cannot have."""


def run_schema(kept: Mapping[str, pa.DataType], *, keep_candidates: bool) -> pa.Schema:
    """Return the schema of every part of one run.

    Args:
        kept: the user's own columns that go along, name to type.
        keep_candidates: add the masks before merging.
    """
    fields = [*_IDENTITY, *kept.items(), *_RESULT]
    if keep_candidates:
        fields.append(_CANDIDATES)
    fields.append(_STEP_S)
    return pa.schema(fields, metadata={"effsam2_ray.schema_version": SCHEMA_VERSION})


def result_columns(labelled: LabelledImage | None, *, keep_candidates: bool) -> dict[str, Any]:
    """Return the columns that labelling fills; for None (a failed image), empty lists and nulls.

    Lists are empty rather than null for a failed image, so that code that loops over masks needs no special case.
    """
    if labelled is None:
        empty = {"num_prompts": 0, "prompts": [], "num_candidates": 0, "masks": []}
        return {**empty, "candidates": []} if keep_candidates else empty
    height, width = labelled.size_hw
    prompts = labelled.prompts
    columns: dict[str, Any] = {
        "width": width,
        "height": height,
        "num_prompts": len(prompts.point_coords),
        "prompts": [
            {
                "x": float(x),
                "y": float(y),
                "cluster_size": int(size),
                "persistence": float(persistence),
            }
            for (x, y), size, persistence in zip(
                prompts.point_coords, prompts.cluster_size, prompts.persistence, strict=True
            )
        ],
        "num_candidates": len(labelled.candidates),
        "merge_largest_share": labelled.largest_share,
        "masks": [mask.to_dict() for mask in labelled.masks],
        "step_s": {step: labelled.step_s.get(step) for step in STEPS},
    }
    if labelled.cluster_map is not None:
        columns["cluster_map"] = {
            "size": list(labelled.cluster_map.shape),
            "labels": labelled.cluster_map.ravel().tolist(),
        }
    if keep_candidates:
        columns["candidates"] = [
            {**mask.to_dict(), "merged_into": target}
            for mask, target in zip(labelled.candidates, labelled.merged_into, strict=True)
        ]
    return columns


def candidates_of(row: Mapping[str, Any]) -> ImageCandidates:
    """Return the masks before merging that a row of a run with `--keep-candidates` holds.

    Args:
        row: a row as `pyarrow.Table.to_pylist` gives it, with `width`, `height`, `prompts`, `cluster_map`,
            `candidates` and `step_s`; its status is `ok`.
    """
    prompts = row["prompts"]
    labels = None
    if row["cluster_map"] is not None:
        labels = np.array(row["cluster_map"]["labels"], np.int16).reshape(row["cluster_map"]["size"])
    return ImageCandidates(
        size_hw=(row["height"], row["width"]),
        prompts=Prompts(
            point_coords=np.array([(prompt["x"], prompt["y"]) for prompt in prompts], np.float32).reshape(-1, 2),
            cluster_size=np.array([prompt["cluster_size"] for prompt in prompts], np.int32),
            persistence=np.array([prompt["persistence"] for prompt in prompts], np.float32),
        ),
        cluster_map=labels,
        candidates=tuple(mask_of(candidate) for candidate in row["candidates"]),
        step_s={step: seconds for step, seconds in row["step_s"].items() if seconds is not None},
    )


def mask_of(value: Mapping[str, Any]) -> Mask:
    """Return the mask in an element of the columns `masks` and `candidates`, its runs unchecked: they are ours."""
    height_px, width_px = value["segmentation"]["size"]
    x, y, width, height = value["bbox"]
    return Mask(
        segmentation=Rle((height_px, width_px), value["segmentation"]["counts"].encode()),
        area=value["area"],
        bbox=(x, y, width, height),
        predicted_iou=value["predicted_iou"],
        stability_score=value["stability_score"],
        point_coords=tuple((x, y) for x, y in value["point_coords"]),
        members=tuple(value["members"]),
    )


def build_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table of exactly `schema`; columns that a row lacks are null."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
