"""The evaluation job: methods over one data set, tables, the trade-off and a suggestion."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from PIL import Image

from effsam2_ray.errors import ConfigError
from effsam2_ray.evaluation.chart import ChartPoint, beside, scatter
from effsam2_ray.evaluation.gathering import Line
from effsam2_ray.evaluation.methods import Method, Post, check_names
from effsam2_ray.evaluation.summary import Bootstrap, find_reference, reference_for, summarize_line
from effsam2_ray.evaluation.tables import report
from effsam2_ray.evaluation.tradeoff import Point, Suggestion, front, points, suggest
from effsam2_ray.pipeline.comparison import Comparison, ComparisonJob, compare, open_truth
from effsam2_ray.storage import StorageOptions, put_bytes

_COSTS = {"num_prompts": "prompts a picture", "latency_s": "seconds a picture"}


@dataclass(frozen=True)
class EvaluateJob:
    """What to evaluate.

    Attributes:
        comparison: the data set, the weights and the output folder (`work`).
        methods: compared in the main tables.
        ablation: methods of the ablation table.
        sweep: methods of the trade-off.
        reference: line that the others are compared with; None takes the largest grid.
        bootstrap: how intervals are drawn.
        target_prompts, target_s: budget of the suggestion; both None for no suggestion.
        accuracy: what the suggestion maximises, `best_iou` or `label_map_iou`.
    """

    comparison: ComparisonJob
    methods: tuple[Method, ...]
    ablation: tuple[Method, ...] = ()
    sweep: tuple[Method, ...] = ()
    reference: str | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    target_prompts: float | None = None
    target_s: float | None = None
    accuracy: str = "best_iou"


def evaluate(job: EvaluateJob, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the evaluation to its end and return what it wrote to `summary.json`.

    Writes `summary.json`, `tables.md` and, with a sweep, `tradeoff.png` and `suggested.yaml` into the work folder,
    beside `runs/` and `per_image/`.

    Raises:
        ConfigError: two methods of one name, a reference that no line has, or no method to suggest.
        And what `compare` raises.
    """
    groups = {"methods": job.methods, "ablation": job.ablation, "sweep": job.sweep}
    methods = check_names([method for group in groups.values() for method in group])
    try:
        reference = find_reference(methods, job.reference)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    wants_suggestion = job.target_prompts is not None or job.target_s is not None
    if wants_suggestion and not any(method.is_clustered for method in job.sweep or methods):
        raise ConfigError("a suggestion needs a method whose prompts come from clusters, or a sweep of one")
    truth = open_truth(job.comparison)
    for note in truth.notes:
        say(f"Note: {note}")
    compared = compare(job.comparison, methods, truth, say)
    entries = _entries(job, methods, compared, reference)
    names = {name: [line for line, _, _ in _lines(group)] for name, group in groups.items()}
    swept = points({name: entries[name] for name in names["sweep"]})
    suggestion = _suggest(job, methods, entries, swept)
    summary: dict[str, Any] = {
        "data_set": compared.about_data(job.comparison),
        "weights": compared.about_weights(),
        "run": dict(compared.machine),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "bootstrap": dataclasses.asdict(job.bootstrap),
        "seeds": {m.name: m.config.prompts.seed for m in methods if m.config.prompts.source == "random"},
        "reference": reference,
        "groups": names,
        "methods": entries,
        "front": front(swept, job.accuracy),
        "suggestion": None if suggestion is None else _plain(suggestion),
        "step_s": {name: dict(seconds) for name, seconds in compared.step_s.items()},
        "notes": list(compared.notes),
    }
    _write(job, summary, suggestion, entries, swept)
    return summary


def _lines(methods: tuple[Method, ...] | list[Method]) -> list[tuple[str, Method, Post]]:
    return [(method.line_name(post), method, post) for method in methods for post in method.posts]


def _entries(
    job: EvaluateJob, methods: list[Method], compared: Comparison, reference: str | None
) -> dict[str, dict[str, Any]]:
    lines = {name: compared.lines[method.name, post.name] for name, method, post in _lines(methods)}
    return {
        name: summarize_line(
            lines[name],
            compared.configs[method.name],
            method.name,
            post,
            job.bootstrap,
            _against(name, method, methods, reference, lines),
        )
        for name, method, post in _lines(methods)
    }


def _against(
    name: str, method: Method, methods: list[Method], reference: str | None, lines: Mapping[str, Line]
) -> tuple[str, Line] | None:
    if reference is None:
        return None
    other = reference_for(method, methods, reference)
    return None if other == name else (other, lines[other])


def _suggest(
    job: EvaluateJob, methods: list[Method], entries: Mapping[str, Mapping[str, Any]], swept: list[Point]
) -> Suggestion | None:
    """Return the suggestion among the lines of the sweep; without a sweep, among all lines with prompts of clusters."""
    if job.target_prompts is None and job.target_s is None:
        return None
    own = points({name: entries[name] for name, method, _ in _lines(methods) if method.is_clustered})
    return suggest(swept or own, target_prompts=job.target_prompts, target_s=job.target_s, accuracy=job.accuracy)


def _plain(suggestion: Suggestion) -> dict[str, Any]:
    return {"name": suggestion.point.name, "within": suggestion.within, "text": suggestion.text}


def _write(
    job: EvaluateJob,
    summary: Mapping[str, Any],
    suggestion: Suggestion | None,
    entries: Mapping[str, Mapping[str, Any]],
    swept: list[Point],
) -> None:
    folder, options = job.comparison.work.rstrip("/"), job.comparison.storage_options
    _put(f"{folder}/tables.md", report(summary), options)
    if swept:
        charts = [_chart(swept, x, title, job.accuracy, set(summary["front"])) for x, title in _COSTS.items()]
        buffer = io.BytesIO()
        beside(charts).save(buffer, "PNG")
        put_bytes(f"{folder}/tradeoff.png", buffer.getvalue(), options)
    if suggestion is not None:
        config = {**entries[suggestion.point.name]["config"], "preset": "suggested"}
        _put(f"{folder}/suggested.yaml", f"# {suggestion.text}\n{yaml.safe_dump(config, sort_keys=False)}", options)
    _put(f"{folder}/summary.json", json.dumps(summary, indent=2), options)  # last: it says that all is there


def _chart(swept: list[Point], cost: str, title: str, accuracy: str, marked: set[str]) -> Image.Image:
    shared = len(os.path.commonprefix([point.name for point in swept]).rpartition(" ")[0])
    return scatter(
        [
            ChartPoint(
                name=point.name[shared:].strip() or point.name,
                x=getattr(point, cost),
                y=point.accuracy(accuracy),
                group=int(point.name in marked),
                bold=point.name in marked,
            )
            for point in swept
        ],
        title,
        accuracy,
    )


def _put(uri: str, text: str, storage_options: StorageOptions) -> None:
    put_bytes(uri, text.encode(), storage_options)
