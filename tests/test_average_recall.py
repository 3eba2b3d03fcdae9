"""Class-agnostic average recall: by hand, and against pycocotools' COCOeval."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from effsam2_ray.datasets import open_dataset
from effsam2_ray.errors import MaskError
from effsam2_ray.metrics import (
    AR_NAMES,
    IOU_THRESHOLDS,
    MAX_DETS,
    RecallCounts,
    average_recall,
    image_recall,
    recall_counts,
)
from effsam2_ray.rle import Rle, encode


def strip(start: int, stop: int) -> np.ndarray:
    """Return a mask of one row of 100 pixels, set in [start, stop)."""
    mask = np.zeros((1, 100), bool)
    mask[0, start:stop] = True
    return mask


def cocoeval_recall(pictures: list[tuple[list[dict], list[float], list[dict[str, Any]]]]) -> np.ndarray:
    """Return COCOeval's recall, (IoU thresholds, area ranges, max dets), of (predicted, scores, annotations)."""
    truth, found = COCO(), []
    images, annotations = [], []
    for number, (predicted, scores, known) in enumerate(pictures, start=1):
        images.append({"id": number, "height": 1, "width": 1})
        for annotation in known:
            annotations.append({**annotation, "image_id": number, "id": len(annotations) + 1, "category_id": 1})
        for rle, score in zip(predicted, scores, strict=True):
            found.append({"image_id": number, "category_id": 1, "segmentation": rle, "score": score})
    truth.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(MAX_DETS)
        evaluation.evaluate()
        evaluation.accumulate()
    recall: np.ndarray = evaluation.eval["recall"][:, 0]
    return recall


def assert_equal_to_cocoeval(counts: RecallCounts, expected: np.ndarray) -> None:
    for row, num_objects in enumerate(counts.num_objects):
        if num_objects == 0:
            assert (expected[:, row] == -1).all()
        else:
            np.testing.assert_allclose(counts.matched[row] / num_objects, expected[:, row].T, rtol=0, atol=1e-12)


def test_each_prediction_takes_one_object_and_recall_is_averaged_over_thresholds():
    truth = np.stack([strip(0, 10), strip(50, 60)])
    # The first object is met exactly; 8 of the second's 10 pixels; one stray with the highest score.
    predicted = np.stack([strip(0, 10), strip(50, 58), strip(80, 90)])
    counts = recall_counts(predicted, [0.5, 0.7, 0.9], truth)
    assert counts.num_objects.tolist() == [2, 2, 0, 0]
    figures = average_recall(counts)
    assert figures["ar_1"] == 0.0  # the stray alone
    # IoU 0.8 reaches 0.50 to 0.80: seven of ten thresholds.
    assert figures["ar_10"] == figures["ar_1000"] == figures["ar_small"] == pytest.approx((10 + 7) / 20)
    assert figures["ar_medium"] is None


def test_one_prediction_cannot_match_two_equal_objects():
    truth = np.stack([strip(0, 10), strip(0, 10)])
    assert average_recall(recall_counts(strip(0, 10)[None], [1.0], truth))["ar_1000"] == 0.5


def test_of_objects_met_equally_well_the_last_is_taken_as_in_cocoeval():
    truth = np.stack([strip(0, 10), strip(2, 12)])
    predicted = np.stack([strip(1, 11), strip(0, 9)])  # 9/11 of both; 0.9 of the first, 7/12 of the second
    counts = recall_counts(predicted, [0.9, 0.8], truth)
    assert counts.matched[0, 3].tolist() == [2] * 7 + [1, 1, 0]
    known = [{"segmentation": rle.to_coco(), "area": float(rle.area), "iscrowd": 0} for rle in encode(truth)]
    found = [rle.to_coco() for rle in encode(predicted)]
    assert_equal_to_cocoeval(counts, cocoeval_recall([(found, [0.9, 0.8], known)]))


def test_an_object_of_exactly_32_by_32_pixels_counts_as_small_and_medium():
    mask = np.zeros((1, 40, 40), bool)
    mask[0, :32, :32] = True
    assert recall_counts(mask, [1.0], mask).num_objects.tolist() == [1, 1, 1, 0]
    assert recall_counts(mask, [1.0], mask, areas=[96.0**2]).num_objects.tolist() == [1, 0, 1, 1]


def test_only_the_highest_scores_count_towards_each_limit():
    truth = strip(0, 10)[None]
    predicted = np.stack([strip(50 + i, 60 + i) for i in range(10)] + [strip(0, 10)])
    figures = average_recall(recall_counts(predicted, [0.9] * 10 + [0.1], truth))
    assert [figures[name] for name in AR_NAMES[:4]] == [0.0, 0.0, 1.0, 1.0]


def test_no_prediction_and_no_object():
    nothing = np.zeros((0, 1, 100), bool)
    assert average_recall(recall_counts(nothing, [], strip(0, 10)[None]))["ar_1000"] == 0.0
    empty = recall_counts(strip(0, 10)[None], [1.0], nothing)
    assert average_recall(empty) == dict.fromkeys(AR_NAMES)
    assert image_recall(empty, "ar_10")[1] == 0 and np.isnan(image_recall(empty, "ar_10")[0])


def test_a_prediction_without_an_object_changes_nothing_but_ranks():
    truth = strip(0, 10)[None]
    alone = recall_counts(strip(0, 10)[None], [0.9], truth)
    cluttered = recall_counts(np.stack([strip(0, 10), strip(30, 90)]), [0.9, 0.8], truth)
    assert np.array_equal(alone.matched, cluttered.matched)


def random_picture(rng: np.random.Generator) -> tuple[list[dict], list[float], list[dict[str, Any]]]:
    size = (120, 130)

    def box(top: int, left: int, height: int, width: int) -> np.ndarray:
        mask = np.zeros(size, bool)
        mask[top : top + height, left : left + width] = True
        return mask

    known, masks = [], []
    for _ in range(rng.integers(0, 7)):
        corner, extent = rng.integers(0, 60, 2), rng.integers(8, 110, 2)
        masks.append((corner, extent))
        rle = encode(box(*corner, *extent)[None])[0]
        known.append({"segmentation": rle.to_coco(), "area": float(rle.area), "iscrowd": int(rng.random() < 0.15)})
    predicted, scores = [], []
    for _ in range(rng.integers(0, 25)):
        corner, extent = masks[rng.integers(len(masks))] if masks else (np.array([3, 4]), np.array([20, 9]))
        shift, grow = rng.integers(-4, 5, 2), rng.integers(-3, 4, 2)
        mask = box(*np.maximum(corner + shift, 0), *(extent + grow))
        predicted.append(encode(mask[None])[0].to_coco())
        scores.append(float(rng.integers(0, 6) / 5))  # many ties
    return predicted, scores, known


def test_counts_summed_over_random_pictures_equal_cocoeval():
    rng = np.random.default_rng(0)
    pictures = [random_picture(rng) for _ in range(40)]
    pictures[7] = ([], [], pictures[7][2])
    total = RecallCounts.zero()
    for predicted, scores, known in pictures:
        objects = [item for item in known if not item["iscrowd"]]
        part = recall_counts(
            predicted, scores, [item["segmentation"] for item in objects], [item["area"] for item in objects]
        )
        total += RecallCounts.from_lists(*part.to_lists())
    assert 0.05 < total.matched[0, 3].mean() / total.num_objects[0] < 0.95
    assert_equal_to_cocoeval(total, cocoeval_recall(pictures))


def test_more_predictions_than_counted_equal_cocoeval():
    rng = np.random.default_rng(1)
    truth = rng.random((3, 12, 12)) < 0.5
    noise = np.concatenate((np.linspace(0.25, 0.06, 1000), np.zeros(100)))  # the perfect ones come beyond a thousand
    predicted = truth[rng.integers(0, 3, 1100)] ^ (rng.random((1100, 12, 12)) < noise[:, None, None])
    scores = (noise + 1).tolist()
    rles = [rle.to_coco() for rle in encode(predicted)]
    known = [{"segmentation": rle.to_coco(), "area": float(rle.area), "iscrowd": 0} for rle in encode(truth)]
    counts = recall_counts(rles, scores, truth)
    assert_equal_to_cocoeval(counts, cocoeval_recall([(rles, scores, known)]))
    assert 0 < counts.matched[0, 1].sum() < counts.matched[0, 3].sum() < 30


def test_equals_cocoeval_on_real_annotations(shared_data: Path):
    """Predictions are the objects, shifted by a few pixels; crowd regions are left to COCOeval."""
    rng = np.random.default_rng(2)
    truth = open_dataset(str(shared_data / "coco_val2017"))
    pictures, total = [], RecallCounts.zero()
    for uri in truth.image_uris[:40]:
        image = truth.objects(uri)
        objects, predicted, scores = image.annotators[0], [], []
        known = [
            {"segmentation": mask.to_coco(), "area": area, "iscrowd": 0}
            for mask, area in zip(objects.masks, objects.areas, strict=True)
        ]
        known += [{"segmentation": mask.to_coco(), "area": float(mask.area), "iscrowd": 1} for mask in image.crowds]
        for mask in (*objects.masks, *image.crowds):
            moved = np.roll(mask.to_array(), rng.integers(-3, 4, 2), axis=(0, 1))
            predicted.append(encode(moved[None])[0].to_coco())
            scores.append(float(rng.random()))
        pictures.append((predicted, scores, known))
        total += recall_counts(predicted, scores, objects.masks, objects.areas)
    expected = cocoeval_recall(pictures)
    assert_equal_to_cocoeval(total, expected)
    assert average_recall(total)["ar_1000"] == pytest.approx(expected[:, 0, 3].mean(), abs=1e-12)


def test_the_mean_of_pictures_weighted_by_objects_is_the_figure_of_all():
    rng = np.random.default_rng(3)
    parts = []
    for _ in range(10):
        predicted, scores, known = random_picture(rng)
        parts.append(recall_counts(predicted, scores, [item["segmentation"] for item in known]))
    total = sum(parts, RecallCounts.zero())
    for name in AR_NAMES:
        values, weights = zip(*(image_recall(part, name) for part in parts), strict=True)
        kept = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
        mean = sum(value * weight for value, weight in kept) / sum(weights)
        assert average_recall(total)[name] == pytest.approx(mean)


def test_thresholds_are_cocoevals_own():
    assert np.array_equal(IOU_THRESHOLDS, COCOeval(iouType="segm").params.iouThrs)


def test_masks_may_be_rles_of_any_form():
    masks = np.stack([strip(0, 10), strip(20, 40)])
    rles = encode(masks)
    with_bytes = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0)))
    forms = (masks, rles, [rle.to_coco() for rle in rles], with_bytes)
    assert isinstance(rles[0], Rle)
    for form in forms:
        assert recall_counts(form, [0.2, 0.1], masks).matched[0, 3].tolist() == [2] * 10


def test_lengths_must_agree():
    masks = strip(0, 10)[None]
    with pytest.raises(MaskError, match="one score a mask; got 2 for 1 masks"):
        recall_counts(masks, [0.1, 0.2], masks)
    with pytest.raises(MaskError, match="one area an object; got 0 for 1 objects"):
        recall_counts(masks, [0.1], masks, [])
    with pytest.raises(MaskError, match="must have one size"):
        recall_counts(masks, [0.1], masks[:, :, :50])
