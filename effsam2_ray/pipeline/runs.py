"""One run of a job: its folder, its frozen work list, what is left to do in it, and its closing summary."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from effsam2_ray.config import Config
from effsam2_ray.errors import OutputError, TooManyFailuresError
from effsam2_ray.fingerprint import fingerprint
from effsam2_ray.inputs.work_list import WorkList
from effsam2_ray.model.build import load_config
from effsam2_ray.model.interface import ModelInfo
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline.cluster import Layout
from effsam2_ray.pipeline.payload import PartTask, UnitTask
from effsam2_ray.storage import exists, put_if_absent, read_bytes
from effsam2_ray.uris import redact

COLLAPSED_WARNING_SHARE = 0.05
SHOWN_FAILURES = 5


@dataclass(frozen=True)
class Run:
    """One output folder of a job, claimed, with its frozen work list.

    Attributes:
        output: the folder.
        config: the resolved configuration.
        resumed: an earlier call was here.
        finished: ids of the units whose part is there.
        retries: image_uids to take up again, by unit id.
    """

    output: OutputFolder
    config: Config
    resumed: bool
    finished: frozenset[str]
    retries: Mapping[str, frozenset[int]]

    def kept(self) -> frozenset[str]:
        """Return the ids of the units that stay as they are."""
        return self.finished - self.retries.keys()


def freeze(
    outputs: Sequence[OutputFolder],
    descriptions: Sequence[Mapping[str, Any]],
    list_images: Callable[[], WorkList],
) -> tuple[WorkList, list[bool]]:
    """Claim the outputs and return the one work list of all of them, with whether an earlier call was in each.

    A list that lies in an output stays; else `list_images` gives it. A new output is claimed only then, so that a
    mistyped input leaves nothing behind.

    Args:
        outputs: the folders.
        descriptions: for each, what `job.json` says.
        list_images: lists the inputs.

    Raises:
        OutputError: an output belongs to another configuration, or the outputs hold different lists.
    """
    lists = [_frozen_list(output) for output in outputs]
    work_list = next((found for found in lists if found is not None), None) or list_images()
    resumed = []
    for output, description in zip(outputs, descriptions, strict=True):
        resumed.append(output.claim(description))
        put_if_absent(output.meta_uri(WORK_LIST), work_list.to_bytes(), output.storage_options)
    # Another driver may have been quicker.
    lists = [_frozen_list(output) for output in outputs]
    first = lists[0]
    assert first is not None
    for output, found in zip(outputs, lists, strict=True):
        assert found is not None
        if found.unit_ids != first.unit_ids:
            raise OutputError(
                f"{redact(outputs[0].uri)} and {redact(output.uri)} hold different work lists; choose a new output"
            )
    return first, resumed


WORK_LIST = "work_list.parquet"


def _frozen_list(output: OutputFolder) -> WorkList | None:
    uri = output.meta_uri(WORK_LIST)
    if not exists(uri, output.storage_options):
        return None
    return WorkList.from_bytes(read_bytes(uri, output.storage_options))


def describe(
    config: Config,
    info: ModelInfo,
    layout: Layout,
    *,
    inputs: Mapping[str, Any],
    keep_candidates: bool,
    model_config: str | None,
) -> dict[str, Any]:
    """Return what `job.json` says of a run.

    Args:
        config: the resolved configuration.
        info: facts about the weights.
        layout: device, dtype and resources.
        inputs: what the work list was built from.
        keep_candidates: whether candidates are stored.
        model_config: YAML of a fine-tuned model, or None.
    """
    packages = ("effsam2_ray", "ray", "torch", "sam2", "hdbscan", "numpy", "pyarrow", "pillow", "pycocotools")
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "fingerprint": fingerprint(
            config,
            info,
            dtype=layout.dtype,
            compiled=layout.compiled,
            device_type=layout.device.split(":")[0],
            keep_candidates=keep_candidates,
            model_config_sha256=config_sha256(model_config),
            inputs=inputs,
        ),
        "config": config.to_dict(),
        "weights": dataclasses.asdict(info),
        "layout": dataclasses.asdict(layout),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }


def config_sha256(model_config: str | None) -> str:
    """Return the digest of a model configuration's content, however it is written and wherever it lies."""
    if model_config is None:
        return ""
    return hashlib.sha256(json.dumps(load_config(model_config), sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a folder of sources
        return "unknown"


def open_runs(
    outputs: Sequence[OutputFolder],
    configs: Sequence[Config],
    resumed: Sequence[bool],
    work_list: WorkList,
    *,
    retry_failed: bool,
) -> list[Run]:
    """Return the runs with what is finished in each, from one listing of each folder."""
    runs = []
    for output, config, was_there in zip(outputs, configs, resumed, strict=True):
        finished = frozenset(output.finished_units()) & frozenset(work_list.unit_ids)
        retries = _failed_images(output, work_list, finished) if retry_failed else {}
        runs.append(Run(output, config, was_there, finished, retries))
    return runs


def unit_tasks(work_list: WorkList, runs: Sequence[Run]) -> list[UnitTask]:
    """Return a task for every unit that some run lacks, or whose failed rows are to be taken up; retries come last."""
    missing: list[UnitTask] = []
    retries: list[UnitTask] = []
    for number, unit_id in enumerate(work_list.unit_ids):
        parts = []
        for index, run in enumerate(runs):
            if unit_id not in run.finished:
                parts.append(PartTask(index))
            elif unit_id in run.retries:
                parts.append(PartTask(index, run.retries[unit_id]))
        if parts:
            later = all(part.only is not None for part in parts)
            (retries if later else missing).append(UnitTask(number, unit_id, tuple(parts)))
    return missing + retries


def _failed_images(output: OutputFolder, work_list: WorkList, finished: frozenset[str]) -> dict[str, frozenset[int]]:
    failed = {
        summary["unit"]: frozenset(failure["image_uid"] for failure in summary["failures"])
        for summary in read_summaries(output, work_list, finished)
    }
    return {unit_id: uids for unit_id, uids in failed.items() if uids}


def read_summaries(output: OutputFolder, work_list: WorkList, finished: frozenset[str]) -> Iterator[dict[str, Any]]:
    """Yield the summaries of finished units in the work list's order, from the metadata of their parts."""
    with ThreadPoolExecutor(16) as pool:
        yield from pool.map(output.read_unit_summary, [unit for unit in work_list.unit_ids if unit in finished])


class FailureCount:
    """Counts failed images and stops the job once there are more than `limit`."""

    def __init__(self, limit: float):
        self.limit = limit
        self._reasons: Counter[str] = Counter()
        self._first: list[Mapping[str, Any]] = []

    def add(self, summary: Mapping[str, Any]) -> None:
        """Count the failures in a unit's summary."""
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


def kept_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to keep in memory of a written unit's summary: of its failures the first, all are in its part."""
    return {**summary, "failures": summary["failures"][:1]}


def sum_up(
    run: Run,
    work_list: WorkList,
    summaries: Sequence[dict[str, Any]],
    started: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Add up all units of a run, write `failures.parquet` and then `summary.json`, and return the latter.

    Args:
        run: the run.
        work_list: its list.
        summaries: of the units written by this call, as `kept_summary` keeps them.
        started: when this call started, seconds since the epoch.
        say: takes lines for the user.

    Raises:
        OutputError: the parts do not hold a row for every image.
    """
    output = run.output
    statuses: Counter[str] = Counter()
    step_s: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    with_failures: set[str] = set()
    for unit in itertools.chain(read_summaries(output, work_list, run.kept()), summaries):
        statuses.update(unit["statuses"])
        step_s.update(unit["step_s"])
        totals.update({name: unit[name] for name in ("masks", "prompts", "collapsed")})
        if unit["failures"]:
            with_failures.add(unit["unit"])
    num_images = sum(statuses.values())
    if num_images != work_list.num_images:
        raise OutputError(f"{output.uri} has {num_images} rows for {work_list.num_images} images")
    labelled = statuses["ok"]
    elapsed_s = time.time() - started
    summary = {
        "images": num_images,
        "statuses": dict(statuses),
        "units": len(work_list),
        "masks": totals["masks"],
        "prompts_per_image": totals["prompts"] / max(1, labelled),
        "collapsed": totals["collapsed"],
        "step_s_per_image": {step: seconds / max(1, labelled) for step, seconds in step_s.items()},
        "images_this_time": sum(unit["images"] for unit in summaries),
        "elapsed_s": elapsed_s,
        "images_per_s": sum(unit["images"] for unit in summaries) / elapsed_s,
        "output": redact(output.uri),
    }
    failed = read_summaries(output, work_list, frozenset(with_failures))
    output.put_failures(failure for unit in failed for failure in unit["failures"])
    output.put_json("summary.json", summary)
    if summary["collapsed"] > COLLAPSED_WARNING_SHARE * max(1, labelled):
        say(
            f"Warning: in {summary['collapsed']} of {labelled} pictures more than half the candidates were merged into "
            "one mask; try a higher merge.thresh or a lower merge.max_area_frac."
        )
    return summary
