"""Pins effsam2_ray/candidates.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sam2.utils.amg import batched_mask_to_box, calculate_stability_score, coco_encode_rle, mask_to_rle_pytorch

from effsam2_ray.candidates import changes_on_device, encode_logits, select_candidates, stability_scores
from effsam2_ray.errors import MaskError
from effsam2_ray.rle import encode, encode_changes

SIZE_HW = (48, 80)


def upsample(logits: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    assert logits.dtype == torch.float32
    return torch.nn.functional.interpolate(logits[:, None], size_hw, mode="bilinear", align_corners=False)[:, 0]


def decoder_output(num_prompts: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(num_prompts, 3, 4, 4, generator=generator) * 30
    logits = torch.nn.functional.interpolate(coarse, (16, 16), mode="bicubic")
    iou = torch.rand(num_prompts, 3, generator=generator)
    points = torch.rand(num_prompts, 2, generator=generator) * 48
    return logits, iou, points


def select(logits, iou, points, **changed):
    settings = {"size_hw": SIZE_HW, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, **changed}
    return select_candidates(logits, iou, points, upsample, **settings)


def test_a_prompt_worked_by_hand():
    # Columns 0, 1 are object with certainty, column 2 barely, column 3 is not; no resizing.
    logits = torch.tensor([[5.0, 2.0, 0.5, -5.0]]).repeat(2, 1)[None, None]
    (mask,) = select_candidates(
        logits,
        torch.tensor([[0.75]]),
        np.array([[1.5, 0.5]]),
        lambda low, size_hw: low,
        size_hw=(2, 4),
        pred_iou_thresh=0.5,
        stability_score_thresh=0.6,
    )
    assert mask.to_array().tolist() == [[True, True, True, False]] * 2
    assert mask.segmentation.runs().tolist() == [0, 6, 2]
    assert (mask.area, mask.bbox, mask.members) == (6, (0.0, 0.0, 3.0, 2.0), (0,))
    assert mask.predicted_iou == 0.75
    assert mask.stability_score == pytest.approx(4 / 6)
    assert mask.point_coords == ((1.5, 0.5),)
    assert json.loads(json.dumps(mask.to_dict()))["segmentation"] == {"size": [2, 4], "counts": "062"}


def test_best_takes_the_highest_predicted_iou_and_the_first_of_equals():
    logits = torch.full((2, 3, 4, 4), -9.0)
    for index in range(3):
        logits[:, index, : index + 1] = 9.0  # mask number index has index + 1 rows
    iou = torch.tensor([[0.2, 0.9, 0.5], [0.7, 0.1, 0.7]])
    points = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    masks = select(logits, iou, points, size_hw=(4, 4))
    assert [(mask.area, mask.point_coords) for mask in masks] == [(8, ((1.0, 2.0),)), (4, ((3.0, 4.0),))]
    assert [mask.predicted_iou for mask in masks] == [iou[0, 1].item(), iou[1, 0].item()]


def test_all_keeps_prompt_then_mask_order():
    logits, iou, points = decoder_output(5)
    masks = select(logits, iou, points, masks_per_prompt="all")
    assert [mask.predicted_iou for mask in masks] == iou.flatten().tolist()
    assert [list(mask.point_coords[0]) for mask in masks] == points.repeat_interleave(3, dim=0).tolist()
    assert [mask.members for mask in masks] == [(index,) for index in range(15)]


def test_decisions_equal_those_of_sam2s_generator():
    logits, iou, points = decoder_output(40)
    masks = select(
        logits, iou, points, masks_per_prompt="all", pred_iou_thresh=0.4, stability_score_thresh=0.9, chunk_bytes=1
    )
    # The same steps in the order and with the functions of SAM2AutomaticMaskGenerator._process_batch.
    full = torch.nn.functional.interpolate(logits, SIZE_HW, mode="bilinear", align_corners=False).flatten(0, 1)
    scores, points = iou.flatten(), points.repeat_interleave(3, dim=0)
    keep = scores > 0.4
    full, scores, points = full[keep], scores[keep], points[keep]
    stability = calculate_stability_score(full, 0.0, 1.0)
    keep = stability >= 0.9
    assert 10 < int(keep.sum()) < len(keep)
    binary = full[keep] > 0
    box = batched_mask_to_box(binary)
    box[:, 2:] += 1 - box[:, :2]
    assert [mask.segmentation.to_coco() for mask in masks] == [
        coco_encode_rle(rle) for rle in mask_to_rle_pytorch(binary)
    ]
    assert [mask.predicted_iou for mask in masks] == scores[keep].tolist()
    assert [mask.stability_score for mask in masks] == stability[keep].tolist()
    assert [list(mask.point_coords[0]) for mask in masks] == points[keep].tolist()
    assert [list(mask.bbox) for mask in masks] == box.tolist()
    assert [mask.area for mask in masks] == binary.sum(dim=(1, 2)).tolist()


def test_thresholds_meet_sam2s_comparisons_at_equality():
    logits, _, points = decoder_output(3)
    iou = torch.tensor([[0.8] * 3, [0.80001] * 3, [0.79999] * 3])
    assert len(select(logits, iou, points, pred_iou_thresh=0.8)) == 1  # above, in float32
    stable = torch.full((1, 1, 4, 4), -9.0)
    stable[..., :2, :] = 9.0
    stable[0, 0, 0, 0] = 0.5  # 7 of 8
    one = torch.ones(1, 1), torch.zeros(1, 2)
    assert len(select(stable, *one, size_hw=(4, 4), stability_score_thresh=7 / 8)) == 1  # at or above
    assert len(select(stable, *one, size_hw=(4, 4), stability_score_thresh=0.8751)) == 0


def test_zero_thresholds_are_off():
    logits, iou, points = decoder_output(4)
    assert len(select(logits, -iou, points, masks_per_prompt="all")) == 12


def test_empty_masks_are_dropped_and_the_rest_renumbered():
    logits, iou, points = decoder_output(3)
    logits[1] = -4.0
    masks = select(logits, iou, points)
    assert [mask.members for mask in masks] == [(0,), (1,)]
    assert [list(mask.point_coords[0]) for mask in masks] == points[[0, 2]].tolist()


def test_no_prompts_and_no_survivors_give_no_masks():
    logits, iou, points = decoder_output(2)
    for mode in ("best", "all"):
        assert select(logits[:0], iou[:0], points[:0], masks_per_prompt=mode) == []
        assert select(logits, iou, points, masks_per_prompt=mode, pred_iou_thresh=2.0) == []
        assert select(logits, iou, points, masks_per_prompt=mode, stability_score_thresh=2.0) == []


def test_chunks_do_not_change_the_masks_and_bound_the_upsampling():
    logits, iou, points = decoder_output(20)
    expected = select(logits, iou, points, stability_score_thresh=0.9)
    sizes = []

    def spy(low: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
        sizes.append(len(low))
        return upsample(low, size_hw)

    three = 3 * 4 * SIZE_HW[0] * SIZE_HW[1]
    kwargs = {"size_hw": SIZE_HW, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.9, "chunk_bytes": three + 5}
    assert select_candidates(logits, iou, points, spy, **kwargs) == expected
    assert sizes == [3] * 6 + [2]


def test_only_masks_that_pass_the_predicted_iou_are_upsampled():
    logits, iou, points = decoder_output(20)
    seen = []

    def spy(low: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
        seen.append(low)
        return upsample(low, size_hw)

    select_candidates(logits, iou, points, spy, size_hw=SIZE_HW, pred_iou_thresh=0.7, stability_score_thresh=0.0)
    best = iou.max(dim=1)
    keep = best.values > 0.7
    assert torch.equal(torch.cat(seen), logits[torch.arange(20), best.indices][keep])


def test_low_resolution_stability_scores_the_decoders_own_logits():
    logits, iou, points = decoder_output(30)
    own = calculate_stability_score(logits.flatten(0, 1), 0.0, 1.0)
    masks = select(
        logits, iou, points, masks_per_prompt="all", stability_at="low", stability_score_thresh=0.9, chunk_bytes=1
    )
    assert [mask.stability_score for mask in masks] == own[own >= 0.9].tolist()
    assert [mask.predicted_iou for mask in masks] == iou.flatten()[own >= 0.9].tolist()


def test_half_precision_logits_are_upsampled_in_float32():
    logits, iou, points = decoder_output(6)
    halved = logits.to(torch.bfloat16)
    assert select(halved, iou, points) == select(halved.float(), iou, points)


def test_runs_found_on_a_device_equal_those_found_in_numpy():
    # The device path is plain torch, so the CPU can run it.
    masks = torch.rand(9, 13, 21, generator=torch.Generator().manual_seed(1)) < torch.linspace(0, 1, 9)[:, None, None]
    found = encode_changes(changes_on_device(masks).numpy(), 9, (13, 21))
    assert found == encode(masks.numpy())
    assert encode_logits(masks.float() - 0.5) == found


def test_stability_of_a_mask_with_no_logit_near_zero_is_nan():
    assert stability_scores(torch.full((1, 2, 2), -3.0), 1.0).isnan().tolist() == [True]
    assert stability_scores(torch.zeros(0, 2, 2), 1.0).shape == (0,)


def test_arrays_that_do_not_fit_are_refused():
    logits, iou, points = decoder_output(2)
    with pytest.raises(MaskError, match=r"got \(2, 3, 16, 16\) and \(2, 2\)"):
        select(logits, iou[:, :2], points)
    with pytest.raises(MaskError, match=r"point_coords must be \(2, 2\); got \(1, 2\)"):
        select(logits, iou, points[:1])
