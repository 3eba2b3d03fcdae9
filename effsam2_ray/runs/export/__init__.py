"""Masks of a run in the formats of other tools.

==============  ========================================================================================
`coco`          COCO instance JSON, a file for `images_per_file` images
`sa1b`          SA-1B JSON, a file an image
`yolo`          YOLO segmentation labels, a text file an image, and `data.yaml`
`label-png`     16-bit grey PNG, a file an image: one number a pixel, smaller masks on top, 0 for none
`panoptic`      COCO panoptic PNG, a file an image, and JSON
`hf`            Parquet with pictures and masks for Hugging Face `datasets`, a file a unit
==============  ========================================================================================

Rows without masks to hand over (failed images, malformed masks) are skipped and counted; `_meta/export.json`, the last
file, says how many and which. Pictures that go along are the files as they are, byte for byte; only those that an EXIF
orientation turns are written anew, turned and without it, so that every loader sees them as the masks do.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from effsam2_ray.errors import ConfigError
from effsam2_ray.inputs.columns import ARROW_TYPES
from effsam2_ray.output import OutputFolder
from effsam2_ray.runs.export.coco import write_coco, write_panoptic, write_sa1b
from effsam2_ray.runs.export.hugging_face import hugging_face_schema, write_hugging_face
from effsam2_ray.runs.export.items import ExportItem, ExportOptions, FileWriter
from effsam2_ray.runs.export.label_maps import write_label_pngs
from effsam2_ray.runs.export.names import ImageNamer, input_root, run_inputs
from effsam2_ray.runs.export.source import ExportCounts, UnitTask, unit_items
from effsam2_ray.runs.export.yolo import DATA_YAML, write_yolo
from effsam2_ray.runs.processes import map_tasks
from effsam2_ray.runs.reading import Run, open_run
from effsam2_ray.storage import StorageOptions, put_bytes
from effsam2_ray.uris import canonical_uri, redact

FORMATS = ("coco", "sa1b", "yolo", "label-png", "panoptic", "hf")
DEFAULT_IMAGES_PER_FILE = 10_000
_WITH_PICTURES = ("coco", "sa1b", "yolo")
_LABEL_MAPS = ("label-png", "panoptic")
_COLUMNS = ("image_uid", "image_id", "image_uri", "width", "height", "status", "masks")


@dataclass(frozen=True)
class _Group:
    """Units that are written together, and the name of their common file where the format has one."""

    tasks: tuple[UnitTask, ...]
    name: str


def export_run(
    run_uri: str,
    output: str,
    options: ExportOptions,
    *,
    images_per_file: int = DEFAULT_IMAGES_PER_FILE,
    num_processes: int | None = None,
    storage_options: StorageOptions = None,
) -> dict[str, Any]:
    """Write a run's masks in another format and return what `_meta/export.json` holds.

    The same call writes the same files. A run that is not finished gives what there is.

    Args:
        run_uri: output folder of `effsam2 label`.
        output: folder to write to, any fsspec URI, not within the run.
        options: the format and its settings.
        images_per_file: for COCO files: units are put together up to this many images.
        num_processes: None takes the machine's CPUs.
        storage_options: passed to fsspec, for the run, its pictures and the output.

    Raises:
        ConfigError: an unknown format, a setting that the format does not have, or an output within the run.
        InputError: `run_uri` is no run.
    """
    _check(run_uri, output, options, images_per_file)
    run = open_run(run_uri, storage_options)
    groups = _plan(run, images_per_file if options.format in ("coco", "panoptic") else 1)
    write = functools.partial(
        _write_group,
        folder=run.folder,
        output=output,
        options=options,
        kept=run.work_list.summary.kept_types,
        storage_options=storage_options,
    )
    total = ExportCounts()
    with tqdm(total=run.work_list.num_images, unit="image", disable=None, leave=False) as bar:
        for counts in map_tasks(write, _groups(run, groups, options.format), len(groups), num_processes):
            total.add(counts)
            bar.update(counts.images + counts.skipped.total())
    if options.format == "yolo":
        put_bytes(f"{output.rstrip('/')}/data.yaml", DATA_YAML.encode(), storage_options)
    summary = {
        "run": redact(run_uri),
        "format": options.format,
        "images": total.images,
        "masks": total.masks,
        "unfinished_units": len(run.work_list) - len(run.finished_numbers()),
        "skipped": dict(total.skipped),
        "skipped_images": [{"reason": reason, "image_uri": redact(uri)} for reason, uri in total.skipped_names],
    }
    put_bytes(f"{output.rstrip('/')}/_meta/export.json", json.dumps(summary, indent=2).encode(), storage_options)
    return summary


def _check(run_uri: str, output: str, options: ExportOptions, images_per_file: int) -> None:
    if options.format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}; got {options.format!r}")
    if options.with_pictures and options.format not in _WITH_PICTURES:
        raise ConfigError(f"pictures are copied with {', '.join(_WITH_PICTURES)}; not with {options.format}")
    if options.full_coverage and options.format not in _LABEL_MAPS:
        raise ConfigError(f"full coverage is for {' and '.join(_LABEL_MAPS)}; not for {options.format}")
    if not 0 <= options.polygon_tolerance < math.inf:
        raise ConfigError(f"polygon_tolerance must be a number of pixels, 0 or more; got {options.polygon_tolerance}")
    if images_per_file < 1:
        raise ConfigError(f"images_per_file must be 1 or more; got {images_per_file}")
    if f"{canonical_uri(output).rstrip('/')}/".startswith(f"{canonical_uri(run_uri).rstrip('/')}/"):
        raise ConfigError(f"an export cannot lie within its run, {redact(run_uri)}; choose another --output")


def _plan(run: Run, images_per_file: int) -> list[list[int]]:
    """Return the finished units in groups. Cut by the work list, not by what is finished, so that names stay."""
    groups: list[list[int]] = []
    room = 0
    for number, num_images in enumerate(run.work_list.unit_num_images):
        if num_images > room:
            groups.append([])
            room = images_per_file
        room -= num_images
        groups[-1].append(number)
    return groups


def _groups(run: Run, groups: list[list[int]], format_name: str) -> Iterator[_Group]:
    """Yield the groups with their units; every image is named, so that names do not hang on what is finished."""
    root = input_root(run_inputs(run.folder.read_job(), run.work_list.summary.inputs))
    namer = ImageNamer(root)
    units = iter(run.work_list.units())
    first = run.first_image_numbers()
    for place, numbers in enumerate(groups):
        tasks = []
        for number in numbers:
            unit = next(units)
            names = tuple(namer.name(image) for image in unit.images)
            if unit.unit_id in run.finished:
                tasks.append(UnitTask(unit, first[number] + 1, names))
        yield _Group(tuple(tasks), _file_name(format_name, place, len(groups)))


def _file_name(format_name: str, place: int, num_groups: int) -> str:
    stem = {"coco": "instances", "panoptic": "panoptic", "hf": "data/train"}.get(format_name, "")
    if num_groups == 1 and format_name != "hf":
        return f"{stem}.json"
    return f"{stem}-{place:05d}-of-{num_groups:05d}.{'parquet' if format_name == 'hf' else 'json'}"


def _write_group(
    group: _Group,
    folder: OutputFolder,
    output: str,
    options: ExportOptions,
    kept: tuple[tuple[str, str], ...],
    storage_options: StorageOptions,
) -> ExportCounts:
    """Write a group of units; runs in a process of its own."""
    counts = ExportCounts()
    if not group.tasks:
        return counts
    kept_schema = {column: ARROW_TYPES[name] for column, name in kept}
    columns: tuple[str, ...] = _COLUMNS
    if options.format == "hf":
        columns = tuple({*_COLUMNS, *hugging_face_schema(kept_schema).names} - {"image", "file_name"})
    with_pictures = options.with_pictures or options.format == "hf"
    with FileWriter(output, storage_options) as writer:
        items = (
            item
            for task in group.tasks
            for item in unit_items(
                task, folder, columns, counts, with_pictures=with_pictures, storage_options=storage_options
            )
        )
        _write_items(items, writer, options, kept_schema, group.name)
    return counts


def _write_items(
    items: Iterator[ExportItem],
    writer: FileWriter,
    options: ExportOptions,
    kept: dict[str, pa.DataType],
    name: str,
) -> None:
    if options.format == "coco":
        write_coco(items, writer, options, name)
    elif options.format == "panoptic":
        write_panoptic(items, writer, options, name)
    elif options.format == "hf":
        write_hugging_face(items, writer, kept, name)
    else:
        per_image: dict[str, Callable[[Iterator[ExportItem], FileWriter, ExportOptions], None]] = {
            "sa1b": write_sa1b,
            "yolo": write_yolo,
            "label-png": write_label_pngs,
        }
        per_image[options.format](items, writer, options)
