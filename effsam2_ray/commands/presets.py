"""`effsam2 presets`."""

from __future__ import annotations

import argparse

from effsam2_ray.config import PRESETS, REPORTED_PROMPTS


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    commands.add_parser("presets", help="print the presets").set_defaults(run=_run)


def _run(_: argparse.Namespace) -> int:
    print(f"{'preset':14}{'min_samples':>12}{'min_cluster_size':>18}{'prompts (reported, Hiera-L)':>30}")
    for name, (min_samples, min_cluster_size) in PRESETS.items():
        print(f"{name:14}{min_samples:>12}{min_cluster_size:>18}{REPORTED_PROMPTS[name]:>30}")
    return 0
