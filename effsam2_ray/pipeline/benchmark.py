"""What Ray costs: the whole job beside the bare labeller, and its scheduling alone with a model that sleeps.

And what runs save that share work: several presets in one pass, and merging anew from stored candidates.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from effsam2_ray.attention import CapturedHead
from effsam2_ray.benchmark.pictures import Picture, drawn_pictures
from effsam2_ray.config import Config
from effsam2_ray.labeller import Labeller
from effsam2_ray.model.interface import Decoded, EncodedImage, Head, ModelInfo
from effsam2_ray.model.sam2 import Sam2Model
from effsam2_ray.model.weights import check_weights
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline import graph, segmenter
from effsam2_ray.pipeline.cluster import connect, disconnect
from effsam2_ray.pipeline.label import LabelJob, label, label_together
from effsam2_ray.pipeline.options import RunOptions
from effsam2_ray.pipeline.writer import summarize
from effsam2_ray.runs.remerging import remerge_part

# One H100 with SAM 2.1 large at the goal of 40 images a second, and what a CPU then does for each picture.
ENCODE_S, DECODE_S, CLUSTER_S = 0.014, 0.011, 0.03
GPU_BATCH_SIZE, GPU_CLUSTER_ACTORS = 8, 4  # the defaults where the device is CUDA
_SLEEP_HW = (96, 128)  # unlike the segmenter's own warm-up picture, which is not counted


@dataclass(frozen=True)
class RayCost:
    """Images a second through Ray and without it.

    Attributes:
        bare_images_per_s: one process of as many threads as there are CPUs.
        ray_images_per_s: a job's rate once it runs: what a long job took longer than a short one. Starting is left out.
        start_s: seconds that the short job took beyond its images.
        num_images: images of the long job.
        num_cpus: CPUs of this process.
    """

    bare_images_per_s: float
    ray_images_per_s: float
    start_s: float
    num_images: int
    num_cpus: int

    @property
    def ratio(self) -> float:
        """Ray's rate over the bare one; 1 is no cost."""
        return self.ray_images_per_s / self.bare_images_per_s


def ray_vs_bare(labeller: Labeller, weights: str, pictures: Sequence[Picture], seconds: float) -> RayCost:
    """Label the same pictures with and without Ray, on the same CPUs and device.

    Args:
        labeller: model and resolved configuration.
        weights: what `--weights` is for this model; "" writes the model's own to a file for the time being.
        pictures: gone through again and again.
        seconds: about how long each side works.
    """
    cpus = _num_cpus()
    threads = torch.get_num_threads()
    torch.set_num_threads(cpus)
    try:
        bare = _bare_rate(labeller, pictures, seconds / 2)
        num_short = 4 * cpus
        num_long = num_short + max(num_short, round(bare * seconds))
        with _workplace(labeller, weights) as (root, weights):
            taken = {}
            for count in (num_short, num_long):
                inputs = _write(root / f"pictures-{count}", pictures, count)
                job = LabelJob((inputs,), str(root / f"run-{count}"), labeller.config, weights)
                taken[count] = _timed(partial(label, _on_all_cpus(job, labeller), _say_nothing))
        bare = (bare + _bare_rate(labeller, pictures, seconds / 2)) / 2
    finally:
        torch.set_num_threads(threads)
    rate = (num_long - num_short) / (taken[num_long] - taken[num_short])
    return RayCost(bare, rate, taken[num_short] - num_short / rate, num_long, cpus)


@dataclass(frozen=True)
class RerunCost:
    """Seconds an image of runs through Ray, their starts left out, and of merging anew.

    Attributes:
        alone_s: by preset, of a run of its own.
        together_s: of one run that writes them all.
        bare_label_s: by preset, of one process with one thread and no Ray.
        remerge_s: by preset, of reading, merging and writing a part anew, in such a process.
        num_images: images of the long runs.
        candidates: by preset, candidates an image.
    """

    alone_s: dict[str, float]
    together_s: float
    bare_label_s: dict[str, float]
    remerge_s: dict[str, float]
    num_images: int
    candidates: dict[str, float]

    @property
    def second_preset(self) -> float:
        """What the presets after the first add in one pass, over what they cost in runs of their own."""
        first, *others = self.alone_s.values()
        return (self.together_s - first) / sum(others)

    @property
    def remerge_vs_label(self) -> dict[str, float]:
        """How many times faster than labelling merging anew is."""
        return {preset: self.bare_label_s[preset] / seconds for preset, seconds in self.remerge_s.items()}


def rerun_cost(
    labellers: Mapping[str, Labeller], weights: str, pictures: Sequence[Picture], seconds: float
) -> RerunCost:
    """Label pictures with each preset alone and with all in one pass, then merge the runs anew.

    Args:
        labellers: by preset; one model.
        weights: as in `ray_vs_bare`.
        pictures: gone through again and again.
        seconds: about how long the run of the costliest preset takes.
    """
    bare = {preset: 1 / _bare_rate(labeller, pictures, seconds / 4) for preset, labeller in labellers.items()}
    num_short = 4 * _num_cpus()
    num_long = num_short + max(num_short, round(_num_cpus() * seconds / max(bare.values())))
    some = next(iter(labellers.values()))
    taken: dict[str, list[float]] = {}
    remerge_s, candidates = {}, {}
    with _workplace(some, weights) as (root, weights):
        for count in (num_short, num_long):
            inputs = _write(root / f"pictures-{count}", pictures, count)
            jobs = {
                preset: _on_all_cpus(
                    LabelJob((inputs,), str(root / f"{preset}-{count}"), labeller.config, weights), some
                )
                for preset, labeller in labellers.items()
            }
            for preset, job in jobs.items():
                taken.setdefault(preset, []).append(_timed(partial(label, job, _say_nothing)))
            together = [dataclasses.replace(job, output=f"{job.output}-together") for job in jobs.values()]
            taken.setdefault("", []).append(_timed(partial(label_together, together, _say_nothing)))
        for preset, labeller in labellers.items():
            remerge_s[preset], candidates[preset] = _remerge_seconds(
                root / f"{preset}-{num_long}", root / f"{preset}-anew", labeller.config
            )
    an_image = {name: (long - short) / (num_long - num_short) for name, (short, long) in taken.items()}
    together_s = an_image.pop("")
    return RerunCost(an_image, together_s, bare, remerge_s, num_long, candidates)


def segmenter_busy_share(num_images: int = 800) -> float:
    """Return the share of time that a segmenter's device was at work, over the second half of a job.

    In the first half its clustering actors start, which takes seconds each on a small machine, but only once a job.

    The job is the real one with the defaults of a GPU, on two CPUs or more; only the model sleeps instead of
    computing, and so does the attention that a clustering actor is given.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        calls = root / "calls.txt"
        inputs = _write(root / "pictures", drawn_pictures(4, _SLEEP_HW), num_images)
        options = RunOptions(
            device="cpu",
            num_segmenters=(1, 1),
            batch_size=GPU_BATCH_SIZE,
            num_cluster_actors=GPU_CLUSTER_ACTORS,
        )
        with mock.patch.object(graph, "Segmenter", sleeping_segmenter(check_weights("demo"), calls)):
            label(LabelJob((inputs,), str(root / "run"), weights="demo", options=options), _say_nothing)
        return busy_share(calls.read_text())


def busy_share(calls: str) -> float:
    """Return the share of time inside the second half of calls that do not overlap.

    Args:
        calls: a line for each, its first and last second.
    """
    spans = sorted((float(start), float(end)) for start, end in (line.split() for line in calls.splitlines()))
    spans = spans[len(spans) // 2 :]
    return sum(end - start for start, end in spans) / (spans[-1][1] - spans[0][0])


def sleeping_segmenter(info: ModelInfo, calls: Path) -> type[segmenter.Segmenter]:
    """Return a segmenter class whose model sleeps and writes down when, for actors on this machine."""

    class SleepingSegmenter(segmenter.Segmenter):
        def __init__(self, spec: segmenter.SegmenterSpec):
            with mock.patch.object(segmenter, "load_model", lambda *_, **__: SleepingModel(info, calls)):
                super().__init__(spec)

    return SleepingSegmenter


class SleepingModel:
    """A `SegmentationModel` that takes a device's time and none of a CPU's.

    Args:
        info: what it claims to be.
        calls: file that gets a line for each call, its first and last second.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, info: ModelInfo, calls: Path):
        self.info = info
        self._calls = calls

    def in_dtype(self, dtype: torch.dtype) -> SleepingModel:
        """Return itself."""
        return self

    def encode(self, images: Sequence[np.ndarray], heads: Sequence[Head]) -> list[EncodedImage]:
        """Sleep for each picture."""
        if images[0].shape[:2] == _SLEEP_HW:
            self._sleep(ENCODE_S * len(images))
        points = _four_groups()
        captured = {head: SleepingHead(points, points, (8, 8)) for head in heads}
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        return [EncodedImage(captured, size, (float(size[0]), float(size[1])), None) for size in sizes]

    def decode(self, requests: Sequence[tuple[EncodedImage, np.ndarray]]) -> list[Decoded]:
        """Sleep for each picture, and give no mask a score that passes."""
        if requests[0][0].size_hw == _SLEEP_HW:
            self._sleep(DECODE_S * len(requests))
        return [Decoded(torch.zeros(len(points), 3, 4, 4), torch.zeros(len(points), 3)) for _, points in requests]

    def upsample(self, low_res_logits: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
        """Return logits of the size asked for."""
        return torch.zeros(len(low_res_logits), *size_hw)

    def _sleep(self, seconds: float) -> None:
        start = time.time()
        time.sleep(seconds)
        with self._calls.open("a") as file:
            file.write(f"{start} {time.time()}\n")


class SleepingHead(CapturedHead):
    """Attention that takes the time of clustering to rebuild."""

    def attention(self) -> torch.Tensor:
        """Sleep, then return a small matrix."""
        time.sleep(CLUSTER_S)
        return super().attention()


def _four_groups() -> torch.Tensor:
    """Return queries of 64 patches that look at their own quarter, so that each quarter gives a prompt."""
    random = np.random.default_rng(0)
    points = np.repeat(6 * np.eye(4, 8), 16, axis=0) + 0.1 * random.normal(size=(64, 8))
    return torch.from_numpy(points.astype(np.float32))


def _bare_rate(labeller: Labeller, pictures: Sequence[Picture], seconds: float) -> float:
    """Return images a second of the labeller alone, warm."""
    data = [picture.data for picture in pictures]
    batched = data * -(-labeller.batch_size // len(data))
    labeller.label_batch(batched)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not count:
        labeller.label_batch(batched)
        count += len(batched)
    return count / elapsed


def _remerge_seconds(run: Path, output: Path, config: Config) -> tuple[float, float]:
    """Return seconds and candidates an image of a run's parts, merged with another threshold and written."""
    source, target = OutputFolder(str(run)), OutputFolder(str(output))
    changed = config.with_overrides(["merge.thresh=0.6"])
    num_images = num_candidates = 0
    start = time.perf_counter()
    for unit_id in sorted(source.finished_units()):
        rows, _ = remerge_part(source.read_part(unit_id), changed)
        target.put_part(unit_id, rows, summarize(unit_id, rows, []))
        num_images += len(rows)
        num_candidates += sum(filter(None, rows["num_candidates"].to_pylist()))
    return (time.perf_counter() - start) / num_images, num_candidates / num_images


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _workplace(labeller: Labeller, weights: str) -> Iterator[tuple[Path, str]]:
    """Start Ray if there is none; give a folder that is removed at the end, and weights that a job can load."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if not weights:
            assert isinstance(labeller.model, Sam2Model)
            weights = str(root / f"{labeller.model.info.name}.pt")
            torch.save({"model": labeller.model.module.state_dict()}, weights)
        started_here = connect(None)
        try:
            yield root, weights
        finally:
            if started_here:
                disconnect()


def _on_all_cpus(job: LabelJob, labeller: Labeller) -> LabelJob:
    on_cpu = labeller.model.device.type == "cpu"
    options = RunOptions(
        device=labeller.model.device.type,
        num_segmenters=(_num_cpus(), _num_cpus()) if on_cpu else None,
        num_cluster_actors=0 if on_cpu else None,
        keep_candidates=True,
    )
    return dataclasses.replace(job, options=options)


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _write(folder: Path, pictures: Sequence[Picture], count: int) -> str:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:06}.jpg").write_bytes(pictures[number % len(pictures)].data)
    return str(folder)


def _say_nothing(_: Any) -> None:
    pass
