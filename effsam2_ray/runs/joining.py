"""Rows of two runs, side by side by image.

Where both runs have the same work list, their units are the same, and one part of each is held at a time. Otherwise the
rows of both are first sorted into buckets on the local disk by their image_uid, and one bucket of each is held at a
time: 4,096 rows, or a 512th of a run of more than two million.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from effsam2_ray.output import OutputFolder
from effsam2_ray.runs.reading import ROWS_AT_ONCE, Run, part_batches

ROWS_A_BUCKET = 4096
MAX_BUCKETS = 512
"""As many files are open while rows are sorted into buckets."""

UNIT_COLUMN, PLACE_COLUMN = "_unit", "_place"
"""Added columns: position of the row's unit in its work list, and of the row in the unit."""


@dataclass(frozen=True)
class JoinTask:
    """Rows of two runs that can hold the same images: a unit, or a bucket.

    Attributes:
        number: of the unit in the work list, or of the bucket.
        unit_id: of the unit; "" for a bucket.
        has_a, has_b: whether the runs have a part of the unit.
        folder: where the buckets are; "" for a unit.
    """

    number: int
    unit_id: str = ""
    has_a: bool = True
    has_b: bool = True
    folder: str = ""


def join_tasks(run_a: Run, run_b: Run, columns: Sequence[str], bucket_folder: str) -> list[JoinTask]:
    """Return the pieces in which two runs can be compared; sorts them into buckets where their work lists differ.

    Args:
        run_a, run_b: the runs.
        columns: columns of the rows, `image_uid` among them.
        bucket_folder: an empty local folder; it must stay until the tasks are done.
    """
    if run_a.work_list.unit_ids == run_b.work_list.unit_ids:
        return [
            JoinTask(number, unit_id, unit_id in run_a.finished, unit_id in run_b.finished)
            for number, unit_id in enumerate(run_a.work_list.unit_ids)
        ]
    most = max(run_a.work_list.num_images, run_b.work_list.num_images)
    num_buckets = min(MAX_BUCKETS, -(-most // ROWS_A_BUCKET) or 1)
    for run, side in ((run_a, "a"), (run_b, "b")):
        _fill_buckets(run, columns, Path(bucket_folder), side, num_buckets)
    return [JoinTask(number, folder=bucket_folder) for number in range(num_buckets)]


def read_side(task: JoinTask, side: str, folder: OutputFolder, columns: Sequence[str]) -> pa.Table | None:
    """Return the rows of one run that a task is about, with their unit and place; None where there are none.

    Args:
        task: a unit or a bucket.
        side: `a` or `b`.
        folder: that run's folder.
        columns: columns of the rows.
    """
    if task.folder:
        path = _bucket_path(Path(task.folder), side, task.number)
        if not path.exists():
            return None
        with pa.OSFile(str(path)) as file:
            return pa.ipc.open_stream(file).read_all()
    if not (task.has_a if side == "a" else task.has_b):
        return None
    return pa.Table.from_batches(list(_placed_batches(folder, task.unit_id, task.number, columns)))


def matched_batches(table_a: pa.Table, table_b: pa.Table) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Yield rows of the images that are in both tables, in the same order on both sides, a few at a time.

    Of an image with several rows in a table the first counts.
    """
    uids_a, first_a = np.unique(table_a["image_uid"].to_numpy(), return_index=True)
    uids_b, first_b = np.unique(table_b["image_uid"].to_numpy(), return_index=True)
    _, at_a, at_b = np.intersect1d(uids_a, uids_b, assume_unique=True, return_indices=True)
    places_a, places_b = first_a[at_a], first_b[at_b]
    order = np.argsort(places_a)
    rows_a, rows_b = _Rows(table_a), _Rows(table_b)
    for start in range(0, len(order), ROWS_AT_ONCE):
        chosen = order[start : start + ROWS_AT_ONCE]
        yield rows_a.take(places_a[chosen]), rows_b.take(places_b[chosen])


class _Rows:
    """Rows of a table of many batches, a few at a time.

    `Table.take` puts the batches of lists and texts together first, all of them at each call, and fails where a column
    has more than 2 GiB of text. Here only the batches that hold the rows are touched.
    """

    def __init__(self, table: pa.Table):
        self._batches = table.to_batches()
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])

    def take(self, places: np.ndarray) -> pa.RecordBatch:
        """Return the rows at (K,) places of the table, one or more, in their order."""
        of_batch = np.searchsorted(self._ends, places, side="right")
        pieces, origins = [], []
        for number in np.unique(of_batch).tolist():
            origin = np.flatnonzero(of_batch == number)
            batch = self._batches[number]
            pieces.append(batch.take(pa.array(places[origin] - (self._ends[number] - batch.num_rows))))
            origins.append(origin)
        return pa.concat_batches(pieces).take(pa.array(np.argsort(np.concatenate(origins))))


def _placed_batches(
    folder: OutputFolder, unit_id: str, number: int, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    first = 0
    for batch in part_batches(folder, unit_id, columns):
        places = np.arange(first, first + batch.num_rows, dtype=np.int32)
        batch = batch.append_column(UNIT_COLUMN, pa.array(np.full(batch.num_rows, number, np.int32)))
        yield batch.append_column(PLACE_COLUMN, pa.array(places))
        first += batch.num_rows


def _fill_buckets(run: Run, columns: Sequence[str], folder: Path, side: str, num_buckets: int) -> None:
    writers: dict[int, pa.RecordBatchStreamWriter] = {}
    try:
        for number in run.finished_numbers():
            for batch in _placed_batches(run.folder, run.work_list.unit_ids[number], number, columns):
                buckets = batch.column("image_uid").to_numpy().view(np.uint64) % np.uint64(num_buckets)
                for bucket in np.unique(buckets).tolist():
                    rows = batch.take(np.flatnonzero(buckets == bucket))
                    if bucket not in writers:
                        path = _bucket_path(folder, side, bucket)
                        writers[bucket] = pa.ipc.new_stream(str(path), rows.schema)
                    writers[bucket].write_batch(rows)
    finally:
        for writer in writers.values():
            writer.close()


def _bucket_path(folder: Path, side: str, bucket: int) -> Path:
    return folder / f"{side}-{bucket:04d}.arrow"
