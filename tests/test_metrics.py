"""Both IoU definitions, on pictures small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco

from effsam2_ray.errors import MaskError
from effsam2_ray.metrics import best_iou, iou_matrix, label_map_iou, object_masks, paint_label_map


def boxes(*corners: tuple[int, int, int, int], size: tuple[int, int] = (4, 6)) -> np.ndarray:
    """Return masks of (top, left, bottom, right) boxes, (M, H, W) bool."""
    masks = np.zeros((len(corners), *size), bool)
    for mask, (top, left, bottom, right) in zip(masks, corners, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def test_best_iou_is_the_mean_over_objects_of_each_ones_best_mask():
    truth = boxes((0, 0, 2, 2), (2, 2, 4, 6))  # 4 and 8 pixels
    predicted = boxes((0, 0, 2, 3), (2, 2, 4, 4), (0, 5, 1, 6))  # 4/6 of the first, 4/8 of the second, nothing
    assert best_iou(predicted, truth) == pytest.approx((4 / 6 + 4 / 8) / 2)


def test_label_map_iou_takes_pixels_away_from_the_larger_of_nested_masks():
    truth = boxes((0, 0, 2, 3))
    predicted = boxes((0, 0, 2, 3), (0, 0, 2, 1))
    assert best_iou(predicted, truth) == 1.0
    assert label_map_iou(predicted, truth) == pytest.approx(4 / 6)


def test_a_stray_mask_inside_lowers_label_map_iou_only():
    truth = boxes((0, 0, 4, 4))
    stray = boxes((0, 0, 4, 4), (1, 1, 3, 3))
    assert best_iou(stray, truth) == 1.0
    assert label_map_iou(stray, truth) == pytest.approx(12 / 16)


def test_both_are_one_for_disjoint_perfect_masks_in_any_order():
    truth = boxes((0, 0, 2, 2), (2, 2, 4, 6), (0, 4, 1, 6))
    assert best_iou(truth[::-1], truth) == label_map_iou(truth[::-1], truth) == 1.0


def test_unpainted_pixels_are_no_segment():
    truth = boxes((0, 0, 4, 4))
    assert label_map_iou(boxes((0, 5, 1, 6)), truth) == 0.0


def test_empty_masks_overlap_nothing_not_even_each_other():
    masks = np.zeros((2, 4, 6), bool)
    masks[1, :2] = True
    assert iou_matrix(masks, masks).tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert iou_matrix(masks, masks[:0]).shape == (2, 0)


def test_no_prediction_scores_zero():
    truth = boxes((0, 0, 2, 2))
    assert best_iou([], truth) == label_map_iou([], truth) == 0.0
    assert best_iou(np.zeros((0, 4, 6), bool), truth) == 0.0


def test_rles_and_arrays_score_alike():
    rng = np.random.default_rng(0)
    truth, predicted = rng.random((3, 9, 7)) < 0.4, rng.random((5, 9, 7)) < 0.4
    rles = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in predicted]
    assert best_iou(rles, truth) == best_iou(predicted, truth)
    assert label_map_iou(rles, truth) == label_map_iou(predicted, truth)


def test_both_equal_a_plain_loop_on_random_masks():
    rng = np.random.default_rng(1)
    for _ in range(10):
        truth, predicted = rng.random((4, 8, 8)) < 0.3, rng.random((6, 8, 8)) < rng.random((6, 1, 1))
        segments = np.zeros((8, 8), int)
        for index in sorted(range(6), key=lambda i: (-predicted[i].sum(), i)):
            segments[predicted[index]] = index + 1
        remains = [segments == index + 1 for index in range(6)]
        for score, candidates in ((best_iou, predicted), (label_map_iou, remains)):
            expected = np.mean([max((c & t).sum() / (c | t).sum() for c in candidates) for t in truth])
            assert score(predicted, truth) == pytest.approx(expected)


def test_of_equal_masks_the_later_keeps_its_number():
    masks = boxes((0, 0, 2, 2), (0, 0, 2, 2))
    assert paint_label_map(masks, (4, 6))[0, 0] == 2
    assert paint_label_map(masks, (4, 6))[3, 5] == 0


def test_more_than_255_masks_are_painted():
    masks = np.repeat(boxes((0, 0, 2, 2)), 300, axis=0)
    assert paint_label_map(masks, (4, 6))[0, 0] == 300
    assert label_map_iou(masks, masks[:1]) == best_iou(masks, masks[:1]) == 1.0


def test_object_masks_drop_background_and_small_objects():
    label_map = np.array([[0, 0, 1], [2, 2, 2], [2, 5, 5]])
    assert object_masks(label_map).sum(axis=(1, 2)).tolist() == [1, 4, 2]
    assert object_masks(label_map, 2 / 9).sum(axis=(1, 2)).tolist() == [4, 2]


def test_wrong_masks_are_refused():
    truth = boxes((0, 0, 2, 2))
    with pytest.raises(MaskError, match="at least one known object"):
        best_iou(truth, np.zeros((0, 4, 6), bool))
    with pytest.raises(MaskError, match=r"one size; got \[\(4, 6\), \(6, 4\)\]"):
        label_map_iou(truth, boxes((0, 0, 2, 2), size=(6, 4)))
    with pytest.raises(MaskError, match=r"\(M, H, W\) bool; got shape \(1, 4, 6\), float64"):
        best_iou(truth.astype(float), truth)
