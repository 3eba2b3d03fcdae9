"""Two runs over the same images: how many masks, how much they agree, and where they differ most."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from effsam2_ray.errors import InputError
from effsam2_ray.output import OutputFolder
from effsam2_ray.runs.agreement import (
    AREA_EDGES,
    COLUMNS,
    MATCH_IOUS,
    Agreement,
    Difference,
    Side,
    add_agreements,
    compare_tables,
)
from effsam2_ray.runs.joining import JoinTask, join_tasks, read_side
from effsam2_ray.runs.processes import map_tasks
from effsam2_ray.runs.reading import Run, open_run
from effsam2_ray.show.run_images import ShownImage
from effsam2_ray.show.run_images import open_run as open_shown_run
from effsam2_ray.show.sheet import render_sheet
from effsam2_ray.storage import StorageOptions
from effsam2_ray.uris import redact

DEFAULT_DIFFERENCES = 12


@dataclass(frozen=True)
class Comparison:
    """What came of comparing two runs.

    Attributes:
        run_a, run_b: their folders.
        settings_a, settings_b: preset and weights of each, for people.
        agreement: the figures.
    """

    run_a: str
    run_b: str
    settings_a: str
    settings_b: str
    agreement: Agreement

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        found = self.agreement
        return {
            "run_a": self.run_a,
            "run_b": self.run_b,
            "settings_a": self.settings_a,
            "settings_b": self.settings_b,
            "rows_a": found.rows_a,
            "rows_b": found.rows_b,
            "images_in_both": found.num_both,
            "images_compared": found.num_compared,
            "statuses": dict(found.statuses),
            "area_edges": list(AREA_EDGES),
            "a": side_figures(found.a, found.num_compared),
            "b": side_figures(found.b, found.num_compared),
            "differences": [
                {"score": item.score, "image_uid": str(item.image_uid), "image_uri": redact(item.image_uri)}
                for item in found.differences
            ],
        }


def compare_runs(
    uri_a: str,
    uri_b: str,
    *,
    num_differences: int = DEFAULT_DIFFERENCES,
    num_processes: int | None = None,
    storage_options: StorageOptions = None,
) -> Comparison:
    """Compare the images that two runs share.

    Args:
        uri_a, uri_b: output folders of `effsam2 label`, finished or not.
        num_differences: how many of the images that differ most are named.
        num_processes: None takes the machine's CPUs.
        storage_options: passed to fsspec.

    Raises:
        InputError: one is no run, or no image has a row in both.
    """
    run_a, run_b = open_run(uri_a, storage_options), open_run(uri_b, storage_options)
    compare = functools.partial(_compare, folder_a=run_a.folder, folder_b=run_b.folder, num_differences=num_differences)
    with tempfile.TemporaryDirectory(prefix="effsam2-compare-") as buckets:
        tasks = join_tasks(run_a, run_b, COLUMNS, buckets)
        found = map_tasks(compare, tasks, len(tasks), num_processes)
        agreement = add_agreements(_with_progress(found, run_a.work_list.num_images), num_differences)
    if not agreement.num_both:
        raise InputError(f"{redact(uri_a)} and {redact(uri_b)} have no image in common; images are matched by URI")
    return Comparison(redact(uri_a), redact(uri_b), _settings(run_a), _settings(run_b), agreement)


def comparison_text(comparison: Comparison) -> str:
    """Return a comparison as Markdown."""
    found = comparison.agreement
    figures = [side_figures(side, found.num_compared) for side in (found.a, found.b)]
    statuses = ", ".join(f"{number:,} {pair}" for pair, number in found.statuses.most_common())
    lines = [
        f"# A: {comparison.run_a} · B: {comparison.run_b}",
        "",
        f"A: {comparison.settings_a} · B: {comparison.settings_b}",
        "",
        f"{found.num_both:,} images in both ({found.rows_a - found.num_both:,} only in A, "
        f"{found.rows_b - found.num_both:,} only in B), {found.num_compared:,} compared. Status in A / B: {statuses}.",
        "",
        "| over the images compared | A | B |",
        "| --- | --- | --- |",
        _line("masks an image", figures, "masks_per_image", ".1f"),
        _line("prompts an image", figures, "prompts_per_image", ".1f"),
        _line("images without a mask", figures, "zero_mask_rate", ".2%"),
        _line("coverage (mean share of the pixels)", figures, "coverage", ".1%"),
        _line("best IoU in the other run, mean over masks", figures, "best_iou", ".3f"),
        _line("best IoU in the other run, mean over images", figures, "image_best_iou", ".3f"),
        *(_line(f"masks matched at IoU {iou:g}", figures, f"matched_{iou:g}", ".1%") for iou in MATCH_IOUS),
        "",
        "| masks by share of the picture | A | B |",
        "| --- | --- | --- |",
    ]
    for place, (low, high) in enumerate(itertools.pairwise(AREA_EDGES)):
        counts = " | ".join(f"{side.areas[place]:,}" for side in (found.a, found.b))
        lines.append(f"| {low:.2%} to {high:.2%} | {counts} |")
    lines += ["", "Images that differ most (1 - mean best IoU both ways):", ""]
    lines += [f"- {item.score:.3f} {redact(item.image_uri)}" for item in found.differences]
    return "\n".join(lines)


def differences_sheet(comparison: Comparison, uri_a: str, uri_b: str, storage_options: StorageOptions = None) -> bytes:
    """Return a PNG of the images that differ most, run A on the left, run B on the right.

    Args:
        comparison: of the runs.
        uri_a, uri_b: their folders.
        storage_options: passed to fsspec, for the runs and their pictures.
    """
    differences = comparison.agreement.differences
    title = f"left A: {_short(uri_a)} ({comparison.settings_a}) · right B: {_short(uri_b)} ({comparison.settings_b})"
    images = _shown_pairs(differences, uri_a, uri_b, storage_options)
    return render_sheet(images, title, len(differences), comparison.agreement.num_compared)


def side_figures(side: Side, num_images: int) -> dict[str, Any]:
    """Return one run's means and shares over the images compared."""
    images, masks = max(num_images, 1), max(side.masks, 1)
    return {
        "masks_per_image": side.masks / images,
        "prompts_per_image": side.prompts / images,
        "zero_mask_rate": side.zero_mask_images / images,
        "coverage": side.coverage / images,
        "best_iou": side.best_iou / masks,
        "image_best_iou": side.image_best_iou / max(side.images_with_masks, 1),
        **{f"matched_{iou:g}": count / masks for iou, count in zip(MATCH_IOUS, side.matched, strict=True)},
        "areas": list(side.areas),
    }


def _compare(task: JoinTask, folder_a: OutputFolder, folder_b: OutputFolder, num_differences: int) -> Agreement:
    table_a, table_b = read_side(task, "a", folder_a, COLUMNS), read_side(task, "b", folder_b, COLUMNS)
    return compare_tables(table_a, table_b, num_differences)


def _with_progress(parts: Iterator[Agreement], num_images: int) -> Iterator[Agreement]:
    with tqdm(total=num_images, unit="image", disable=None, leave=False) as bar:
        for part in parts:
            bar.update(part.rows_a)
            yield part


def _settings(run: Run) -> str:
    row = next(run.rows(["preset", "weights"]), {})
    return ", ".join(str(row[name]) for name in ("preset", "weights") if row.get(name)) or "no row"


def _shown_pairs(
    differences: tuple[Difference, ...], uri_a: str, uri_b: str, storage_options: StorageOptions
) -> Iterator[ShownImage]:
    runs = [open_shown_run(uri, storage_options) for uri in (uri_a, uri_b)]
    for item in differences:
        for run, side, (number, place) in zip(runs, "AB", (item.place_a, item.place_b), strict=True):
            for image in run.unit_images(number, [place]):
                # Preset and weights stand in the title, for both.
                yield dataclasses.replace(image, name=f"{side}  {image.name}", preset="", weights="")


def _line(name: str, figures: list[dict[str, Any]], key: str, form: str) -> str:
    return f"| {name} | " + " | ".join(format(side[key], form) for side in figures) + " |"


def _short(uri: str) -> str:
    return redact(uri).rstrip("/").rsplit("/", 1)[-1]
