"""Pins effsam2_ray/nms.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sam2.utils.amg import batched_mask_to_box
from torchvision.ops.boxes import batched_nms

from effsam2_ray.masks import Mask
from effsam2_ray.nms import box_nms
from effsam2_ray.rle import encode


def candidate(array: np.ndarray, predicted_iou: float) -> Mask:
    rle = encode(array[None])[0]
    return Mask(rle, rle.area, rle.bbox, predicted_iou, 0.95, ((0.0, 0.0),), (0,))


def rectangle(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    array = np.zeros((40, 50), bool)
    array[top:bottom, left:right] = True
    return array


def kept(masks: list[Mask], iou_thresh: float = 0.7) -> list[int]:
    return sorted(mask.members[0] for mask in box_nms(masks, iou_thresh=iou_thresh).masks)


def test_the_better_scored_of_two_near_duplicates_stays():
    first, second = rectangle(0, 20, 0, 20), rectangle(0, 20, 1, 21)
    result = box_nms([candidate(first, 0.8), candidate(second, 0.9), candidate(rectangle(30, 35, 30, 35), 0.1)])
    assert [mask.members for mask in result.masks] == [(1,), (2,)]
    assert result.merged_into == (-1, 0, 1)
    assert np.array_equal(result.masks[0].to_array(), second)
    assert result.masks[0].predicted_iou == 0.9


def test_a_suppressed_candidate_suppresses_nothing():
    # Each overlaps its neighbour by 8 / 12 columns, the outer two by 6 / 14 (of boxes one pixel short: 7 / 11, 5 / 13).
    masks = [candidate(rectangle(0, 20, left, left + 10), score) for left, score in ((0, 0.9), (2, 0.8), (4, 0.7))]
    assert kept(masks, 0.6) == [0, 2]


def test_boxes_are_one_pixel_short_as_in_sam2():
    # Four columns of eight shared: 4 / 8 as whole pixels, 3 / 7 with far edges on the last pixel.
    masks = [candidate(rectangle(0, 9, 0, 6), 0.9), candidate(rectangle(0, 9, 2, 8), 0.8)]
    assert kept(masks, 0.45) == [0, 1]
    assert kept(masks, 3 / 7 - 1e-6) == [0]


def test_one_pixel_lines_overlap_nothing():
    line = rectangle(3, 4, 0, 20)
    assert kept([candidate(line, 0.9), candidate(line, 0.8)], 0.0) == [0, 1]


def test_no_candidates_and_one():
    assert box_nms([]).masks == ()
    assert kept([candidate(rectangle(0, 3, 0, 3), 0.5)]) == [0]


def random_masks(rng: np.random.Generator, num: int, *, large: bool) -> list[np.ndarray]:
    height, width = (3000, 5000) if large else (40, 50)
    arrays = []
    for _ in range(num):
        array = np.zeros((height, width), bool)
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        array[top : top + rng.integers(1, height // 2), left : left + rng.integers(1, width // 2)] = True
        arrays.append(array)
    return arrays


@pytest.mark.parametrize("seed", range(25))
def test_decisions_equal_torchvision_on_sam2s_boxes(seed):
    rng = np.random.default_rng(seed)
    arrays = random_masks(rng, 60, large=False)
    # Rounded to one digit, so that many scores are equal.
    scores = rng.random(60).round(1 if seed % 2 else 6).astype(np.float32)
    boxes = batched_mask_to_box(torch.from_numpy(np.stack(arrays))).float()
    masks = [candidate(array, float(score)) for array, score in zip(arrays, scores, strict=True)]
    # 0.5 and 0.25 are met exactly by some pairs, 0.7 is no float32.
    for thresh in (0.0, 0.25, 0.5, 0.7, 1.0):
        expected = batched_nms(boxes, torch.from_numpy(scores), torch.zeros(60), iou_threshold=thresh)
        assert kept(masks, thresh) == sorted(expected.tolist())


def test_decisions_equal_torchvision_at_an_iou_of_exactly_the_threshold():
    # 7 of 10 columns: in float32 7 / 10 is a little under the double 0.7, 6 / 10 a little over 0.6.
    for shared, thresh in ((7, 0.7), (6, 0.6), (5, 0.5)):
        arrays = [rectangle(0, 2, 0, 11), rectangle(0, 2, 0, shared + 1)]
        boxes = batched_mask_to_box(torch.from_numpy(np.stack(arrays))).float()
        scores = torch.tensor([0.9, 0.8])
        expected = batched_nms(boxes, scores, torch.zeros(2), iou_threshold=thresh)
        masks = [candidate(array, score) for array, score in zip(arrays, scores.tolist(), strict=True)]
        assert kept(masks, thresh) == sorted(expected.tolist())


def test_decisions_equal_torchvision_where_areas_exceed_float32_integers():
    rng = np.random.default_rng(0)
    arrays = random_masks(rng, 8, large=True) + [np.ones((3000, 5000), bool)]
    scores = rng.random(9).astype(np.float32)
    boxes = torch.cat([batched_mask_to_box(torch.from_numpy(array)[None]) for array in arrays]).float()
    masks = [candidate(array, float(score)) for array, score in zip(arrays, scores, strict=True)]
    for thresh in (0.2, 0.5):
        expected = batched_nms(boxes, torch.from_numpy(scores), torch.zeros(9), iou_threshold=thresh)
        assert kept(masks, thresh) == sorted(expected.tolist())
