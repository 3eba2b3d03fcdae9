"""`effsam2 remerge`."""

from __future__ import annotations

import argparse

from effsam2_ray.commands.arguments import add_storage_arguments, closing_lines, storage_options


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("remerge", help="merge and filter a run's stored candidates anew, without the model")
    add = parser.add_argument
    add("run_uri", metavar="RUN", help="finished output of `effsam2 label --keep-candidates`")
    add("--output", required=True, metavar="URI", help="folder of the new run")
    add(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="of the sections merge and filter; may be repeated",
    )
    add("--address", metavar="ADDR", help="Ray cluster to join")
    add_storage_arguments(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from effsam2_ray.pipeline.remerge import remerge

    summary = remerge(
        arguments.run_uri,
        arguments.output,
        arguments.overrides,
        storage_options=storage_options(arguments.storage_option),
        address=arguments.address,
    )
    for line in closing_lines(summary):
        print(line)
    return 0
