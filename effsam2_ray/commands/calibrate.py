"""`effsam2 calibrate`."""

from __future__ import annotations

import argparse

from effsam2_ray.commands.arguments import (
    add_cluster_arguments,
    add_model_arguments,
    add_storage_arguments,
    names,
    positive,
    run_options,
    storage_options,
)
from effsam2_ray.commands.data_set import add_data_set_arguments
from effsam2_ray.evaluation.methods import method_config


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("calibrate", help="search the best attention head on a data set with known objects")
    add = parser.add_argument
    add_data_set_arguments(parser)
    add("--output", required=True, metavar="URI", help="the table, for --heads-table; ends in .json")
    add("--work-dir", metavar="URI", help="folder of runs and scores; default: OUTPUT with .work for .json")
    add("--blocks", type=numbers, metavar="B[,B...]", help="global-attention blocks; default: all")
    add("--heads", type=numbers, metavar="H[,H...]", help="heads of each block; default: all")
    add("--preset", default="high_quality", metavar="P", help="preset or YAML file of settings; default: %(default)s")
    add("--set", dest="overrides", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="may be repeated")
    add("--show", type=int, default=3, metavar="N", help="pictures in the attention figure; default: %(default)s")
    add("--show-patch", type=place, metavar="X,Y", help="patch whose attention is drawn, from 0,0 to 1,1")
    add("--seed", type=int, default=0, help="of the bootstrap; default: %(default)s")
    add("--resamples", type=positive, default=1000, metavar="N", help="of the bootstrap; default: %(default)s")
    add_model_arguments(parser)
    add_cluster_arguments(parser)
    add_storage_arguments(parser)
    parser.set_defaults(run=_run)


def numbers(text: str) -> tuple[int, ...]:
    """Return the whole numbers in `A,B`."""
    return tuple(int(name) for name in names(text))


def place(text: str) -> tuple[float, float]:
    """Return (x, y) in [0, 1] from `X,Y`."""
    x, y = (float(value) for value in text.split(","))
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise argparse.ArgumentTypeError(f"must lie between 0,0 and 1,1; got {text}")
    return x, y


def _run(arguments: argparse.Namespace) -> int:
    from effsam2_ray.evaluation.summary import Bootstrap
    from effsam2_ray.pipeline.calibrate import CalibrateJob, calibrate
    from effsam2_ray.pipeline.comparison import ComparisonJob

    job = CalibrateJob(
        comparison=ComparisonJob(
            data_set=arguments.data_set,
            work=arguments.work_dir or arguments.output.removesuffix(".json") + ".work",
            format=arguments.format,
            images=arguments.images,
            weights=arguments.weights,
            model_config=arguments.model_config,
            heads_table=arguments.heads_table,
            limit=arguments.limit,
            storage_options=storage_options(arguments.storage_option),
            options=run_options(arguments),
        ),
        output=arguments.output,
        config=method_config(arguments.preset).with_overrides(arguments.overrides),
        blocks=arguments.blocks,
        heads=arguments.heads,
        bootstrap=Bootstrap(arguments.seed, arguments.resamples),
        num_shown=arguments.show,
        patch=arguments.show_patch,
    )
    for entry in calibrate(job).values():
        print(f"Block {entry['block']}, head {entry['head']}: {entry['source']}")
    print(f"Table: {arguments.output}; give it to --heads-table")
    return 0
