from __future__ import annotations

import numpy as np
import pytest
import torch
from attention_maps import blob_head

from effsam2_ray.clustering import cluster_distances
from effsam2_ray.distances import cosine_distances, unit_rows
from effsam2_ray.medoids import medoids

every_split = pytest.mark.parametrize("points_at_once", [None, 1, 40, 10**6])


def cost(rows: torch.Tensor, members: np.ndarray) -> np.ndarray:
    """Return the summed distance of each member to all members, in float64 from all pairs."""
    x = rows[members].double().numpy()
    return (1 - x @ x.T).sum(axis=1)


@every_split
def test_the_middle_of_three_directions_is_the_medoid(points_at_once):
    angles = torch.deg2rad(torch.tensor([30.0, 0.0, 10.0, 90.0, 180.0]))
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert medoids(rows, np.array([0, 0, 0, -1, 1], np.int32), points_at_once).tolist() == [2, 4]


@every_split
def test_cost_equals_a_search_over_all_pairs(points_at_once):
    rows = unit_rows(blob_head((24, 24), 15, seed=1).attention())
    labels = cluster_distances(cosine_distances(rows), 2, 5).labels
    found = medoids(rows, labels, points_at_once)
    assert found.dtype == np.int64 and len(found) == labels.max() + 1 > 5
    for cluster, medoid in enumerate(found):
        members = np.flatnonzero(labels == cluster)
        assert medoid in members
        costs = cost(rows, members)
        assert costs[members == medoid] <= costs.min() + 1e-6


@every_split
def test_nearly_equal_rows_are_told_apart(points_at_once):
    random = np.random.default_rng(2)
    base = random.random(200)
    rows = unit_rows(torch.from_numpy(base + 1e-6 * random.normal(size=(300, 200))))
    labels = np.arange(300, dtype=np.int32) % 3
    for cluster, medoid in enumerate(medoids(rows, labels, points_at_once)):
        members = np.flatnonzero(labels == cluster)
        x = rows[members].double()
        assert medoid == members[(x @ x.sum(0)).argmax()]


@every_split
def test_the_lowest_of_equal_points_wins(points_at_once):
    random = np.random.default_rng(3)
    twice = unit_rows(torch.from_numpy(random.random((30, 50)))).repeat(2, 1)
    labels = np.tile(np.repeat([0, -1, 1], 10), 2)
    found = medoids(twice, labels, points_at_once)
    assert (found < 30).all()
    equal = unit_rows(torch.ones(7, 5))
    assert medoids(equal, np.array([1, 1, 0, -1, 0, 0, 1]), points_at_once).tolist() == [2, 0]


def test_noise_has_no_medoid():
    assert medoids(torch.ones(4, 4), np.full(4, -1, np.int32)).tolist() == []
    assert medoids(torch.ones(4, 4), np.full(4, -1, np.int32)).dtype == np.int64
