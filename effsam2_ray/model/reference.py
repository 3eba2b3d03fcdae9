"""The official automatic generator over weights that are loaded here already, as a reference and for comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from sam2.sam2_image_predictor import SAM2ImagePredictor

from effsam2_ray.model.point_decoder import autocast
from effsam2_ray.model.sam2 import Sam2Model


def grid_generator(
    model: Sam2Model,
    *,
    points_per_side: int = 32,
    points_per_batch: int = 64,
    pred_iou_thresh: float = 0.8,
    stability_score_thresh: float = 0.95,
) -> Callable[[np.ndarray], list[dict[str, Any]]]:
    """Return sam2's `SAM2AutomaticMaskGenerator` with the weights, device and type of `model`.

    Defaults are the official ones, but that masks come out as COCO RLE, as ours do.

    Returns:
        A function from an (H, W, 3) uint8 picture to the generator's records.
    """
    generator = SAM2AutomaticMaskGenerator(
        model.module,
        points_per_side=points_per_side,
        points_per_batch=points_per_batch,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        output_mode="coco_rle",
    )
    generator.predictor = image_predictor(model)

    def generate(image: np.ndarray) -> list[dict[str, Any]]:
        with torch.inference_mode(), autocast(model.device, model.dtype):
            records: list[dict[str, Any]] = generator.generate(image)
        return records

    return generate


def image_predictor(model: Sam2Model) -> SAM2ImagePredictor:
    """Return sam2's `SAM2ImagePredictor` with the weights of `model`."""
    predictor = SAM2ImagePredictor(model.module)
    side = model.info.image_size
    predictor._bb_feat_sizes = [(side // stride, side // stride) for stride in (4, 8, 16)]  # 1024 px is built in
    return predictor
