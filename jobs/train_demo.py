"""Train the demo weights, or export them from a training in progress."""

from __future__ import annotations

import argparse
from pathlib import Path

from effsam2_ray.demo.train import export, make_plan, steps_for, train


def main() -> None:
    """Parse the command line, then train or export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True, help="scene pools and checkpoint; continued if there")
    parser.add_argument("--minutes", type=float, default=120.0, help="length on two quiet cores (default %(default)s)")
    parser.add_argument("--steps", type=int, help="steps at 256 px, instead of --minutes")
    parser.add_argument("--fine-tune-steps", type=int, help="steps at 512 px, instead of --minutes")
    parser.add_argument("--num-scenes", type=int, default=8000, help="scenes drawn for the 256 px phase")
    parser.add_argument("--num-processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--initial-weights", type=Path, metavar="FILE", help="start from weights that --export wrote")
    parser.add_argument("--export", type=Path, metavar="FILE", help="only write the checkpoint's weights to FILE")
    args = parser.parse_args()
    if args.export:
        export(args.work_dir, args.export)
        return
    steps, fine_tune_steps = steps_for(args.minutes)
    plan = make_plan(
        steps if args.steps is None else args.steps,
        fine_tune_steps if args.fine_tune_steps is None else args.fine_tune_steps,
        num_scenes=args.num_scenes,
        seed=args.seed,
        num_processes=args.num_processes,
        initial_weights=args.initial_weights,
    )
    train(plan, args.work_dir)


if __name__ == "__main__":
    main()
