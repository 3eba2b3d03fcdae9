"""Methods over one data set with known objects: label all in one pass, score each picture, gather the numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from effsam2_ray.config import Config
from effsam2_ray.datasets import Format, GroundTruth, open_dataset
from effsam2_ray.errors import ConfigError
from effsam2_ray.evaluation.gathering import Line, LineKey, gather
from effsam2_ray.evaluation.methods import Method
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline.cluster import connect, disconnect
from effsam2_ray.pipeline.label import LabelJob, label_together, stop_signals
from effsam2_ray.pipeline.options import RunOptions
from effsam2_ray.pipeline.scoring import read_scores, run_tasks, score_runs, scored_runs
from effsam2_ray.storage import StorageOptions, put_if_absent
from effsam2_ray.uris import canonical_uri, redact

IMAGES = "images.jsonl"


@dataclass(frozen=True)
class ComparisonJob:
    """What methods are compared on, and with what.

    Attributes:
        data_set: folder or annotation file; any fsspec URI (`effsam2_ray.datasets.open_dataset`).
        work: folder of runs and scores.
        format: what the data set is, None to recognise it.
        images: folder of the pictures where they do not lie beside the annotations.
        weights: name, path or URI.
        model_config: YAML of a fine-tuned model, or None.
        heads_table: table of attention heads, or None.
        limit: only the first N pictures.
        storage_options: passed to fsspec for everything.
        options: resources and limits; candidates are kept in any case.
    """

    data_set: str
    work: str
    format: Format | None = None
    images: str | None = None
    weights: str = "demo"
    model_config: str | None = None
    heads_table: str | None = None
    limit: int | None = None
    storage_options: StorageOptions = None
    options: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        truth: the data set.
        lines: the numbers by (method, post).
        configs: each method's resolved configuration.
        step_s: mean seconds of each step, by method.
        weights: facts about the weights (`ModelInfo` as a dictionary).
        machine: on what the methods were labelled.
        notes: sentences for the report.
    """

    truth: GroundTruth
    lines: Mapping[LineKey, Line]
    configs: Mapping[str, Config]
    step_s: Mapping[str, Mapping[str, float]]
    weights: Mapping[str, Any]
    machine: Mapping[str, Any]
    notes: tuple[str, ...]

    def about_data(self, job: ComparisonJob) -> dict[str, Any]:
        """Return what the data set was, for reports."""
        return {
            "name": self.truth.name,
            "uri": redact(job.data_set),
            "format": self.truth.format,
            "limit": job.limit,
            "num_images": len(self.truth.records),
            "num_missing": len(self.truth.missing),
        }

    def about_weights(self) -> dict[str, Any]:
        """Return which weights it was, for reports."""
        return {
            "name": self.weights["name"],
            "sha256": self.weights["weights_sha256"],
            "is_demo": self.weights["is_demo"],
        }


def open_truth(job: ComparisonJob) -> GroundTruth:
    """Open the data set, cut to the pictures that are compared.

    Raises:
        InputError: it cannot be understood, or holds no picture.
    """
    truth = open_dataset(job.data_set, job.storage_options, job.format, job.images)
    return truth.limited(job.limit) if job.limit else truth


def compare(
    job: ComparisonJob, methods: Sequence[Method], truth: GroundTruth, say: Callable[[str], None] = print
) -> Comparison:
    """Run methods over a data set in one pass and score them; what an earlier call finished is not done again.

    Args:
        job: what they are compared on.
        methods: at least one.
        truth: what `open_truth` gave.
        say: takes lines for the user.

    Raises:
        OutputError: the work folder belongs to another data set or other settings.
        ConfigError, WeightsError, TooManyFailuresError, StoppedError: as `label_together`.
    """
    if not methods:
        raise ConfigError("nothing to compare: give at least one method")
    work = OutputFolder(job.work.rstrip("/"), job.storage_options)
    work.claim({"fingerprint": _fingerprint(job, truth)})
    manifest = "".join(json.dumps({"uri": uri}) + "\n" for uri in truth.image_uris)
    put_if_absent(work.meta_uri(IMAGES), manifest.encode(), job.storage_options)
    say(f"{len(truth.records):,} pictures of {truth.name} ({truth.format}), {len(methods)} runs in one pass")
    summaries = label_together([_label_job(job, work, method) for method in methods], _only_warnings(say))
    num_new = sum(summary["images_this_time"] for summary in summaries)
    say(f"Labelled: {num_new:,} new rows" if num_new else "Labelled before: nothing to do")
    runs = scored_runs(methods, f"{work.uri}/runs", job.storage_options)
    scores = OutputFolder(f"{work.uri}/per_image", job.storage_options)
    has_library = importlib.util.find_spec("py_sod_metrics") is not None
    described = runs[0].folder.read_job() or {}
    with stop_signals():
        own_cluster = connect(job.options.address)
        try:
            with stop_signals():  # again: Ray has put its own handler there
                if num_new or work.read_json("machine.json") is None:
                    work.put_json("machine.json", _machine(described["layout"]))
                say("Scoring against the known objects")
                score_runs(runs, truth, scores, with_single_object=has_library, say=say)
        finally:
            if own_cluster:
                disconnect()
    notes = [*truth.notes]
    if truth.federated:
        notes.append("Not every object is annotated; no measure here counts a mask without an object as wrong.")
    if truth.format == "masks" and not has_library:
        notes.append('S-measure and its like were left out: they need `pip install "effsam2_ray[evaluate]"`.')
    return Comparison(
        truth=truth,
        lines=gather(read_scores(runs, scores)),
        configs={run.method: Config.from_dict((run.folder.read_job() or {})["config"]) for run in runs},
        step_s={run.method: summary["step_s_per_image"] for run, summary in zip(runs, summaries, strict=True)},
        weights=described["weights"],
        machine=work.read_json("machine.json") or {},
        notes=tuple(notes),
    )


def _label_job(job: ComparisonJob, work: OutputFolder, method: Method) -> LabelJob:
    return LabelJob(
        inputs=(work.meta_uri(IMAGES),),
        output=f"{work.uri}/runs/{method.slug}",
        config=method.config,
        weights=job.weights,
        model_config=job.model_config,
        heads_table=job.heads_table,
        storage_options=job.storage_options,
        options=dataclasses.replace(job.options, keep_candidates=True),
    )


def _only_warnings(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return what passes on warnings, each once: the settings of a dozen runs would bury all else."""
    told: set[str] = set()

    def warn(line: str) -> None:
        if line.startswith("Warning") and "were merged into one mask" not in line and line not in told:  # in the tables
            told.add(line)
            say(line)

    return warn


def _fingerprint(job: ComparisonJob, truth: GroundTruth) -> dict[str, Any]:
    return {
        "data_set": redact(canonical_uri(job.data_set)),
        "format": truth.format,
        "limit": job.limit,
        "images": hashlib.sha256("\n".join(truth.image_uris).encode()).hexdigest(),
    }


def _machine(layout: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the methods run on, for people: latencies mean nothing without it."""
    names = list(run_tasks(device_name, [layout["device"]], num_cpus=0, num_gpus=layout["segmenter_gpus"]))
    return {
        "device": layout["device"],
        "device_name": names[0],
        "dtype": layout["dtype"],
        "batch_size": layout["batch_size"],
        "num_segmenters": layout["segmenters"][1],
        "cpus": ray.cluster_resources().get("CPU", 0),
    }


def device_name(device: str) -> str:
    """Return what this process computes on, such as `NVIDIA H100` or the processor's name."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "CPU"
