"""How well clusters of patches follow known objects, before any mask is decoded.

Noise (label -1 of a cluster map) counts as one cluster, the background (label 0 of a label map) as one region.
"""

from __future__ import annotations

import numpy as np

from effsam2_ray.errors import MaskError
from effsam2_ray.metrics.iou import paint_label_map
from effsam2_ray.metrics.truth import ImageTruth

UNKNOWN = -1
"""Label of pixels and patches that count for nobody."""


def truth_label_map(truth: ImageTruth, annotator: int = 0) -> np.ndarray:
    """Return one label a pixel: (H, W) int32.

    Objects are numbered from 1 and painted from large to small, so that a part stays visible on its whole. Void pixels,
    and those of crowd regions that lie on no object, are -1.
    """
    label_map = paint_label_map(truth.annotators[annotator].masks, truth.size_hw)
    for crowd in truth.crowds:
        label_map[crowd.to_array() & (label_map == 0)] = UNKNOWN
    if truth.void is not None:
        label_map[truth.void.to_array()] = UNKNOWN
    return label_map


def patch_labels(label_map: np.ndarray, grid_hw: tuple[int, int]) -> np.ndarray:
    """Return the most frequent label among the pixels of each patch; of equally frequent ones the lowest.

    A pixel belongs to the patch that holds its centre, so the grid need not divide the picture. A patch that holds no
    pixel's centre (a picture smaller than the grid) has the label of the pixel at its own centre.

    Args:
        label_map: (H, W) integers, -1 or more.
        grid_hw: (rows, columns) of patches over the whole picture.

    Returns:
        (rows, columns), of the label map's dtype.
    """
    rows, columns = grid_hw
    row_of, column_of = (_cells(length, num) for length, num in zip(label_map.shape, grid_hw, strict=True))
    labels, inverse = np.unique(label_map, return_inverse=True)
    patch = row_of[:, None] * columns + column_of[None, :]  # (H, W)
    index = patch.ravel() * len(labels) + inverse.ravel()
    votes = np.bincount(index, minlength=rows * columns * len(labels)).reshape(rows, columns, len(labels))
    centre_rows, centre_columns = (
        ((np.arange(num) + 0.5) * length / num).astype(np.int64)
        for length, num in zip(label_map.shape, grid_hw, strict=True)
    )
    at_centre = label_map[centre_rows[:, None], centre_columns[None, :]]
    majority: np.ndarray = np.where(votes.sum(axis=2) > 0, labels[votes.argmax(axis=2)], at_centre)
    return majority


def cluster_purity(cluster_map: np.ndarray, label_map: np.ndarray) -> float:
    """Return the share of patches whose cluster is mostly of the same label as the patch.

    Each cluster stands for the label that most of its patches have; purity is the share of patches that have their
    cluster's label. It can only rise when clusters are cut up (one cluster a patch gives 1.0), so compare it at equal
    numbers of clusters.

    Args:
        cluster_map: (rows, columns) integers from HDBSCAN, -1 is noise.
        label_map: (H, W) integers, 0 is background; -1 counts for nobody.

    Returns:
        A number in (0, 1]; NaN where no patch has a known label.

    Raises:
        MaskError: an array is not 2-D or holds no integers.
    """
    clusters, labels = _known_patches(cluster_map, label_map)
    if clusters.size == 0:
        return float("nan")
    _, cluster_index = np.unique(clusters, return_inverse=True)
    _, label_index = np.unique(labels, return_inverse=True)
    table = np.zeros((cluster_index.max() + 1, label_index.max() + 1), np.int64)
    np.add.at(table, (cluster_index, label_index), 1)
    return float(table.max(axis=1).sum() / clusters.size)


def adjusted_rand_index(cluster_map: np.ndarray, label_map: np.ndarray) -> float:
    """Return how far clusters and labels agree on which patches belong together, corrected for chance.

    1 for the same partition, about 0 for an unrelated one, down to -0.5. Cutting up clusters lowers it. Arguments and
    errors are those of `cluster_purity`; NaN where no patch has a known label.

    Reference: Hubert and Arabie, Comparing partitions, 1985; computed by scikit-learn.
    """
    from sklearn.metrics import adjusted_rand_score

    clusters, labels = _known_patches(cluster_map, label_map)
    if clusters.size == 0:
        return float("nan")
    return float(adjusted_rand_score(labels, clusters))


def _known_patches(cluster_map: np.ndarray, label_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return cluster and label of every patch whose label is known, (K,) each."""
    for name, array in (("cluster_map", cluster_map), ("label_map", label_map)):
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
            raise MaskError(f"{name} must be 2-D integers; got shape {array.shape}, {array.dtype}")
    labels = patch_labels(label_map, (cluster_map.shape[0], cluster_map.shape[1]))
    known = labels != UNKNOWN
    return cluster_map[known], labels[known]


def _cells(length: int, num: int) -> np.ndarray:
    """Return the cell of each of `length` pixel centres when `num` equal cells span them, in whole numbers only."""
    return (2 * np.arange(length) + 1) * num // (2 * length)
