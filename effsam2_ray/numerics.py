"""Check at the start that a half type gives these weights' masks on this device, and fall back where it does not.

Half precision is fast on GPUs and safe for most weights, but not for all: float16 overflows with some, and a driver may
bring a broken kernel. So before any image counts, four built-in pictures are segmented in the half type and in float32,
from the same points, and their masks are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from effsam2_ray.demo.scenes import draw_scene, held_out_seed
from effsam2_ray.model.interface import SegmentationModel
from effsam2_ray.prompts import grid_prompts

MIN_MEAN_IOU = 0.97
NUM_PICTURES = 4
PICTURE_SIZE = (384, 512)
POINTS_PER_SIDE = 6


@dataclass(frozen=True)
class NumericsCheck:
    """How well masks in a model's type agree with those in float32.

    Attributes:
        dtype: the type that was checked, such as `bfloat16`.
        mean_iou: mean, over the float32 masks, of the best IoU that any mask of the half type has with each; 1.0 where
            float32 has no mask.
        num_masks: float32 masks compared.
        min_iou: what `mean_iou` must reach.
    """

    dtype: str
    mean_iou: float
    num_masks: int
    min_iou: float = MIN_MEAN_IOU

    @property
    def passed(self) -> bool:
        """Whether the type can be used; NaN never passes."""
        return self.mean_iou >= self.min_iou

    def __str__(self) -> str:
        """Return a line for the user."""
        verdict = "used" if self.passed else f"below {self.min_iou}: float32 is used instead"
        return (
            f"{self.dtype} against float32 on {NUM_PICTURES} built-in pictures: mean best-match mask IoU "
            f"{self.mean_iou:.4f} over {self.num_masks} masks, {verdict}"
        )


def check_numerics(model: SegmentationModel, min_iou: float = MIN_MEAN_IOU) -> NumericsCheck:
    """Compare a model's masks in its own type with float32, on the device where it is."""
    reference = model.in_dtype(torch.float32)
    ious: list[float] = []
    for number in range(NUM_PICTURES):
        image = draw_scene(held_out_seed(number), PICTURE_SIZE).image
        expected, found = _masks(reference, image), _masks(model, image)
        ious += best_ious(expected, found).tolist()
    mean = float(np.mean(ious)) if ious else 1.0
    return NumericsCheck(str(model.dtype).removeprefix("torch."), mean, len(ious), min_iou)


def in_safe_dtype(
    model: SegmentationModel, min_iou: float = MIN_MEAN_IOU
) -> tuple[SegmentationModel, NumericsCheck | None]:
    """Return the model to use, and what was found: itself where its type passes, else the same weights in float32.

    A float32 model is returned as it is, with None.
    """
    if model.dtype == torch.float32:
        return model, None
    check = check_numerics(model, min_iou)
    return (model if check.passed else model.in_dtype(torch.float32)), check


def best_ious(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return for each non-empty mask of `expected` the best IoU that a mask of `found` has with it, (K,) float64.

    Args:
        expected: (P, N) bool, one row a mask.
        found: (Q, N) bool, Q at least 1.
    """
    a, b = expected[expected.any(axis=1)].astype(np.float32), found.astype(np.float32)
    shared = a @ b.T  # (K, Q), exact below 2**24 pixels
    either = a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - shared
    best: np.ndarray = (shared / either).max(axis=1, initial=0.0).astype(np.float64)
    return best


def _masks(model: SegmentationModel, image: np.ndarray) -> np.ndarray:
    """Return the best-scored mask of each point of a grid, at the decoder's size, (P, N) bool."""
    encoded = model.encode([image], [])[0]
    points = grid_prompts(POINTS_PER_SIDE, (image.shape[0], image.shape[1])).point_coords
    decoded = model.decode([(encoded, points)])[0]
    best = decoded.predicted_iou.nan_to_num(-1.0).argmax(dim=1)
    chosen = decoded.low_res_logits[torch.arange(len(best), device=best.device), best]
    return (chosen > 0).flatten(1).cpu().numpy()
