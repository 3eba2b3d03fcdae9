"""How long a job takes and what it costs: arithmetic on a few measured seconds, nothing else.

A segmenter's device does one thing at a time, so its rate is 1 / (seconds of the device's steps of one image);
everything else runs beside it. Time spent on starting nodes and on images that fail is not in here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from effsam2_ray.inputs.cutting import UNIT_IMAGES, UNITS_PER_SEGMENTER

DEVICE_STEPS = ("encode_s", "decode_s", "select_s")
CLUSTER_STEPS = ("attention_s", "distances_s", "spanning_tree_s", "medoids_s")
"""Steps that the device does too, but where there is no GPU the clustering actors."""
ACTOR_STEPS = ("tree_select_s",)
OTHER_STEPS = ("load_s", "merge_s")
MIN_UNIT_S = 30.0
"""Seconds of work that a unit should hold at least: below, finer units only cost requests."""


@dataclass(frozen=True)
class Rates:
    """What one segmenter does with one image, on average.

    Attributes:
        images_per_s: images that one segmenter labels in a second.
        output_bytes: bytes of Parquet an image.
        num_cluster_actors: clustering actors that keep up with the device.
        segmenter_cpus: CPUs that one segmenter, its actors, and its share of reading and merging keep busy.
    """

    images_per_s: float
    output_bytes: float
    num_cluster_actors: int
    segmenter_cpus: int


@dataclass(frozen=True)
class Estimate:
    """A job at these rates.

    Attributes:
        gpu_hours: hours of one segmenter.
        cost: `gpu_hours` at the price given.
        cost_per_million: the same for a million images.
        output_bytes: all parts together.
        num_segmenters: the fewest that end within the time wished for, or the most that the images can keep busy.
        wall_hours: (segmenters, hours), the advised number among them.
    """

    gpu_hours: float
    cost: float
    cost_per_million: float
    output_bytes: float
    num_segmenters: int
    wall_hours: tuple[tuple[int, float], ...]


def rates_from_steps(steps: Sequence[Mapping[str, float | None]], output_bytes: float, *, on_gpu: bool) -> Rates:
    """Return the rates that the step times of some images stand for.

    Args:
        steps: `step_s` of each image: seconds by step.
        output_bytes: bytes of Parquet an image.
        on_gpu: whether a device did the steps up to the spanning tree.
    """
    on_device = (*DEVICE_STEPS, *CLUSTER_STEPS) if on_gpu else DEVICE_STEPS
    in_actors = ACTOR_STEPS if on_gpu else (*CLUSTER_STEPS, *ACTOR_STEPS)
    device_s, actor_s, other_s = (_mean_s(steps, names) for names in (on_device, in_actors, OTHER_STEPS))
    images_per_s = 1 / max(device_s, 1e-9)
    num_cluster_actors = math.ceil(actor_s * images_per_s)
    cpus = 1 + num_cluster_actors + math.ceil(other_s * images_per_s)
    return Rates(images_per_s, output_bytes, num_cluster_actors, cpus)


def estimate(
    num_images: int,
    rates: Rates,
    *,
    gpu_hour_price: float,
    gpus_per_segmenter: float = 1.0,
    wished_hours: float = 12.0,
    numbers: Sequence[int] = (1, 4, 16, 64),
) -> Estimate:
    """Return hours, cost and size of a job.

    Args:
        num_images: images to label.
        rates: of one segmenter.
        gpu_hour_price: price of one GPU for an hour.
        gpus_per_segmenter: GPUs of one segmenter; a share where several are on one.
        wished_hours: when the job should be done.
        numbers: numbers of segmenters for which the wall time is asked.
    """
    hours = num_images / rates.images_per_s / 3600
    most = max(1, int(num_images / (UNITS_PER_SEGMENTER * MIN_UNIT_S * rates.images_per_s)))
    num_segmenters = min(most, max(1, math.ceil(hours / wished_hours)))
    price = gpu_hour_price * gpus_per_segmenter
    return Estimate(
        gpu_hours=hours * gpus_per_segmenter,
        cost=hours * price,
        cost_per_million=1e6 / rates.images_per_s / 3600 * price,
        output_bytes=num_images * rates.output_bytes,
        num_segmenters=num_segmenters,
        wall_hours=tuple((n, wall_hours(num_images, n, rates)) for n in sorted({*numbers, num_segmenters})),
    )


def wall_hours(num_images: int, num_segmenters: int, rates: Rates) -> float:
    """Return the hours until the last segmenter is done, as each takes whole units."""
    if not num_images:
        return 0.0
    unit_images = max(1, min(UNIT_IMAGES, num_images // (UNITS_PER_SEGMENTER * num_segmenters)))
    units_each = math.ceil(math.ceil(num_images / unit_images) / num_segmenters)
    return min(num_images, units_each * unit_images) / rates.images_per_s / 3600


def _mean_s(steps: Sequence[Mapping[str, float | None]], names: Sequence[str]) -> float:
    return sum(step.get(name) or 0.0 for step in steps for name in names) / len(steps)
