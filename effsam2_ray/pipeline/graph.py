"""The Ray graph: read a unit, segment it, merge and write it. One row is one unit from end to end."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data.exceptions import SystemException

from effsam2_ray.errors import ConfigError, EffSam2Error, StoppedError, WeightsError
from effsam2_ray.inputs.cutting import MAX_UNIT_IMAGES
from effsam2_ray.inputs.work_list import WorkList
from effsam2_ray.pipeline.cluster import READER_CPUS, WRITER_CPUS, Layout
from effsam2_ray.pipeline.payload import UnitTask, to_table
from effsam2_ray.pipeline.reading import read_units
from effsam2_ray.pipeline.segmenter import Segmenter, SegmenterSpec
from effsam2_ray.pipeline.writer import MergeWriter, WriterSpec
from effsam2_ray.storage import StorageOptions
from effsam2_ray.uris import redact_text

MAX_UNIT_TRIES = 4 * MAX_UNIT_IMAGES
"""Bound on tries of one unit: every image of it may kill its process until it is convicted. Actors restart for ever."""

# A unit being labelled, the next one already there so that the two overlap, and one on its way.
UNITS_AT_WORK = 2
UNITS_IN_FLIGHT = 3

# A pool grows when its actors have this many units in hand for each that they work at. Ray's own 1.75 is more than
# they ever have here, so that no pool would grow.
UPSCALING_THRESHOLD = 1.0

MAX_FAILED_STARTS = 3
"""How many actors of a stage may fail to start one after another: a node may be broken, or out of memory. Wrong
settings fail on every node."""

NO_PROGRESS_LIMIT_S = -1  # off: waiting for capacity is no failure


@dataclass(frozen=True)
class Stages:
    """What the stages run.

    Attributes:
        read: a function with the arguments of `read_units`.
        segment: a class that is made and called as `Segmenter` is.
        write: a class that is made and called as `MergeWriter` is.
    """

    read: Callable[..., pa.Table]
    segment: type
    write: type


def run_graph(
    tasks: Sequence[UnitTask],
    work_list: WorkList,
    layout: Layout,
    segmenter: SegmenterSpec,
    writers: Sequence[WriterSpec],
    storage_options: StorageOptions,
    *,
    check_changed: bool,
    stages: Stages | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Yield the summary of each unit and run once its part is written, in no particular order.

    Args:
        tasks: the units to do.
        work_list: the frozen list.
        layout: resources of the stages.
        segmenter: settings of the segmenters.
        writers: settings of each run.
        storage_options: passed to fsspec.
        check_changed: see `effsam2_ray.inputs.reader.read_unit`.
        stages: what runs in place of the real stages; for simulations.

    Raises:
        StoppedError: a stage failed for good, as when the output cannot be written any more.
        ConfigError, WeightsError: a worker cannot start with these settings or weights.
    """
    _prepare_context()
    stages = stages or Stages(read_units, Segmenter, MergeWriter)
    restarts = {"max_restarts": -1, "max_task_retries": MAX_UNIT_TRIES}
    summaries = (
        ray.data.from_arrow([to_table(task) for task in tasks])
        .map_batches(
            stages.read,
            fn_args=(ray.put(work_list.to_bytes()), storage_options, check_changed),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=READER_CPUS,
        )
        .map_batches(
            stages.segment,
            fn_constructor_args=(segmenter,),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=layout.segmenter_cpus,
            num_gpus=layout.segmenter_gpus or None,
            compute=ray.data.ActorPoolStrategy(
                min_size=layout.segmenters[0],
                max_size=layout.segmenters[1],
                max_tasks_in_flight_per_actor=UNITS_IN_FLIGHT,
                max_concurrent_calls_per_actor=UNITS_AT_WORK,
            ),
            **restarts,
        )
        .map_batches(
            stages.write,
            fn_constructor_args=(writers, segmenter.image_timeout_s, segmenter.run_id),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=WRITER_CPUS,
            compute=ray.data.ActorPoolStrategy(min_size=layout.writers[0], max_size=layout.writers[1]),
            **restarts,
        )
    )
    yield from _summaries(summaries)


def stage_rows(
    tasks: Sequence[UnitTask], stage: Callable[..., pa.Table], arguments: tuple[Any, ...], num_cpus: float
) -> Generator[dict[str, Any], None, None]:
    """Run one stage of Ray tasks over units and yield what is in the column `summary` of its tables, as JSON.

    Args:
        tasks: the units.
        stage: takes a table of `UnitTask` rows and `arguments`.
        arguments: the rest of its arguments.
        num_cpus: CPUs of one task.

    Raises:
        StoppedError: the stage failed for good.
    """
    _prepare_context()
    units = ray.data.from_arrow([to_table(task) for task in tasks])
    yield from _summaries(
        units.map_batches(stage, fn_args=arguments, batch_size=None, batch_format="pyarrow", num_cpus=num_cpus)
    )


def _summaries(tables: ray.data.Dataset) -> Generator[dict[str, Any], None, None]:
    try:
        for table in tables.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from (json.loads(text) for text in table["summary"].to_pylist())
    except ray.exceptions.RayError as error:
        raise stage_error(error) from error


def _prepare_context() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_LIMIT_S
    context.max_consecutive_actor_init_deaths = MAX_FAILED_STARTS
    context.autoscaling_config.actor_pool_util_upscaling_threshold = UPSCALING_THRESHOLD
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    # Restarts have no other way in; the package requires a Ray that still takes them.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")


def stage_error(error: BaseException) -> EffSam2Error:
    """Return what the user is told of an error that Ray raised for a stage."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, SystemException):  # an empty mark of Ray Data's
        error, inner = inner, getattr(inner, "cause", None) or inner.__cause__
    lines = str(error).strip().splitlines() or ["no reason given"]
    text = redact_text(lines[-1])
    if isinstance(error, ConfigError | WeightsError):  # the same command would fail again
        return type(error)(f"a worker cannot start: {text}")
    return StoppedError(
        f"a stage of the job failed: {type(error).__name__}: {text}; what is written stays, and the same command goes "
        "on from there"
    )
