"""The calibration job: every head of every global block over labelled pictures, ranked, with evidence and pictures."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import torch
from PIL import Image

from effsam2_ray.config import ClusterSettings, Config
from effsam2_ray.errors import ConfigError, ImageError, InputError
from effsam2_ray.evaluation.attention_figure import figure
from effsam2_ray.evaluation.chart import Bar, bars, below
from effsam2_ray.evaluation.ranking import (
    HeadScores,
    head_method,
    head_name,
    heads_table,
    rank_heads,
    ranking_table,
    verdict,
)
from effsam2_ray.evaluation.summary import Bootstrap
from effsam2_ray.images import decode_image
from effsam2_ray.model.interface import Head, ModelInfo
from effsam2_ray.model.weights import check_weights, load_model
from effsam2_ray.pipeline.cluster import connect, disconnect
from effsam2_ray.pipeline.comparison import ComparisonJob, compare, open_truth
from effsam2_ray.pipeline.scoring import run_tasks
from effsam2_ray.show.run_images import spread_positions
from effsam2_ray.storage import StorageOptions, put_bytes, read_bytes
from effsam2_ray.uris import redact, redact_text


@dataclass(frozen=True)
class CalibrateJob:
    """What to calibrate.

    Attributes:
        comparison: the data set, the weights and the folder of runs and scores.
        output: URI of the table, `.json`; a report, a chart and the figure get its name with other endings.
        config: settings that hold for every head.
        blocks: global blocks to search, None for all.
        heads: heads to search in each, None for all.
        bootstrap: how intervals are drawn.
        num_shown: pictures in the attention figure, 0 for none.
        patch: (x, y) in [0, 1] of the patch whose attention is drawn; None takes the largest clusters' medoids.
    """

    comparison: ComparisonJob
    output: str
    config: Config = field(default_factory=Config)
    blocks: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    num_shown: int = 3
    patch: tuple[float, float] | None = None


@dataclass(frozen=True)
class FigureTask:
    """What the attention figure needs; a worker with the job's device draws it."""

    weights: str
    model_config: str | None
    device: str
    dtype: str
    head: Head
    settings: ClusterSettings
    pictures: tuple[str, ...]
    patch: tuple[float, float] | None
    storage_options: StorageOptions


def choose_heads(info: ModelInfo, blocks: Sequence[int] | None, heads: Sequence[int] | None) -> list[Head]:
    """Return the (block, head) pairs to search.

    Raises:
        ConfigError: a block without global attention, or a head that a block does not have.
    """
    chosen = [
        (block, head)
        for block in (info.global_blocks if blocks is None else dict.fromkeys(blocks))
        for head in ([h for b, h in info.all_heads if b == block] if heads is None else dict.fromkeys(heads))
    ]
    for block in blocks or ():
        info.check_head(block, 0)
    for block, head in chosen:
        info.check_head(block, head)
    return chosen


def calibrate(job: CalibrateJob, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the search to its end, and return the table that it wrote.

    Raises:
        ConfigError: no such block or head, or the output does not end in `.json`.
        And what `compare` raises.
    """
    path = PurePosixPath(job.output)
    if path.suffix.lower() != ".json":
        raise ConfigError(f"output must end in .json; got {job.output!r}")
    if job.config.prompts.source != "clusters":
        raise ConfigError("heads differ only where prompts come from clusters; leave prompts.source as it is")
    comparison = job.comparison
    info = check_weights(comparison.weights, model_config=comparison.model_config, heads_table=comparison.heads_table)
    heads = choose_heads(info, job.blocks, job.heads)
    truth = open_truth(comparison)
    for note in truth.notes:
        say(f"Note: {note}")
    methods = {head: head_method(job.config, head) for head in heads}
    compared = compare(comparison, list(methods.values()), truth, say)
    lines = {
        (head, post.name): compared.lines[method.name, post.name]
        for head, method in methods.items()
        for post in method.posts
    }
    ranking = rank_heads(lines, job.bootstrap)
    if ranking[0].score is None:
        raise InputError(
            f"no picture of {truth.name} could be scored with any head: they were not labelled, their annotations do "
            f"not fit, or they hold no object; {redact(comparison.work)}/per_image says which"
        )
    evidence = {
        "data_set": truth.name,
        "num_images": len(truth.records),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": job.config.to_dict(),
        "seed": job.bootstrap.seed,
        "machine": dict(compared.machine),
        "score": "(best_iou + label_map_iou) / 2 with equal prompts, mean over pictures",
    }
    key = info.weights_sha256 or info.name
    table = heads_table(ranking, key, info.name, evidence)
    stem = job.output[: -len(path.suffix)]
    options = comparison.storage_options
    put_bytes(f"{stem}.md", _report(ranking, table[key]["evidence"], info).encode(), options)
    put_bytes(f"{stem}.png", _png([_chart(ranking)]), options)
    if job.num_shown:
        put_bytes(f"{stem}-attention.png", _png(_figure(job, ranking, truth.image_uris, compared.machine)), options)
    put_bytes(job.output, json.dumps(table, indent=2).encode(), options)  # last: it says that all is there
    return table


def draw_figure(task: FigureTask) -> list[Image.Image]:
    """Return the figure's lines of panels; pictures that cannot be read are left out."""
    if task.device == "cpu":
        torch.set_num_threads(1)
    model = load_model(task.weights, model_config=task.model_config, device=task.device, dtype=task.dtype)
    pictures = []
    for uri in task.pictures:
        try:
            pictures.append((uri.rsplit("/", 1)[-1], decode_image(read_bytes(uri, task.storage_options))))
        except (ImageError, OSError):  # its row says why
            continue
    return figure(model, pictures, task.head, task.settings, task.patch)


def _figure(
    job: CalibrateJob, ranking: Sequence[HeadScores], image_uris: Sequence[str], machine: Mapping[str, Any]
) -> list[Image.Image]:
    """Return the best head's panels for some pictures, then the last head's for the same, to see the difference."""
    comparison = job.comparison
    shown = [image_uris[place] for place in spread_positions(len(image_uris), job.num_shown)]
    heads = [ranking[0].head] if len(ranking) == 1 else [ranking[0].head, ranking[-1].head]
    tasks = [
        FigureTask(
            comparison.weights,
            comparison.model_config,
            machine["device"],
            machine["dtype"],
            head,
            job.config.cluster,
            tuple(shown),
            job.patch,
            comparison.storage_options,
        )
        for head in heads
    ]
    own_cluster = connect(comparison.options.address)
    try:
        num_gpus = (comparison.options.num_gpus or 1) if machine["device"].startswith("cuda") else 0
        drawn = {}
        for head, task in zip(heads, tasks, strict=True):
            drawn[head] = next(iter(run_tasks(draw_figure, [task], num_gpus=num_gpus)))
    finally:
        if own_cluster:
            disconnect()
    titles = {heads[0]: "best", heads[-1]: "last"} if len(heads) > 1 else {heads[0]: "only"}
    return [
        part
        for head in heads
        for part in (_title(f"{titles[head]} head: block {head[0]}, head {head[1]}"), *drawn[head])
    ]


def _title(text: str) -> Image.Image:
    return bars([], redact_text(text), width=900)


def _chart(ranking: Sequence[HeadScores]) -> Image.Image:
    blocks = sorted({entry.head[0] for entry in ranking})
    items = [
        Bar(
            head_name(entry.head),
            entry.score["mean"],
            entry.score["low"],
            entry.score["high"],
            blocks.index(entry.head[0]),
        )
        for entry in ranking
        if entry.score
    ]
    return bars(items, "score of each head, with its bootstrap interval; one colour a block")


def _report(ranking: Sequence[HeadScores], evidence: dict[str, Any], info: ModelInfo) -> str:
    machine = evidence["machine"]
    lines = [
        f"# Attention heads of {info.name}",
        f"sha256 {info.weights_sha256[:12]}. {verdict(ranking, evidence)}.",
        f"Score: {evidence['score']}. Equal prompts: the lower quartile over the heads of each picture's number of "
        "prompts; a head with more keeps those of its largest clusters. "
        f"{machine['device_name']}, {machine['dtype']}; bootstrap seed {evidence['seed']}.",
        ranking_table(ranking),
    ]
    return "\n\n".join(lines) + "\n"


def _png(parts: Sequence[Image.Image]) -> bytes:
    buffer = io.BytesIO()
    below(parts).save(buffer, "PNG")
    return buffer.getvalue()
