"""`effsam2 check`."""

from __future__ import annotations

import argparse
import json

from effsam2_ray.commands.arguments import add_storage_arguments, positive, storage_options

EXIT_CHECK_FAILED = 3
"""A fault was found, or a threshold is not kept."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "check",
        help="check a run without ground truth",
        epilog="Exit codes: 0 no fault and every threshold kept, 3 otherwise, 2 wrong arguments. An image without a "
        "row is a fault.",
    )
    add = parser.add_argument
    add("run_uri", metavar="RUN", help="output folder of `effsam2 label`")
    add("--json", metavar="FILE", help="write the report as JSON too")
    add("--max-failed-rate", type=_share, metavar="P%%", help="most failed images, of all images")
    add("--max-zero-mask-rate", type=_share, metavar="P%%", help="most images without a mask, of the labelled ones")
    add("--max-whole-picture-rate", type=_share, metavar="P%%", help="most whole-picture masks, of all masks")
    add("--max-near-duplicate-rate", type=_share, metavar="P%%", help="most near-duplicates, of all masks")
    add("--min-coverage", type=_share, metavar="P%%", help="least mean share of a picture that masks cover")
    add("--num-processes", type=positive, metavar="N", help="default: the machine's CPUs")
    add_storage_arguments(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from effsam2_ray.runs.check import LIMITS, check_run, report_text
    from effsam2_ray.storage import put_bytes

    options = storage_options(arguments.storage_option)
    limits = {name: getattr(arguments, name) for name in LIMITS if getattr(arguments, name) is not None}
    report = check_run(arguments.run_uri, limits, num_processes=arguments.num_processes, storage_options=options)
    print(report_text(report))
    if arguments.json:
        put_bytes(arguments.json, json.dumps(report.to_dict(), indent=2).encode(), options)
    return 0 if report.passed else EXIT_CHECK_FAILED


def _share(text: str) -> float:
    """Return `P%` (the sign may be left out) as a share in [0, 1]."""
    value = float(text.removesuffix("%")) / 100
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0% to 100%; got {text}")
    return value
