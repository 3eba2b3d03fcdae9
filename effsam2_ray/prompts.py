"""Point prompts, and the two baselines that need no attention: a uniform grid, and random points.

All points are (x, y) in pixels of the picture. Those of the method are found by `cluster_prompts.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Prompts:
    """Positive point prompts of one picture.

    Attributes:
        point_coords: (P, 2) float32, (x, y) in pixels of the picture.
        cluster_size: (P,) int32, patches in the prompt's cluster; 0 where no cluster stands behind the prompt.
        persistence: (P,) float32 in [0, 1], persistence of the prompt's cluster; 0 where there is no cluster.
    """

    point_coords: np.ndarray
    cluster_size: np.ndarray
    persistence: np.ndarray

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.point_coords)


def patch_centres(indices: np.ndarray, grid_hw: tuple[int, int], size_hw: tuple[float, float]) -> np.ndarray:
    """Return the centres of patches in a picture that the grid of patches covers exactly.

    Args:
        indices: (P,) patches in row-major order.
        grid_hw: (rows, columns) of patches.
        size_hw: (height, width) of the picture in pixels.

    Returns:
        (P, 2) float32 (x, y) in pixels.
    """
    (rows, columns), (height, width) = grid_hw, size_hw
    row, column = np.divmod(np.asarray(indices), columns)
    return np.stack([(column + 0.5) / columns * width, (row + 0.5) / rows * height], axis=1).astype(np.float32)


def grid_prompts(n: int, size_hw: tuple[int, int]) -> Prompts:
    """Return an n x n grid of prompts, row by row: the points of SAM's `build_point_grid`, in pixels."""
    return _prompts_without_clusters(patch_centres(np.arange(n * n), (n, n), size_hw))


def random_prompts(n: int, size_hw: tuple[int, int], seed: int) -> Prompts:
    """Return `n` prompts spread uniformly over the picture; the same for the same `n`, size and `seed`."""
    height, width = size_hw
    unit = np.random.default_rng(seed).random((n, 2), dtype=np.float32)
    return _prompts_without_clusters(unit * np.array([width, height], np.float32))


def _prompts_without_clusters(point_coords: np.ndarray) -> Prompts:
    return Prompts(point_coords, np.zeros(len(point_coords), np.int32), np.zeros(len(point_coords), np.float32))
