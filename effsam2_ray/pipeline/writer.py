"""The last stage: merge and filter a unit's candidates, write its part, tell the driver what came out.

An image whose merging kills or hangs its process is found as in the segmenter; see `attempts`.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from effsam2_ray.config import Config
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline.attempts import VERDICTS, Attempt, AttemptLog, attempt_log
from effsam2_ray.pipeline.observability import WriterMetrics
from effsam2_ray.pipeline.payload import ImageOutcome, PartTask, UnitCandidates, from_table
from effsam2_ray.pipeline.watchdog import Watchdog
from effsam2_ray.postprocess import finish
from effsam2_ray.results import LabelledImage
from effsam2_ray.schema import build_table, result_columns
from effsam2_ray.uris import redact_text

MAX_IDLE_DEATHS = 8
"""Deaths of a writer at one unit while no image was being merged, as when the part is too large for its memory."""

COLLAPSED_SHARE = 0.5
"""A picture has collapsed when its largest merged mask joined more than this share of the candidates."""


@dataclass(frozen=True)
class WriterSpec:
    """One run, as a writer needs to know it.

    Attributes:
        output: where parts go.
        schema: schema of every part.
        config: the resolved configuration.
        weights: name of the weights, for the rows.
        keep_candidates: store the masks before merging.
    """

    output: OutputFolder
    schema: pa.Schema
    config: Config
    weights: str
    keep_candidates: bool


class MergeWriter:
    """Callable for Ray Data: a row with a unit's candidates in, a row with its summary out.

    Args:
        specs: the runs of the job.
        image_timeout_s: seconds that merging one image may take, or None.
        run_id: names this call of the job among all that ever wrote to the outputs.
    """

    def __init__(self, specs: Sequence[WriterSpec], image_timeout_s: float | None, run_id: str):
        self._specs = specs
        self._image_timeout_s = image_timeout_s
        self._logs = [attempt_log(spec.output, run_id) for spec in specs]
        self._metrics = [WriterMetrics(spec.config.preset) for spec in specs]
        self._current: tuple[AttemptLog, Attempt] | None = None
        self._watchdog = Watchdog(self._convict)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Write the parts of the units in a table's rows, one for each run."""
        for unit in from_table(table, UnitCandidates):
            for part in unit.task.parts:
                # An image may be there because another run wants it.
                wanted = [
                    outcome
                    for outcome in unit.outcomes[part.run]
                    if part.only is None or outcome.record.image_uid in part.only
                ]
                log = self._logs[part.run]
                attempt = log.begin(f"{unit.task.unit_id}.merge", MAX_IDLE_DEATHS)
                merged = self._merge(part.run, attempt, wanted)
                summary = _write(self._specs[part.run], unit.task.unit_id, part, merged, unit.warning)
                log.end(attempt)
                self._metrics[part.run].count(row for _, row in merged)
                yield pa.table({"summary": [json.dumps({**summary, "run": part.run})]})

    def _merge(
        self, run: int, attempt: Attempt, outcomes: Sequence[ImageOutcome]
    ) -> list[tuple[ImageOutcome, dict[str, Any]]]:
        """Return each outcome with its row. After a death, an image is noted before it is touched."""
        log = self._logs[run]
        self._current = log, attempt
        merged = []
        for outcome in (_convicted(outcome, attempt) for outcome in outcomes):
            if attempt.alone and outcome.candidates is not None:
                attempt.current_uid = outcome.record.image_uid
                log.store(attempt)
            with self._watchdog.watch(self._image_timeout_s):
                merged.append(_checked(self._specs[run], outcome))
        self._current = None
        if attempt.alone:
            attempt.current_uid = None
            log.store(attempt)
        return merged

    def _convict(self) -> None:
        if self._current is not None:
            log, attempt = self._current
            if attempt.convict_current():
                log.store(attempt)


def _write(
    spec: WriterSpec,
    unit_id: str,
    part: PartTask,
    merged: Sequence[tuple[ImageOutcome, dict[str, Any]]],
    warning: str,
) -> dict[str, Any]:
    failures = [_failure(unit_id, outcome) for outcome, _ in merged if outcome.status != "ok"]
    table = build_table([row for _, row in merged], spec.schema)
    if part.only is not None:
        table = _with_earlier(spec, unit_id, table)
    summary = {**summarize(unit_id, table, failures), "warning": warning}
    size_bytes = spec.output.put_part(unit_id, table, summary)
    return {**summary, "part_bytes": size_bytes}


def _convicted(outcome: ImageOutcome, attempt: Attempt) -> ImageOutcome:
    """Return a failed outcome in the place of one whose merging was found to kill or hang its process."""
    uid = outcome.record.image_uid
    if (verdict := attempt.verdict(uid)) is None:
        return outcome
    return ImageOutcome(outcome.record, None, verdict, VERDICTS[verdict], "merge", attempt.tries(uid))


def _checked(spec: WriterSpec, outcome: ImageOutcome) -> tuple[ImageOutcome, dict[str, Any]]:
    """Return the outcome with its row; an image that cannot be merged or stored becomes a failed one."""
    labelled = None
    try:
        if outcome.candidates is not None:
            labelled = finish(outcome.candidates, spec.config.merge, spec.config.filter)
        row = _row(spec, outcome, labelled)
        build_table([row], spec.schema)  # a value that does not fit must not cost the unit's other images
    except Exception as error:  # as in the segmenter, anything becomes a row with a status
        text = redact_text(f"{type(error).__name__}: {error}")
        outcome = dataclasses.replace(outcome, candidates=None, status="failed", error=text, step="merge")
        row = _row(spec, outcome, None)
    return outcome, row


def _row(spec: WriterSpec, outcome: ImageOutcome, labelled: LabelledImage | None) -> dict[str, Any]:
    record = outcome.record
    return {
        "image_uid": record.image_uid,
        "image_id": record.image_id,
        "image_uri": record.image_uri,
        "shard_uri": record.shard_uri,
        "member": record.member,
        "row": record.row,
        "size_bytes": record.size_bytes,
        "etag": record.etag,
        **record.kept,
        "status": outcome.status,
        "error": outcome.error or None,
        "preset": spec.config.preset,
        "weights": spec.weights,
        **result_columns(labelled, keep_candidates=spec.keep_candidates),
    }


def _with_earlier(spec: WriterSpec, unit_id: str, table: pa.Table) -> pa.Table:
    """Put retried rows in the places of the rows that they replace."""
    retried = {row["image_uid"]: row for row in table.to_pylist()}
    earlier = spec.output.read_part(unit_id).to_pylist()
    return build_table([retried.get(row["image_uid"], row) for row in earlier], spec.schema)


def summarize(unit_id: str, table: pa.Table, failures: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a unit's counts, for the driver and for the part's own metadata."""
    statuses = Counter(table["status"].to_pylist())
    shares = [share for share in table["merge_largest_share"].to_pylist() if share is not None]
    steps: Counter[str] = Counter()
    for step_s in table["step_s"].to_pylist():
        steps.update({step: value for step, value in (step_s or {}).items() if value is not None})
    return {
        "unit": unit_id,
        "images": table.num_rows,
        "statuses": dict(statuses),
        "masks": _total_length(table["masks"]),
        "prompts": sum(table["num_prompts"].to_pylist()),
        "collapsed": sum(share > COLLAPSED_SHARE for share in shares),
        "step_s": dict(steps),
        "failures": failures,
    }


def _total_length(lists: pa.ChunkedArray) -> int:
    return sum(len(chunk.flatten()) for chunk in lists.chunks)


def _failure(unit_id: str, outcome: ImageOutcome) -> dict[str, Any]:
    record = outcome.record
    return {
        "image_uid": record.image_uid,
        "image_uri": record.image_uri,
        "member": record.member,
        "step": outcome.step,
        "status": outcome.status,
        "error": outcome.error,
        "attempts": outcome.attempts,
        "unit": unit_id,
    }
