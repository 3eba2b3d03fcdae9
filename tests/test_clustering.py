from __future__ import annotations

import hdbscan
import numpy as np
import pytest
from attention_maps import PRESETS, blob_distances
from hdbscan._hdbscan_linkage import label
from sklearn.metrics import adjusted_rand_score

from effsam2_ray.clustering import cluster_distances, cluster_tree, single_linkage
from effsam2_ray.spanning_tree import flat_tree, merge_ties_at_once, spanning_tree


def line_distances(*positions: float) -> np.ndarray:
    return np.abs(np.subtract.outer(positions, positions)).astype(np.float32)


def hdbscan_of(distances: np.ndarray, min_samples: int, min_cluster_size: int) -> hdbscan.HDBSCAN:
    model = hdbscan.HDBSCAN(min_samples=min_samples, min_cluster_size=min_cluster_size, metric="precomputed")
    return model.fit(distances.astype(np.float64))


def test_two_groups_on_a_line_worked_by_hand():
    clusters = cluster_distances(line_distances(0, 1, 2, 10, 11, 12), min_samples=1, min_cluster_size=3)
    assert clusters.labels.dtype == np.int32
    assert len(set(clusters.labels[:3])) == len(set(clusters.labels[3:])) == 1
    assert sorted(set(clusters.labels)) == [0, 1]
    # Born at density 1/8, gone at density 1: a share of 7/8 of the range of densities.
    assert clusters.num_clusters == 2 and clusters.persistence.tolist() == [0.875, 0.875]


def test_a_far_point_is_noise():
    labels = cluster_distances(line_distances(0, 1, 2, 10, 11, 12, 99), 1, 3).labels
    assert labels[6] == -1 and labels[:6].min() == 0


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_equal_distances_are_all_noise(value):
    distances = np.full((30, 30), value, np.float32)
    np.fill_diagonal(distances, 0)
    clusters = cluster_distances(distances, 2, 3)
    assert clusters.num_clusters == 0 and clusters.persistence.dtype == np.float64
    assert clusters.labels.tolist() == [-1] * 30


def test_distances_below_the_noise_floor_are_all_noise():
    distances = line_distances(0, 1, 2, 10, 11, 12) * np.float32(8e-7)  # 9.6e-6 at most
    assert cluster_distances(distances, 1, 3).num_clusters == 0
    assert cluster_distances(distances, 1, 3, noise_floor=9e-6).num_clusters == 2
    assert cluster_tree(flat_tree(30), 3).labels.tolist() == [-1] * 30


@pytest.mark.parametrize("num_points", range(1, 14))
def test_few_points_are_no_error_and_equal_hdbscan(num_points):
    distances = blob_distances((1, num_points), 3, seed=num_points)
    for min_samples, min_cluster_size in PRESETS:
        labels = cluster_distances(distances, min_samples, min_cluster_size).labels
        if num_points < 2 * min_cluster_size:
            assert labels.tolist() == [-1] * num_points
        if num_points > 1:
            assert np.array_equal(labels, hdbscan_of(distances, min_samples, min_cluster_size).labels_)


def assert_equals_hdbscan(distances: np.ndarray) -> None:
    before = distances.copy()
    for min_samples, min_cluster_size in PRESETS:
        expected = hdbscan_of(distances, min_samples, min_cluster_size)
        clusters = cluster_distances(distances, min_samples, min_cluster_size)
        assert np.array_equal(clusters.labels, expected.labels_)
        assert np.array_equal(clusters.persistence, expected.cluster_persistence_)
    assert np.array_equal(distances, before)


@pytest.mark.parametrize("grid_hw", [(16, 16), (24, 40), (32, 32)])
@pytest.mark.parametrize("levels", [None, 8, 64, 1000])
@pytest.mark.parametrize("seed", [1, 2])
def test_labels_and_persistence_equal_hdbscan_with_and_without_ties(grid_hw, levels, seed):
    assert_equals_hdbscan(blob_distances(grid_hw, 20, seed, levels))


def test_labels_and_persistence_equal_hdbscan_at_4096_patches():
    assert_equals_hdbscan(blob_distances((64, 64), 60, seed=5))


def test_labels_equal_hdbscan_with_repeated_points():
    distances = blob_distances((12, 12), 8, seed=6)
    repeated = np.repeat(np.arange(144), np.random.default_rng(7).integers(1, 8, 144))
    assert_equals_hdbscan(np.ascontiguousarray(distances[np.ix_(repeated, repeated)]))


def test_single_linkage_equals_hdbscan_label():
    edges = spanning_tree(blob_distances((16, 20), 9, seed=8, levels=64), 2)
    assert np.array_equal(single_linkage(edges), label(edges))


@pytest.mark.parametrize("levels", [None, 64])
def test_merging_ties_at_once_permutes_with_the_points(levels):
    distances = blob_distances((24, 24), 16, seed=9, levels=levels)
    order = np.random.default_rng(10).permutation(len(distances))
    permuted = np.ascontiguousarray(distances[np.ix_(order, order)])
    for min_samples, min_cluster_size in PRESETS:
        labels, permuted_labels = (
            cluster_tree(merge_ties_at_once(spanning_tree(x, min_samples)), min_cluster_size).labels
            for x in (distances, permuted)
        )
        assert labels.max() > 0
        assert adjusted_rand_score(labels[order], permuted_labels) == 1.0
        assert np.array_equal(labels[order] == -1, permuted_labels == -1)


def test_pieces_too_small_to_be_clusters_fall_off_instead_of_splitting_a_cluster():
    # A dense group of four and three points each 1 away from everything: at distance 1 the three join the group, and
    # in no sense form a group of their own first. Beside them a second group, so that there is something to select.
    distances = np.full((11, 11), 9.0, np.float32)
    distances[:7, :7], distances[:4, :4], distances[7:, 7:] = 1.0, 0.1, 0.1
    np.fill_diagonal(distances, 0)
    labels = cluster_tree(merge_ties_at_once(spanning_tree(distances, 1)), 3).labels
    assert len(set(labels[:7])) == 1 and labels[0] != -1 and len(set(labels)) == 2


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="min_cluster_size must be 2 or more; got 1"):
        cluster_tree(flat_tree(9), 1)
    with pytest.raises(ValueError, match="merge order"):
        cluster_tree(np.array([[0, 1, 2.0], [1, 2, 1.0]]), 2)
    with pytest.raises(ValueError, match="finite"):
        cluster_distances(np.full((8, 8), np.nan, np.float32), 2, 3)
