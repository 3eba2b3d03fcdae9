"""Arguments of the commands that read a data set with known objects."""

from __future__ import annotations

import argparse

from effsam2_ray.commands.arguments import positive
from effsam2_ray.datasets import FORMATS


def add_data_set_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data set, its format, where its pictures are, and how many of them to take."""
    add = parser.add_argument
    add("data_set", metavar="DATASET", help="folder or annotation file; any fsspec URI")
    add("--format", choices=tuple(FORMATS), help="; ".join(f"{name}: {text}" for name, text in FORMATS.items()))
    add("--images", metavar="URI", help="folder of the pictures where they do not lie beside the annotations")
    add("--limit", type=positive, metavar="N", help="only the first N pictures")
