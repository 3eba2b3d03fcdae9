"""Pins effsam2_ray/rle.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from effsam2_ray.errors import MaskError
from effsam2_ray.rle import Rle, areas, boxes, decode, encode, encode_changes, intersection_areas, union

# (0, 0) is background; down the columns: 2 background, 1 object, 1 + 1 object of the next column, 4 background.
HAND_MASK = np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0]], bool)


def peer_counts(mask: np.ndarray) -> bytes:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def random_masks(rng: np.random.Generator, num: int, height: int, width: int) -> np.ndarray:
    """Blocks, noise, empty and full masks, of bool."""
    masks = np.zeros((num, height, width), bool)
    for index, mask in enumerate(masks):
        kind = index % 5
        if kind == 0:
            mask[:] = rng.random((height, width)) < rng.random()
        elif kind == 1:
            mask[:] = True
        elif kind > 2:
            for _ in range(kind):
                y, x = rng.integers(0, height), rng.integers(0, width)
                mask[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] ^= True
    return masks


def test_runs_of_a_mask_worked_by_hand():
    rle = encode(HAND_MASK[None])[0]
    assert rle.size == (3, 3)
    assert rle.runs().tolist() == [2, 3, 4]
    assert rle.counts == b"234"
    assert rle.area == 3
    assert rle.bbox == (0.0, 0.0, 2.0, 3.0)
    assert rle.to_coco() == {"size": [3, 3], "counts": "234"}


def test_first_count_is_zero_when_corner_is_set():
    corner = np.zeros((1, 2, 3), bool)
    corner[0, 0, 0] = True
    assert encode(corner)[0].runs().tolist() == [0, 1, 5]


def test_empty_and_full_masks():
    empty, full = encode(np.stack([np.zeros((2, 3), bool), np.ones((2, 3), bool)]))
    assert empty.runs().tolist() == [6]
    assert (empty.area, empty.bbox) == (0, (0.0, 0.0, 0.0, 0.0))
    assert full.runs().tolist() == [0, 6]
    assert (full.area, full.bbox) == (6, (0.0, 0.0, 3.0, 2.0))


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (9, 1), (2, 2), (7, 13), (64, 8), (33, 127), (200, 301)])
def test_bytes_equal_pycocotools_and_decode_back(size_hw):
    masks = random_masks(np.random.default_rng(size_hw[0]), 40, *size_hw)
    rles = encode(masks)
    assert [rle.counts for rle in rles] == [peer_counts(mask) for mask in masks]
    assert np.array_equal(decode(rles), masks)
    assert areas(rles).tolist() == masks.sum(axis=(1, 2)).tolist()
    for rle, mask, box in zip(rles, masks, boxes(rles), strict=True):
        assert rle.runs().sum() == mask.size
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert box.tolist() == [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]


def test_long_runs_equal_pycocotools():
    mask = np.zeros((3000, 2500), bool)
    mask[2999, 2000] = mask[0, 2400] = True
    rle = encode(mask[None])[0]
    assert rle.counts == peer_counts(mask)
    assert rle.runs().tolist() == [2000 * 3000 + 2999, 1, 399 * 3000, 1, 100 * 3000 - 1]


def test_layout_and_dtype_of_the_input_do_not_matter():
    masks = random_masks(np.random.default_rng(3), 10, 21, 34)
    expected = encode(masks)
    assert encode(masks.astype(np.uint8) * 255) == expected
    assert encode(np.asfortranarray(masks)) == expected
    assert encode(np.repeat(masks, 2, axis=2)[:, :, ::2]) == expected


def test_changes_give_the_same_runs():
    masks = random_masks(np.random.default_rng(4), 12, 11, 17)
    columns = masks.transpose(0, 2, 1).reshape(12, -1).astype(np.int8)
    changes = np.flatnonzero(np.diff(columns, axis=1, prepend=0))
    assert encode_changes(changes, 12, (11, 17)) == encode(masks)


def test_no_masks_are_fine_where_no_size_is_needed():
    assert encode(np.zeros((0, 4, 5), bool)) == []
    assert areas([]).shape == (0,)
    assert boxes([]).shape == (0, 4)
    assert intersection_areas([], encode(HAND_MASK[None])).shape == (0, 1)


def test_encode_refuses_other_arrays():
    with pytest.raises(MaskError, match=r"masks must be \(P, H, W\) bool or uint8; got \(2, 2\) bool"):
        encode(np.zeros((2, 2), bool))
    with pytest.raises(MaskError, match="float64"):
        encode(np.zeros((1, 2, 2)))
    with pytest.raises(MaskError, match="at least one pixel"):
        encode(np.zeros((1, 0, 2), bool))


def test_coco_round_trip_through_json_and_pycocotools():
    mask = random_masks(np.random.default_rng(5), 4, 50, 40)[3]
    coco = json.loads(json.dumps(encode(mask[None])[0].to_coco()))
    assert np.array_equal(coco_mask.decode(coco), mask)
    assert np.array_equal(Rle.from_coco(coco).to_array(), mask)
    assert Rle.from_coco({**coco, "counts": coco["counts"].encode()}) == Rle.from_coco(coco)
    array = Rle.from_coco(coco).to_array()
    assert array.dtype == np.bool_ and array.flags.c_contiguous


def test_swapped_size_is_found_against_the_picture():
    rle = encode(np.ones((1, 2, 3), bool))[0]
    swapped = Rle((3, 2), rle.counts)
    swapped.validate()  # the runs alone cannot tell
    rle.validate((2, 3))
    with pytest.raises(MaskError, match=r"size must be that of the picture, \(2, 3\); got \(3, 2\)"):
        swapped.validate((2, 3))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [3, 4], "counts": "234"}, r"runs must sum to 3 \* 4 = 12 pixels; got 9"),
        ({"size": [3, 3], "counts": "23"}, r"got 5"),
        ({"size": [0, 3], "counts": "0"}, r"size must be \(height, width\)"),
        ({"size": [3, 3], "counts": ""}, "complete runs"),
        ({"size": [3, 3], "counts": "23T"}, "complete runs"),
        ({"size": [3, 3], "counts": "2 4"}, "complete runs"),
        ({"size": [3, 3], "counts": "2é4"}, "not COCO's"),
        ({"size": [3, 3], "counts": "PPPPPPPP1"}, "2\\*\\*32"),
        ({"size": [3, 3], "counts": "2O4"}, "negative"),
        ({"size": [3, 3], "counts": [2, 3, 4]}, "must be compressed"),
        ({"size": [3, 3]}, "needs size"),
        ({"size": [3], "counts": "234"}, "needs size"),
    ],
)
def test_broken_segmentations_are_refused(segmentation, message):
    with pytest.raises(MaskError, match=message):
        Rle.from_coco(segmentation)


def test_area_is_a_plain_int():
    small, large = encode(np.stack([HAND_MASK & False, HAND_MASK]))
    assert type(large.area) is int
    assert small.area - large.area == -3
    assert (areas([small]) - areas([large])).tolist() == [-3]


def test_union_and_intersections_equal_array_operations():
    masks = random_masks(np.random.default_rng(6), 25, 37, 29)
    rles = encode(masks)
    assert union(rles[3:5]) == encode((masks[3] | masks[4])[None])[0]
    noise = np.stack([mask for mask in masks if not mask.all()])
    assert union(encode(noise)) == encode(noise.any(axis=0)[None])[0]
    assert union(rles[:1]) == rles[0]
    flat = masks.reshape(25, -1).astype(np.int64)
    assert np.array_equal(intersection_areas(rles, rles), flat @ flat.T)
    assert np.array_equal(intersection_areas(rles[:3], rles[5:]), flat[:3] @ flat[5:].T)


def test_masks_of_several_sizes_are_refused():
    one, other = encode(np.ones((1, 2, 3), bool)) + encode(np.ones((1, 3, 2), bool))
    for operation in (
        lambda: union([one, other]),
        lambda: intersection_areas([one], [other]),
        lambda: decode([one, other]),
    ):
        with pytest.raises(MaskError, match=r"one \(height, width\)"):
            operation()
    with pytest.raises(MaskError, match="no masks"):
        union([])


def test_areas_of_more_masks_than_pycocotools_takes_at_once() -> None:
    masks = np.zeros((600, 4, 8), bool)
    for index, mask in enumerate(masks):
        mask.reshape(-1)[: index % 33] = True
    assert areas(encode(masks)).tolist() == [index % 33 for index in range(600)]
