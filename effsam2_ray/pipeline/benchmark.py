"""What Ray costs: the whole job beside the bare labeller, and its scheduling alone with a model that sleeps."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from effsam2_ray.attention import CapturedHead
from effsam2_ray.benchmark.pictures import Picture, drawn_pictures
from effsam2_ray.labeller import Labeller
from effsam2_ray.model.interface import Decoded, EncodedImage, Head, ModelInfo
from effsam2_ray.model.sam2 import Sam2Model
from effsam2_ray.model.weights import check_weights
from effsam2_ray.pipeline import graph, segmenter
from effsam2_ray.pipeline.cluster import connect, disconnect
from effsam2_ray.pipeline.label import LabelJob, label
from effsam2_ray.pipeline.options import RunOptions

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
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cpu = labeller.model.device.type == "cpu"
    threads = torch.get_num_threads()
    torch.set_num_threads(cpus)
    try:
        bare = _bare_rate(labeller, pictures, seconds / 2)
        num_short = 4 * cpus
        num_long = num_short + max(num_short, round(bare * seconds))
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            if not weights:
                assert isinstance(labeller.model, Sam2Model)
                weights = str(root / f"{labeller.model.info.name}.pt")
                torch.save({"model": labeller.model.module.state_dict()}, weights)
            options = RunOptions(
                device=labeller.model.device.type,
                num_segmenters=(cpus, cpus) if on_cpu else None,
                num_cluster_actors=0 if on_cpu else None,
            )
            started_here = connect(None)
            try:
                taken = {}
                for count in (num_short, num_long):
                    inputs = _write(root / f"pictures-{count}", pictures, count)
                    job = LabelJob((inputs,), str(root / f"run-{count}"), labeller.config, weights, options=options)
                    start = time.perf_counter()
                    label(job, _say_nothing)
                    taken[count] = time.perf_counter() - start
            finally:
                if started_here:
                    disconnect()
        bare = (bare + _bare_rate(labeller, pictures, seconds / 2)) / 2
    finally:
        torch.set_num_threads(threads)
    rate = (num_long - num_short) / (taken[num_long] - taken[num_short])
    return RayCost(bare, rate, taken[num_short] - num_short / rate, num_long, cpus)


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


def _write(folder: Path, pictures: Sequence[Picture], count: int) -> str:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:06}.jpg").write_bytes(pictures[number % len(pictures)].data)
    return str(folder)


def _say_nothing(_: Any) -> None:
    pass
