"""Measure weights over held-out procedural scenes and samples of public data sets, and write the tables of RESULTS.md.

Each step is an `effsam2` command that goes on where it was stopped: run the same line again. With the demo weights the
figures show that the tool works; they say nothing about SAM 2.1.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from effsam2_ray.cli import main as effsam2
from effsam2_ray.demo.scene_folder import write_scenes
from effsam2_ray.evaluation.tables import ablation_table, facts, joined_table, single_object_table, tradeoff_table

METHODS = "low_latency,high_quality,sam1,grid:32,grid:16,random:1024"
SETS = (
    "coco_val2017",
    "lvis_v0.5_val",
    "bsds500_test",
    "sod",
    "camouflage",
    "davis2016_car-shadow",
    "voc_labelme",
    "ochuman",
    "nuclei",
)
SCENES, ABLATION, SWEEP = "held_out_scenes", "ablation", "sweep"
FIRST_CALIBRATION_SCENE = 5000
# At SAM 2's own thresholds few of the demo weights' masks are left, and heads would be told apart by those few.
OPEN = ("--set", "decode.pred_iou_thresh=0.5", "--set", "decode.stability_score_thresh=0.8")
OPEN_TEXT = ", predicted IoU over 0.5 and stability score from 0.8"
FILTERS_TEXT = (
    f"Held-out scenes: SAM 2's own score filters, and (`+unfiltered`) none. Other sets: few of each{OPEN_TEXT}, "
    "as SAM 2's filters leave next to nothing of these weights' masks on photographs."
)
SWEPT = ("min_cluster_size=3,5,10,20", "min_samples=2,5", "merge.thresh=0.6,0.8,0.95", "merge.max_area_frac=0.5,1.0")


def main() -> None:
    """Parse the command line and run the steps asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder for scenes, runs and tables")
    parser.add_argument("steps", nargs="*", help=f"of {', '.join(steps())}; default: all")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the public samples")
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--num-scenes", type=int, default=20)
    parser.add_argument("--num-calibration", type=int, default=40, help="scenes that only calibration sees")
    parser.add_argument("--num-costly", type=int, default=6, help="scenes of the ablation and the sweep")
    parser.add_argument("--limit", type=int, default=8, help="pictures of each public sample")
    parser.add_argument("--more", default="", help="further options of every command, such as '--device cpu'")
    parser.add_argument("--report", type=Path, help="where the tables go; default: OUTPUT/RESULTS.md")
    args = parser.parse_args()
    unknown = set(args.steps) - set(steps())
    if unknown:
        parser.error(f"unknown steps: {', '.join(sorted(unknown))}")
    for step in args.steps or steps():
        code = run(step, args)
        if code:
            sys.exit(code)


def steps() -> tuple[str, ...]:
    """Return the names of all steps, in order."""
    return ("calibrate", SCENES, ABLATION, SWEEP, *SETS, "report")


def run(step: str, args: argparse.Namespace) -> int:
    """Run one step and return its exit code."""
    scenes = args.output / "data" / SCENES
    common = ["--weights", args.weights, *shlex.split(args.more)]
    heads = args.output / "heads.json"
    table = ["--heads-table", str(heads)] if heads.exists() else []
    if step == "report":
        (args.report or args.output / "RESULTS.md").write_text(results(args.output))
        return 0
    if step == "calibrate":
        folder = args.output / "data" / "calibration_scenes"
        if not (folder / "annotations.json").exists():
            write_scenes(folder, args.num_calibration, 512, first=FIRST_CALIBRATION_SCENE)
        return effsam2(["calibrate", str(folder), "--output", str(heads), *OPEN, *common])
    if not (scenes / "annotations.json").exists():
        write_scenes(scenes, args.num_scenes, 512)
    evaluate = ["evaluate", "--output", str(args.output / step), *table, *common]
    if step == SCENES:
        return effsam2([*evaluate, str(scenes), "--methods", METHODS, "--unfiltered"])
    costly = ["--limit", str(args.num_costly)]
    if step == ABLATION:
        return effsam2([*evaluate, str(scenes), *costly, "--methods", "high_quality,grid:32", "--ablation", *OPEN])
    if step == SWEEP:
        swept = [text for setting in SWEPT for text in ("--sweep", setting)]
        budget = ["--target-prompts", "25"]
        return effsam2([*evaluate, str(scenes), *costly, "--methods", "high_quality", *swept, *budget, *OPEN])
    return effsam2([*evaluate, str(args.data / step), "--methods", METHODS, "--limit", str(args.limit), *OPEN])


def results(output: Path) -> str:
    """Return all tables as Markdown."""
    found = {path.parent.name: json.loads(path.read_text()) for path in output.glob("*/summary.json")}
    main_sets = [found[name] for name in (SCENES, *SETS) if name in found]
    parts = ["# Results"]
    if main_sets:
        first = {**main_sets[0], "notes": []}
        first["data_set"] = {**first["data_set"], "uri": first["data_set"]["name"]}
        parts += [facts(first), "## Every data set", FILTERS_TEXT, joined_table(main_sets)]
        for summary in main_sets:
            entries = {name: summary["methods"][name] for name in summary["groups"]["methods"]}
            if table := single_object_table(entries):
                parts += [f"### {summary['data_set']['name']}: single-object measures", table]
    if ABLATION in found:
        summary = found[ABLATION]
        entries = {name: summary["methods"][name] for name in summary["groups"]["ablation"]}
        parts += [
            f"## Ablation, {summary['data_set']['num_images']} held-out scenes{OPEN_TEXT}",
            ablation_table(entries),
        ]
    if SWEEP in found:
        summary = found[SWEEP]
        entries = {name: summary["methods"][name] for name in summary["groups"]["sweep"]}
        parts += [f"## Trade-off, {summary['data_set']['num_images']} held-out scenes{OPEN_TEXT}"]
        parts += [tradeoff_table(entries, summary["front"]), summary["suggestion"]["text"]]
    heads = output / "heads.md"
    if heads.exists():
        parts.append("#" + heads.read_text().strip().replace("\n\n", f"{OPEN_TEXT}\n\n", 1))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
