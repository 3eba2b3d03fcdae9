"""`effsam2 plan`: what a job will take and cost, from a short probe on the actual data or a given rate."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from effsam2_ray.commands.arguments import (
    add_model_arguments,
    add_storage_arguments,
    names,
    positive,
    preset_or_file,
    storage_options,
)
from effsam2_ray.config import PRESETS, Config
from effsam2_ray.errors import ConfigError

if TYPE_CHECKING:
    from effsam2_ray.inputs.work_list import WorkList
    from effsam2_ray.planning import Estimate, Rates
    from effsam2_ray.probe import Probe

ASSUMED_OUTPUT_BYTES = 40_000
"""Parquet bytes an image where nothing was probed: some tens of masks."""
ASSUMED_CLUSTER_ACTORS, ASSUMED_CPUS = 4, 8
"""Of a segmenter whose steps were not probed: what `label` takes on a GPU, and two CPUs for reading and merging."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("plan", help="estimate GPU hours, cost and output size of a job")
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="folder, glob, tar shards, Parquet, or a manifest; any fsspec URI")
    add("--work-list", metavar="RUN|FILE", help="take the images of an earlier run, or of `effsam2 manifest`, instead")
    add(
        "--preset",
        default="low_latency",
        metavar="P",
        help=f"{', '.join(PRESETS)}, or a YAML file; default: low_latency",
    )
    add("--set", dest="overrides", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="may be repeated")
    add_model_arguments(parser)
    add("--gpu-hour-price", type=_amount, required=True, metavar="X", help="price of one GPU (its node) for an hour")
    add(
        "--rate",
        type=_amount,
        metavar="R",
        help="images/s of one segmenter; else a probe of the weights tells",
    )
    add("--probe", type=positive, metavar="N", help="images that are labelled here; default: 8, none with --rate")
    add("--num-gpus", type=_amount, default=1.0, metavar="F", help="GPUs of one segmenter; default: 1")
    add("--hours", type=_amount, default=12.0, metavar="H", help="when the job should be done; default: 12")
    add("--gpus", type=_numbers, default=(1, 4, 16, 64), metavar="N[,N...]", help="default: 1,4,16,64")
    add("--limit", type=positive, metavar="N", help="only the first N images")
    add("--image-column", metavar="C")
    add_storage_arguments(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from effsam2_ray.planning import Rates, estimate

    config = preset_or_file(arguments.preset).with_overrides(arguments.overrides)
    work_list = _work_list(arguments)
    num_probed = arguments.probe or (0 if arguments.rate else 8)
    probed = _probe(arguments, config, work_list, num_probed) if num_probed else None
    if arguments.rate:
        output_bytes = probed.rates.output_bytes if probed else ASSUMED_OUTPUT_BYTES
        rates = Rates(arguments.rate, output_bytes, ASSUMED_CLUSTER_ACTORS, ASSUMED_CPUS)
    else:
        assert probed is not None
        rates = probed.rates
    found = estimate(
        work_list.num_images,
        rates,
        gpu_hour_price=arguments.gpu_hour_price,
        gpus_per_segmenter=arguments.num_gpus,
        wished_hours=arguments.hours,
        numbers=[max(1, int(number / arguments.num_gpus)) for number in arguments.gpus],
    )
    for line in _lines(arguments, work_list, probed, rates, found):
        print(line)
    return 0


def _work_list(arguments: argparse.Namespace) -> WorkList:
    import sys

    from effsam2_ray.inputs.listing import build_work_list
    from effsam2_ray.inputs.listing_progress import ListingProgress
    from effsam2_ray.inputs.work_list import load_work_list

    options = storage_options(arguments.storage_option)
    if arguments.work_list:
        if arguments.inputs or arguments.image_column or arguments.limit:
            raise ConfigError("give --work-list alone; inputs, --limit and --image-column are settled in it")
        return load_work_list(arguments.work_list, options)
    if not arguments.inputs:
        raise ConfigError("nothing to plan: give inputs, or a work list")
    return build_work_list(
        arguments.inputs,
        image_column=arguments.image_column,
        limit=arguments.limit,
        storage_options=options,
        progress=ListingProgress(lambda line: print(line, file=sys.stderr, flush=True)),
    )


def _probe(arguments: argparse.Namespace, config: Config, work_list: WorkList, num_images: int) -> Probe:
    from effsam2_ray.labeller import Labeller
    from effsam2_ray.probe import probe

    labeller = Labeller.from_weights(
        arguments.weights,
        config=config,
        model_config=arguments.model_config,
        heads_table=arguments.heads_table,
        device=arguments.device,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size or 1,
    )
    found = probe(work_list, labeller, num_images, storage_options(arguments.storage_option))
    kind = labeller.model.device.type
    print(
        f"Probe: {found.num_labelled} images on this machine's {kind}, {found.prompts_per_image:.1f} prompts and "
        f"{found.masks_per_image:.1f} masks per image"
        + (f"; {found.num_failed} could not be labelled" if found.num_failed else "")
    )
    if kind == "cpu" and not arguments.rate:
        print("Note: these are a CPU's rates; run the probe on a node with a GPU, or give --rate.")
    return found


def _lines(
    arguments: argparse.Namespace, work_list: WorkList, probed: Probe | None, rates: Rates, found: Estimate
) -> Iterator[str]:
    listed = work_list.summary
    yield f"{listed.num_images:,} images, {listed.num_shards:,} shards, {listed.size_bytes / 1e9:,.2f} GB to read"
    yield (
        f"{found.gpu_hours:,.1f} GPU hours at {rates.images_per_s:,.2f} images/s a segmenter "
        f"({'given' if arguments.rate else 'probed'}, {arguments.num_gpus:g} GPU each)"
    )
    yield f"Cost: {found.cost:,.2f} for all, {found.cost_per_million:,.2f} per million images"
    size = "probed" if probed else "assumed"
    yield f"Output: {found.output_bytes / 1e9:,.3f} GB ({rates.output_bytes / 1e3:,.1f} KB per image, {size})"
    for number, hours in found.wall_hours:
        yield f"  {number * arguments.num_gpus:>6g} GPUs: {_duration(hours)}"
    yield (
        f"Advised: --num-segmenters 1:{found.num_segmenters} --num-cluster-actors {rates.num_cluster_actors}, "
        f"{rates.segmenter_cpus} CPUs for each segmenter"
    )


def _duration(hours: float) -> str:
    minutes = round(hours * 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes else f"{hours * 3600:.0f} s"


def _amount(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0; got {text}")
    return value


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(name) for name in names(text))
