"""Clusters of real attention equal hdbscan's, with every preset: photographs, demo weights and SAM 2.1 tiny's shape.

Real attention is full of equal distances, which made-up maps only imitate. The official weights are not at hand, so SAM
2.1 tiny has random weights, sharpened until its attention spreads as a trained model's does.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import hdbscan
import numpy as np
import pytest
from attention_maps import PRESETS

from effsam2_ray.benchmark.models import demo_model_at, random_model
from effsam2_ray.benchmark.peers import compare_clustering, compare_presets_together
from effsam2_ray.clustering import cluster_distances
from effsam2_ray.distances import cosine_distances, unit_rows
from effsam2_ray.images import decode_image
from effsam2_ray.model.sam2 import Sam2Model

NUM_PHOTOGRAPHS = 50


@cache
def demo_512() -> Sam2Model:
    return demo_model_at(512, "cpu")


@cache
def tiny_1024() -> Sam2Model:
    return random_model("sam2.1_hiera_tiny", "cpu")


def photographs(shared_data: Path) -> list[Path]:
    found = sorted((shared_data / "coco_val2017" / "images").glob("*.jpg"))
    assert len(found) >= NUM_PHOTOGRAPHS
    return found


def distances_of(model: Sam2Model, path: Path) -> np.ndarray:
    head = model.info.default_head
    captured = model.encode([decode_image(path.read_bytes())], [head])[0].captured[head]
    return cosine_distances(unit_rows(captured.attention()))


def assert_equals_hdbscan(model: Sam2Model, path: Path) -> tuple[int, int]:
    """Return the clusters of all presets, and how many points' nearest distances are met more than once."""
    distances = distances_of(model, path)
    wide = distances.astype(np.float64)
    num_clusters = 0
    for min_samples, min_cluster_size in PRESETS:
        expected = hdbscan.HDBSCAN(min_samples=min_samples, min_cluster_size=min_cluster_size, metric="precomputed")
        labels = cluster_distances(distances, min_samples, min_cluster_size).labels
        assert np.array_equal(labels, expected.fit(wide).labels_), f"{path.name}, {min_samples}, {min_cluster_size}"
        num_clusters += int(labels.max()) + 1
    core = np.sort(distances, axis=1)[:, 2]
    return num_clusters, len(core) - len(np.unique(core))


def test_demo_weights_on_photographs(shared_data: Path):
    found = [assert_equals_hdbscan(demo_512(), path) for path in photographs(shared_data)[:5]]
    assert min(clusters for clusters, _ in found) > 10
    assert sum(ties for _, ties in found) > 0


def test_sam21_tiny_architecture_on_photographs(shared_data: Path):
    found = [assert_equals_hdbscan(tiny_1024(), path) for path in photographs(shared_data)[:2]]
    assert min(clusters for clusters, _ in found) > 10
    assert sum(ties for _, ties in found) > 0


@pytest.mark.soak
@pytest.mark.parametrize("model", [demo_512, tiny_1024], ids=["demo", "sam2.1 tiny"])
def test_fifty_photographs(shared_data: Path, model):
    for path in photographs(shared_data)[:NUM_PHOTOGRAPHS]:
        assert_equals_hdbscan(model(), path)


def test_several_times_faster_than_hdbscan_at_4096_patches(shared_data: Path):
    # The benchmark wants six times; what else a shared machine does can eat half of that.
    model = demo_model_at(1024, "cpu")
    picture = decode_image(photographs(shared_data)[0].read_bytes())
    captured = model.encode([picture], [model.info.default_head])[0].captured[model.info.default_head]
    comparison = compare_clustering(captured, "low_latency", rounds=5, limit_s=120)
    assert comparison.facts["points"] == 4096 and comparison.facts["equal_labels"] == 1
    seconds = comparison.seconds
    assert seconds["hdbscan"].low > 3 * seconds["effsam2_ray"].low
    seconds = compare_presets_together(captured, rounds=7, limit_s=120).seconds
    assert seconds["one by one"].low > 1.2 * seconds["trees shared"].low
