"""Join or start Ray, and divide what it offers between the stages."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from effsam2_ray.errors import ConfigError
from effsam2_ray.pipeline.options import RunOptions
from effsam2_ray.uris import redact_text

READER_CPUS = 0.25
WRITER_CPUS = 0.25
MIN_SEGMENTER_CPUS = 0.25
_OTHER_CPUS = READER_CPUS + WRITER_CPUS


@dataclass(frozen=True)
class Layout:
    """Resources of the stages.

    Attributes:
        device: `cpu` or `cuda`.
        dtype: `float32`, `bfloat16` or `float16`.
        batch_size: pictures that the encoder sees at once.
        compiled: whether compiled code runs.
        segmenters: (fewest, most) segmenter actors.
        segmenter_cpus: CPUs of one segmenter, its clustering actors included.
        segmenter_gpus: GPUs of one segmenter.
        num_cluster_actors: clustering actors of one segmenter.
        writers: (fewest, most) merging and writing actors.
    """

    device: str
    dtype: str
    batch_size: int
    compiled: bool
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
        try:
            ray.init(address=joining, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"cannot join the Ray cluster at {redact_text(joining)}: {error}") from error
        return False
    # "local": without it, Ray would join one that somebody else runs on this machine.
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    return True


def disconnect() -> None:
    """Leave Ray, and end the one that `connect` started here."""
    ray.shutdown()


def plan_layout(options: RunOptions) -> Layout:
    """Divide the joined cluster between the stages; see `divide`."""
    return divide(options, _live_nodes())


def divide(options: RunOptions, nodes: Sequence[Mapping[str, float]]) -> Layout:
    """Divide a cluster's nodes between the stages, leaving CPUs for reading and writing.

    A segmenter asks for a CPU of its own and one for each clustering actor, but never for more than a node that could
    hold it has to give: where CPUs are few, its actors share them.

    Args:
        options: what the user asked for.
        nodes: resources of each live node, such as `{"CPU": 8.0, "GPU": 1.0}`.

    Raises:
        ConfigError: more segmenters at least than there are CPUs for.
    """
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    wants_gpu = bool(options.num_gpus) or (options.num_gpus is None and gpus > 0)
    device = options.device if options.device != "auto" else ("cuda" if wants_gpu else "cpu")
    on_gpu = device.startswith("cuda")
    segmenter_gpus = options.num_gpus if options.num_gpus is not None else (1.0 if on_gpu else 0.0)
    num_cluster_actors = options.num_cluster_actors
    if num_cluster_actors is None:
        num_cluster_actors = 4 if on_gpu else 1
    segmenter_cpus = 1.0 + num_cluster_actors
    fitting = [node.get("CPU", 0.0) for node in nodes if node.get("GPU", 0.0) >= segmenter_gpus]
    if fitting:
        segmenter_cpus = min(segmenter_cpus, max(fitting) - _OTHER_CPUS)
    fewest = options.num_segmenters[0] if options.num_segmenters else 1
    if fewest * segmenter_gpus <= gpus:  # otherwise nodes have yet to join, with CPUs of their own
        segmenter_cpus = min(segmenter_cpus, (cpus - _OTHER_CPUS) / fewest)
    segmenter_cpus = math.floor(segmenter_cpus * 100) / 100
    if segmenter_cpus < MIN_SEGMENTER_CPUS:
        raise ConfigError(
            f"{fewest} segmenters at least, and readers and writers, need more than the {cpus:g} CPUs of this cluster; "
            "lower --num-segmenters"
        )
    if options.num_segmenters is not None:
        segmenters = options.num_segmenters
    elif on_gpu:
        segmenters = (1, max(1, int(gpus / segmenter_gpus) if segmenter_gpus else 1))
    else:
        segmenters = (1, max(1, int((cpus - _OTHER_CPUS) / segmenter_cpus)))
    return Layout(
        device=device,
        dtype=options.dtype if options.dtype != "auto" else ("bfloat16" if on_gpu else "float32"),
        batch_size=options.batch_size or (8 if on_gpu else 1),
        compiled=options.compile,
        segmenters=segmenters,
        segmenter_cpus=segmenter_cpus,
        segmenter_gpus=segmenter_gpus,
        num_cluster_actors=num_cluster_actors,
        writers=(1, max(1, segmenters[1])),
    )


def missing_resources(layout: Layout) -> str:
    """Return what one segmenter needs on one node and no live node has, "" where it fits."""
    needs = {"GPU": layout.segmenter_gpus, "CPU": layout.segmenter_cpus}
    if any(all(node.get(name, 0.0) >= need for name, need in needs.items()) for node in _live_nodes()):
        return ""
    return "a node with " + " and ".join(f"{need:g} {name}" for name, need in needs.items() if need)


def _live_nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
