"""The reading stage: a unit's number in, its encoded images out. Ray tasks on CPUs."""

from __future__ import annotations

import functools

import pyarrow as pa
import ray

from effsam2_ray.inputs.reader import read_unit
from effsam2_ray.inputs.work_list import WorkList
from effsam2_ray.pipeline.payload import UnitImages, UnitTask, from_table, to_table
from effsam2_ray.storage import StorageOptions


def read_units(
    table: pa.Table, work_list: ray.ObjectRef, storage_options: StorageOptions, check_changed: bool
) -> pa.Table:
    """Return the images of the units in a table's rows.

    Args:
        table: rows of `UnitTask`.
        work_list: the frozen list as bytes; Ray keeps one copy a node, and each process opens it once.
        storage_options: passed to fsspec.
        check_changed: see `effsam2_ray.inputs.reader.read_unit`.
    """
    units = _open(work_list)

    def read(task: UnitTask) -> pa.Table:  # a function of its own, so that the records are gone when it is done
        records = read_unit(units.unit(task.number), storage_options, check_changed=check_changed)
        return to_table(UnitImages(task, [record for record in records if task.wants(record.image_uid)]))

    return pa.concat_tables([read(task) for task in from_table(table, UnitTask)])


@functools.lru_cache(maxsize=1)
def _open(work_list: ray.ObjectRef) -> WorkList:
    return WorkList.from_bytes(ray.get(work_list))
