"""Measure speed and memory of every step, beside the peers and the device's limits; print tables, write JSON.

On a GPU machine with no network (the demo weights ship with the package)::

    python jobs/benchmark.py --weights sam2.1_hiera_large --random-weights --batch-size 8 --json large.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import warnings
from pathlib import Path

import torch

from effsam2_ray.benchmark.chart import growth_svg
from effsam2_ray.benchmark.report import curves_of, markdown, with_section
from effsam2_ray.benchmark.run import Settings, load_labellers, load_pictures, measure
from effsam2_ray.errors import EffSam2Error
from effsam2_ray.pipeline.benchmark import ray_vs_bare, rerun_cost, segmenter_busy_share

QUICK_RAY_S, RAY_S = 25.0, 50.0


def main() -> int:
    """Parse the command line, measure, print and write; return the exit code."""
    arguments = _parser().parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(arguments.threads)
    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: getattr(arguments, name) for name in names})
    try:
        results = measure(settings, _say)
        if not arguments.no_ray:
            _add_ray(results, settings)
    except EffSam2Error as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    name = f"benchmark-{results['model']['name']}-{results['model']['device'].replace(':', '')}.svg".replace(" ", "-")
    has_chart = arguments.markdown is not None and "growth" in results
    section = markdown(results, f"python {shlex.join(sys.argv)}", name if has_chart else None)
    print(section)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.markdown:
        page = arguments.markdown.read_text() if arguments.markdown.exists() else ""
        arguments.markdown.write_text(with_section(page, section))
    if has_chart:
        (arguments.markdown.parent / name).write_text(growth_svg(curves_of(results)))
    return 0


def _add_ray(results: dict, settings: Settings) -> None:
    _say("through Ray beside the bare labeller")
    preset = "high_quality"
    pictures = load_pictures(settings)
    labellers = load_labellers(settings, pictures)
    weights = "" if settings.random_weights else settings.weights
    cost = ray_vs_bare(labellers[preset], weights, pictures, QUICK_RAY_S if settings.quick else RAY_S)
    results["ray"] = {**dataclasses.asdict(cost), "preset": preset}
    results["ratios"]["ray_vs_bare"] = cost.ratio
    if not settings.quick:
        _say("two presets in one pass, merging anew")
        reruns = rerun_cost(labellers, weights, pictures, RAY_S)
        results["reruns"] = dataclasses.asdict(reruns)
        results["ratios"]["second_preset_vs_run_of_its_own"] = 1 / reruns.second_preset
        results["ratios"]["remerge_vs_label"] = reruns.remerge_vs_label
    _say("scheduling alone")
    results["segmenter_busy_share"] = segmenter_busy_share()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="demo", help="`demo` (default), a file or URI, or an official name")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="--weights names a size of SAM 2; weights drawn at random, times only",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--pictures", help="folder of pictures; scenes are drawn without it")
    parser.add_argument("--num-pictures", type=int, default=2)
    parser.add_argument(
        "--batch-size", type=int, default=1, help="pictures that the encoder sees at once, for images/s"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile; its cold start is reported")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of everything but Ray's comparison")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no growth curves: under ten minutes")
    parser.add_argument("--no-ray", action="store_true", help="leave out what Ray costs")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--markdown", type=Path, help="page whose section of this model is replaced or added")
    return parser


def _say(line: str) -> None:
    print(f"... {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
