from __future__ import annotations

import numpy as np
import pytest
import torch
from attention_maps import PRESETS, blob_head
from sam2.utils.amg import build_point_grid

from effsam2_ray.attention import CapturedHead
from effsam2_ray.cluster_prompts import attention_trees, cluster_centres, cluster_prompts, cluster_prompts_many
from effsam2_ray.clustering import cluster_distances, cluster_tree
from effsam2_ray.distances import cosine_distances, unit_rows
from effsam2_ray.medoids import medoids
from effsam2_ray.prompts import grid_prompts, patch_centres, random_prompts
from effsam2_ray.spanning_tree import merge_ties_at_once

STEPS = {"attention_s", "distances_s", "spanning_tree_s", "tree_select_s", "medoids_s"}


def test_patch_centres_of_a_wide_picture_worked_by_hand():
    # Two rows and four columns over 100 x 400 pixels: patches of 50 x 100.
    points = patch_centres(np.array([0, 3, 4, 6]), grid_hw=(2, 4), size_hw=(100, 400))
    assert points.dtype == np.float32
    assert points.tolist() == [[50, 25], [350, 25], [50, 75], [250, 75]]
    assert patch_centres(np.zeros(0, np.int64), (2, 4), (100, 400)).shape == (0, 2)


@pytest.mark.parametrize("n", [1, 16, 32])
def test_grid_is_sams_point_grid_in_pixels(n):
    prompts = grid_prompts(n, size_hw=(480, 641))
    assert len(prompts) == n * n
    # SAM keeps float64; these are float32 pixels.
    assert np.allclose(prompts.point_coords, build_point_grid(n) * [641, 480], rtol=1e-6)
    assert prompts.point_coords.dtype == np.float32
    assert prompts.cluster_size.tolist() == [0] * n * n and prompts.persistence.tolist() == [0.0] * n * n


def test_random_points_lie_in_the_picture_and_repeat_with_the_seed():
    prompts = random_prompts(1000, size_hw=(30, 500), seed=7)
    assert prompts.point_coords.dtype == np.float32 and len(prompts) == 1000
    assert (prompts.point_coords >= 0).all() and (prompts.point_coords < [500, 30]).all()
    assert np.allclose(prompts.point_coords.mean(axis=0), [250, 15], rtol=0.1)
    assert np.array_equal(prompts.point_coords, random_prompts(1000, (30, 500), 7).point_coords)
    assert not np.array_equal(prompts.point_coords, random_prompts(1000, (30, 500), 8).point_coords)


def test_prompts_are_the_medoids_of_hdbscans_clusters():
    head = blob_head((24, 32), 14, seed=1)
    rows = unit_rows(head.attention())
    clusters = cluster_distances(cosine_distances(rows), 2, 5)
    found = cluster_prompts(head, extent_hw=(333, 777), min_samples=2, min_cluster_size=5)
    assert found.labels.dtype == np.int16 and found.labels.shape == (24, 32)
    assert np.array_equal(found.labels.ravel(), clusters.labels)
    assert len(found.prompts) == clusters.num_clusters > 5
    assert np.array_equal(
        found.prompts.point_coords, patch_centres(medoids(rows, clusters.labels), (24, 32), (333, 777))
    )
    assert found.prompts.cluster_size.dtype == np.int32
    assert found.prompts.cluster_size.tolist() == [(clusters.labels == c).sum() for c in range(clusters.num_clusters)]
    assert np.array_equal(found.prompts.persistence, clusters.persistence.astype(np.float32))


def test_each_prompt_lies_in_a_patch_of_its_own_cluster():
    found = cluster_prompts(blob_head((24, 32), 14, seed=2), extent_hw=(240, 640), min_samples=2, min_cluster_size=5)
    columns, rows = (found.prompts.point_coords // [20, 10]).astype(int).T
    assert found.labels[rows, columns].tolist() == list(range(len(found.prompts)))


@pytest.mark.parametrize("on_device", [False, True])
def test_presets_together_give_what_each_gives_alone(on_device):
    head = blob_head((16, 24), 10, seed=3)
    together = cluster_prompts_many(head, (100, 200), PRESETS, on_device=on_device)
    for preset, found in zip(PRESETS, together, strict=True):
        (alone,) = cluster_prompts_many(head, (100, 200), [preset], on_device=on_device)
        assert np.array_equal(found.labels, alone.labels)
        assert np.array_equal(found.prompts.point_coords, alone.prompts.point_coords)
        assert set(found.step_s) == set(alone.step_s) == STEPS
        assert all(seconds > 0 for seconds in alone.step_s.values())


def test_times_are_those_of_each_preset_alone():
    times = [found.step_s for found in cluster_prompts_many(blob_head((16, 16), 8, seed=4), (64, 64), PRESETS)]
    for step in ("attention_s", "distances_s"):
        assert len({step_s[step] for step_s in times}) == 1 and times[0][step] > 0
    trees = [step_s["spanning_tree_s"] for step_s in times]
    assert trees[0] == trees[1] == trees[3] != trees[2] and min(trees) > 0  # (5, 40) is the third


def test_steps_taken_one_by_one_give_the_same_prompts_on_the_device_path():
    head = blob_head((16, 24), 10, seed=5)
    trees = attention_trees(head, [2, 5, 2], on_device=True)
    assert trees.ties_at_once and set(trees.edges) == set(trees.tree_s) == {2, 5}
    together = cluster_prompts_many(head, (100, 200), PRESETS, on_device=True)
    for (min_samples, min_cluster_size), expected in zip(PRESETS, together, strict=True):
        clusters = cluster_tree(merge_ties_at_once(trees.edges[min_samples]), min_cluster_size)
        prompts = cluster_centres(trees.rows, clusters, head.grid_hw, (100, 200))
        assert np.array_equal(prompts.point_coords, expected.prompts.point_coords)
        assert np.array_equal(prompts.cluster_size, expected.prompts.cluster_size)


@pytest.mark.parametrize("on_device", [False, True])
def test_flat_attention_gives_no_prompts(on_device):
    flat = CapturedHead(torch.ones(64, 4), torch.ones(64, 4), (8, 8))
    ripple = torch.randn(64, 4, generator=torch.Generator().manual_seed(7))
    nearly = CapturedHead(1 + 1e-4 * ripple, 1 + 1e-4 * ripple.roll(1, 0), (8, 8))
    for head in (flat, nearly):
        for found in cluster_prompts_many(head, (50, 50), PRESETS, on_device=on_device):
            assert len(found.prompts) == 0 and (found.labels == -1).all()
            assert found.prompts.point_coords.shape == (0, 2) and set(found.step_s) == STEPS


@pytest.mark.parametrize("on_device", [False, True])
def test_attention_that_is_not_finite_is_refused(on_device):
    head = CapturedHead(torch.full((64, 4), torch.nan), torch.ones(64, 4), (8, 8))
    with pytest.raises(ValueError, match="distances must be finite"):
        cluster_prompts_many(head, (50, 50), PRESETS, on_device=on_device)


@pytest.mark.parametrize("on_device", [False, True])
def test_autocast_changes_nothing(on_device):
    head = blob_head((16, 24), 10, seed=8)
    expected = cluster_prompts_many(head, (50, 50), PRESETS, on_device=on_device)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cluster_prompts_many(head, (50, 50), PRESETS, on_device=on_device)
    assert all(np.array_equal(a.labels, b.labels) for a, b in zip(found, expected, strict=True))


def test_no_presets_give_nothing():
    assert cluster_prompts_many(blob_head((4, 4), 2, seed=6), (50, 50), []) == []
