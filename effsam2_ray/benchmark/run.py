"""All measurements that need no Ray, in order, as one dictionary that JSON can hold."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from effsam2_ray.benchmark import growth, peers
from effsam2_ray.benchmark.limits import Limits, measure_limits
from effsam2_ray.benchmark.models import benchmark_config, demo_model_at, random_model
from effsam2_ray.benchmark.pictures import Picture, drawn_pictures, folder_pictures, resized
from effsam2_ray.benchmark.steps import Step, label_picture, measure_steps
from effsam2_ray.benchmark.timing import Spread, peak_memory
from effsam2_ray.errors import ConfigError
from effsam2_ray.labeller import Labeller
from effsam2_ray.model.compiled import compile_model
from effsam2_ray.model.sam2 import Sam2Model
from effsam2_ray.model.weights import load_model
from effsam2_ray.numerics import check_numerics

SOURCE_PROMPTS = {"low_latency": 107, "high_quality": 213}
"""Prompts an image that the method's source reports, with Hiera-L."""

SIZE_HW = (480, 640)
LARGE_HW = (6000, 8000)
LARGE_PROMPTS = 1000
LARGE_BUDGET_BYTES = 1536 << 20
"""Host memory that the largest picture may take above the loaded model: its pixels, one float plane, masks in turns."""

MATRIX_SIDE = 1024
"""Pixels of the encoder's square at which clustering is measured: 64 x 64 patches, as SAM 2 has."""


@dataclass(frozen=True)
class Settings:
    """What to measure, and how long.

    Attributes:
        weights: `demo`, a path or URI, or an official name.
        random_weights: `weights` names an official size of SAM 2 whose weights are drawn at random.
        device, dtype: as in `load_model`.
        pictures: folder of pictures; None draws scenes.
        quick: few rounds, no growth curves, the demo weights' steps only once.
        num_pictures: pictures of the steps and the end-to-end figures.
        batch_size: pictures that the encoder sees at once in the images/s figures.
        compile: run compiled code (`effsam2_ray.model.compiled`); what that costs at the start is measured.
    """

    weights: str = "demo"
    random_weights: bool = False
    device: str = "auto"
    dtype: str = "auto"
    pictures: str | None = None
    quick: bool = False
    num_pictures: int = 2
    batch_size: int = 1
    compile: bool = False


def load(settings: Settings) -> Sam2Model:
    """Return the model that is measured.

    Raises:
        ConfigError: weights of another family than SAM 2, or no such size.
        WeightsError: they cannot be had.
    """
    if settings.random_weights:
        return random_model(settings.weights, settings.device, settings.dtype)
    model = load_model(settings.weights, device=settings.device, dtype=settings.dtype)
    if not isinstance(model, Sam2Model):
        raise ConfigError(
            f"the benchmark takes SAM 2 weights, as the generator that it compares with; got {model.info.name}"
        )
    return model


def load_labellers(settings: Settings, pictures: Sequence[Picture]) -> dict[str, Labeller]:
    """Return a labeller for each measured preset, over one model; errors as in `load`."""
    return _labellers(load(settings), settings, pictures)


def load_pictures(settings: Settings) -> list[Picture]:
    """Return the pictures that are measured."""
    if settings.pictures:
        return folder_pictures(settings.pictures, settings.num_pictures)
    return drawn_pictures(settings.num_pictures, SIZE_HW)


def measure(settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything but Ray.

    Args:
        settings: what to measure.
        say: takes a line before each part.
    """
    started = time.perf_counter()
    begun_on = machine()
    model, pictures = load(settings), load_pictures(settings)
    labellers = _labellers(model, settings, pictures)
    compile_s = compile_model(model, settings.batch_size) if settings.compile else None
    rounds = 3 if settings.quick else 9
    results: dict[str, Any] = {
        "machine": begun_on,
        "model": {**_describe(model, settings, labellers["low_latency"]), "compile_s": compile_s},
        "pictures": [{"name": picture.name, "height_width": picture.size_hw} for picture in pictures],
    }
    say("limits of the device")
    limits = measure_limits(model.device, model.dtype)
    results["limits"] = dataclasses.asdict(limits)
    say("steps")
    results["steps"] = {
        preset: [_step(step, limits) for step in measure_steps(labeller, pictures, rounds, SOURCE_PROMPTS[preset])]
        for preset, labeller in labellers.items()
        if not settings.quick or preset == "low_latency"
    }
    say("clustering beside hdbscan and scikit-learn")
    comparisons = _clustering(pictures, settings)
    say("masks beside pycocotools")
    masks = peers.masks_for_rle(model, pictures[0], 100, (1024, 1024))
    comparisons["rle"] = peers.compare_rle(masks, rounds, 30)
    del masks
    say("decoder beside sam2's")
    comparisons["decoder"] = peers.compare_decoder(model, pictures[0], 64, rounds, 60)
    say("images a second")
    results["images_per_s"] = _images_per_s(labellers, pictures, rounds)
    say("whole pictures beside sam2's automatic generator")
    end_to_end = _end_to_end(labellers, pictures, settings)
    say("a large picture with many prompts")
    results["large_picture"] = _large_picture(labellers["low_latency"], pictures[0], settings)
    if model.dtype != torch.float32:
        say("numerics of the half type")
        results["numerics"] = dataclasses.asdict(check_numerics(model))
    if not settings.quick:
        say("growth")
        results["growth"] = [_curve(curve) for curve in _growth(labellers["low_latency"], pictures, settings)]
    results["comparisons"] = {name: _comparison(each) for name, each in {**comparisons, **end_to_end}.items()}
    results["ratios"] = _ratios(comparisons, end_to_end)
    results["seconds"] = time.perf_counter() - started
    return results


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    packages = ("effsam2_ray", "torch", "sam2", "hdbscan", "scikit-learn", "pycocotools", "numpy", "ray")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average_1min": os.getloadavg()[0],
        "gpu": gpu,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
    }


def _labellers(model: Sam2Model, settings: Settings, pictures: Sequence[Picture]) -> dict[str, Labeller]:
    arrays = [picture.array for picture in pictures]
    return {
        preset: Labeller(
            model,
            benchmark_config(model, preset, settings.random_weights, arrays),
            batch_size=settings.batch_size,
        )
        for preset in SOURCE_PROMPTS
    }


def _clustering(pictures: Sequence[Picture], settings: Settings) -> dict[str, peers.Comparison]:
    """Compare on the attention of the demo weights at 64 x 64 patches, on the CPU, whatever is measured else."""
    model = demo_model_at(MATRIX_SIDE, "cpu", "float32")
    head = model.info.default_head
    captured = model.encode([pictures[0].array], [head])[0].captured[head]
    rounds, limit_s = (5, 25) if settings.quick else (9, 45)
    found = {
        f"clustering {preset}": peers.compare_clustering(captured, preset, rounds, limit_s)
        for preset in peers.PRESETS
        if not settings.quick or preset in SOURCE_PROMPTS
    }
    found["presets together"] = peers.compare_presets_together(captured, rounds, limit_s)
    found["distances"] = peers.compare_distances(captured, rounds, limit_s)
    return found


def _end_to_end(
    labellers: dict[str, Labeller], pictures: Sequence[Picture], settings: Settings
) -> dict[str, peers.Comparison]:
    """Compare at the source's number of prompts and at the pictures' own, with sam2's defaults and tuned to a CPU."""
    runs: dict[str, tuple[Labeller, int | None]] = {}
    for preset, labeller in labellers.items():
        runs[f"{preset}, {SOURCE_PROMPTS[preset]} prompts"] = (labeller, SOURCE_PROMPTS[preset])
        runs[f"{preset}, own prompts"] = (labeller, None)
    chosen = pictures[:2] if settings.quick else pictures
    found = peers.compare_end_to_end(runs, chosen, 64, 120 if settings.quick else 3600)
    if next(iter(labellers.values())).model.device.type == "cpu":
        tuned = peers.compare_end_to_end(runs, chosen[:1] if settings.quick else chosen, 4, 3600)
        found |= {f"{name}, generator tuned": each for name, each in tuned.items()}
    return found


def _images_per_s(
    labellers: dict[str, Labeller], pictures: Sequence[Picture], rounds: int
) -> dict[str, dict[str, Any]]:
    found = {}
    for preset, labeller in labellers.items():
        batch_size = labeller.batch_size
        data = [pictures[index % len(pictures)].data for index in range(max(len(pictures), batch_size))]
        prompts = [len(image.prompts) for image in labeller.label_batch(data)]
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            labeller.label_batch(data)
            seconds.append((time.perf_counter() - start) / len(data))
        with peak_memory(labeller.model.device) as memory:
            labeller.label_batch(data)
        found[preset] = {
            "seconds": Spread.of(seconds).to_dict(),
            "images_per_s": 1 / Spread.of(seconds).median,
            "prompts": sum(prompts) / len(prompts),
            "batch_size": batch_size,
            "memory": dataclasses.asdict(memory[0]),
        }
    return found


def _large_picture(labeller: Labeller, picture: Picture, settings: Settings) -> dict[str, Any]:
    """Measure the memory of one very large picture with very many prompts."""
    large = resized(picture, LARGE_HW)
    prompts = 50 if settings.quick else LARGE_PROMPTS
    start = time.perf_counter()
    with peak_memory(labeller.model.device) as memory:
        labelled = label_picture(labeller, large, prompts)
    return {
        "height_width": LARGE_HW,
        "prompts": prompts,
        "candidates": len(labelled.candidates),
        "seconds": time.perf_counter() - start,
        "memory": dataclasses.asdict(memory[0]),
        "budget_bytes": LARGE_BUDGET_BYTES,
        "within_budget": memory[0].host_bytes <= LARGE_BUDGET_BYTES,
    }


def _growth(labeller: Labeller, pictures: Sequence[Picture], settings: Settings) -> list[growth.Curve]:
    on_gpu = labeller.model.device.type != "cpu"
    batches = (1, 2, 4, 8, 16, 32) if on_gpu else (1, 2, 4, 8)
    sizes_hw = ((240, 320), (480, 640), (960, 1280), (1920, 2560), (3840, 5120))
    return [
        growth.prompts_curve(labeller, pictures[0], (25, 50, 107, 213, 500, 1000), 3, 900),
        growth.size_curve(labeller, pictures[0], sizes_hw, 3, 600),
        growth.batch_curve(labeller, pictures, batches, 3, 600),
        growth.masks_curve(labeller, pictures[0], (25, 50, 100, 200, 500, 1000), 3, 300),
    ]


def _ratios(comparisons: dict[str, peers.Comparison], end_to_end: dict[str, peers.Comparison]) -> dict[str, Any]:
    """Return the medians that the README quotes; every one is ours against the other, in turns in this process."""

    def median(comparison: peers.Comparison, peer: str) -> float:
        return comparison.ratio[peer].median

    clusterings = [each for name, each in comparisons.items() if name.startswith("clustering ")]
    decoder, rle = comparisons["decoder"], comparisons["rle"]
    by_kind: dict[str, dict[str, float]] = {}
    for name, each in end_to_end.items():
        preset, kind = name.split(", ", 1)
        by_kind.setdefault(kind, {})[preset] = next(iter(each.ratio.values())).median
        by_kind.setdefault(f"{kind}, per prompt", {})[preset] = each.facts["ratio_per_prompt"]
    at_source = {kind: values for kind, values in by_kind.items() if kind[0].isdigit()}

    def merged(suffix: str) -> dict[str, float]:
        parts = [values for kind, values in at_source.items() if kind.split("prompts", 1)[1] == suffix]
        return {preset: value for part in parts for preset, value in part.items()}

    return {
        "clustering_vs_hdbscan": min(median(each, "hdbscan") for each in clusterings),
        "clustering_vs_scikit_learn": min(median(each, "scikit-learn") for each in clusterings),
        "presets_together_vs_one_by_one": median(comparisons["presets together"], "one by one"),
        "rle_vs_pycocotools": min(spread.median for spread in rle.ratio.values()),
        "decoder_vs_sam2": min(spread.median for spread in decoder.ratio.values()),
        "end_to_end_vs_grid_generator": merged(""),
        "end_to_end_vs_grid_generator_per_prompt": merged(", per prompt"),
        "end_to_end_vs_grid_generator_own_prompts": by_kind["own prompts"],
        "end_to_end_vs_grid_generator_tuned": merged(", generator tuned"),
    }


def _describe(model: Sam2Model, settings: Settings, labeller: Labeller) -> dict[str, Any]:
    note = "random weights of the official shape: times only, masks mean nothing" if settings.random_weights else ""
    decode = labeller.config.decode
    return {
        "name": model.info.name,
        "random_weights": settings.random_weights,
        "note": note,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "image_size": model.info.image_size,
        "patches": model.info.grid_size**2,
        "pred_iou_thresh": decode.pred_iou_thresh,
        "stability_score_thresh": decode.stability_score_thresh,
    }


def _step(step: Step, limits: Limits) -> dict[str, Any]:
    seconds = step.seconds.median
    found: dict[str, Any] = {"name": step.name, "seconds": step.seconds.to_dict(), "note": step.note}
    if step.memory is not None:
        found["memory"] = dataclasses.asdict(step.memory)
    if step.flops and seconds > 0:
        rate = step.flops / seconds
        found |= {"flops": step.flops, "flops_per_s": rate, "share_of_limit": rate / limits.flops(step.in_half)}
    elif step.traffic_bytes and seconds > 0:
        rate = step.traffic_bytes / seconds
        found |= {
            "traffic_bytes": step.traffic_bytes,
            "bytes_per_s": rate,
            "share_of_limit": rate / limits.bytes_per_s,
        }
    return found


def _comparison(comparison: peers.Comparison) -> dict[str, Any]:
    return {
        "what": comparison.what,
        "seconds": {name: spread.to_dict() for name, spread in comparison.seconds.items()},
        "ratio": {name: spread.to_dict() for name, spread in comparison.ratio.items()},
        **comparison.facts,
    }


def _curve(curve: growth.Curve) -> dict[str, Any]:
    return {
        "quantity": curve.quantity,
        "values": list(curve.values),
        "seconds": [spread.to_dict() for spread in curve.seconds],
        "power": curve.power,
        "super_linear": curve.power > growth.SUPER_LINEAR,
        "note": curve.note,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
