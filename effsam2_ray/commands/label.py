"""`effsam2 label`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import yaml

from effsam2_ray.commands.arguments import (
    add_cluster_arguments,
    add_model_arguments,
    add_storage_arguments,
    names,
    positive,
    run_options,
    storage_options,
)
from effsam2_ray.config import PRESETS, Config, PromptSettings, load_preset_file, preset_config


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("label", help="label images into Parquet with RLE masks")
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="folder, glob, tar shards, Parquet, or a manifest; any fsspec URI")
    add("--output", required=True, metavar="URI", help="folder for the Parquet parts")
    preset = parser.add_mutually_exclusive_group()
    preset.add_argument("--preset", default="low_latency", choices=PRESETS, help="default: %(default)s")
    preset.add_argument("--preset-file", metavar="FILE", help="YAML of settings, in sections")
    add_model_arguments(parser)
    add("--prompts", metavar="SOURCE", help="clusters, grid:N or random:N; default: clusters")
    add("--set", dest="overrides", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="may be repeated")
    add("--limit", type=positive, metavar="N", help="only the first N images")
    add_cluster_arguments(parser)
    add("--retry-failed", action="store_true", help="take up failed rows of finished units again")
    add("--keep-candidates", action="store_true", help="store the masks before merging too")
    add("--id-column", metavar="C", help="your own identifier, in Parquet inputs and manifests")
    add("--image-column", metavar="C")
    add("--keep-columns", type=names, default=(), metavar="A,B", help="columns of yours that go along")
    add_storage_arguments(parser)
    add("--dry-run", action="store_true", help="print the plan and all settings; run nothing")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from effsam2_ray.pipeline.label import LabelJob, label, plan

    job = LabelJob(
        inputs=tuple(arguments.inputs),
        output=arguments.output,
        config=_config(arguments),
        weights=arguments.weights,
        model_config=arguments.model_config,
        heads_table=arguments.heads_table,
        limit=arguments.limit,
        id_column=arguments.id_column,
        image_column=arguments.image_column,
        keep_columns=arguments.keep_columns,
        storage_options=storage_options(arguments.storage_option),
        options=run_options(arguments, keep_candidates=arguments.keep_candidates, retry_failed=arguments.retry_failed),
    )
    if arguments.dry_run:
        config, info, work_list = plan(job)
        listed = work_list.summary
        print(f"{listed.num_images} images, {listed.num_shards} shards, {listed.num_units} units")
        print(
            f"{listed.num_duplicates} listed twice, {listed.num_ignored} files that are no images by name, "
            f"{listed.num_lost} already known to be lost"
        )
        print(yaml.safe_dump({"weights": dataclasses.asdict(info), **config.to_dict()}, sort_keys=False).rstrip())
        return 0
    summary = label(job)
    for line in _closing_lines(summary):
        print(line)
    return 0


def _closing_lines(summary: dict[str, Any]) -> list[str]:
    statuses = summary["statuses"]
    failed = {status: count for status, count in statuses.items() if status != "ok"}
    lines = [
        f"Parquet: {summary['output']}",
        f"{summary['images']} images, {summary['masks']} masks, "
        f"{summary['prompts_per_image']:.1f} prompts per image, {summary['images_per_s']:.2f} images/s",
    ]
    if failed:
        reasons = ", ".join(f"{count} {status}" for status, count in failed.items())
        lines.append(f"{sum(failed.values())} images without masks: {reasons}; see _meta/failures.parquet")
    return lines


def _config(arguments: argparse.Namespace) -> Config:
    config = load_preset_file(arguments.preset_file) if arguments.preset_file else preset_config(arguments.preset)
    if arguments.prompts:
        config = dataclasses.replace(config, prompts=PromptSettings.parse(arguments.prompts))
    return config.with_overrides(arguments.overrides)
