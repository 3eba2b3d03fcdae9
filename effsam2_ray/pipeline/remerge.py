"""A run merged and filtered anew from its stored candidates, part by part on CPUs."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from effsam2_ray.config import Config
from effsam2_ray.errors import ConfigError, InputError
from effsam2_ray.fingerprint import flatten
from effsam2_ray.inputs.work_list import load_work_list
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline.cluster import connect, disconnect
from effsam2_ray.pipeline.graph import stage_rows
from effsam2_ray.pipeline.heartbeat import heartbeat
from effsam2_ray.pipeline.label import stop_signals
from effsam2_ray.pipeline.payload import UnitTask, from_table
from effsam2_ray.pipeline.progress import Progress
from effsam2_ray.pipeline.runs import freeze, kept_summary, open_runs, sum_up, unit_tasks
from effsam2_ray.pipeline.writer import summarize
from effsam2_ray.runs.remerging import remerge_part
from effsam2_ray.storage import StorageOptions
from effsam2_ray.uris import redact

REMERGE_CPUS = 1


@dataclass(frozen=True)
class RemergeSpec:
    """What a task needs.

    Attributes:
        source: the run with candidates.
        output: where the new parts go.
        config: the resolved configuration of the new run.
    """

    source: OutputFolder
    output: OutputFolder
    config: Config


def remerge(
    run_uri: str,
    output_uri: str,
    overrides: Sequence[str],
    *,
    storage_options: StorageOptions = None,
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Filter and merge a run's candidates anew into another output and return its summary; resumable like `label`.

    The new output is what `label` with those settings would have written, but for seconds and versions, and `label`
    with those settings takes it for its own.

    Args:
        run_uri: a finished run with `--keep-candidates`.
        output_uri: folder of the new run.
        overrides: `merge.field=value` and `filter.field=value` texts.
        storage_options: passed to fsspec for both.
        address: Ray cluster to join.
        say: takes lines for the user.

    Raises:
        ConfigError: a setting that candidates depend on, or a run without candidates.
        InputError: `run_uri` is no finished run.
        OutputError: the output belongs to a run with other settings.
        StoppedError: stopped by a signal; the same call goes on.
    """
    source = OutputFolder(run_uri, storage_options)
    output = OutputFolder(output_uri, storage_options)
    job = source.read_job()
    if job is None:
        raise InputError(f"{redact(run_uri)} is no run: it has no _meta/job.json")
    if not job["fingerprint"].get("keep_candidates"):
        raise ConfigError(f"{redact(run_uri)} holds no candidates; label with --keep-candidates to merge anew later")
    before = Config.from_dict(job["config"])
    config = before.with_overrides(overrides)
    if config.to_dict() | {"merge": None, "filter": None} != before.to_dict() | {"merge": None, "filter": None}:
        raise ConfigError("only merge.* and filter.* can be changed without the model; the rest needs a new run")
    work_list = load_work_list(run_uri, storage_options)
    missing = len(set(work_list.unit_ids) - source.finished_units())
    if missing:
        raise InputError(f"{redact(run_uri)} is not finished: {missing} of {len(work_list)} parts are missing")
    description = {
        **job,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": config.to_dict(),
        "fingerprint": {**job["fingerprint"], **flatten(config)},
        "remerged_from": redact(run_uri),
    }
    with stop_signals():
        own_cluster = connect(address)
        try:
            with stop_signals():  # again: Ray has put its own handler there
                return _remerge(source, output, config, description, say)
        finally:
            if own_cluster:
                disconnect()


def _remerge(
    source: OutputFolder,
    output: OutputFolder,
    config: Config,
    description: dict[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    started = time.time()
    work_list, resumed = freeze([output], [description], lambda: load_work_list(source.uri, source.storage_options))
    runs = open_runs([output], [config], resumed, work_list, retry_failed=False)
    tasks = unit_tasks(work_list, runs)
    say(f"{work_list.num_images:,} images in {len(work_list):,} parts -> {redact(output.uri)}; no images, no model")
    summaries: list[dict[str, Any]] = []
    if tasks:
        rows = stage_rows(tasks, remerge_units, (RemergeSpec(source, output, config),), num_cpus=REMERGE_CPUS)
        counts = dict(zip(work_list.unit_ids, work_list.unit_num_images, strict=True))
        done = sum(counts[unit_id] for unit_id in runs[0].kept())
        with (
            heartbeat(output, uuid.uuid4().hex),
            closing(rows),
            Progress(work_list.num_images, done, lambda: "") as progress,
        ):
            for summary in rows:
                summaries.append(kept_summary(summary))
                progress.add(summary)
    return sum_up(runs[0], work_list, summaries, started, say)


def remerge_units(table: pa.Table, spec: RemergeSpec) -> pa.Table:
    """Write the new parts of the units in a table's rows and return their summaries."""
    summaries = []
    for task in from_table(table, UnitTask):
        rows, failed = remerge_part(spec.source.read_part(task.unit_id), spec.config)
        failures = [
            *spec.source.read_unit_summary(task.unit_id)["failures"],
            *_failures(rows, failed, task.unit_id),
        ]
        summary = summarize(task.unit_id, rows, failures)
        spec.output.put_part(task.unit_id, rows, summary)
        summaries.append(json.dumps(summary))
    return pa.table({"summary": summaries})


def _failures(rows: pa.Table, failed: dict[int, str], unit_id: str) -> list[dict[str, Any]]:
    return [
        {
            "image_uid": row["image_uid"],
            "image_uri": row["image_uri"],
            "member": row["member"],
            "step": "merge",
            "status": "failed",
            "error": failed[row["image_uid"]],
            "attempts": 1,
            "unit": unit_id,
        }
        for row in rows.select(["image_uid", "image_uri", "member"]).to_pylist()
        if row["image_uid"] in failed
    ]
