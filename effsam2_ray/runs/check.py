"""Label quality without ground truth: is every row there, is every mask sound, and do the numbers look right."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from effsam2_ray.errors import ConfigError
from effsam2_ray.runs.findings import MAX_EXAMPLES, PROBLEMS, Findings, add_findings
from effsam2_ray.runs.part_check import NEAR_DUPLICATE_IOU, WHOLE_PICTURE_FRAC, PartTask, check_part
from effsam2_ray.runs.processes import map_tasks
from effsam2_ray.runs.reading import Run, open_run
from effsam2_ray.storage import StorageOptions
from effsam2_ray.uris import redact

LIMITS = ("max_failed_rate", "max_zero_mask_rate", "max_whole_picture_rate", "max_near_duplicate_rate", "min_coverage")
"""Names of the thresholds: `max_` or `min_` and a key of `Findings.rates`."""


@dataclass(frozen=True)
class Report:
    """A run's findings and what they come to.

    Attributes:
        run: name of the run.
        findings: counts over all parts.
        num_units: units of the work list.
        num_finished: those that have a part.
        strays: ids of parts that the work list does not know, the first few.
        num_strays: how many there are.
        exceeded: a sentence for each threshold that is not kept.
    """

    run: str
    findings: Findings
    num_units: int
    num_finished: int
    strays: tuple[str, ...]
    num_strays: int
    exceeded: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether there is no fault, and every threshold is kept."""
        return not (self.findings.num_problems or self.num_strays or self.exceeded)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        found = self.findings
        return {
            "run": self.run,
            "passed": self.passed,
            "exceeded": list(self.exceeded),
            "images": found.num_expected,
            "rows": found.num_rows,
            "units": self.num_units,
            "finished_units": self.num_finished,
            "statuses": dict(found.statuses),
            "problems": {**{kind: found.problems[kind] for kind in PROBLEMS}, "stray": self.num_strays},
            "examples": {**{kind: list(texts) for kind, texts in found.examples.items()}, "stray": list(self.strays)},
            "masks": found.num_masks,
            "masks_per_image": found.num_masks / max(found.num_ok, 1),
            "masks_per_image_quantiles": {f"{share:g}": found.masks_quantile(share) for share in (0.05, 0.5, 0.95)},
            **found.rates(),
        }


def check_run(
    run_uri: str,
    limits: Mapping[str, float] | None = None,
    *,
    num_processes: int | None = None,
    storage_options: StorageOptions = None,
) -> Report:
    """Check every part of a run.

    Args:
        run_uri: output folder of `effsam2 label`, finished or not; an image without a row is a fault.
        limits: `LIMITS` to shares in [0, 1]; what is not there is not judged.
        num_processes: None takes the machine's CPUs.
        storage_options: passed to fsspec.

    Raises:
        ConfigError: an unknown threshold, or one outside [0, 1].
        InputError: `run_uri` is no run.
    """
    limits = limits or {}
    for name, value in limits.items():
        if name not in LIMITS or not 0 <= value <= 1:
            raise ConfigError(f"a threshold must be one of {', '.join(LIMITS)} and in [0, 1]; got {name}={value}")
    run = open_run(run_uri, storage_options)
    check = functools.partial(check_part, folder=run.folder, kept=run.work_list.kept_schema)
    found = map_tasks(check, _tasks(run), len(run.finished), num_processes)
    findings = add_findings(_with_progress(found, run.work_list.num_images))
    strays = sorted(run.finished.difference(run.work_list.unit_ids))
    return Report(
        run=redact(run_uri),
        findings=findings,
        num_units=len(run.work_list),
        num_finished=len(run.finished) - len(strays),
        strays=tuple(strays[:MAX_EXAMPLES]),
        num_strays=len(strays),
        exceeded=tuple(_exceeded(findings.rates(), limits)),
    )


def report_text(report: Report) -> str:
    """Return a report as Markdown."""
    found, rates = report.findings, report.findings.rates()
    low, median, high = (found.masks_quantile(share) for share in (0.05, 0.5, 0.95))
    mean = found.num_masks / max(found.num_ok, 1)
    statuses = ", ".join(f"{number:,} {status}" for status, number in found.statuses.most_common()) or "none"
    lines = [
        f"# Check of {report.run}: {'passed' if report.passed else 'FAILED'}",
        "",
        "| what | value |",
        "| --- | --- |",
        f"| images, rows | {found.num_expected:,}, {found.num_rows:,} |",
        f"| units, finished | {report.num_units:,}, {report.num_finished:,} |",
        f"| rows by status | {statuses} |",
        f"| masks | {found.num_masks:,} |",
        f"| masks an image: mean, 5 %, median, 95 % | {mean:.1f}, {low}, {median}, {high} |",
        f"| failed images | {rates['failed_rate']:.2%} of the images |",
        f"| images without a mask | {rates['zero_mask_rate']:.2%} of the labelled |",
        f"| coverage | {rates['coverage']:.1%} of the pixels, mean of the labelled images |",
        f"| whole-picture masks ({WHOLE_PICTURE_FRAC:.0%} and more) | {rates['whole_picture_rate']:.2%} of the masks |",
        f"| near-duplicates (IoU {NEAR_DUPLICATE_IOU:g} and more) | {rates['near_duplicate_rate']:.2%} of the masks |",
    ]
    faults = [(PROBLEMS[kind], found.problems[kind], found.examples.get(kind, ())) for kind in PROBLEMS]
    faults.append(("parts that the work list does not know", report.num_strays, report.strays))
    faults = [fault for fault in faults if fault[1]]
    if faults:
        lines += ["", "## Faults", ""]
    for meaning, number, examples in faults:
        lines.append(f"- {number:,} {meaning}")
        lines += [f"  - {example}" for example in examples]
    if report.exceeded:
        lines += ["", "## Thresholds not kept", "", *(f"- {text}" for text in report.exceeded)]
    return "\n".join(lines)


def _tasks(run: Run) -> Iterator[PartTask]:
    for unit in run.work_list.units():
        uids = np.array([image.image_uid for image in unit.images], np.int64)
        yield PartTask(unit.unit_id, uids, unit.unit_id in run.finished)


def _with_progress(parts: Iterator[Findings], num_images: int) -> Iterator[Findings]:
    with tqdm(total=num_images, unit="image", disable=None, leave=False) as bar:
        for part in parts:
            bar.update(part.num_expected)
            yield part


def _exceeded(rates: Mapping[str, float], limits: Mapping[str, float]) -> Iterator[str]:
    for name, limit in limits.items():
        bound, _, rate = name.partition("_")
        value = rates[rate]
        if (value > limit) if bound == "max" else (value < limit):
            yield f"{rate.replace('_', ' ')} is {value:.2%}; {'at most' if bound == 'max' else 'at least'} {limit:.2%}"
