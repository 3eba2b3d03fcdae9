"""What labelling one picture gives, before and after merging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from effsam2_ray.masks import Mask
from effsam2_ray.prompts import Prompts


@dataclass(frozen=True)
class ImageCandidates:
    """One picture after decoding and before merging: all that the model had to say. Small, and free of tensors.

    Attributes:
        size_hw: (height, width) of the picture in pixels, as a viewer shows it.
        prompts: the point prompts, in pixels.
        cluster_map: (rows, columns) int16 cluster label of each patch, -1 for noise; None for grid and random prompts.
        candidates: masks that passed the score thresholds; `members` of number i is (i,).
        step_s: seconds that each step took.
    """

    size_hw: tuple[int, int]
    prompts: Prompts
    cluster_map: np.ndarray | None
    candidates: tuple[Mask, ...]
    step_s: Mapping[str, float]


@dataclass(frozen=True)
class LabelledImage:
    """One picture with its final masks.

    Attributes:
        size_hw: (height, width) of the picture in pixels, as a viewer shows it.
        prompts: the point prompts, in pixels.
        cluster_map: (rows, columns) int16 cluster label of each patch, -1 for noise; None for grid and random prompts.
        candidates: masks before merging.
        merged_into: for each candidate, its index in `masks`; -1 where none of them holds it.
        masks: the final masks, largest first; `members` are indices into `candidates`.
        largest_share: share of the candidates that the largest merged mask joined, in [0, 1].
        step_s: seconds that each step took.
    """

    size_hw: tuple[int, int]
    prompts: Prompts
    cluster_map: np.ndarray | None
    candidates: tuple[Mask, ...]
    merged_into: tuple[int, ...]
    masks: tuple[Mask, ...]
    largest_share: float
    step_s: Mapping[str, float]
