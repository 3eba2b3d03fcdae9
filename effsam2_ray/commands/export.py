"""`effsam2 export`."""

from __future__ import annotations

import argparse

from effsam2_ray.commands.arguments import add_storage_arguments, positive, storage_options


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("export", help="write a run's masks in the format of another tool")
    add = parser.add_argument
    add("run_uri", metavar="RUN", help="output folder of `effsam2 label`")
    add("--format", required=True, choices=("coco", "sa1b", "yolo", "label-png", "panoptic", "hf"))
    add("--output", required=True, metavar="URI", help="folder to write to")
    add("--with-images", action="store_true", help="copy the pictures too (coco, sa1b, yolo; hf always has them)")
    add("--images-per-file", type=positive, default=10_000, metavar="N", help="coco, panoptic; default: %(default)s")
    add("--full-coverage", action="store_true", help="label-png, panoptic: no pixel without a mask")
    add(
        "--polygon-tolerance",
        type=float,
        default=1.0,
        metavar="PIXELS",
        help="yolo: how far a polygon may be off; 0 is exact; default: %(default)s",
    )
    add("--num-processes", type=positive, metavar="N", help="default: the machine's CPUs")
    add_storage_arguments(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from effsam2_ray.runs.export import export_run
    from effsam2_ray.runs.export.items import ExportOptions
    from effsam2_ray.uris import redact

    summary = export_run(
        arguments.run_uri,
        arguments.output,
        ExportOptions(
            format=arguments.format,
            with_pictures=arguments.with_images,
            full_coverage=arguments.full_coverage,
            polygon_tolerance=arguments.polygon_tolerance,
        ),
        images_per_file=arguments.images_per_file,
        num_processes=arguments.num_processes,
        storage_options=storage_options(arguments.storage_option),
    )
    print(f"{arguments.format}: {redact(arguments.output)}")
    print(f"{summary['images']} images, {summary['masks']} masks")
    if summary["unfinished_units"]:
        print(f"{summary['unfinished_units']} units of the run are not finished")
    if summary["skipped"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary["skipped"].items())
        print(f"{sum(summary['skipped'].values())} images skipped: {reasons}; see _meta/export.json")
    return 0
