"""`effsam2 evaluate`."""

from __future__ import annotations

import argparse

from effsam2_ray.commands.arguments import (
    add_cluster_arguments,
    add_model_arguments,
    add_storage_arguments,
    names,
    positive,
    run_options,
    storage_options,
)
from effsam2_ray.commands.data_set import add_data_set_arguments
from effsam2_ray.evaluation.methods import POST_CHOICES, Method, ablation, parse_methods, sweep, without_score_filter


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("evaluate", help="compare methods on a data set with known objects")
    add = parser.add_argument
    add_data_set_arguments(parser)
    add("--output", required=True, metavar="URI", help="folder for runs, scores, summary.json and tables.md")
    add(
        "--methods",
        type=names,
        default=("low_latency", "high_quality", "grid:32"),
        metavar="M[,M...]",
        help="presets, grid:N, random:N and YAML files of settings; default: low_latency,high_quality,grid:32",
    )
    add(
        "--post",
        default="own",
        choices=POST_CHOICES,
        help="how candidates become masks; own (default): clusters are merged, grid and random go through NMS",
    )
    add("--unfiltered", action="store_true", help="also every method without its score thresholds")
    add("--ablation", action="store_true", help="also (own prompts, grid) x (nms, merge) x masks a prompt (best, all)")
    add(
        "--sweep",
        action="append",
        default=[],
        metavar="FIELD=V,V,...",
        help="also every combination of values, such as min_cluster_size=3,5,10 and merge.thresh=0.6,0.8; repeat it",
    )
    add("--target-prompts", type=float, metavar="N", help="suggest settings with at most N prompts a picture")
    add("--target-seconds", type=float, metavar="S", help="suggest settings with at most S seconds a picture")
    add("--suggest-by", default="best_iou", choices=("best_iou", "label_map_iou"), help="default: %(default)s")
    add("--reference", metavar="LINE", help="line of the tables to compare with; default: the largest grid")
    add("--set", dest="overrides", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="for all methods")
    add("--seed", type=int, default=0, help="of the bootstrap; default: %(default)s")
    add("--resamples", type=positive, default=1000, metavar="N", help="of the bootstrap; default: %(default)s")
    add_model_arguments(parser)
    add_cluster_arguments(parser)
    add_storage_arguments(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from effsam2_ray.evaluation.summary import Bootstrap
    from effsam2_ray.pipeline.comparison import ComparisonJob
    from effsam2_ray.pipeline.evaluate import EvaluateJob, evaluate

    methods = parse_methods(arguments.methods, arguments.overrides, arguments.post)
    own = next((method for method in methods if method.is_clustered), None)
    own = own or parse_methods(["low_latency"], arguments.overrides, arguments.post)[0]
    job = EvaluateJob(
        comparison=ComparisonJob(
            data_set=arguments.data_set,
            work=arguments.output,
            format=arguments.format,
            images=arguments.images,
            weights=arguments.weights,
            model_config=arguments.model_config,
            heads_table=arguments.heads_table,
            limit=arguments.limit,
            storage_options=storage_options(arguments.storage_option),
            options=run_options(arguments),
        ),
        methods=(*methods, *(without_score_filter(method) for method in methods if arguments.unfiltered)),
        ablation=tuple(ablation(own, _grid(methods, arguments.overrides))) if arguments.ablation else (),
        sweep=tuple(sweep(own, arguments.sweep)) if arguments.sweep else (),
        reference=arguments.reference,
        bootstrap=Bootstrap(arguments.seed, arguments.resamples),
        target_prompts=arguments.target_prompts,
        target_s=arguments.target_seconds,
        accuracy=arguments.suggest_by,
    )
    summary = evaluate(job)
    from effsam2_ray.evaluation.tables import comparison_table

    print(comparison_table({name: summary["methods"][name] for name in summary["groups"]["methods"]}, None))
    if summary["suggestion"]:
        print(summary["suggestion"]["text"])
    print(f"Tables: {arguments.output.rstrip('/')}/tables.md")
    return 0


def _grid(methods: list[Method], overrides: list[str]) -> Method:
    """Return the first grid among the methods, else the source's 32 x 32."""
    found = next((method for method in methods if method.config.prompts.source == "grid"), None)
    return found or parse_methods(["grid:32"], overrides)[0]
