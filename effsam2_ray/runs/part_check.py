"""One part against what its unit should have given: rows, columns, and every mask.

Masks are judged by their pixels: the runs are unpacked, and area and box are measured and compared with what the row
says. Nothing is decoded to an array.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pycocotools import mask as coco_mask

from effsam2_ray.errors import InputError
from effsam2_ray.images import STATUSES
from effsam2_ray.output import OutputFolder
from effsam2_ray.runs.findings import MAX_EXAMPLES, Findings, add_findings
from effsam2_ray.runs.packed_masks import MaskMeasures, measure_masks, union_areas, without_nulls
from effsam2_ray.runs.reading import open_part, part_batches
from effsam2_ray.schema import run_schema
from effsam2_ray.uris import redact

WHOLE_PICTURE_FRAC = 0.95
"""A mask of this share of its picture covers the whole of it."""
NEAR_DUPLICATE_IOU = 0.9
"""Two masks of a picture whose IoU is this or more are near-duplicates."""

_COLUMNS = ("image_uid", "image_uri", "width", "height", "status", "masks")
# So few that what numpy makes of their runs stays in a core's own cache; with 64 it takes half as long again.
_ROWS_AT_ONCE = 2


@dataclass(frozen=True)
class PartTask:
    """A unit of the work list.

    Attributes:
        unit_id: its id.
        image_uids: (N,) int64, its images.
        has_part: whether there is a part to check.
    """

    unit_id: str
    image_uids: np.ndarray
    has_part: bool


@dataclass
class _Faults:
    """Faults as they are found."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, kind: str, examples: Iterable[str], number: int | None = None) -> None:
        texts = list(examples)
        self.counts[kind] += len(texts) if number is None else number
        if texts:
            self.examples[kind] = (*self.examples.get(kind, ()), *texts)[:MAX_EXAMPLES]


def check_part(task: PartTask, folder: OutputFolder, kept: dict[str, pa.DataType]) -> Findings:
    """Return what is in a unit's part, and every fault.

    Args:
        task: the unit.
        folder: the run's folder.
        kept: the user's columns that go along, name to type.
    """
    num_expected = len(task.image_uids)
    where = f"part-{task.unit_id}.parquet"
    if not task.has_part:
        text = f"{num_expected} images of {where}, which does not exist"
        return Findings(num_expected, problems=Counter(missing=num_expected), examples={"missing": (text,)})
    faults = _Faults()
    pieces: list[Findings] = []
    uids: list[np.ndarray] = []
    try:
        part = open_part(folder, task.unit_id)
        difference = schema_difference(part.schema_arrow, kept)
        if difference:
            faults.add("schema", [f"{where}: {difference}"])
        for batch in part_batches(folder, task.unit_id, _COLUMNS, part=part):
            uids.append(without_nulls(batch.column("image_uid"), 0).to_numpy(zero_copy_only=False))
            for first in range(0, batch.num_rows, _ROWS_AT_ONCE):
                pieces.append(_check_rows(batch.slice(first, _ROWS_AT_ONCE), faults))
    except (InputError, OSError, ValueError, pa.ArrowException) as error:
        faults.add("damaged", [f"{where}: {redact(str(error))}"])
    _compare_uids(task.image_uids, np.concatenate(uids) if uids else np.zeros(0, np.int64), where, faults)
    return add_findings([Findings(num_expected, problems=faults.counts, examples=faults.examples), *pieces])


def schema_difference(schema: pa.Schema, kept: dict[str, pa.DataType]) -> str:
    """Return in words how a part's columns differ from the run's, "" where they do not."""
    expected = run_schema(kept, keep_candidates="candidates" in schema.names)
    version, ours = ((item.metadata or {}).get(b"effsam2_ray.schema_version") for item in (schema, expected))
    if version != ours:
        return f"schema version {version.decode() if version else 'none'}, not {(ours or b'').decode()}"
    differences = [f"no column {name}" for name in expected.names if name not in schema.names]
    differences += [f"column {name} is not the run's" for name in schema.names if name not in expected.names]
    differences += [
        f"{item.name} is {schema.field(item.name).type}, not {item.type}"
        for item in expected
        if item.name in schema.names and schema.field(item.name).type != item.type
    ]
    return "; ".join(differences)


def near_duplicates(areas: np.ndarray, boxes: np.ndarray, rles: list[dict[str, object]], thresh: float) -> list[int]:
    """Return the masks of one picture that have an IoU of `thresh` or more with a mask before them.

    Args:
        areas: (N,) int64 pixels.
        boxes: (N, 4) int64, (x, y, width, height).
        rles: N masks of one size as COCO's dictionaries.
        thresh: in (0, 1].
    """
    smaller, larger = np.minimum.outer(areas, areas), np.maximum.outer(areas, areas)
    ends = boxes[:, :2] + boxes[:, 2:]
    sides = np.minimum(ends[:, None], ends[None]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    shared_box = np.prod(np.maximum(sides, 0), axis=2)
    # The intersection is at most the smaller mask and at most what the boxes share; the union at least the larger mask.
    possible = np.minimum(smaller, shared_box) >= thresh * np.maximum(larger, 1)
    found = set()
    for first, second in zip(*np.nonzero(np.triu(possible, 1)), strict=True):
        if second not in found and coco_mask.iou([rles[first]], [rles[second]], [0])[0, 0] >= thresh:
            found.add(int(second))
    return sorted(found)


def _check_rows(batch: pa.RecordBatch, faults: _Faults) -> Findings:
    names = batch.column("image_uri").to_pylist()
    statuses = batch.column("status").to_pylist()
    size_hw = np.stack(
        [
            without_nulls(batch.column(side), 0).to_numpy(zero_copy_only=False).astype(np.int64)
            for side in ("height", "width")
        ],
        axis=1,
    )  # (B, 2)
    lists = batch.column("masks")
    counts = without_nulls(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    bounds = np.concatenate(([0], np.cumsum(counts)))
    masks = lists.flatten()
    measures = measure_masks(pc.struct_field(masks, "segmentation"))
    _check_statuses(names, statuses, size_hw, counts, faults)
    _check_masks(masks, measures, size_hw, np.repeat(np.arange(batch.num_rows), counts), names, faults)

    ok = np.array([status == "ok" for status in statuses], bool)
    num_pixels = size_hw.prod(axis=1)
    measured = ok & (num_pixels > 0)
    covered = union_areas(measures, bounds)[measured] / num_pixels[measured]
    pixels = np.repeat(num_pixels, counts)
    whole = (pixels > 0) & (measures.areas >= WHOLE_PICTURE_FRAC * pixels)
    duplicates = 0
    for place in np.flatnonzero(counts > 1):
        inside = slice(bounds[place], bounds[place + 1])
        if measures.sound[inside].all() and (measures.size_hw[inside] == measures.size_hw[bounds[place]]).all():
            rles = pc.struct_field(masks.slice(bounds[place], counts[place]), "segmentation").to_pylist()
            duplicates += len(near_duplicates(measures.areas[inside], measures.boxes[inside], rles, NEAR_DUPLICATE_IOU))
    return Findings(
        num_rows=batch.num_rows,
        statuses=Counter(statuses),
        masks_an_image=Counter(counts[ok].tolist()),
        num_masks=int(counts.sum()),
        coverage=float(np.minimum(covered, 1.0).sum()),
        num_whole_picture=int(whole.sum()),
        num_near_duplicates=duplicates,
    )


def _check_statuses(
    names: list[str], statuses: list[str], size_hw: np.ndarray, counts: np.ndarray, faults: _Faults
) -> None:
    for name, status, (height, width), count in zip(names, statuses, size_hw, counts, strict=True):
        if status not in STATUSES:
            faults.add("status", [f"{name}: status {status!r} is not known"])
        elif status == "ok" and (height < 1 or width < 1):
            faults.add("status", [f"{name}: ok, but of size {width} x {height}"])
        elif status != "ok" and count:
            faults.add("status", [f"{name}: {status}, but has {count} masks"])


def _check_masks(
    masks: pa.StructArray,
    measures: MaskMeasures,
    size_hw: np.ndarray,
    rows: np.ndarray,
    names: list[str],
    faults: _Faults,
) -> None:
    """Compare masks with their picture and with the numbers that stand beside them; `rows` says whose each is."""
    stated_areas = without_nulls(pc.struct_field(masks, "area"), -1).to_numpy(zero_copy_only=False)
    sound = measures.sound
    wrong = {
        "rle": ~sound,
        "size": sound & (measures.size_hw != size_hw[rows]).any(axis=1),
        "empty": sound & (measures.areas == 0),
        "area": sound & (measures.areas != stated_areas),
        "bbox": sound & (measures.boxes != _stated_boxes(pc.struct_field(masks, "bbox"))).any(axis=1),
    }
    details = {
        "size": lambda at: f"{measures.size_hw[at].tolist()}, the picture {size_hw[rows[at]].tolist()}",
        "area": lambda at: f"{stated_areas[at]} stated, {measures.areas[at]} counted",
        "bbox": lambda at: f"{masks[int(at)]['bbox'].as_py()} stated, {measures.boxes[at].tolist()} measured",
    }
    for kind, flags in wrong.items():
        places = np.flatnonzero(flags)
        if not len(places):
            continue
        examples = []
        for at in places[:MAX_EXAMPLES]:
            number = int(at - np.searchsorted(rows, rows[at]))
            detail = f": {details[kind](at)}" if kind in details else ""
            examples.append(f"{redact(names[rows[at]] or '')} masks[{number}]{detail}")
        faults.add(kind, examples, len(places))


def _stated_boxes(boxes: pa.ListArray) -> np.ndarray:
    """Return (M, 4) float64; -1 where a box is not four numbers."""
    lengths = without_nulls(pc.list_value_length(boxes), 0).to_numpy(zero_copy_only=False)
    values = without_nulls(boxes.flatten(), -1.0).to_numpy(zero_copy_only=False)
    result = np.full((len(boxes), 4), -1.0)
    result[lengths == 4] = values[np.repeat(lengths == 4, lengths)].reshape(-1, 4)
    return result


def _compare_uids(expected: np.ndarray, found: np.ndarray, where: str, faults: _Faults) -> None:
    values, counts = np.unique(found, return_counts=True)
    known = np.isin(values, expected)
    for kind, uids, number in (
        ("missing", np.setdiff1d(expected, values), None),
        ("twice", values[known & (counts > 1)], int((counts[known] - 1).sum())),
        ("foreign", values[~known], int(counts[~known].sum())),
    ):
        if len(uids):
            examples = [f"image_uid {uid} in {where}" for uid in uids[:MAX_EXAMPLES].tolist()]
            faults.add(kind, examples, len(uids) if number is None else number)
