"""Measure weights on held-out procedural scenes and on photographs, and print the tables of the model card."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from effsam2_ray.config import Config, MergeSettings, PromptSettings, preset_config
from effsam2_ray.demo.measure import (
    MIN_AREA_FRAC,
    MethodFigures,
    Picture,
    held_out_pictures,
    measure_heads,
    measure_method,
    measure_points,
)
from effsam2_ray.demo.photographs import coco_pictures, mask_folder_pictures
from effsam2_ray.demo.report import head_table, method_table, point_table, with_figures
from effsam2_ray.model.interface import SegmentationModel
from effsam2_ray.model.weights import load_model


def main() -> None:
    """Parse the command line, measure, and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--model-config", help="configuration, for weights that are a path")
    parser.add_argument("--num-scenes", type=int, default=40, help="held-out scenes for points and heads")
    parser.add_argument(
        "--num-grid", type=int, default=10, help="pictures of each set for the methods; the grid is slow"
    )
    parser.add_argument("--size", type=int, default=512, help="side of the scenes, pixels")
    parser.add_argument("--coco", type=Path, help="folder with annotations.json and images/")
    parser.add_argument("--sod", type=Path, help="folder with images/*.jpg and masks/*.png")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the tables here too")
    parser.add_argument("--card", type=Path, help="replace the figures of this model card")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.weights, model_config=args.model_config, device="cpu", dtype="float32")

    pictures: dict[str, Sequence[Picture]] = {"held-out scenes": list(held_out_pictures(args.num_scenes, args.size))}
    if args.coco:
        pictures["COCO val2017 sample"] = list(coco_pictures(args.coco))
    if args.sod:
        pictures["SOD sample"] = list(mask_folder_pictures(args.sod))

    parts = ["### One point at each object's most interior pixel"]
    parts.append(point_table({name: measure_points(model, items) for name, items in pictures.items()}))
    _show(parts[-2:])
    parts.append("### Adjusted Rand index of the clusters (`high_quality`), held-out scenes")
    preset = preset_config("high_quality").cluster
    heads = measure_heads(model, args.num_scenes, args.size, preset.min_samples, preset.min_cluster_size)
    parts.append(head_table(heads))
    _show(parts[-2:])
    block, head = model.info.default_head
    for name, items in pictures.items():
        subset = items[: args.num_grid]
        parts.append(f"### Methods, {name} ({len(subset)} pictures), block {block}, head {head}")
        parts.append(method_table(_methods(model, (block, head), subset)))
        _show(parts[-2:])
    about = (
        f"By `jobs/measure_demo.py`, weights {model.info.weights_sha256[:12]}, {args.num_scenes} held-out scenes of "
        f"{args.size} px, {args.threads} CPU thread(s). Objects cover more than {MIN_AREA_FRAC:.1%} of their picture. "
        "Seconds are wall clock, beside whatever else the machine did."
    )
    figures = "\n\n".join([about, *parts])
    if args.output:
        args.output.write_text(figures + "\n")
    if args.card:
        args.card.write_text(with_figures(args.card.read_text(), figures))


def _methods(model: SegmentationModel, head: tuple[int, int], pictures: Sequence[Picture]) -> list[MethodFigures]:
    grid = Config(preset="grid:32", prompts=PromptSettings("grid", 32), merge=MergeSettings("nms"))
    figures = []
    for config in (*map(preset_config, ("low_latency", "high_quality", "sam1")), grid):
        attention = dataclasses.replace(config.attention, block=head[0], head=head[1])
        figures += measure_method(model, config.preset, dataclasses.replace(config, attention=attention), pictures)
    return figures


def _show(parts: Sequence[str]) -> None:
    print("\n\n".join(parts), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
