"""Join or start Ray, and divide what it offers between the stages."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import ray

from effsam2_ray.pipeline.options import RunOptions

READER_CPUS = 0.25
WRITER_CPUS = 0.25


@dataclass(frozen=True)
class Layout:
    """Resources of the stages.

    Attributes:
        device: `cpu` or `cuda`.
        dtype: `float32`, `bfloat16` or `float16`.
        batch_size: pictures that the encoder sees at once.
        segmenters: (fewest, most) segmenter actors.
        segmenter_cpus: CPUs of one segmenter, its clustering actors included.
        segmenter_gpus: GPUs of one segmenter.
        num_cluster_actors: clustering actors of one segmenter.
        writers: (fewest, most) merging and writing actors.
    """

    device: str
    dtype: str
    batch_size: int
    segmenters: tuple[int, int]
    segmenter_cpus: float
    segmenter_gpus: float
    num_cluster_actors: int
    writers: tuple[int, int]


def connect(address: str | None) -> bool:
    """Join the cluster at `address`, or the one that this job belongs to, or start one here. True if it was started."""
    if ray.is_initialized():
        return False
    joining = address or os.environ.get("RAY_ADDRESS")
    if joining:
        ray.init(address=joining, log_to_driver=False, logging_level=logging.WARNING)
        return False
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _node_ip_address="127.0.0.1")
    return True


def disconnect() -> None:
    """Leave Ray, and end the one that `connect` started here."""
    ray.shutdown()


def plan_layout(options: RunOptions) -> Layout:
    """Divide the joined cluster between the stages."""
    resources = ray.cluster_resources()
    gpus, cpus = resources.get("GPU", 0.0), resources.get("CPU", 1.0)
    wants_gpu = bool(options.num_gpus) or (options.num_gpus is None and gpus > 0)
    device = options.device if options.device != "auto" else ("cuda" if wants_gpu else "cpu")
    on_gpu = device.startswith("cuda")
    segmenter_gpus = options.num_gpus if options.num_gpus is not None else (1.0 if on_gpu else 0.0)
    num_cluster_actors = options.num_cluster_actors
    if num_cluster_actors is None:
        num_cluster_actors = 4 if on_gpu else 1
    # Something must be left for reading and writing, also where two CPUs are all there is.
    segmenter_cpus = min(1.0 + num_cluster_actors, max(0.5, cpus - READER_CPUS - WRITER_CPUS))
    if options.num_segmenters is not None:
        segmenters = options.num_segmenters
    elif on_gpu:
        segmenters = (1, max(1, int(gpus / segmenter_gpus) if segmenter_gpus else 1))
    else:
        segmenters = (1, max(1, int((cpus - READER_CPUS - WRITER_CPUS) / segmenter_cpus)))
    return Layout(
        device=device,
        dtype=options.dtype if options.dtype != "auto" else ("bfloat16" if on_gpu else "float32"),
        batch_size=options.batch_size or (8 if on_gpu else 1),
        segmenters=segmenters,
        segmenter_cpus=segmenter_cpus,
        segmenter_gpus=segmenter_gpus,
        num_cluster_actors=num_cluster_actors,
        writers=(1, max(1, segmenters[1])),
    )


def missing_resources(layout: Layout) -> str:
    """Return what one segmenter needs and the cluster does not have now, "" where it fits."""
    resources = ray.cluster_resources()
    needs = {"GPU": layout.segmenter_gpus, "CPU": layout.segmenter_cpus}
    return " and ".join(f"{need:g} {name}" for name, need in needs.items() if resources.get(name, 0.0) < need)
