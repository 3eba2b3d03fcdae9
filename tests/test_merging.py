"""Pins effsam2_ray/merging.py."""

from __future__ import annotations

import numpy as np
import pytest

from effsam2_ray.errors import MaskError
from effsam2_ray.masks import Mask
from effsam2_ray.merging import combine, keep_all, merge_masks
from effsam2_ray.rle import encode

GUARDS = (0.5, 1.0)


def candidate(array: np.ndarray, predicted_iou: float = 0.9, stability: float = 0.95, point=(0.0, 0.0)) -> Mask:
    rle = encode(array[None])[0]
    return Mask(rle, rle.area, rle.bbox, predicted_iou, stability, (point,), (0,))


def rectangle(top: int, bottom: int, left: int, right: int, size_hw: tuple[int, int] = (20, 30)) -> np.ndarray:
    array = np.zeros(size_hw, bool)
    array[top:bottom, left:right] = True
    return array


def groups_of(arrays: list[np.ndarray], *, thresh: float = 0.8, guard: float = 0.5) -> list[tuple[int, ...]]:
    result = merge_masks([candidate(array) for array in arrays], thresh=thresh, max_area_frac=guard)
    for mask in result.masks:
        assert np.array_equal(mask.to_array(), np.any([arrays[i] for i in mask.members], axis=0))
        assert all(result.masks[result.merged_into[i]] is mask for i in mask.members)
    return sorted(mask.members for mask in result.masks)


def slow_groups(arrays: list[np.ndarray], thresh: float, guard: float) -> list[tuple[int, ...]]:
    """The rule on bool arrays, by repeated joining of sets."""
    num_pixels = arrays[0].size
    groups = [{index} for index in range(len(arrays))]
    for i in range(len(arrays)):
        for j in range(i):
            smaller, larger = sorted((int(arrays[i].sum()), int(arrays[j].sum())))
            if smaller == 0 or larger > guard * num_pixels:
                continue
            if int((arrays[i] & arrays[j]).sum()) / smaller > thresh:
                touched = [group for group in groups if i in group or j in group]
                groups = [group for group in groups if group not in touched] + [set().union(*touched)]
    return sorted(tuple(sorted(group)) for group in groups)


@pytest.mark.parametrize("guard", GUARDS)
def test_nested_masks_merge_into_the_larger(guard):
    outer, inner = rectangle(2, 12, 2, 12), rectangle(4, 8, 4, 8)
    assert groups_of([inner, outer], guard=guard) == [(0, 1)]
    result = merge_masks([candidate(inner), candidate(outer)], max_area_frac=guard)
    assert np.array_equal(result.masks[0].to_array(), outer)
    assert (result.masks[0].area, result.masks[0].bbox) == (100, (2.0, 2.0, 10.0, 10.0))


@pytest.mark.parametrize("guard", GUARDS)
def test_joins_chain(guard):
    # Neighbours share 9 of 10 columns, the first and the last none.
    chain = [rectangle(5, 10, left, left + 10) for left in range(0, 12)]
    assert groups_of(chain, guard=guard) == [tuple(range(12))]
    assert groups_of([chain[0], chain[11]], guard=guard) == [(0,), (1,)]


@pytest.mark.parametrize("guard", GUARDS)
def test_disjoint_and_touching_masks_stay_apart(guard):
    assert groups_of([rectangle(0, 5, 0, 5), rectangle(10, 15, 10, 15)], guard=guard) == [(0,), (1,)]
    assert groups_of([rectangle(0, 5, 0, 5), rectangle(0, 5, 5, 10)], guard=guard) == [(0,), (1,)]


@pytest.mark.parametrize("guard", GUARDS)
def test_boxes_that_meet_without_shared_pixels_do_not_merge(guard):
    ring = rectangle(2, 14, 2, 14) & ~rectangle(4, 12, 4, 12)
    assert groups_of([ring, rectangle(5, 10, 5, 10)], guard=guard) == [(0,), (1,)]


@pytest.mark.parametrize("guard", GUARDS)
def test_a_thin_bridge_over_two_masks_joins_neither_unless_it_lies_inside_them(guard):
    left, right = rectangle(5, 15, 0, 10), rectangle(5, 15, 16, 26)
    wide_bridge = rectangle(9, 11, 4, 22)  # 12 of its 18 columns lie inside one mask or the other, 6 in each
    assert groups_of([left, right, wide_bridge], guard=guard) == [(0,), (1,), (2,)]
    bridge_mostly_left = rectangle(9, 11, 0, 11)  # 10 of 11 columns inside the left one
    assert groups_of([left, right, bridge_mostly_left], guard=guard) == [(0, 2), (1,)]
    # At a lower threshold one bridge is enough to make one mask of both.
    assert groups_of([left, right, wide_bridge], thresh=0.3, guard=guard) == [(0, 1, 2)]


def test_a_whole_picture_mask_joins_everything_only_without_the_guard():
    whole = rectangle(0, 20, 0, 30)
    parts = [rectangle(0, 5, 0, 5), rectangle(10, 15, 10, 15), rectangle(2, 6, 20, 29)]
    assert groups_of([*parts, whole], guard=0.5) == [(0,), (1,), (2,), (3,)]
    assert groups_of([*parts, whole], guard=1.0) == [(0, 1, 2, 3)]
    assert merge_masks([candidate(whole)] * 2, max_area_frac=0.5).merged_into == (0, 1)


def test_a_background_with_filled_holes_joins_the_objects_only_without_the_guard():
    objects = [rectangle(2, 8, 2, 8), rectangle(10, 16, 14, 24)]
    background = ~(objects[0] | objects[1])
    filled = np.ones_like(background)
    assert groups_of([*objects, background], guard=1.0) == [(0,), (1,), (2,)]  # holes are not shared
    assert groups_of([*objects, filled], guard=1.0) == [(0, 1, 2)]
    assert groups_of([*objects, background], guard=0.5) == [(0,), (1,), (2,)]
    assert groups_of([*objects, filled], guard=0.5) == [(0,), (1,), (2,)]


def test_threshold_and_guard_are_exclusive():
    # Five columns, four of them shared: exactly 0.8.
    at, above = rectangle(0, 5, 1, 6), rectangle(0, 5, 0, 5)
    assert groups_of([at, above], thresh=0.8) == [(0,), (1,)]
    assert groups_of([at, above], thresh=0.79) == [(0, 1)]
    half, inside = rectangle(0, 10, 0, 30), rectangle(0, 5, 0, 5)  # exactly half of the picture still merges
    assert groups_of([half, inside], guard=0.5) == [(0, 1)]
    assert groups_of([half, inside], guard=0.499) == [(0,), (1,)]
    assert groups_of([half, half], thresh=1.0) == [(0,), (1,)]


def test_scores_come_from_the_best_member_and_points_from_all():
    outer, inner = rectangle(2, 12, 2, 12), rectangle(4, 8, 4, 8)
    result = merge_masks(
        [
            candidate(inner, 0.7, 0.99, (9.0, 1.0)),
            candidate(outer, 0.8, 0.96, (5.0, 7.0)),
            candidate(outer, 0.8, 0.97, (5.0, 7.0)),
        ]
    )
    (mask,) = result.masks
    assert (mask.predicted_iou, mask.stability_score) == (0.8, 0.97)
    assert mask.point_coords == ((5.0, 7.0), (9.0, 1.0))
    assert mask.members == (0, 1, 2)
    assert result.largest_share == 1.0


def test_masks_come_largest_first_and_the_share_counts_candidates():
    small, large = rectangle(0, 2, 0, 2), rectangle(5, 15, 5, 15)
    result = merge_masks([candidate(small), candidate(large), candidate(large), candidate(rectangle(0, 2, 20, 22))])
    assert [mask.members for mask in result.masks][0] == (1, 2)
    assert [mask.area for mask in result.masks] == [100, 4, 4]
    assert result.largest_share == 0.5
    assert merge_masks([]) == keep_all([])
    assert (merge_masks([]).masks, merge_masks([]).largest_share) == ((), 0.0)


def random_arrays(rng: np.random.Generator) -> list[np.ndarray]:
    arrays = []
    for _ in range(int(rng.integers(1, 25))):
        array = np.zeros((24, 31), bool)
        for _ in range(int(rng.integers(0, 3))):
            top, left = rng.integers(0, 24), rng.integers(0, 31)
            array[top : top + rng.integers(1, 14), left : left + rng.integers(1, 14)] ^= True
        if rng.random() < 0.1:
            array = ~array
        if arrays and rng.random() < 0.3:
            array = arrays[-1] ^ (rng.random(array.shape) < 0.02)
        arrays.append(array)
    return arrays


@pytest.mark.parametrize("seed", range(40))
def test_groups_equal_a_slow_reference(seed):
    rng = np.random.default_rng(seed)
    arrays = random_arrays(rng)
    for guard in GUARDS:
        for thresh in (0.0, 0.5, 0.8):
            assert groups_of(arrays, thresh=thresh, guard=guard) == slow_groups(arrays, thresh, guard)


@pytest.mark.parametrize("seed", range(15))
def test_the_order_of_the_candidates_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    masks = [
        candidate(array, float(rng.random()), float(rng.random()), (float(index), 0.0))
        for index, array in enumerate(random_arrays(rng))
    ]
    result = merge_masks(masks, thresh=0.5)
    for _ in range(4):
        order = rng.permutation(len(masks))
        permuted = merge_masks([masks[i] for i in order], thresh=0.5)
        back = [tuple(sorted(int(order[i]) for i in mask.members)) for mask in permuted.masks]
        assert back == [mask.members for mask in result.masks]
        for mine, other in zip(result.masks, permuted.masks, strict=True):
            assert {**mine.to_dict(), "members": 0} == {**other.to_dict(), "members": 0}
        assert [permuted.merged_into[list(order).index(i)] for i in range(len(masks))] == list(result.merged_into)
        assert permuted.largest_share == result.largest_share


def test_keep_all_keeps_every_candidate():
    masks = [candidate(rectangle(0, 2, 0, 2)), candidate(rectangle(0, 9, 0, 9))]
    result = keep_all(masks)
    assert [mask.members for mask in result.masks] == [(1,), (0,)]
    assert result.merged_into == (1, 0)


def test_combine_drops_what_is_in_no_group():
    masks = [candidate(rectangle(0, 2, 0, size)) for size in (2, 3, 4)]
    result = combine(masks, [[2, 0]])
    assert [mask.members for mask in result.masks] == [(0, 2)]
    assert result.merged_into == (0, -1, 0)
    assert result.largest_share == pytest.approx(2 / 3)


def test_candidates_of_several_pictures_are_refused():
    with pytest.raises(MaskError, match=r"one \(height, width\)"):
        merge_masks([candidate(np.ones((2, 3), bool)), candidate(np.ones((3, 2), bool))], max_area_frac=1.0)
