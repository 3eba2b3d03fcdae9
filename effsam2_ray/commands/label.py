"""`effsam2 label`."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import yaml

from effsam2_ray.commands.arguments import (
    add_cluster_arguments,
    add_model_arguments,
    add_storage_arguments,
    closing_lines,
    names,
    positive,
    preset_or_file,
    run_options,
    storage_options,
)
from effsam2_ray.config import PRESETS, Config, PromptSettings
from effsam2_ray.errors import ConfigError

if TYPE_CHECKING:  # importing Ray takes seconds; `effsam2 --help` need not wait for it
    from effsam2_ray.pipeline.label import LabelJob


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("label", help="label images into Parquet with RLE masks")
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="folder, glob, tar shards, Parquet, or a manifest; any fsspec URI")
    add("--output", required=True, metavar="URI", help="folder for the Parquet parts")
    add("--work-list", metavar="RUN|FILE", help="take the images and units of an earlier run instead of INPUT")
    add(
        "--preset",
        type=names,
        default=("low_latency",),
        metavar="P[,P...]",
        help=f"{', '.join(PRESETS)}, or a YAML file of settings; several write OUTPUT/P each; default: low_latency",
    )
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
    from effsam2_ray.pipeline.label import LabelJob, label_together

    configs = _configs(arguments)
    jobs = [
        LabelJob(
            inputs=tuple(arguments.inputs),
            output=output,
            config=config,
            weights=arguments.weights,
            model_config=arguments.model_config,
            heads_table=arguments.heads_table,
            work_list=arguments.work_list,
            limit=arguments.limit,
            id_column=arguments.id_column,
            image_column=arguments.image_column,
            keep_columns=arguments.keep_columns,
            storage_options=storage_options(arguments.storage_option),
            options=run_options(
                arguments, keep_candidates=arguments.keep_candidates, retry_failed=arguments.retry_failed
            ),
        )
        for config, output in zip(configs, _outputs(arguments.output, configs), strict=True)
    ]
    if arguments.dry_run:
        _print_plan(jobs)
        return 0
    for summary in label_together(jobs, lambda line: print(line, flush=True)):
        for line in closing_lines(summary):
            print(line, flush=True)
    return 0


def _print_plan(jobs: Sequence[LabelJob]) -> None:
    from effsam2_ray.pipeline.label import plan

    configs, info, work_list = plan(jobs)
    listed = work_list.summary
    print(f"{listed.num_images} images, {listed.num_shards} shards, {listed.num_units} units")
    print(
        f"{listed.num_duplicates} listed twice, {listed.num_ignored} files that are no images by name, "
        f"{listed.num_lost} already known to be lost"
    )
    print(yaml.safe_dump({"weights": dataclasses.asdict(info)}, sort_keys=False).rstrip())
    for config in configs:
        print(yaml.safe_dump(config.to_dict(), sort_keys=False).rstrip())


def _configs(arguments: argparse.Namespace) -> list[Config]:
    configs = []
    for name in arguments.preset or ("",):
        config = preset_or_file(name)
        if arguments.prompts:
            config = dataclasses.replace(config, prompts=PromptSettings.parse(arguments.prompts))
        configs.append(config.with_overrides(arguments.overrides))
    return configs


def _outputs(output: str, configs: Sequence[Config]) -> list[str]:
    """Return the output itself for one configuration, and a folder in it named by the preset for each of several."""
    if len(configs) == 1:
        return [output]
    folders = [config.preset for config in configs]
    for folder in folders:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", folder):
            raise ConfigError(f"a preset's name is the name of its output folder; {folder!r} cannot be one")
        if folders.count(folder) > 1:
            raise ConfigError(f"preset {folder!r} was given twice")
    return [f"{output.rstrip('/')}/{folder}" for folder in folders]
