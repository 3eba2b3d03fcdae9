from __future__ import annotations

import numpy as np
import pytest
from attention_maps import blob_distances
from hdbscan._hdbscan_linkage import mst_linkage_core
from hdbscan._hdbscan_reachability import mutual_reachability

from effsam2_ray.spanning_tree import (
    core_distances,
    flat_tree,
    merge_ties_at_once,
    minimum_spanning_tree,
    spanning_tree,
)

LINE = np.abs(np.subtract.outer([0, 1, 3, 7], [0, 1, 3, 7])).astype(np.float32)


def test_core_distance_does_not_count_the_point_itself():
    assert core_distances(LINE, 1).tolist() == [1, 1, 2, 4]
    assert core_distances(LINE, 2).tolist() == [3, 2, 3, 6]


def test_core_distance_is_the_farthest_neighbour_where_there_are_too_few():
    assert core_distances(LINE, 3).tolist() == core_distances(LINE, 99).tolist() == [7, 6, 4, 7]
    assert core_distances(np.zeros((1, 1), np.float32), 2).tolist() == [0]


@pytest.mark.parametrize("grid_hw", [(16, 16), (9, 13), (8, 8)])  # 64 divides the first and the last
@pytest.mark.parametrize("levels", [None, 16])
@pytest.mark.parametrize("min_samples", [1, 2, 5, 40, 70])
def test_core_distances_equal_a_full_sort(grid_hw, levels, min_samples):
    distances = blob_distances(grid_hw, 8, seed=1, levels=levels)
    rank = min(min_samples, len(distances) - 1)
    core = core_distances(distances, min_samples)
    assert core.dtype == np.float32
    assert np.array_equal(core, np.sort(distances, axis=1)[:, rank])


def test_line_gives_its_gaps():
    edges = spanning_tree(LINE, 1)
    assert edges.dtype == np.float64
    assert edges.tolist() == [[0, 1, 1], [1, 2, 2], [2, 3, 4]]


def test_core_distances_lengthen_short_edges():
    assert spanning_tree(LINE, 2)[:, 2].tolist() == [3, 3, 6]


@pytest.mark.parametrize("grid_hw", [(2, 1), (5, 3), (16, 16), (24, 31)])
@pytest.mark.parametrize("levels", [None, 8, 256])
@pytest.mark.parametrize("min_samples", [1, 2, 5])
def test_edges_and_their_order_are_those_of_hdbscan(grid_hw, levels, min_samples):
    distances = blob_distances(grid_hw, 9, seed=2, levels=levels)
    prim = mst_linkage_core(mutual_reachability(distances.astype(np.float64), min_samples))
    expected = prim[np.argsort(prim.T[2])]
    before = distances.copy()
    assert np.array_equal(spanning_tree(distances, min_samples), expected)
    assert np.array_equal(distances, before)


def test_float64_distances_are_not_rounded():
    distances = LINE.astype(np.float64) + np.where(np.eye(4), 0, 1e-12)
    assert np.array_equal(spanning_tree(distances, 1)[:, 2], np.array([1, 2, 4]) + 1e-12)


def test_one_point_has_a_tree_without_edges():
    assert spanning_tree(np.zeros((1, 1), np.float32), 2).shape == (0, 3)
    assert flat_tree(1).shape == (0, 3)


def test_distances_below_the_noise_floor_give_the_flat_tree():
    tiny = LINE * np.float32(1e-6)
    assert np.array_equal(spanning_tree(tiny, 1, noise_floor=1e-5), [[0, 1, 0], [0, 2, 0], [0, 3, 0]])
    assert np.array_equal(spanning_tree(tiny, 1, noise_floor=float(tiny.max())), spanning_tree(tiny, 1))


@pytest.mark.parametrize("value, message", [(np.nan, "finite"), (np.inf, "finite"), (-1e-6, "not be negative")])
@pytest.mark.parametrize("num_points", [4, 64])
def test_bad_distances_are_refused(value, message, num_points):
    distances = np.ones((num_points, num_points), np.float32)
    np.fill_diagonal(distances, 0)
    distances[1, 3] = distances[3, 1] = value
    with pytest.raises(ValueError, match=message):
        spanning_tree(distances, 2)


def test_bad_shape_and_bad_min_samples_are_refused():
    for shape in ((3, 4), (9,), (0, 0)):
        with pytest.raises(ValueError, match="square matrix"):
            core_distances(np.zeros(shape, np.float32), 2)
    with pytest.raises(ValueError, match="min_samples must be 1 or more; got 0"):
        core_distances(LINE, 0)


def test_parts_joined_at_one_weight_are_chained_onto_the_largest():
    edges = np.array([[3, 4, 0.5], [0, 1, 1.0], [1, 2, 1.0], [2, 3, 1.0], [5, 6, 1.0], [6, 0, 2.0]])
    merged = merge_ties_at_once(edges)
    assert merged.tolist() == [[3, 4, 0.5], [3, 0, 1], [3, 1, 1], [3, 2, 1], [5, 6, 1], [0, 5, 2]]


def test_merging_ties_at_once_changes_nothing_without_ties_but_the_names_of_parts():
    distances = blob_distances((12, 12), 6, seed=3)
    edges = spanning_tree(distances, 1)
    edges[:, 2] = np.arange(len(edges))
    merged = merge_ties_at_once(edges)
    assert np.array_equal(merged[:, 2], edges[:, 2])
    assert np.array_equal(merge_ties_at_once(merged), merged)


@pytest.mark.parametrize("levels", [None, 8, 256])
def test_merging_ties_at_once_forgets_which_minimum_spanning_tree_it_was_given(levels):
    distances = blob_distances((16, 17), 9, seed=4, levels=levels)
    core = core_distances(distances, 2)
    edges = minimum_spanning_tree(distances, core)
    expected = merge_ties_at_once(edges)
    # Prim's algorithm from another point takes other edges among equal ones.
    turned = np.roll(np.arange(len(core)), 100)
    other = minimum_spanning_tree(np.ascontiguousarray(distances[np.ix_(turned, turned)]), core[turned])
    other[:, :2] = turned[other[:, :2].astype(int)]
    if levels:
        assert {frozenset(pair) for pair in edges[:, :2].tolist()} != {
            frozenset(pair) for pair in other[:, :2].tolist()
        }
    assert np.array_equal(merge_ties_at_once(other), expected)
