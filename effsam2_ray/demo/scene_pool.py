"""Scenes drawn once onto disk, and the training batches made from them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from effsam2_ray.demo.scenes import draw_scene, training_seed

# An object that shows fewer pixels than this (of a 256 px picture; more in larger ones) is not asked for.
MIN_VISIBLE_PIXELS = 48
# How often the prompt is the object's most interior pixel instead of any of its pixels.
INTERIOR_SHARE = 0.75
# The background is asked for as often as this times an object.
BACKGROUND_WEIGHT = 0.4
# So are objects under this share of the picture, which show too few pixels to teach much.
SMALL_AREA_FRAC, SMALL_WEIGHT = 0.005, 0.4

# Scenes are taken in proportion to their objects of at least that share, up to this number; objects are then about as
# likely.
MAX_OBJECTS_COUNTED = 16


@dataclass(frozen=True)
class Batch:
    """Pictures, and prompts with the objects they stand on.

    Attributes:
        images: (B, 3, S, S) float32 in [0, 1].
        label_maps: (B, S, S) int64.
        point_coords: (B, P, 2) float32, (x, y) in pixels of the picture.
        target_labels: (B, P) int64, the label under each point.
    """

    images: torch.Tensor
    label_maps: torch.Tensor
    point_coords: torch.Tensor
    target_labels: torch.Tensor


class ScenePool:
    """Square training scenes of one size in two memory-mapped files, drawn on first use."""

    def __init__(self, folder: Path, size: int, num_scenes: int) -> None:
        """Open the pool, or reserve its files.

        Args:
            folder: where the files lie.
            size: side of the scenes, in pixels.
            num_scenes: scenes in the pool; scene i comes from `training_seed(i)`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.size = size
        self.num_scenes = num_scenes
        stem = f"{size}px_{num_scenes}"
        self._images = _open_map(folder / f"{stem}_images.npy", (num_scenes, size, size, 3))
        self._label_maps = _open_map(folder / f"{stem}_labels.npy", (num_scenes, size, size))
        self._drawn = _open_map(folder / f"{stem}_drawn.npy", (num_scenes,))

    def scene(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the image (S, S, 3) and label map (S, S), both uint8, of the `index`-th scene."""
        if not self._drawn[index]:
            scene = draw_scene(training_seed(index), self.size)
            self._images[index] = scene.image
            # Labels over 255 become background; scenes have about 15 objects.
            self._label_maps[index] = np.where(scene.label_map > 255, 0, scene.label_map)
            self._drawn[index] = 1
        return self._images[index], self._label_maps[index]

    def batch(self, rng: np.random.Generator, num_images: int, num_prompts: int) -> Batch:
        """Draw a batch: scenes, those with more objects more often, augmented, with prompts on their objects."""
        images: list[np.ndarray] = []
        label_maps, points, labels = [], [], []
        while len(images) < num_images:
            image, label_map = self.scene(int(rng.integers(self.num_scenes)))
            if rng.random() * MAX_OBJECTS_COUNTED >= num_objects(label_map):
                continue
            image, label_map = augment(rng, image, label_map)
            chosen = choose_prompts(rng, label_map, num_prompts)
            if chosen is None:
                continue
            images.append(image)
            label_maps.append(label_map)
            points.append(chosen[0])
            labels.append(chosen[1])
        return Batch(
            torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255),
            torch.from_numpy(np.stack(label_maps).astype(np.int64)),
            torch.from_numpy(np.stack(points)),
            torch.from_numpy(np.stack(labels)),
        )


def num_objects(label_map: np.ndarray) -> int:
    """Return how many labels but 0 cover at least `SMALL_AREA_FRAC` of a label map (H, W)."""
    return int((np.bincount(label_map.ravel())[1:] >= SMALL_AREA_FRAC * label_map.size).sum())


def augment(rng: np.random.Generator, image: np.ndarray, label_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip, transpose, permute or invert the channels, and change the gain.

    Args:
        rng: source of all choices.
        image: (S, S, 3) uint8.
        label_map: (S, S).

    Returns:
        New contiguous arrays of the same shapes and types.
    """
    if rng.random() < 0.5:
        image, label_map = image[:, ::-1], label_map[:, ::-1]
    if rng.random() < 0.5:
        image, label_map = image[::-1], label_map[::-1]
    if rng.random() < 0.5:
        image, label_map = image.transpose(1, 0, 2), label_map.T
    image = image[..., rng.permutation(3)]
    if rng.random() < 0.3:
        image = 255 - image
    gain, lift = rng.uniform(0.7, 1.2), rng.uniform(-20, 20)
    table = np.clip(np.arange(256) * gain + lift, 0, 255).astype(np.uint8)
    return table[np.ascontiguousarray(image)], np.ascontiguousarray(label_map)


def choose_prompts(
    rng: np.random.Generator, label_map: np.ndarray, num_prompts: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Choose points on visible regions, small regions as often as large ones.

    Returns:
        point_coords (P, 2) float32, (x, y) of pixels, and the labels there (P,) int64; None if nothing is large enough.
    """
    pixels = np.bincount(label_map.ravel())
    enough = MIN_VISIBLE_PIXELS * (label_map.shape[0] / 256) ** 1.5
    weights = np.where(pixels >= SMALL_AREA_FRAC * label_map.size, 1.0, SMALL_WEIGHT) * (pixels >= enough)
    weights[0] *= BACKGROUND_WEIGHT
    if weights[1:].sum() == 0:
        return None
    num_regions = int((weights > 0).sum())
    labels = rng.choice(len(weights), num_prompts, replace=num_regions < num_prompts, p=weights / weights.sum())
    points = np.empty((num_prompts, 2), np.float32)
    for row, label in enumerate(labels):
        inside = label_map == label
        if rng.random() < INTERIOR_SHARE:
            points[row] = interior_point(inside)
        else:
            at = rng.choice(np.flatnonzero(inside))
            points[row] = at % label_map.shape[1], at // label_map.shape[1]
    return points, labels.astype(np.int64)


def interior_point(mask: np.ndarray) -> tuple[int, int]:
    """Return (x, y) of the pixel of a mask that is farthest from outside; the picture's edge counts as outside.

    Args:
        mask: (H, W) bool with at least one True. Ties: the first in row order.
    """
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(cols[0])
    crop = np.pad(mask[top : rows[-1] + 1, left : cols[-1] + 1], 1)
    depth = distance_transform_edt(crop)
    row, col = np.unravel_index(int(depth.argmax()), depth.shape)
    return left + int(col) - 1, top + int(row) - 1


def _open_map(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Map a uint8 array file, made of zeros if it is not there; several processes may do so at once."""
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape).flush()
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        temporary.unlink()
    return np.load(path, mmap_mode="r+")
