"""`effsam2 manifest`: list the inputs into a frozen work list, and label nothing."""

from __future__ import annotations

import argparse
import sys
import time

from effsam2_ray.commands.arguments import add_storage_arguments, names, positive, storage_options


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("manifest", help="list inputs into a work list for `label --work-list`")
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="folder, glob, tar shards, Parquet, or a manifest; any fsspec URI")
    add("--output", required=True, metavar="URI", help="the work list, a Parquet file")
    add("--limit", type=positive, metavar="N", help="only the first N images")
    add(
        "--num-segmenters",
        type=positive,
        default=1,
        metavar="N",
        help="the most segmenters that will share a small list, which decides how finely it is cut; default: "
        "%(default)s",
    )
    add("--id-column", metavar="C", help="your own identifier, in Parquet inputs and manifests")
    add("--image-column", metavar="C")
    add("--keep-columns", type=names, default=(), metavar="A,B", help="columns of yours that go along")
    add_storage_arguments(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from effsam2_ray.errors import ConfigError, OutputError
    from effsam2_ray.inputs.listing import build_work_list
    from effsam2_ray.inputs.listing_progress import ListingProgress
    from effsam2_ray.schema import RESERVED_COLUMNS
    from effsam2_ray.storage import exists, put_if_absent, read_bytes
    from effsam2_ray.uris import redact

    if taken := sorted(RESERVED_COLUMNS.intersection(arguments.keep_columns)):
        raise ConfigError(f"keep_columns cannot hold {', '.join(taken)}: the output has columns of these names")
    options = storage_options(arguments.storage_option)
    was_there = exists(arguments.output, options)
    start = time.monotonic()
    work_list = build_work_list(
        arguments.inputs,
        id_column=arguments.id_column,
        image_column=arguments.image_column,
        keep_columns=arguments.keep_columns,
        limit=arguments.limit,
        num_segmenters=arguments.num_segmenters,
        storage_options=options,
        progress=ListingProgress(lambda line: print(line, file=sys.stderr, flush=True)),
    )
    elapsed_s = time.monotonic() - start
    data = work_list.to_bytes()
    # A list is frozen once: runs that took it must find what they took.
    if (was_there or not put_if_absent(arguments.output, data, options)) and read_bytes(
        arguments.output, options
    ) != data:
        raise OutputError(f"{redact(arguments.output)} is there and lists other images; choose another name")
    listed = work_list.summary
    print(f"Work list: {redact(arguments.output)}")
    print(
        f"{listed.num_images:,} images, {listed.num_shards:,} shards, {listed.num_units:,} units, "
        f"{listed.size_bytes / 1e9:.2f} GB; listed in {elapsed_s:.1f} s"
    )
    print(
        f"{listed.num_duplicates:,} listed twice, {listed.num_ignored:,} files that are no images by name, "
        f"{listed.num_lost:,} already known to be lost"
    )
    return 0
