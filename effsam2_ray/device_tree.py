"""Distances to the minimum spanning tree of mutual reachability, on the device that holds the distances.

Boruvka's algorithm on the dense matrix: in each round every part takes its least outgoing edge, and the parts that
this joins become one; at least half of the parts vanish a round. Edges are compared by (weight, lower point, higher
point), so no two are equal, there is exactly one least tree, and it does not depend on the device or on the order of
parallel work. Only the tree's edges leave the device.

The weights are those of any minimum spanning tree, hdbscan's too, but among equal weights the edges differ from
hdbscan's. Pass the edges through `effsam2_ray.spanning_tree.merge_ties_at_once` before clustering: then the clusters
depend neither on this order nor on the order of the points.
"""

from __future__ import annotations

import numpy as np
import torch

from effsam2_ray.spanning_tree import flat_tree, nearest_distances


def device_spanning_tree(distances: torch.Tensor, min_samples: int, noise_floor: float = 0.0) -> np.ndarray:
    """Return the tree of one distance matrix.

    Args:
        distances: (N, N) floating, exactly symmetric, zero diagonal, finite, never negative; left as it is.
        min_samples: rank of the neighbour that gives the core distance, 1 or more, not counting the point itself.
        noise_floor: where no distance reaches it, differences are rounding, and the tree is `flat_tree`.

    Returns:
        (N - 1, 3) float64 edges (lower point, higher point, weight) on the host, sorted by (weight, lower, higher).

    Raises:
        ValueError: NaN, infinite or negative distances, a matrix that is not square, or `min_samples` below 1.
    """
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1] or len(distances) == 0:
        raise ValueError(f"distances must be a square matrix of one point or more; got shape {tuple(distances.shape)}")
    if min_samples < 1:
        raise ValueError(f"min_samples must be 1 or more; got {min_samples}")
    num_points = len(distances)
    smallest, largest = torch.stack(distances.aminmax()).tolist()
    if not (smallest >= 0 and np.isfinite(largest)):
        raise ValueError(f"distances must be finite and not negative; got {smallest} to {largest}")
    if largest < noise_floor:
        return flat_tree(num_points)
    core = nearest_distances(distances, min(min_samples, num_points - 1) + 1)[:, -1]
    reachability = torch.maximum(distances, core[None, :])
    torch.maximum(reachability, core[:, None], out=reachability)
    pairs, weights = _least_edges(reachability)
    lower, higher = np.divmod(pairs.cpu().numpy(), num_points)
    edges = np.column_stack([lower, higher, weights.cpu().numpy()]).astype(np.float64)
    return edges[np.lexsort((edges[:, 1], edges[:, 0], edges[:, 2]))]


def _least_edges(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the least spanning tree's edges as ``lower * N + higher`` and their weights, (N - 1,) each, in any order.

    Args:
        weights: (N, N) symmetric; used as scratch space.
    """
    num_points = len(weights)
    points = torch.arange(num_points, device=weights.device)
    part = points.clone()  # every point's part, named by one of its points
    tree_pairs: list[torch.Tensor] = []
    tree_weights: list[torch.Tensor] = []
    num_edges = 0
    while num_edges < num_points - 1:
        weights.masked_fill_(part[:, None] == part[None, :], torch.inf)
        # The first of equal minima is also the least by (lower, higher), since one of the two is the row.
        point_weight, nearest = weights.min(dim=1)
        point_pair = torch.minimum(points, nearest) * num_points + torch.maximum(points, nearest)
        part_weight = torch.full_like(point_weight, torch.inf).scatter_reduce(0, part, point_weight, "amin")
        point_pair[point_weight > part_weight[part]] = num_points * num_points
        part_pair = torch.full_like(point_pair, num_points * num_points).scatter_reduce(0, part, point_pair, "amin")

        roots = (part == points).nonzero()[:, 0]
        pairs = part_pair[roots]
        low_part, high_part = part[pairs // num_points], part[pairs % num_points]
        other = low_part + high_part - roots
        # Two parts that chose each other chose the same edge: it is kept once, and the lower part is the new root.
        mutual = (part_pair[other] == pairs) & (roots < other)
        parent = points.clone()
        parent[roots] = torch.where(mutual, roots, other)
        tree_pairs.append(pairs[~mutual])
        tree_weights.append(part_weight[roots][~mutual])
        num_edges += len(tree_pairs[-1])
        for _ in range(num_points.bit_length()):
            parent = parent[parent]
        part = parent[part]
    if not tree_pairs:
        return points[:0], weights[0, :0]
    return torch.cat(tree_pairs), torch.cat(tree_weights)
