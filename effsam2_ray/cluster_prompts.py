"""Point prompts from the attention of one picture: the method's own.

The steps are::

    attention -> unit rows -> distances -> spanning tree -> cluster labels -> medoids -> patch centres

On a device the first four run there, only tree edges leave it, and the medoids are found there again; on a CPU the
tree is hdbscan's own. `cluster_prompts_many` runs all steps in place. To select clusters in another process, take the
steps one by one: `attention_trees`, `select_clusters`, `cluster_centres`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from effsam2_ray.attention import CapturedHead
from effsam2_ray.clustering import Clusters, cluster_tree
from effsam2_ray.device_tree import device_spanning_tree
from effsam2_ray.distances import cosine_distances, device_cosine_distances, full_float32_products, unit_rows
from effsam2_ray.medoids import medoids
from effsam2_ray.prompts import Prompts, patch_centres
from effsam2_ray.spanning_tree import merge_ties_at_once, spanning_tree

NOISE_FLOOR = 1e-5


@dataclass(frozen=True)
class ClusterPrompts:
    """Prompts from attention, and how they came about.

    Attributes:
        prompts: one for each cluster, in the order of labels.
        labels: (rows, columns) int16, cluster of each patch, -1 for noise.
        step_s: seconds by step: attention_s, distances_s, spanning_tree_s, tree_select_s, medoids_s.
    """

    prompts: Prompts
    labels: np.ndarray
    step_s: dict[str, float]


@dataclass(frozen=True)
class AttentionTrees:
    """Spanning trees of one picture's patches.

    Attributes:
        rows: (N, N) float32 unit rows, on the device of the attention.
        edges: (N - 1, 3) float64 edges in merge order, by `min_samples`.
        ties_at_once: `merge_ties_at_once` is to be applied to the edges before clustering: they come from a device.
        attention_s, distances_s: seconds of these steps.
        tree_s: seconds of each tree, by `min_samples`.
    """

    rows: torch.Tensor
    edges: dict[int, np.ndarray]
    ties_at_once: bool
    attention_s: float
    distances_s: float
    tree_s: dict[int, float]


def cluster_centres(
    rows: torch.Tensor, clusters: Clusters, grid_hw: tuple[int, int], extent_hw: tuple[float, float]
) -> Prompts:
    """Return one prompt for each cluster, at the centre of its medoid's patch.

    Args:
        rows: (N, D) unit rows of the patches, on any device.
        clusters: labels of the N patches.
        grid_hw: (rows, columns) of patches.
        extent_hw: (height, width) in pixels that the grid covers: the picture's, but for SAM 1's padded last patches.
    """
    return Prompts(
        point_coords=patch_centres(medoids(rows, clusters.labels), grid_hw, extent_hw),
        cluster_size=np.bincount(clusters.labels + 1, minlength=1)[1:].astype(np.int32),
        persistence=clusters.persistence.astype(np.float32),
    )


def attention_trees(
    captured: CapturedHead,
    min_samples: Iterable[int],
    noise_floor: float = NOISE_FLOOR,
    on_device: bool | None = None,
) -> AttentionTrees:
    """Return the spanning tree of a picture's patches for each value of `min_samples`.

    Args:
        captured: attention head of the picture.
        min_samples: values, each 1 or more; repeated ones share a tree.
        noise_floor: where no distance reaches it, there are no clusters.
        on_device: find distances and trees with torch where `captured` lies, instead of as hdbscan does on the host.
            By default on every device but a CPU.

    Raises:
        ValueError: the attention is not finite, or a `min_samples` is below 1.
    """
    device = captured.q.device
    on_device = device.type != "cpu" if on_device is None else on_device
    start = _clock(device)
    with full_float32_products(device):
        rows = unit_rows(captured.attention())
    attention_end = _clock(device)
    find_tree: Callable[[int, float], np.ndarray]
    if on_device:
        find_tree = partial(device_spanning_tree, device_cosine_distances(rows))
    else:
        find_tree = partial(spanning_tree, cosine_distances(rows))
    distances_end = _clock(device)
    edges, tree_s = {}, {}
    for value in dict.fromkeys(min_samples):
        tree_start = _clock(device)
        edges[value] = find_tree(value, noise_floor)
        tree_s[value] = _clock(device) - tree_start
    return AttentionTrees(rows, edges, on_device, attention_end - start, distances_end - attention_end, tree_s)


def select_clusters(edges: np.ndarray, ties_at_once: bool, min_cluster_size: int) -> Clusters:
    """Return the clusters in a tree of `attention_trees`; needs a CPU and no attention.

    Args:
        edges: (N - 1, 3) edges of one `min_samples`.
        ties_at_once: as in `AttentionTrees`.
        min_cluster_size: fewest patches in a cluster.
    """
    return cluster_tree(merge_ties_at_once(edges) if ties_at_once else edges, min_cluster_size)


def cluster_prompts_many(
    captured: CapturedHead,
    extent_hw: tuple[float, float],
    presets: Sequence[tuple[int, int]],
    noise_floor: float = NOISE_FLOOR,
    on_device: bool | None = None,
) -> list[ClusterPrompts]:
    """Return the prompts of one picture for several presets.

    Args:
        captured: attention head of the picture.
        extent_hw: (height, width) in pixels that the grid covers: the picture's, but for SAM 1's padded last patches.
        presets: (min_samples, min_cluster_size) of each.
        noise_floor: where no distance between patches reaches it, there are no prompts.
        on_device: see `attention_trees`.

    Returns:
        One value for each preset; its times are what it would have taken alone, so that a shared step is in those of
        every preset.

    Raises:
        ValueError: the attention is not finite, or a preset's number is out of range.
    """
    trees = attention_trees(captured, (min_samples for min_samples, _ in presets), noise_floor, on_device)
    merge_order: dict[int, np.ndarray] = {}
    results = []
    for min_samples, min_cluster_size in presets:
        step_s = {
            "attention_s": trees.attention_s,
            "distances_s": trees.distances_s,
            "spanning_tree_s": trees.tree_s[min_samples],
        }
        start = time.perf_counter()
        if min_samples not in merge_order:
            edges = trees.edges[min_samples]
            merge_order[min_samples] = merge_ties_at_once(edges) if trees.ties_at_once else edges
        clusters = cluster_tree(merge_order[min_samples], min_cluster_size)
        tree_select_end = time.perf_counter()
        prompts = cluster_centres(trees.rows, clusters, captured.grid_hw, extent_hw)
        step_s["tree_select_s"] = tree_select_end - start
        step_s["medoids_s"] = time.perf_counter() - tree_select_end
        results.append(ClusterPrompts(prompts, clusters.labels.reshape(captured.grid_hw).astype(np.int16), step_s))
    return results


def cluster_prompts(
    captured: CapturedHead,
    extent_hw: tuple[float, float],
    min_samples: int,
    min_cluster_size: int,
    noise_floor: float = NOISE_FLOOR,
) -> ClusterPrompts:
    """Return the prompts of one picture for one preset; see `cluster_prompts_many`."""
    return cluster_prompts_many(captured, extent_hw, [(min_samples, min_cluster_size)], noise_floor)[0]


def _clock(device: torch.device) -> float:
    """Return the time in seconds once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
