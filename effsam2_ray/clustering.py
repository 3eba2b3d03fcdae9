"""Spanning tree to cluster labels, as HDBSCAN selects them (excess of mass, no single cluster, no epsilon).

The only module that touches hdbscan's private modules: condensing the tree and selecting clusters are hdbscan's own
code. Its distances-to-tree half is replaced by `spanning_tree`, which is where its time goes; its `label` by
`single_linkage`, the same table from plain lists in a quarter of the time. The parity tests guard the version range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hdbscan._hdbscan_tree import compute_stability, condense_tree, get_clusters

from effsam2_ray.spanning_tree import spanning_tree


@dataclass(frozen=True)
class Clusters:
    """A partition of points into clusters and noise.

    Attributes:
        labels: (N,) int32, the cluster of each point from 0, or -1 for noise.
        persistence: (num_clusters,) float64 in [0, 1], hdbscan's `cluster_persistence_`: how long each cluster
            lives over the range of densities, per point.
    """

    labels: np.ndarray
    persistence: np.ndarray

    @property
    def num_clusters(self) -> int:
        """Number of clusters, noise not counted."""
        return len(self.persistence)


def single_linkage(edges: np.ndarray) -> np.ndarray:
    """Return the merges of a tree as scipy and hdbscan tabulate them.

    Args:
        edges: (N - 1, 3) in merge order.

    Returns:
        (N - 1, 4) float64: the two parts joined, the weight and the size of the result. Parts below N are points;
        part N + i is what row i joined.
    """
    num_points = len(edges) + 1
    parent = list(range(2 * num_points - 1))
    size = [1] * num_points
    parts: list[tuple[int, int]] = []
    sources, targets = edges[:, 0].astype(np.intp).tolist(), edges[:, 1].astype(np.intp).tolist()
    for node, (a, b) in enumerate(zip(sources, targets, strict=True), start=num_points):
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        while parent[b] != b:
            parent[b] = b = parent[parent[b]]
        parts.append((a, b))
        parent[a] = parent[b] = node
        size.append(size[a] + size[b])
    return np.column_stack([np.array(parts, dtype=np.float64), edges[:, 2], np.array(size[num_points:], np.float64)])


def cluster_tree(edges: np.ndarray, min_cluster_size: int) -> Clusters:
    """Return the clusters of a spanning tree.

    Args:
        edges: (N - 1, 3) float64 in merge order; see `effsam2_ray.spanning_tree`.
        min_cluster_size: least number of points of a cluster, 2 or more.

    Returns:
        N labels. All are noise where no two clusters can be told apart: N is below twice `min_cluster_size`, or the
        tree never splits into two parts of that size.

    Raises:
        ValueError: `min_cluster_size` is below 2, or the weights fall somewhere.
    """
    if min_cluster_size < 2:
        raise ValueError(f"min_cluster_size must be 2 or more; got {min_cluster_size}")
    if np.any(edges[1:, 2] < edges[:-1, 2]):
        raise ValueError("edges must be in merge order: their weights must never fall")
    num_points = len(edges) + 1
    if num_points < 2 * min_cluster_size:
        return Clusters(np.full(num_points, -1, np.int32), np.zeros(0))
    condensed = condense_tree(single_linkage(edges), min_cluster_size)
    labels, _probabilities, persistence = get_clusters(condensed, compute_stability(condensed))
    return Clusters(labels.astype(np.int32), persistence)


def cluster_distances(
    distances: np.ndarray, min_samples: int, min_cluster_size: int, noise_floor: float = 1e-5
) -> Clusters:
    """Return the clusters of a distance matrix, equal to ``hdbscan.HDBSCAN(metric="precomputed")`` on float64 of it.

    Args:
        distances: (N, N) float32 or float64, C order, symmetric, zero diagonal, finite, never negative.
        min_samples: rank of the neighbour that gives the core distance, 1 or more, not counting the point itself.
        min_cluster_size: least number of points of a cluster, 2 or more.
        noise_floor: where no distance reaches it, all points are noise.

    Raises:
        ValueError: a matrix or a number that breaks the above.
    """
    return cluster_tree(spanning_tree(distances, min_samples, noise_floor), min_cluster_size)
