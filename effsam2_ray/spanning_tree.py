"""Distances to the minimum spanning tree of mutual reachability, on the CPU.

The core distance of a point is the distance to its `min_samples`-th neighbour, *not counting the point itself* (as
hdbscan counts; scikit-learn counts the point, so its `min_samples` is ours + 1). The mutual reachability of two points
is the largest of their distance and their two core distances.

Mutual reachability always has exactly equal values, so there are many minimum spanning trees, and what is clustered
depends on which one is taken and on the order in which equal edges are merged. `minimum_spanning_tree` takes the edges
that hdbscan takes, in hdbscan's order. `merge_ties_at_once` removes the dependence instead.

A tree is an (N - 1, 3) float64 array of edges (point, point, weight) in merge order: weights never fall.
"""

from __future__ import annotations

import numpy as np
import torch


def nearest_distances(distances: torch.Tensor, count: int) -> torch.Tensor:
    """Return the `count` smallest values of each row, ascending: (N, N) to (N, count), on the same device."""
    num_points, num_groups = len(distances), 64
    if num_points % num_groups or count > num_groups:
        return distances.topk(count, dim=1, largest=False).values
    # Exact, and less than half the time of a top-k over whole rows: of the groups of columns, the `count` with the
    # smallest minima hold the `count` smallest values, since every value elsewhere is at least as large as all of
    # these minima.
    groups = distances.reshape(num_points, num_groups, -1)
    chosen = groups.amin(dim=2).topk(count, dim=1, largest=False, sorted=False).indices  # (N, count)
    candidates = groups[torch.arange(num_points, device=distances.device)[:, None], chosen].flatten(1)
    return candidates.topk(count, dim=1, largest=False).values


def core_distances(distances: np.ndarray, min_samples: int) -> np.ndarray:
    """Return the distance of each point to its `min_samples`-th neighbour, not counting the point itself.

    Args:
        distances: (N, N), symmetric, zero diagonal, never negative.
        min_samples: 1 or more; with fewer than that many neighbours the farthest one counts.

    Returns:
        (N,), the dtype of `distances`.

    Raises:
        ValueError: `min_samples` is below 1, `distances` is not square, is empty or has a negative value.
    """
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1] or len(distances) == 0:
        raise ValueError(f"distances must be a square matrix of one point or more; got shape {distances.shape}")
    if min_samples < 1:
        raise ValueError(f"min_samples must be 1 or more; got {min_samples}")
    nearest = nearest_distances(torch.from_numpy(distances), min(min_samples, len(distances) - 1) + 1).numpy()
    if nearest.min() < 0:
        raise ValueError(f"distances must not be negative; got {nearest.min()}")
    return nearest[:, -1].copy()


def minimum_spanning_tree(distances: np.ndarray, core: np.ndarray) -> np.ndarray:
    """Return the spanning tree that hdbscan finds for a precomputed matrix, its edges as hdbscan sorts them.

    Prim's algorithm from point 0, as in hdbscan's `mst_linkage_core`: the next point is the first of the nearest ones,
    and its partner the earliest tree point at that reachability. Mutual reachability is formed only where it can
    shorten a link. Equal weights are sorted by NumPy's default sort, as in hdbscan, whose order of equal weights is
    not stable and may differ between kinds of CPU.

    Args:
        distances: (N, N), symmetric, C order.
        core: (N,) core distances, same dtype.

    Returns:
        (N - 1, 3) float64 edges (tree point, new point, mutual reachability) in merge order.
    """
    num_points = len(distances)
    # Links of points outside the tree: their weight, the tree point, and the distance below which a tree point
    # shortens the link. -inf there: never again, because the point is in the tree or linked at its core distance.
    links = np.full(num_points, np.inf, distances.dtype)
    partners = np.zeros(num_points, np.intp)
    shortens_below = np.full(num_points, np.inf, distances.dtype)
    shorter = np.empty(num_points, bool)
    edges = np.empty((num_points - 1, 3))
    current = np.intp(0)
    for edge in edges:
        links[current] = np.inf
        shortens_below[current] = -np.inf
        row = distances[current]
        np.less(row, shortens_below, out=shorter)
        points = shorter.nonzero()[0]
        if len(points):
            own = core[points]
            reachability = np.maximum(np.maximum(row[points], own), core[current])
            shorten = reachability < links[points]
            if not shorten.all():
                points, own, reachability = points[shorten], own[shorten], reachability[shorten]
            links[points] = reachability
            partners[points] = current
            reachability[reachability <= own] = -np.inf
            shortens_below[points] = reachability
        new = links.argmin()
        edge[0], edge[1], edge[2] = partners[new], new, links[new]
        current = new
    return edges[np.argsort(edges.T[2])]


def flat_tree(num_points: int) -> np.ndarray:
    """Return the tree of points that are all alike: every edge weighs 0, so it has no clusters."""
    edges = np.zeros((num_points - 1, 3))
    edges[:, 1] = np.arange(1, num_points)
    return edges


def spanning_tree(distances: np.ndarray, min_samples: int, noise_floor: float = 0.0) -> np.ndarray:
    """Return the tree of one distance matrix, ready for any number of `min_cluster_size`.

    Args:
        distances: (N, N) float32 or float64, C order, symmetric, zero diagonal, finite, never negative.
        min_samples: rank of the neighbour that gives the core distance, 1 or more.
        noise_floor: where no distance reaches it, differences are rounding, and the tree is `flat_tree`.

    Returns:
        (N - 1, 3) float64 edges in merge order.

    Raises:
        ValueError: NaN, infinite or negative distances, a matrix that is not square, or `min_samples` below 1.
    """
    core = core_distances(distances, min_samples)
    largest = distances.max()
    if not np.isfinite(largest):
        raise ValueError(f"distances must be finite; got {largest}")
    if largest < noise_floor:
        return flat_tree(len(distances))
    return minimum_spanning_tree(distances, core)


def merge_ties_at_once(edges: np.ndarray) -> np.ndarray:
    """Return the tree that merges all edges of one weight in the same instant, as HDBSCAN is defined.

    Which parts exist below each weight is the same for every minimum spanning tree of the same distances. So the tree
    returned, and every clustering of it, is a function of the distances alone, and permuting the points permutes the
    clusters. Parts that one weight joins are chained onto the largest of them, largest first: pieces too small to be
    clusters then fall off one by one, instead of forming a passing cluster among themselves. Equal sizes go by lowest
    point, which decides only how clusters are numbered.

    Args:
        edges: (N - 1, 3), any minimum spanning tree in merge order.

    Returns:
        (N - 1, 3) float64 edges in merge order. Parts are named by their lowest point, so an edge joins the right
        parts at the right weight, but need not be an edge of the graph.
    """
    num_points = len(edges) + 1
    parent = list(range(num_points))  # the root of a part is its lowest point
    size = [1] * num_points

    def find(point: int) -> int:
        while parent[point] != point:
            parent[point] = parent[parent[point]]
            point = parent[point]
        return point

    pairs = edges[:, :2].astype(np.intp).tolist()
    weights = edges[:, 2].tolist()
    merged: list[tuple[int, int, float]] = []
    start = 0
    while start < len(pairs):
        weight = weights[start]
        stop = start + 1
        while stop < len(pairs) and weights[stop] == weight:
            stop += 1
        parts = {find(point) for pair in pairs[start:stop] for point in pair}
        largest_first = sorted(parts, key=lambda part: (-size[part], part))
        for a, b in pairs[start:stop]:
            low, high = sorted((find(a), find(b)))
            parent[high] = low
            size[low] += size[high]
        chains: dict[int, list[int]] = {}
        for part in largest_first:
            chains.setdefault(find(part), []).append(part)
        for joined in sorted(chains):
            first, *others = chains[joined]
            merged += [(first, other, weight) for other in others]
        start = stop
    return np.array(merged, dtype=np.float64).reshape(-1, 3)
