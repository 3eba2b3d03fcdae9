"""The job: freeze the work list, run the Ray graph over the units that are not done, and sum up."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from effsam2_ray.config import Config
from effsam2_ray.errors import ConfigError, StoppedError
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.inputs.work_list import WorkList, load_work_list
from effsam2_ray.labeller import resolve_config
from effsam2_ray.model.interface import ModelInfo
from effsam2_ray.model.weights import check_weights
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline.cluster import Layout, connect, disconnect, missing_resources, plan_layout
from effsam2_ray.pipeline.graph import run_graph
from effsam2_ray.pipeline.heartbeat import heartbeat, other_driver
from effsam2_ray.pipeline.options import RunOptions, failure_limit
from effsam2_ray.pipeline.payload import UnitTask
from effsam2_ray.pipeline.progress import Progress
from effsam2_ray.pipeline.runs import (
    FailureCount,
    Run,
    describe,
    freeze,
    kept_summary,
    open_runs,
    read_summaries,
    sum_up,
    unit_tasks,
)
from effsam2_ray.pipeline.segmenter import SegmenterSpec
from effsam2_ray.pipeline.writer import WriterSpec
from effsam2_ray.schema import RESERVED_COLUMNS, run_schema
from effsam2_ray.storage import StorageOptions
from effsam2_ray.uris import canonical_uri, redact

DEMO_WARNING_IMAGES = 1000


@dataclass(frozen=True)
class LabelJob:
    """What to label, with what, and where to.

    Attributes:
        inputs: folders, globs, shards or manifests; any fsspec URI. Empty where `work_list` is given.
        output: folder of the run.
        config: settings, not yet resolved.
        weights: name, path or URI.
        model_config: YAML of a fine-tuned model, or None.
        heads_table: table of attention heads (`backbones.load_heads_table`), or None.
        work_list: an earlier run, or a file that `effsam2 manifest` wrote, whose images and units are taken instead of
            listing inputs; images that changed since get the status `changed`.
        limit: label only the first N images.
        id_column, image_column, keep_columns: columns of Parquet inputs and manifests.
        storage_options: passed to fsspec for inputs and output.
        options: resources and limits.
    """

    inputs: tuple[str, ...]
    output: str
    config: Config = field(default_factory=Config)
    weights: str = "demo"
    model_config: str | None = None
    heads_table: str | None = None
    work_list: str | None = None
    limit: int | None = None
    id_column: str | None = None
    image_column: str | None = None
    keep_columns: tuple[str, ...] = ()
    storage_options: StorageOptions = None
    options: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        if self.work_list is None:
            if not self.inputs:
                raise ConfigError("nothing to label: give inputs, or a work list")
            return
        if self.inputs:
            raise ConfigError("give inputs or a work list, not both")
        if self.limit or self.id_column or self.image_column or self.keep_columns:
            raise ConfigError("limit and columns are settled in a work list already; leave them out")


def plan(jobs: Sequence[LabelJob]) -> tuple[list[Config], ModelInfo, WorkList]:
    """Return the resolved configurations, facts about the weights, and the work list, and start nothing."""
    _check_together(jobs)
    job = jobs[0]
    info = _model_info(job)
    configs = [resolve_config(job.config, info) for job in jobs]
    most = job.options.num_segmenters[1] if job.options.num_segmenters else 1
    return configs, info, _list_images(job, most)


def label(job: LabelJob, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run one job; see `label_together`."""
    return label_together([job], say)[0]


def label_together(jobs: Sequence[LabelJob], say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Run jobs to their end in one pass and return their summaries; what an earlier call finished is not done again.

    Every image is read, decoded and encoded once for all jobs. They share attention distances where they cluster the
    same head, spanning trees where `min_samples` agrees, and decoding where only merging and filters differ. Each
    output is what its own job alone would have written, but for the seconds in `step_s`.

    Args:
        jobs: what to do, one or more; they may differ in `config` and must differ in `output`, and agree in all else.
        say: takes lines for the user.

    Raises:
        ConfigError, WeightsError, InputError, OutputError: nothing was labelled.
        TooManyFailuresError: more images failed than allowed.
        StoppedError: stopped by a signal; running the jobs again goes on.
    """
    _check_together(jobs)
    with stop_signals():
        info = _model_info(jobs[0])
        configs = [resolve_config(job.config, info) for job in jobs]
        own_cluster = connect(jobs[0].options.address)
        try:
            with stop_signals():  # again: Ray has put its own handler there
                return _label(jobs, configs, info, own_cluster, say)
        finally:
            if own_cluster:
                disconnect()


def _check_together(jobs: Sequence[LabelJob]) -> None:
    if not jobs:
        raise ConfigError("no job was given")
    common = [dataclasses.replace(job, config=jobs[0].config, output="") for job in jobs]
    if any(job != common[0] for job in common):
        raise ConfigError("jobs that run together may differ in their settings and outputs only")
    outputs = [job.output.rstrip("/") for job in jobs]
    if len(set(outputs)) < len(outputs):
        raise ConfigError("jobs that run together need different outputs")


def _label(
    jobs: Sequence[LabelJob], configs: Sequence[Config], info: ModelInfo, own_cluster: bool, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    started = time.time()
    job, options = jobs[0], jobs[0].options
    if options.compile and info.family != "sam2":
        raise ConfigError(f"--compile is for SAM 2; {info.name} is of another family")
    layout = plan_layout(options)
    if own_cluster and (missing := missing_resources(layout)):  # nothing will ever join it
        raise ConfigError(f"the job needs {missing}, which this machine has not; use --device cpu, or --address")
    outputs = [OutputFolder(job.output, job.storage_options) for job in jobs]
    inputs = _describe_inputs(job)
    work_list, resumed = freeze(
        outputs,
        [
            describe(
                config,
                info,
                layout,
                inputs=inputs,
                keep_candidates=options.keep_candidates,
                model_config=job.model_config,
            )
            for config in configs
        ],
        lambda: _list_images(job, layout.segmenters[1]),
    )
    for line in _opening_lines(outputs, configs, info, layout, work_list):
        say(line)
    run_id = uuid.uuid4().hex
    for output in outputs:
        if other := other_driver(output, run_id):
            say(
                f"Warning: another driver is at work on this output ({other}); the rows will be the same, the work "
                "double."
            )
    runs = open_runs(outputs, configs, resumed, work_list, retry_failed=options.retry_failed)
    tasks = unit_tasks(work_list, runs)
    before = [run.output.read_json("summary.json") for run in runs] if not tasks else []
    if before and all(before):
        for run in runs:
            say(
                f"{redact(run.output.uri)} is complete: {work_list.num_images:,} images in {len(work_list):,} parts; "
                "nothing to do."
            )
        return [{**(summary or {}), "images_this_time": 0} for summary in before]
    for run in runs:
        if run.resumed:
            say(f"Resuming: {len(run.finished):,} of {len(work_list):,} units are done.")
    summaries: list[list[dict[str, Any]]] = [[] for _ in runs]
    if tasks:
        told: set[str] = set()
        with closing(_work(tasks, runs, job, info, layout, work_list, run_id)) as written_parts:
            for summary in written_parts:
                summaries[summary["run"]].append(kept_summary(summary))
                if (warning := summary["warning"]) and warning not in told:
                    told.add(warning)
                    say(f"Warning: {warning}")
    return [sum_up(run, work_list, written, started, say) for run, written in zip(runs, summaries, strict=True)]


def _work(
    tasks: Sequence[UnitTask],
    runs: Sequence[Run],
    job: LabelJob,
    info: ModelInfo,
    layout: Layout,
    work_list: WorkList,
    run_id: str,
) -> Generator[dict[str, Any], None, None]:
    """Do the tasks, and yield the summary of each part once it is written."""
    limit = failure_limit(job.options.max_failures, work_list.num_images)
    counts = [FailureCount(limit) for _ in runs]
    if math.isfinite(limit):
        for run, count in zip(runs, counts, strict=True):
            for summary in read_summaries(run.output, work_list, run.kept()):
                count.add(summary)
    num_images = dict(zip(work_list.unit_ids, work_list.unit_num_images, strict=True))
    done_images = sum(num_images[unit_id] for run in runs for unit_id in run.kept())
    segmenter, writers = _specs(job, runs, info, layout, work_list, run_id)
    graph = run_graph(
        tasks,
        work_list,
        layout,
        segmenter,
        writers,
        job.storage_options,
        check_changed=job.work_list is not None,
    )
    progress = Progress(len(runs) * work_list.num_images, done_images, lambda: missing_resources(layout))
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(heartbeat(run.output, run_id))
        stack.enter_context(closing(graph))
        bar = stack.enter_context(progress)
        for summary in graph:
            bar.add(summary)
            counts[summary["run"]].add(summary)
            yield summary


def _model_info(job: LabelJob) -> ModelInfo:
    return check_weights(job.weights, model_config=job.model_config, heads_table=job.heads_table)


def _list_images(job: LabelJob, num_segmenters: int) -> WorkList:
    if job.work_list is not None:
        work_list = load_work_list(job.work_list, job.storage_options)
        _check_columns([name for name, _ in work_list.summary.kept_types])
        return work_list
    _check_columns(job.keep_columns)
    return build_work_list(
        job.inputs,
        id_column=job.id_column,
        image_column=job.image_column,
        keep_columns=job.keep_columns,
        limit=job.limit,
        num_segmenters=num_segmenters,
        storage_options=job.storage_options,
    )


def _check_columns(names: Sequence[str]) -> None:
    if taken := sorted(RESERVED_COLUMNS.intersection(names)):
        raise ConfigError(f"keep_columns cannot hold {', '.join(taken)}: the output has columns of these names")


def _describe_inputs(job: LabelJob) -> dict[str, Any]:
    if job.work_list is not None:
        return {"work_list": load_work_list(job.work_list, job.storage_options).digest}
    return {
        "uris": [redact(canonical_uri(uri)) for uri in job.inputs],
        "limit": job.limit,
        "id_column": job.id_column,
        "image_column": job.image_column,
        "keep_columns": list(job.keep_columns),
    }


def _opening_lines(
    outputs: Sequence[OutputFolder], configs: Sequence[Config], info: ModelInfo, layout: Layout, work_list: WorkList
) -> Iterator[str]:
    for output, config in zip(outputs, configs, strict=True):
        yield (
            f"{work_list.num_images:,} images in {len(work_list):,} units -> {redact(output.uri)}; {info.name}, "
            f"preset {config.preset}, block {config.attention.block}, head {config.attention.head}, "
            f"{layout.device} {layout.dtype}, up to {layout.segmenters[1]} segmenters"
        )
        for section, settings in config.to_dict().items():
            if section != "preset":
                yield f"  {section}: " + ", ".join(f"{name}={value}" for name, value in settings.items())
    yield (
        f"  each segmenter: {layout.segmenter_cpus:g} CPU, {layout.segmenter_gpus:g} GPU, batches of "
        f"{layout.batch_size}, {layout.num_cluster_actors} clustering actors; at least {layout.segmenters[0]}"
    )
    if info.is_demo and work_list.num_images > DEMO_WARNING_IMAGES:
        yield (
            "Warning: the demo weights are a small model trained on drawings, made to try the tool out; "
            "use --weights sam2.1_hiera_large or another official file to label data."
        )


def _specs(
    job: LabelJob, runs: Sequence[Run], info: ModelInfo, layout: Layout, work_list: WorkList, run_id: str
) -> tuple[SegmenterSpec, list[WriterSpec]]:
    keep = job.options.keep_candidates
    segmenter = SegmenterSpec(
        weights=job.weights,
        model_config=job.model_config,
        configs=tuple(run.config for run in runs),
        device=layout.device,
        dtype=layout.dtype,
        batch_size=layout.batch_size,
        compiled=layout.compiled,
        num_cluster_actors=layout.num_cluster_actors,
        image_timeout_s=job.options.image_timeout_s,
        output=runs[0].output,
        weights_sha256=info.weights_sha256,
        run_id=run_id,
    )
    schema = run_schema(work_list.kept_schema, keep_candidates=keep)
    return segmenter, [WriterSpec(run.output, schema, run.config, info.name, keep) for run in runs]


class _Stop(BaseException):
    """What the signal handler raises: no `except Exception` on the way swallows it."""


@contextmanager
def stop_signals() -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into StoppedError; units in flight are dropped, and done again next time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise _Stop(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except _Stop as signalled:
        raise StoppedError(f"stopped by {signalled}; run the same command again to go on") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
