"""Pins effsam2_ray/filters.py."""

from __future__ import annotations

import numpy as np
import pytest

from effsam2_ray import filters
from effsam2_ray.filters import filter_masks
from effsam2_ray.masks import Mask
from effsam2_ray.rle import encode


def candidate(array: np.ndarray) -> Mask:
    rle = encode(array[None])[0]
    return Mask(rle, rle.area, rle.bbox, 0.9, 0.95, ((1.0, 2.0),), (7,))


def rectangle(top: int, bottom: int, left: int, right: int, size_hw: tuple[int, int] = (20, 30)) -> np.ndarray:
    array = np.zeros(size_hw, bool)
    array[top:bottom, left:right] = True
    return array


def cleaned(array: np.ndarray, **limits: int) -> np.ndarray:
    (mask,) = filter_masks([candidate(array)], **limits)
    assert (mask.area, mask.bbox) == (mask.segmentation.area, mask.segmentation.bbox)
    return mask.to_array()


def slow_clean(array: np.ndarray, fill_holes_area: int, remove_specks_area: int) -> np.ndarray:
    """sam2's remove_small_regions on the whole picture, by flood fill, with areas up to and including the limit."""

    def regions(pixels: np.ndarray) -> list[np.ndarray]:
        left, found = pixels.copy(), []
        while left.any():
            region = np.zeros_like(pixels)
            region[np.unravel_index(left.argmax(), left.shape)] = True
            size = 0
            while size != region.sum():
                size = region.sum()
                padded = np.pad(region, 1)
                around = [padded[y : y + len(region), x : x + region.shape[1]] for y in range(3) for x in range(3)]
                region = np.any(around, axis=0) & pixels
            found.append(region)
            left &= ~region
        return found

    if fill_holes_area:
        for hole in regions(~array):
            if hole.sum() <= fill_holes_area:
                array = array | hole
    if remove_specks_area:
        parts = regions(array)
        kept = [part for part in parts if part.sum() > remove_specks_area] or [max(parts, key=np.sum)]
        array = np.any(kept, axis=0)
    return array


def test_everything_is_off_by_default():
    masks = [candidate(rectangle(0, 20, 0, 30)), candidate(rectangle(0, 1, 0, 1))]
    assert filter_masks(masks) == masks
    assert filter_masks([]) == []


def test_nothing_is_decoded_while_holes_and_specks_are_off(monkeypatch):
    monkeypatch.setattr(Mask, "to_array", lambda self: pytest.fail("decoded"))
    limits = {"min_area": 2, "max_area": 50, "max_area_frac": 0.5, "drop_border": True}
    assert len(filter_masks([candidate(rectangle(2, 5, 2, 5))], **limits)) == 1


def test_area_limits_are_inclusive():
    masks = [candidate(rectangle(0, 1, 0, width)) for width in (5, 6, 7)]
    assert [mask.area for mask in filter_masks(masks, min_area=6)] == [6, 7]
    assert [mask.area for mask in filter_masks(masks, max_area=6)] == [5, 6]
    # 6 of 600 pixels.
    assert [mask.area for mask in filter_masks(masks, min_area_frac=0.01)] == [6, 7]
    assert [mask.area for mask in filter_masks(masks, max_area_frac=0.01)] == [5, 6]
    assert [mask.area for mask in filter_masks(masks, max_area=0)] == []


@pytest.mark.parametrize(
    ("box", "stays"),
    [
        ((1, 19, 1, 29), True),
        ((0, 5, 5, 9), False),
        ((15, 20, 5, 9), False),
        ((5, 9, 0, 5), False),
        ((5, 9, 25, 30), False),
    ],
)
def test_masks_at_the_border_are_dropped_on_request(box, stays):
    mask = candidate(rectangle(*box))
    assert filter_masks([mask], drop_border=True) == ([mask] if stays else [])
    assert filter_masks([mask]) == [mask]


def test_empty_masks_are_dropped():
    empty = candidate(np.zeros((4, 4), bool))
    assert filter_masks([empty]) == []
    assert filter_masks([empty], fill_holes_area=20, remove_specks_area=3) == []


def test_holes_up_to_the_area_are_filled():
    array = rectangle(2, 18, 2, 28) & ~rectangle(5, 7, 5, 8) & ~rectangle(5, 7, 12, 15) & ~rectangle(10, 11, 5, 12)
    assert np.array_equal(cleaned(array, fill_holes_area=6), array | rectangle(5, 7, 5, 8) | rectangle(5, 7, 12, 15))
    assert np.array_equal(cleaned(array, fill_holes_area=5), array)
    assert np.array_equal(cleaned(array, fill_holes_area=7), rectangle(2, 18, 2, 28))


def test_holes_joined_by_a_corner_are_one_hole():
    array = rectangle(2, 18, 2, 28) & ~rectangle(5, 7, 5, 7) & ~rectangle(7, 9, 7, 9)
    assert np.array_equal(cleaned(array, fill_holes_area=7), array)
    assert np.array_equal(cleaned(array, fill_holes_area=8), rectangle(2, 18, 2, 28))


def test_a_corner_of_the_picture_that_the_mask_cuts_off_is_a_hole():
    array = rectangle(0, 20, 0, 30) & ~rectangle(0, 2, 0, 2)
    assert cleaned(array, fill_holes_area=4).all()
    assert np.array_equal(cleaned(array, fill_holes_area=3), array)


def test_background_outside_the_box_counts_with_its_whole_area():
    # The strip above the mask has 3 * 30 pixels, the one below 2 * 30.
    array = rectangle(3, 18, 0, 30)
    assert np.array_equal(cleaned(array, fill_holes_area=59), array)
    assert np.array_equal(cleaned(array, fill_holes_area=60), rectangle(3, 20, 0, 30))
    assert np.array_equal(cleaned(array, fill_holes_area=90), rectangle(0, 20, 0, 30))


def test_specks_up_to_the_area_are_removed():
    array = rectangle(2, 10, 2, 10) | rectangle(15, 17, 15, 17) | rectangle(17, 18, 17, 18)  # 5, joined by a corner
    assert np.array_equal(cleaned(array, remove_specks_area=4), array)
    assert np.array_equal(cleaned(array, remove_specks_area=5), rectangle(2, 10, 2, 10))


def test_the_largest_part_stays_where_all_are_specks():
    array = rectangle(2, 4, 2, 4) | rectangle(10, 12, 10, 13)
    assert np.array_equal(cleaned(array, remove_specks_area=100), rectangle(10, 12, 10, 13))
    assert filter_masks([candidate(array)], remove_specks_area=100, min_area=7) == []


def test_limits_apply_to_the_cleaned_mask():
    array = rectangle(2, 10, 2, 10) | rectangle(0, 1, 0, 1)
    (mask,) = filter_masks([candidate(array)], remove_specks_area=1, drop_border=True, max_area=64)
    assert (mask.area, mask.bbox) == (64, (2.0, 2.0, 8.0, 8.0))
    assert (mask.predicted_iou, mask.point_coords, mask.members) == (0.9, ((1.0, 2.0),), (7,))


def test_unchanged_masks_are_not_encoded_again(monkeypatch):
    mask = candidate(rectangle(2, 18, 2, 28))
    monkeypatch.setattr(filters, "encode", lambda masks: pytest.fail("encoded"))
    assert filter_masks([mask], fill_holes_area=5, remove_specks_area=5) == [mask]


@pytest.mark.parametrize("seed", range(30))
def test_cleaning_equals_a_flood_fill_of_the_whole_picture(seed):
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(3, 24)), int(rng.integers(3, 24))
    array = np.zeros((height, width), bool)
    y, x = int(rng.integers(0, height)), int(rng.integers(0, width))
    array[y : y + int(rng.integers(1, height + 1)), x : x + int(rng.integers(1, width + 1))] = True
    array &= rng.random((height, width)) < rng.choice([0.4, 0.7, 0.9])
    array[y, x] = True
    for holes, specks in ((0, 3), (3, 0), (1, 1), (8, 5), (40, 2), (height * width, 1)):
        found = cleaned(array, fill_holes_area=holes, remove_specks_area=specks)
        assert np.array_equal(found, slow_clean(array, holes, specks)), (holes, specks)
