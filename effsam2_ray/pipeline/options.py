"""How a job is spread over machines. Nothing here changes which masks an image gets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from effsam2_ray.errors import ConfigError


@dataclass(frozen=True)
class RunOptions:
    """Resources and limits of one job.

    Attributes:
        num_segmenters: (fewest, most) segmenter actors; None sizes the pool from the cluster.
        num_cluster_actors: clustering actors of each segmenter; None chooses, 0 clusters in the segmenter itself.
        num_gpus: GPUs of one segmenter; None takes 1 where the device is CUDA, else 0.
        device: `auto`, `cpu` or `cuda`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        batch_size: pictures that the encoder sees at once; None takes 8 on CUDA, 1 on a CPU.
        compile: run compiled code (`effsam2_ray.model.compiled`); SAM 2 only.
        image_timeout_s: seconds that one step of one image may take; None never gives up.
        max_failures: most failed images, a number or `N%` of all; None is no limit.
        keep_candidates: store the masks before merging.
        retry_failed: take up again the failed rows of finished units.
        address: Ray cluster to join; None joins the one that started this job, or starts one here.
    """

    num_segmenters: tuple[int, int] | None = None
    num_cluster_actors: int | None = None
    num_gpus: float | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    compile: bool = False
    image_timeout_s: float | None = None
    max_failures: str | None = None
    keep_candidates: bool = False
    retry_failed: bool = False
    address: str | None = None

    def __post_init__(self) -> None:
        if self.num_segmenters is not None:
            fewest, most = self.num_segmenters
            if not 1 <= fewest <= most:
                raise ConfigError(f"num_segmenters must be N or LOW:HIGH with 1 <= LOW <= HIGH; got {fewest}:{most}")
        for name, least in (("num_cluster_actors", 0), ("num_gpus", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise ConfigError(f"{name} must be {least} or more; got {value}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N; got {self.device!r}")
        if self.num_gpus is not None and self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise ConfigError(f"num_gpus above 1 must be a whole number; got {self.num_gpus}")
        if self.image_timeout_s is not None and not self.image_timeout_s > 0:
            raise ConfigError(f"image_timeout must be more than 0 seconds; got {self.image_timeout_s}")
        failure_limit(self.max_failures, 0)


def failure_limit(text: str | None, num_images: int) -> float:
    """Return how many images may fail, from `N` or `P%` of `num_images`; None is no limit.

    Raises:
        ConfigError: neither a number nor a percentage.
    """
    if text is None:
        return float("inf")
    number = text[:-1] if text.endswith("%") else text
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"max_failures must be a number of images or a percentage such as 1%; got {text!r}")
    return value * num_images / 100 if text.endswith("%") else value
