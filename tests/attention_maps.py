"""Made-up attention for tests: a picture of blobs whose patches look at their own blob."""

from __future__ import annotations

import numpy as np
import torch

from effsam2_ray.attention import CapturedHead
from effsam2_ray.distances import cosine_distances, unit_rows

PRESETS = ((2, 10), (2, 5), (5, 40), (2, 3))


def blob_head(grid_hw: tuple[int, int], num_blobs: int, seed: int, head_dim: int = 24) -> CapturedHead:
    """Return queries and keys of a picture cut into `num_blobs` Voronoi cells, some sharp, some blurred."""
    random = np.random.default_rng(seed)
    rows, columns = grid_hw
    patches = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    centres = random.random((num_blobs, 2)) * [rows, columns]
    blob = ((patches[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
    looks = random.normal(size=(num_blobs, head_dim))
    blur = random.uniform(0.1, 1.2, size=num_blobs)[blob, None]
    features = 1.6 * looks[blob] + blur * random.normal(size=(len(patches), head_dim))
    features += 0.3 * np.sin(patches[:, :1] / 3 + np.arange(head_dim))
    noise = 0.2 * random.normal(size=features.shape)
    return CapturedHead(
        q=torch.from_numpy(features).float(), k=torch.from_numpy(features + noise).float(), grid_hw=grid_hw
    )


def blob_distances(grid_hw: tuple[int, int], num_blobs: int, seed: int, levels: int | None = None) -> np.ndarray:
    """Return the cosine distances of a blob picture; `levels` rounds them to multiples of 1 / levels, to force ties."""
    distances = cosine_distances(unit_rows(blob_head(grid_hw, num_blobs, seed).attention()))
    return distances if levels is None else np.round(distances * levels).astype(np.float32) / np.float32(levels)
