"""`effsam2 show`."""

from __future__ import annotations

import argparse

from effsam2_ray.commands.arguments import add_storage_arguments, positive, storage_options


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("show", help="draw a contact sheet of a run")
    parser.add_argument("run_uri", metavar="RUN", help="output folder of `effsam2 label`")
    parser.add_argument("--num", type=positive, default=16, metavar="N", help="images; default: %(default)s")
    parser.add_argument("--output", default="sheet.png", metavar="FILE", help=".png or .html; default: %(default)s")
    add_storage_arguments(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from effsam2_ray.show import show_run

    path = show_run(
        arguments.run_uri,
        num_images=arguments.num,
        output=arguments.output,
        storage_options=storage_options(arguments.storage_option),
    )
    print(f"Contact sheet: {path}")
    return 0
