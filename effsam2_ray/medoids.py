"""Medoids: the point of each cluster with the least summed distance to the cluster's points.

With unit rows and the distance ``1 - cosine``, the sum of distances from i to cluster C is ``|C| - x_i . s``, where
``s`` is the sum of the rows of C. So the medoid maximises ``x_i . s``, and no distances are needed.
"""

from __future__ import annotations

import numpy as np
import torch


def medoids(rows: torch.Tensor, labels: np.ndarray, points_at_once: int | None = None) -> np.ndarray:
    """Return the medoid of each cluster.

    Sums run in float64: in float32, rows that are nearly equal give another point in most cases. Among equal sums the
    lowest point wins.

    Args:
        rows: (N, D) unit rows, on any device; the work is done there.
        labels: (N,) cluster of each point, -1 for noise; each of 0 ... num_clusters - 1 occurs.
        points_at_once: clusters are taken together up to this many points. By default one by one on a CPU, whose
            cache then holds their float64 copies, and 512 points elsewhere, where each call costs more than its work.

    Returns:
        (num_clusters,) int64 indices of points; the medoid of cluster c at c.
    """
    if points_at_once is None:
        points_at_once = 1 if rows.device.type == "cpu" else 512
    by_cluster = np.argsort(labels, kind="stable")  # noise first
    ends = np.cumsum(np.bincount(labels + 1, minlength=1))
    starts, ends = ends[:-1], ends[1:]  # of each cluster in by_cluster
    members = torch.from_numpy(by_cluster).to(rows.device)
    clusters = torch.from_numpy(labels[by_cluster].astype(np.int64)).to(rows.device)
    similarities = []
    first = 0
    while first < len(starts):
        last = max(first + 1, int(np.searchsorted(ends, starts[first] + points_at_once, side="right")))
        taken = slice(starts[first], ends[last - 1])
        x = rows[members[taken]].double()
        similarities.append(_similarity_to_cluster(x, clusters[taken] - first, last - first))
        first = last
    if not similarities:
        return np.zeros(0, np.int64)
    scores = np.full(len(labels), np.inf)
    scores[starts[0] :] = torch.cat(similarities).cpu().numpy()
    best_first = np.lexsort((by_cluster, -scores, labels[by_cluster]))
    return by_cluster[best_first[starts]].astype(np.int64)


def _similarity_to_cluster(x: torch.Tensor, clusters: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """Return ``x_i . s`` for each row of `x`, (M, D), where s is the sum of the rows of i's cluster."""
    if num_clusters == 1:
        return (x * x.sum(dim=0)).sum(dim=1)
    # A product with the membership matrix adds in a fixed order, unlike scattered additions on a GPU.
    membership = torch.nn.functional.one_hot(clusters, num_clusters).double()
    sums = membership.T @ x  # (num_clusters, D)
    return (x * sums[clusters]).sum(dim=1)
