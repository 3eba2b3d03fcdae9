"""`--prompts grid:N` with all masks and box NMS is SAM2AutomaticMaskGenerator: same weights, same thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

from effsam2_ray import Config, Labeller
from effsam2_ray.demo.scenes import draw_scene, held_out_seed

THRESHOLDS = {"pred_iou_thresh": 0.4, "stability_score_thresh": 0.7}
# Scores differ by rounding: a mask this close to a cut-off may fall on either side of it.
TOLERANCE = 1e-4


@pytest.mark.parametrize(("seed", "points_per_side"), [(1, 12), (2, 12), (3, 32)])
def test_same_masks_as_the_stock_generator(seed: int, points_per_side: int):
    config = Config().with_overrides(
        [
            f"prompts.count={points_per_side}",
            "prompts.source=grid",
            "decode.masks_per_prompt=all",
            "merge.method=nms",
            *(f"decode.{name}={value}" for name, value in THRESHOLDS.items()),
        ]
    )
    labeller = Labeller.from_weights("demo", config=config, device="cpu")
    image = draw_scene(held_out_seed(seed), (150, 210)).image
    generator = SAM2AutomaticMaskGenerator(labeller.model._model, points_per_side=points_per_side, **THRESHOLDS)
    side = labeller.model.info.image_size
    generator.predictor._bb_feat_sizes = [(side // stride, side // stride) for stride in (4, 8, 16)]

    ours = list(labeller.label(image).masks)
    theirs = generator.generate(image)
    assert len(theirs) > 3

    their_rles = [coco_mask.encode(np.asfortranarray(mask["segmentation"])) for mask in theirs]
    our_rles = [mask.segmentation.to_coco() for mask in ours]
    ious = coco_mask.iou(their_rles, our_rles, [0] * len(our_rles))
    for index, mask in enumerate(theirs):
        if near_a_threshold(mask["predicted_iou"], mask["stability_score"]):
            continue
        match = int(ious[index].argmax())
        assert ious[index, match] > 0.999, f"no mask of ours equals {mask['bbox']}"
        assert ours[match].predicted_iou == pytest.approx(mask["predicted_iou"], abs=1e-5)
        assert ours[match].stability_score == pytest.approx(mask["stability_score"], abs=1e-4)
        assert any(np.allclose(mask["point_coords"][0], point, atol=1e-3) for point in ours[match].point_coords)
    for index, mask in enumerate(ours):
        assert ious[:, index].max() > 0.999 or near_a_threshold(mask.predicted_iou, mask.stability_score)


def near_a_threshold(predicted_iou: float, stability_score: float) -> bool:
    return (
        abs(predicted_iou - THRESHOLDS["pred_iou_thresh"]) < TOLERANCE
        or abs(stability_score - THRESHOLDS["stability_score_thresh"]) < TOLERANCE
    )
