"""The job: freeze the work list, run the Ray graph over the units that are not done, and sum up."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import platform
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from effsam2_ray.config import Config
from effsam2_ray.errors import ConfigError, OutputError, StoppedError, TooManyFailuresError
from effsam2_ray.fingerprint import fingerprint
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.inputs.work_list import WorkList
from effsam2_ray.labeller import resolve_config
from effsam2_ray.model.build import load_config
from effsam2_ray.model.interface import ModelInfo
from effsam2_ray.model.weights import check_weights
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline.cluster import Layout, connect, disconnect, missing_resources, plan_layout
from effsam2_ray.pipeline.graph import run_graph
from effsam2_ray.pipeline.heartbeat import heartbeat, other_driver
from effsam2_ray.pipeline.options import RunOptions, failure_limit
from effsam2_ray.pipeline.payload import UnitTask
from effsam2_ray.pipeline.progress import Progress
from effsam2_ray.pipeline.segmenter import SegmenterSpec
from effsam2_ray.pipeline.writer import WriterSpec
from effsam2_ray.schema import RESERVED_COLUMNS, run_schema
from effsam2_ray.storage import StorageOptions, exists, put_if_absent, read_bytes
from effsam2_ray.uris import canonical_uri, redact

DEMO_WARNING_IMAGES = 1000
COLLAPSED_WARNING_SHARE = 0.05
SHOWN_FAILURES = 5


@dataclass(frozen=True)
class LabelJob:
    """What to label, with what, and where to.

    Attributes:
        inputs: folders, globs, shards or manifests; any fsspec URI.
        output: folder of the run.
        config: settings, not yet resolved.
        weights: name, path or URI.
        model_config: YAML of a fine-tuned model, or None.
        heads_table: table of attention heads (`backbones.load_heads_table`), or None.
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
    limit: int | None = None
    id_column: str | None = None
    image_column: str | None = None
    keep_columns: tuple[str, ...] = ()
    storage_options: StorageOptions = None
    options: RunOptions = field(default_factory=RunOptions)


def plan(job: LabelJob) -> tuple[Config, ModelInfo, WorkList]:
    """Return the resolved configuration, facts about the weights, and the work list, and start nothing."""
    info = _model_info(job)
    config = resolve_config(job.config, info)
    most = job.options.num_segmenters[1] if job.options.num_segmenters else 1
    return config, info, _list_images(job, most)


def label(job: LabelJob, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the job to its end and return its summary; what an earlier run finished is not done again.

    Args:
        job: what to do.
        say: takes lines for the user.

    Raises:
        ConfigError, WeightsError, InputError, OutputError: nothing was labelled.
        TooManyFailuresError: more images failed than allowed.
        StoppedError: stopped by a signal; running the job again goes on.
    """
    with _stop_signals():
        info = _model_info(job)
        config = resolve_config(job.config, info)
        own_cluster = connect(job.options.address)
        try:
            with _stop_signals():  # again: Ray has put its own handler there
                return _label(job, config, info, own_cluster, say)
        finally:
            if own_cluster:
                disconnect()


def _label(
    job: LabelJob, config: Config, info: ModelInfo, own_cluster: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    started = time.time()
    layout = plan_layout(job.options)
    if own_cluster and (missing := missing_resources(layout)):  # nothing will ever join it
        raise ConfigError(f"the job needs {missing}, which this machine has not; use --device cpu, or --address")
    output = OutputFolder(job.output, job.storage_options)
    resumed, work_list = _freeze(job, output, layout, _describe(job, config, info, layout))
    for line in _opening_lines(job, config, info, layout, work_list):
        say(line)
    run_id = uuid.uuid4().hex
    if other := other_driver(output, run_id):
        say(f"Warning: another driver is at work on this output ({other}); the rows will be the same, the work double.")
    finished = output.finished_units() & set(work_list.unit_ids)
    tasks = _unfinished(work_list, finished)
    retries = _retries(output, work_list, finished) if job.options.retry_failed else []
    if not tasks and not retries and (before := output.read_json("summary.json")):
        say(
            f"{redact(job.output)} is complete: {work_list.num_images:,} images in {len(work_list):,} parts; "
            "nothing to do."
        )
        return {**before, "images_this_time": 0}
    if resumed:
        say(f"Resuming: {len(finished):,} of {len(work_list):,} units are done.")
    earlier = finished - {task.unit_id for task in retries}
    summaries: list[dict[str, Any]] = []
    if tasks or retries:
        segmenter, writer = _specs(job, config, info, layout, output, work_list, run_id)
        counts = dict(zip(work_list.unit_ids, work_list.unit_num_images, strict=True))
        done_images = sum(counts[unit_id] for unit_id in earlier)
        failures = _FailureCount(failure_limit(job.options.max_failures, work_list.num_images))
        if math.isfinite(failures.limit):
            for _, summary in _read_summaries(output, work_list, earlier):
                failures.add(summary)
        graph = run_graph([*tasks, *retries], work_list, layout, segmenter, writer, job.storage_options)
        progress = Progress(work_list.num_images, done_images, lambda: missing_resources(layout))
        with heartbeat(output, run_id), closing(graph), progress as bar:
            for summary in graph:
                summaries.append(summary)
                bar.add(summary)
                failures.add(summary)
    return _sum_up(output, work_list, earlier, summaries, started, say)


def _model_info(job: LabelJob) -> ModelInfo:
    return check_weights(job.weights, model_config=job.model_config, heads_table=job.heads_table)


def _list_images(job: LabelJob, num_segmenters: int) -> WorkList:
    taken = sorted(RESERVED_COLUMNS.intersection(job.keep_columns))
    if taken:
        raise ConfigError(f"keep_columns cannot hold {', '.join(taken)}: the output has columns of these names")
    return build_work_list(
        job.inputs,
        id_column=job.id_column,
        image_column=job.image_column,
        keep_columns=job.keep_columns,
        limit=job.limit,
        num_segmenters=num_segmenters,
        storage_options=job.storage_options,
    )


def _freeze(job: LabelJob, output: OutputFolder, layout: Layout, description: dict[str, Any]) -> tuple[bool, WorkList]:
    """Return whether an earlier run was here, and the work list: its own, or a new one from the inputs.

    A new output is claimed only once the inputs have been listed, so that a mistyped input leaves nothing behind.
    """
    listed = None if output.read_job() else _list_images(job, layout.segmenters[1])
    resumed = output.claim(description)
    uri = output.meta_uri("work_list.parquet")
    if not exists(uri, output.storage_options):
        listed = listed or _list_images(job, layout.segmenters[1])
        put_if_absent(uri, listed.to_bytes(), output.storage_options)
    return resumed, WorkList.from_bytes(read_bytes(uri, output.storage_options))


def _describe(job: LabelJob, config: Config, info: ModelInfo, layout: Layout) -> dict[str, Any]:
    inputs = {
        "uris": [redact(canonical_uri(uri)) for uri in job.inputs],
        "limit": job.limit,
        "id_column": job.id_column,
        "image_column": job.image_column,
        "keep_columns": list(job.keep_columns),
    }
    packages = ("effsam2_ray", "ray", "torch", "sam2", "hdbscan", "numpy", "pyarrow", "pillow", "pycocotools")
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "fingerprint": fingerprint(
            config,
            info,
            dtype=layout.dtype,
            device_type=layout.device.split(":")[0],
            keep_candidates=job.options.keep_candidates,
            model_config_sha256=_config_sha256(job.model_config),
            inputs=inputs,
        ),
        "config": config.to_dict(),
        "weights": dataclasses.asdict(info),
        "layout": dataclasses.asdict(layout),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }


def _config_sha256(model_config: str | None) -> str:
    """Return the digest of a model configuration's content, however it is written and wherever it lies."""
    if model_config is None:
        return ""
    return hashlib.sha256(json.dumps(load_config(model_config), sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a folder of sources
        return "unknown"


def _opening_lines(
    job: LabelJob, config: Config, info: ModelInfo, layout: Layout, work_list: WorkList
) -> Iterator[str]:
    yield (
        f"{work_list.num_images:,} images in {len(work_list):,} units -> {redact(job.output)}; {info.name}, "
        f"preset {config.preset}, block {config.attention.block}, head {config.attention.head}, "
        f"{layout.device} {layout.dtype}, up to {layout.segmenters[1]} segmenters"
    )
    if info.is_demo and work_list.num_images > DEMO_WARNING_IMAGES:
        yield (
            "Warning: the demo weights are a small model trained on drawings, made to try the tool out; "
            "use --weights sam2.1_hiera_large or another official file to label data."
        )


def _unfinished(work_list: WorkList, finished: set[str]) -> list[UnitTask]:
    return [UnitTask(n, unit_id) for n, unit_id in enumerate(work_list.unit_ids) if unit_id not in finished]


def _retries(output: OutputFolder, work_list: WorkList, finished: set[str]) -> list[UnitTask]:
    """Return a task for each finished unit that holds failed rows, for just those rows."""
    tasks = []
    for number, summary in _read_summaries(output, work_list, finished):
        failed = frozenset(failure["image_uid"] for failure in summary["failures"])
        if failed:
            tasks.append(UnitTask(number, summary["unit"], failed))
    return tasks


def _read_summaries(
    output: OutputFolder, work_list: WorkList, finished: set[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (position in the work list, summary) of finished units, from the metadata of their parts."""
    numbered = [(number, unit_id) for number, unit_id in enumerate(work_list.unit_ids) if unit_id in finished]
    with ThreadPoolExecutor(16) as pool:
        summaries = pool.map(output.read_unit_summary, [unit_id for _, unit_id in numbered])
        yield from zip([number for number, _ in numbered], summaries, strict=True)


def _specs(
    job: LabelJob,
    config: Config,
    info: ModelInfo,
    layout: Layout,
    output: OutputFolder,
    work_list: WorkList,
    run_id: str,
) -> tuple[SegmenterSpec, WriterSpec]:
    keep = job.options.keep_candidates
    segmenter = SegmenterSpec(
        weights=job.weights,
        model_config=job.model_config,
        config=config,
        device=layout.device,
        dtype=layout.dtype,
        batch_size=layout.batch_size,
        num_cluster_actors=layout.num_cluster_actors,
        image_timeout_s=job.options.image_timeout_s,
        output=output,
        weights_sha256=info.weights_sha256,
        run_id=run_id,
    )
    schema = run_schema(work_list.kept_schema, keep_candidates=keep)
    return segmenter, WriterSpec(output, schema, config, info.name, keep)


class _FailureCount:
    """Counts failed images and stops the job once there are more than `limit`."""

    def __init__(self, limit: float):
        self.limit = limit
        self._reasons: Counter[str] = Counter()
        self._first: list[Mapping[str, Any]] = []

    def add(self, summary: Mapping[str, Any]) -> None:
        failures = summary["failures"]
        self._reasons.update(failure["status"] for failure in failures)
        self._first += failures[: max(0, SHOWN_FAILURES - len(self._first))]
        if self._reasons.total() > self.limit:
            raise TooManyFailuresError(
                f"{self._reasons.total()} images failed, more than --max-failures allows: "
                + ", ".join(f"{count} {status}" for status, count in self._reasons.most_common())
                + "; the first of them:\n"
                + "\n".join(f"  {f['image_uri']}: {f['status']} ({f['error']})" for f in self._first)
            )


class _Stop(BaseException):
    """What the signal handler raises: no `except Exception` on the way swallows it."""


@contextmanager
def _stop_signals() -> Iterator[None]:
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


def _sum_up(
    output: OutputFolder,
    work_list: WorkList,
    earlier: set[str],
    summaries: Sequence[dict[str, Any]],
    started: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Add up all units of the run, write `failures.parquet` and then `summary.json`."""
    units = [summary for _, summary in _read_summaries(output, work_list, earlier)] + list(summaries)
    statuses: Counter[str] = Counter()
    step_s: Counter[str] = Counter()
    for unit in units:
        statuses.update(unit["statuses"])
        step_s.update(unit["step_s"])
    num_images = sum(statuses.values())
    if num_images != work_list.num_images:
        raise OutputError(f"{output.uri} has {num_images} rows for {work_list.num_images} images")
    labelled = statuses["ok"]
    elapsed_s = time.time() - started
    summary = {
        "images": num_images,
        "statuses": dict(statuses),
        "units": len(work_list),
        "masks": sum(unit["masks"] for unit in units),
        "prompts_per_image": sum(unit["prompts"] for unit in units) / max(1, labelled),
        "collapsed": sum(unit["collapsed"] for unit in units),
        "step_s_per_image": {step: seconds / max(1, labelled) for step, seconds in step_s.items()},
        "images_this_time": sum(unit["images"] for unit in summaries),
        "elapsed_s": elapsed_s,
        "images_per_s": sum(unit["images"] for unit in summaries) / elapsed_s,
        "output": redact(output.uri),
    }
    output.put_failures(failure for unit in units for failure in unit["failures"])
    output.put_json("summary.json", summary)
    if summary["collapsed"] > COLLAPSED_WARNING_SHARE * max(1, labelled):
        say(
            f"Warning: in {summary['collapsed']} of {labelled} pictures more than half the candidates were merged into "
            "one mask; try a higher merge.thresh or a lower merge.max_area_frac."
        )
    return summary
