"""`effsam2 compare`."""

from __future__ import annotations

import argparse
import json

from effsam2_ray.commands.arguments import add_storage_arguments, positive, storage_options


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("compare", help="compare the masks of two runs over the same images")
    add = parser.add_argument
    add("run_a", metavar="RUN_A", help="output folder of `effsam2 label`")
    add("run_b", metavar="RUN_B")
    add("--output", metavar="DIR", help="write compare.md, compare.json and differences.png here")
    add("--num", type=positive, default=12, metavar="N", help="images that differ most; default: %(default)s")
    add("--num-processes", type=positive, metavar="N", help="default: the machine's CPUs")
    add_storage_arguments(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from effsam2_ray.runs.compare import compare_runs, comparison_text, differences_sheet
    from effsam2_ray.storage import put_bytes
    from effsam2_ray.uris import redact

    options = storage_options(arguments.storage_option)
    comparison = compare_runs(
        arguments.run_a,
        arguments.run_b,
        num_differences=arguments.num,
        num_processes=arguments.num_processes,
        storage_options=options,
    )
    text = comparison_text(comparison)
    print(text)
    if arguments.output:
        folder = arguments.output.rstrip("/")
        put_bytes(f"{folder}/compare.md", f"{text}\n".encode(), options)
        put_bytes(f"{folder}/compare.json", json.dumps(comparison.to_dict(), indent=2).encode(), options)
        if comparison.agreement.differences:
            sheet = differences_sheet(comparison, arguments.run_a, arguments.run_b, options)
            put_bytes(f"{folder}/differences.png", sheet, options)
        print(f"\nReport: {redact(folder)}/compare.md")
    return 0
