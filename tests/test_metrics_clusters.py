"""Patches, cluster purity and adjusted Rand index, by hand and against scikit-learn and a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix

from effsam2_ray.demo.measure import majority_labels
from effsam2_ray.errors import MaskError
from effsam2_ray.metrics import (
    ImageTruth,
    ObjectSet,
    adjusted_rand_index,
    cluster_purity,
    patch_labels,
    truth_label_map,
)
from effsam2_ray.rle import encode


def test_a_patch_has_the_label_of_most_of_its_pixels_and_of_equals_the_lowest():
    label_map = np.array([[0, 0, 3, 3], [0, 7, 5, 5], [1, 1, 2, 2], [1, 1, 2, 9]])
    assert patch_labels(label_map, (2, 2)).tolist() == [[0, 3], [1, 2]]


def test_pixels_belong_to_the_patch_that_holds_their_centre():
    # Five pixels over two patches of 2.5: centres 0.5 and 1.5 lie left; 2.5 on the border goes right.
    label_map = np.array([[4, 4, 6, 6, 6]])
    assert patch_labels(label_map, (1, 2)).tolist() == [[4, 6]]
    label_map = np.array([[4, 4, 4, 6, 6, 6, 6]])  # 3.5 each: three pixels, and four
    assert patch_labels(label_map, (1, 2)).tolist() == [[4, 6]]


def test_a_patch_smaller_than_a_pixel_has_the_label_at_its_centre():
    assert patch_labels(np.array([[1, 2]]), (1, 6)).tolist() == [[1, 1, 1, 2, 2, 2]]
    assert patch_labels(np.array([[5]]), (2, 3)).tolist() == [[5, 5, 5], [5, 5, 5]]


def test_patch_labels_equal_a_plain_loop_on_sizes_that_do_not_divide():
    rng = np.random.default_rng(0)
    for height, width, rows, columns in ((13, 17, 4, 5), (16, 12, 4, 3), (9, 40, 7, 7)):
        label_map = rng.integers(-1, 4, (height, width))
        expected = np.zeros((rows, columns), int)
        for row in range(rows):
            for column in range(columns):
                inside = [
                    label_map[y, x]
                    for y in range(height)
                    for x in range(width)
                    if (2 * y + 1) * rows // (2 * height) == row and (2 * x + 1) * columns // (2 * width) == column
                ]
                values, counts = np.unique(inside, return_counts=True)
                expected[row, column] = values[counts.argmax()]
        assert np.array_equal(patch_labels(label_map, (rows, columns)), expected)
    label_map = rng.integers(0, 5, (32, 64))
    assert np.array_equal(patch_labels(label_map, (8, 8)), majority_labels(label_map, (8, 8)))


def test_purity_is_the_share_of_patches_that_have_their_clusters_main_label():
    clusters = np.array([[0, 0, 0], [1, 1, -1]])
    labels = np.array([[1, 1, 0], [2, 0, 0]])
    # Cluster 0: two of three; cluster 1: one of two; noise: one of one.
    assert cluster_purity(clusters, labels) == pytest.approx(4 / 6)
    assert cluster_purity(np.arange(6).reshape(2, 3), labels) == 1.0
    assert cluster_purity(np.zeros((2, 3), int), labels) == pytest.approx(3 / 6)


def test_patches_of_unknown_label_count_for_nothing():
    clusters = np.array([[0, 0, 1, 1]])
    assert cluster_purity(clusters, np.array([[1, -1, 2, 2]])) == 1.0
    assert adjusted_rand_index(clusters, np.array([[1, -1, 2, 2]])) == 1.0
    assert np.isnan(cluster_purity(clusters, np.full((1, 4), -1)))
    assert np.isnan(adjusted_rand_index(clusters, np.full((1, 4), -1)))


def test_both_equal_scikit_learn_on_random_maps():
    rng = np.random.default_rng(1)
    for _ in range(5):
        clusters, label_map = rng.integers(-1, 6, (6, 7)), rng.integers(0, 4, (12, 21))
        labels = patch_labels(label_map, (6, 7))
        table = contingency_matrix(labels.ravel(), clusters.ravel())
        assert cluster_purity(clusters, label_map) == pytest.approx(table.max(axis=0).sum() / 42)
        expected = adjusted_rand_score(labels.ravel(), clusters.ravel())
        assert adjusted_rand_index(clusters, label_map) == pytest.approx(expected)


def test_label_map_of_a_truth_shows_parts_on_wholes_and_leaves_out_crowds_and_void():
    whole, part, crowd, void = (np.zeros((2, 4), bool) for _ in range(4))
    whole[:, :2], part[0, 0], crowd[0, 1:3], void[1, 3] = True, True, True, True
    truth = ImageTruth(
        "memory:///a.png",
        (2, 4),
        (ObjectSet(tuple(encode(np.stack([part, whole]))), (1.0, 4.0), ("a", "b")),),
        tuple(encode(crowd[None])),
        encode(void[None])[0],
    )
    assert truth_label_map(truth).tolist() == [[1, 2, -1, 0], [2, 2, 0, -1]]


def test_maps_must_be_of_integers():
    with pytest.raises(MaskError, match=r"cluster_map must be 2-D integers; got shape \(4,\), int64"):
        cluster_purity(np.zeros(4, np.int64), np.zeros((2, 2), int))
    with pytest.raises(MaskError, match="label_map must be 2-D integers"):
        adjusted_rand_index(np.zeros((2, 2), int), np.zeros((2, 2)))
