"""Score finished runs against known objects: one Ray task a unit, one file of scores for each method and unit.

The files lie in an output folder of their own (`OUT/per_image/part-<method>-<unit>.parquet`), each put whole; one that
is there is not made again. What decides the scores of each method is kept beside them, and when it changes, that
method's files are removed and made anew.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import ray

from effsam2_ray.config import FilterSettings
from effsam2_ray.datasets import GroundTruth, ImageRecord
from effsam2_ray.errors import InputError, MaskError
from effsam2_ray.evaluation.budget import prompt_budget
from effsam2_ray.evaluation.image_scores import ROW_COLUMNS, SCORE_SCHEMA, KnownTruth, score_rows, scoring_digest
from effsam2_ray.evaluation.methods import Method, Post
from effsam2_ray.inputs.work_list import load_work_list
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline.graph import stage_error
from effsam2_ray.pipeline.progress import Progress
from effsam2_ray.runs.reading import open_part, part_batches
from effsam2_ray.storage import StorageOptions, delete

ROWS_AT_ONCE = 4
"""Rows unpacked together; one of 1,024 candidates takes a few megabytes as Python values."""

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ScoredRun:
    """A method's run and how it is scored.

    Attributes:
        method: its name.
        slug: its name in file names.
        folder: its run, with candidates.
        posts: ways from candidates to masks.
        limits: filters on the final masks.
    """

    method: str
    slug: str
    folder: OutputFolder
    posts: tuple[Post, ...]
    limits: FilterSettings

    def part_id(self, unit_id: str) -> str:
        """Return what names the scores of one unit."""
        return f"{self.slug}-{unit_id}"


@dataclass(frozen=True)
class ScoreTask:
    """One unit to score.

    Attributes:
        unit_id: the unit.
        records: where the truth about each of its pictures is, by image URI.
        missing: the runs whose scores of this unit are not there.
        runs: all runs that are compared, for equal prompts.
        output: folder of the scores.
        with_single_object: see `score_rows`.
    """

    unit_id: str
    records: dict[str, ImageRecord]
    missing: tuple[ScoredRun, ...]
    runs: tuple[ScoredRun, ...]
    output: OutputFolder
    with_single_object: bool


def scored_runs(methods: Sequence[Method], runs_uri: str, storage_options: StorageOptions) -> list[ScoredRun]:
    """Return the runs of methods that lie in folders of their own under `runs_uri`."""
    return [
        ScoredRun(
            method.name,
            method.slug,
            OutputFolder(f"{runs_uri}/{method.slug}", storage_options),
            method.posts,
            method.config.filter,
        )
        for method in methods
    ]


def score_runs(
    runs: Sequence[ScoredRun],
    truth: GroundTruth,
    output: OutputFolder,
    *,
    with_single_object: bool,
    say: Callable[[str], None] = print,
) -> None:
    """Score every unit of finished runs that has no scores yet. Needs a joined Ray cluster.

    Args:
        runs: complete runs over the same work list.
        truth: of every picture in it.
        output: folder of the scores.
        with_single_object: also the measures of salient object detection, where they apply.
        say: takes lines for the user.

    Raises:
        StoppedError: scoring failed for good; the same call goes on.
    """
    _forget_changed(runs, output, truth, with_single_object, say)
    work_list = load_work_list(runs[0].folder.uri, output.storage_options)
    done = output.finished_units()
    by_uri = {record.image_uri: record for record in truth.records}
    num_done = sum(
        count
        for unit_id, count in zip(work_list.unit_ids, work_list.unit_num_images, strict=True)
        for run in runs
        if run.part_id(unit_id) in done
    )

    def tasks() -> Iterator[ScoreTask]:
        complete = {unit_id for unit_id in work_list.unit_ids if all(run.part_id(unit_id) in done for run in runs)}
        for unit in work_list.units(skip=complete):
            records = {image.image_uri: by_uri[image.image_uri] for image in unit.images if image.image_uri in by_uri}
            missing = tuple(run for run in runs if run.part_id(unit.unit_id) not in done)
            yield ScoreTask(unit.unit_id, records, missing, tuple(runs), output, with_single_object)

    with Progress(work_list.num_images * len(runs), num_done, lambda: "") as bar:
        for summaries in run_tasks(score_unit, tasks()):
            for summary in summaries:
                bar.add(summary)


def score_unit(task: ScoreTask) -> list[dict[str, Any]]:
    """Write the scores of one unit for each run that lacks them; return a summary of each."""

    @functools.cache
    def known(image_uri: str) -> KnownTruth:
        record = task.records.get(image_uri)
        if record is None:
            return KnownTruth(None, "the data set does not know this picture")
        try:
            return KnownTruth(record.load(task.output.storage_options))
        except (InputError, MaskError) as error:  # InputError: AnnotationError among them
            return KnownTruth(None, str(error))

    @functools.cache
    def patches(image_uri: str, grid_hw: tuple[int, int]) -> list[Any]:
        return known(image_uri).patches(grid_hw)

    budgets = _budgets(task)
    summaries = []
    for run in task.missing:
        rows: list[dict[str, Any]] = []
        statuses: Counter[str] = Counter()
        for batch in part_batches(run.folder, task.unit_id, ROW_COLUMNS, ROWS_AT_ONCE):
            for row in batch.to_pylist():
                uri, clusters = row["image_uri"], row["cluster_map"]
                scored = score_rows(
                    row,
                    known(uri),
                    run.method,
                    run.posts,
                    run.limits,
                    budget=budgets.get(row["image_uid"]),
                    truth_patches=patches(uri, tuple(clusters["size"])) if clusters else (),
                    with_single_object=task.with_single_object,
                )
                statuses[scored[0]["status"]] += 1
                rows += scored
        summary = {"unit": run.part_id(task.unit_id), "images": statuses.total(), "statuses": dict(statuses)}
        task.output.put_part(run.part_id(task.unit_id), pa.Table.from_pylist(rows, SCORE_SCHEMA), summary)
        summaries.append(summary)
    return summaries


def read_scores(runs: Sequence[ScoredRun], output: OutputFolder) -> Iterator[pa.Table]:
    """Yield the scores of runs, part by part, in the order of the work list."""
    unit_ids = load_work_list(runs[0].folder.uri, output.storage_options).unit_ids
    part_ids = [run.part_id(unit_id) for run in runs for unit_id in unit_ids]
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(part_ids), 16):
            yield from pool.map(output.read_part, part_ids[start : start + 16])


def run_tasks(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, num_cpus: float = 1, num_gpus: float = 0
) -> Iterator[Result]:
    """Yield `function(task)` for each task as it ends, computed by Ray, a bounded number under way.

    Raises:
        EffSam2Error: what `stage_error` makes of the first task that fails.
    """
    remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=3)(function)
    limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1) / max(num_cpus, 1)))
    pending: list[ray.ObjectRef] = []
    coming = iter(tasks)
    try:
        while True:
            pending += [remote.remote(task) for task in itertools.islice(coming, limit - len(pending))]
            if not pending:
                return
            ready, pending = ray.wait(pending)
            yield from ray.get(ready)
    except ray.exceptions.RayError as error:
        raise stage_error(error) from error
    finally:
        for reference in pending:
            ray.cancel(reference)


def _budgets(task: ScoreTask) -> dict[int, int]:
    """Return how many prompts each picture may have where prompts are to be equal; {} where they need not be."""
    if not any(post.equal_prompts for run in task.missing for post in run.posts):
        return {}
    counts: dict[int, list[int]] = {}
    for run in task.runs:
        table = open_part(run.folder, task.unit_id).read(["image_uid", "status", "num_prompts"], use_threads=False)
        for row in table.to_pylist():
            if row["status"] == "ok":
                counts.setdefault(row["image_uid"], []).append(row["num_prompts"])
    return {image_uid: prompt_budget(numbers) for image_uid, numbers in counts.items()}


def _forget_changed(
    runs: Sequence[ScoredRun],
    output: OutputFolder,
    truth: GroundTruth,
    with_single_object: bool,
    say: Callable[[str], None],
) -> None:
    """Remove the scores of methods that are now scored in another way, and remember how each is."""
    known = truth.digest()
    among = ",".join(sorted(run.slug for run in runs))
    now = {
        run.slug: scoring_digest(
            run.posts,
            run.limits,
            truth=known,
            with_single_object=with_single_object,
            among=among if any(post.equal_prompts for post in run.posts) else "",
        )
        for run in runs
    }
    before = output.read_json("scoring.json") or {}
    changed = [slug for slug, digest in now.items() if slug in before and before[slug] != digest]
    if changed:
        say(f"Annotations or the way of scoring changed, so scored anew: {', '.join(changed)}")
        unit_ids = load_work_list(runs[0].folder.uri, output.storage_options).unit_ids
        stale = {f"{slug}-{unit_id}" for slug in changed for unit_id in unit_ids} & output.finished_units()
        for part_id in sorted(stale):
            delete(output.part_uri(part_id), output.storage_options)
    if changed or now.keys() - before.keys():
        output.put_json("scoring.json", {**before, **now})
