from __future__ import annotations

import numpy as np
import pytest
import torch
from attention_maps import PRESETS, blob_distances
from scipy.sparse.csgraph import minimum_spanning_tree
from sklearn.metrics import adjusted_rand_score

from effsam2_ray.clustering import cluster_distances, cluster_tree
from effsam2_ray.device_tree import device_spanning_tree
from effsam2_ray.spanning_tree import flat_tree, merge_ties_at_once, spanning_tree


def reachability_of(distances: np.ndarray, min_samples: int) -> np.ndarray:
    core = np.sort(distances, axis=1)[:, min_samples]
    return np.maximum(distances, np.maximum.outer(core, core))


def kruskal(reachability: np.ndarray) -> list[tuple[int, int, float]]:
    """Return the one least tree in the order (weight, lower, higher), the slow way."""
    part = list(range(len(reachability)))
    tree = []
    lower, higher = np.triu_indices(len(reachability), k=1)
    weights = reachability[lower, higher]
    for i in np.lexsort((higher, lower, weights)):
        a, b = part[lower[i]], part[higher[i]]
        if a != b:
            part = [a if name == b else name for name in part]
            tree.append((int(lower[i]), int(higher[i]), float(weights[i])))
    return tree


def test_line_gives_its_gaps():
    distances = torch.tensor([0.0, 1, 3, 7])
    distances = (distances[:, None] - distances[None]).abs()
    before = distances.clone()
    assert device_spanning_tree(distances, 1).tolist() == [[0, 1, 1], [1, 2, 2], [2, 3, 4]]
    assert torch.equal(distances, before)


def test_equal_distances_give_the_lowest_pairs():
    distances = 1.0 - torch.eye(6)
    assert device_spanning_tree(distances, 2).tolist() == [[0, point, 1] for point in range(1, 6)]


@pytest.mark.parametrize("levels", [None, 8, 64])
@pytest.mark.parametrize("min_samples", [1, 2, 5])
def test_tree_is_the_least_one_by_weight_then_lower_then_higher_point(levels, min_samples):
    distances = blob_distances((11, 13), 7, seed=1, levels=levels)
    edges = device_spanning_tree(torch.from_numpy(distances), min_samples)
    assert edges.dtype == np.float64
    assert [tuple(edge) for edge in edges.tolist()] == kruskal(reachability_of(distances, min_samples))


@pytest.mark.parametrize("grid_hw", [(2, 1), (24, 24), (32, 32)])
@pytest.mark.parametrize("levels", [None, 8, 512])
def test_sorted_weights_equal_scipys_and_hdbscans(grid_hw, levels):
    distances = blob_distances(grid_hw, 12, seed=2, levels=levels)
    min_samples = min(2, len(distances) - 1)
    weights = device_spanning_tree(torch.from_numpy(distances), min_samples)[:, 2]
    assert np.array_equal(weights, spanning_tree(distances, min_samples)[:, 2])
    # scipy takes 0 for a missing edge, so all weights are raised by 1, which float64 holds to 1e-16.
    raised = reachability_of(distances, min_samples).astype(np.float64) + 1
    assert np.allclose(weights, np.sort(minimum_spanning_tree(raised).data) - 1, rtol=0, atol=1e-15)


@pytest.mark.parametrize("levels", [None, 64])
def test_clusters_depend_on_the_distances_alone(levels):
    distances = blob_distances((24, 32), 18, seed=3, levels=levels)
    order = np.random.default_rng(4).permutation(len(distances))
    permuted = np.ascontiguousarray(distances[np.ix_(order, order)])
    for min_samples, min_cluster_size in PRESETS:
        edges, permuted_edges = (
            merge_ties_at_once(device_spanning_tree(torch.from_numpy(x), min_samples)) for x in (distances, permuted)
        )
        assert np.array_equal(edges, merge_ties_at_once(spanning_tree(distances, min_samples)))
        labels = cluster_tree(edges, min_cluster_size).labels
        permuted_labels = cluster_tree(permuted_edges, min_cluster_size).labels
        assert np.array_equal(labels[order] == -1, permuted_labels == -1)
        assert adjusted_rand_score(labels[order], permuted_labels) == 1.0


def test_clusters_are_close_to_hdbscans():
    for seed in (5, 6):
        distances = blob_distances((32, 32), 20, seed)
        for min_samples, min_cluster_size in PRESETS:
            edges = merge_ties_at_once(device_spanning_tree(torch.from_numpy(distances), min_samples))
            labels = cluster_tree(edges, min_cluster_size).labels
            expected = cluster_distances(distances, min_samples, min_cluster_size).labels
            # hdbscan agrees with itself on permuted points to 0.89 and more.
            assert adjusted_rand_score(labels, expected) > 0.89


def test_one_point_has_a_tree_without_edges():
    assert device_spanning_tree(torch.zeros(1, 1), 2).shape == (0, 3)


def test_distances_below_the_noise_floor_give_the_flat_tree():
    distances = 9e-6 * (1.0 - torch.eye(70))
    assert np.array_equal(device_spanning_tree(distances, 2, noise_floor=1e-5), flat_tree(70))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e-6])
def test_bad_distances_are_refused(value):
    distances = 1.0 - torch.eye(64)
    distances[1, 3] = distances[3, 1] = value
    with pytest.raises(ValueError, match="finite and not negative"):
        device_spanning_tree(distances, 2)


def test_bad_shape_and_bad_min_samples_are_refused():
    with pytest.raises(ValueError, match=r"square matrix of one point or more; got shape \(3, 4\)"):
        device_spanning_tree(torch.zeros(3, 4), 2)
    with pytest.raises(ValueError, match="min_samples must be 1 or more; got 0"):
        device_spanning_tree(torch.zeros(4, 4), 0)
