"""A run's folder -> its rows, part by part in the order of the work list.

A part is fetched whole (tens of megabytes) and unpacked a few rows at a time, so memory does not grow with the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from effsam2_ray.errors import InputError
from effsam2_ray.inputs.work_list import WorkList, load_work_list
from effsam2_ray.output import OutputFolder
from effsam2_ray.storage import StorageOptions, read_bytes
from effsam2_ray.uris import redact

ROWS_AT_ONCE = 64
"""Rows that are unpacked together: with 100 masks each some megabytes."""


@dataclass(frozen=True)
class Run:
    """The output folder of `effsam2 label`, finished or not.

    Attributes:
        folder: where the parts are.
        work_list: what was to be labelled.
        finished: ids of the units that have a part; some may not be in the work list.
    """

    folder: OutputFolder
    work_list: WorkList
    finished: frozenset[str]

    @property
    def name(self) -> str:
        """Last part of the folder's name."""
        return redact(self.folder.uri).rstrip("/").rsplit("/", 1)[-1] or self.folder.uri

    def finished_numbers(self) -> list[int]:
        """Return the positions in the work list of the units that have a part, ascending."""
        return [number for number, unit_id in enumerate(self.work_list.unit_ids) if unit_id in self.finished]

    def first_image_numbers(self) -> list[int]:
        """Return, for each unit of the work list, how many images come before it."""
        return [0, *itertools.accumulate(self.work_list.unit_num_images)][:-1]

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows of the finished units as dictionaries, in the order of the work list."""
        for number in self.finished_numbers():
            for batch in part_batches(self.folder, self.work_list.unit_ids[number], columns):
                yield from batch.to_pylist()


def open_run(run_uri: str, storage_options: StorageOptions = None) -> Run:
    """Open the output folder of `effsam2 label`.

    Raises:
        InputError: it holds no work list.
    """
    folder = OutputFolder(run_uri, storage_options)
    work_list = load_work_list(run_uri, storage_options)
    return Run(folder, work_list, frozenset(folder.finished_units()))


def part_batches(
    folder: OutputFolder,
    unit_id: str,
    columns: Sequence[str] | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
    *,
    part: pq.ParquetFile | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield a finished unit's rows, `rows_at_once` at a time.

    Args:
        folder: the run's folder.
        unit_id: a unit that has a part.
        columns: only these; a part that lacks one is an error.
        rows_at_once: rows in memory as Arrow values.
        part: what `open_part` gave, where the part is open already; None opens it.

    Raises:
        InputError: the part cannot be read, or lacks a column.
    """
    part = part or open_part(folder, unit_id)
    missing = sorted(set(columns or ()) - set(part.schema_arrow.names))
    if missing:
        raise InputError(f"{redact(folder.part_uri(unit_id))} is not a part of a run: no column {', '.join(missing)}")
    try:
        yield from part.iter_batches(rows_at_once, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:  # damaged pages raise any of them
        raise InputError(f"{redact(folder.part_uri(unit_id))} is not a part of a run: {error}") from error


def open_part(folder: OutputFolder, unit_id: str) -> pq.ParquetFile:
    """Return a finished unit's part, fetched whole.

    Raises:
        InputError: it is no Parquet file.
    """
    uri = folder.part_uri(unit_id)
    try:
        return pq.ParquetFile(pa.BufferReader(read_bytes(uri, folder.storage_options)))
    except (pa.ArrowException, ValueError) as error:  # a name in the footer that is no UTF-8 raises ValueError
        raise InputError(f"{redact(uri)} is not a part of a run: {error}") from error
