"""One image of a run -> three small panels: prompts on the picture, clusters, final masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from effsam2_ray.rle import Rle
from effsam2_ray.show.coloring import assign_colors, color, touching
from effsam2_ray.show.run_images import ShownImage

OVERSAMPLING = 2
"""Panels are drawn this much larger and averaged down, which smooths edges."""
OPACITY = 0.68
_MISSING_GREY = 118
_MIN_SIDE = 16
_LONE_PROMPT_COLOR = (250, 230, 60)


@dataclass(frozen=True)
class Panels:
    """The three panels of one image, all of one size; `clusters` is None where there is no cluster map."""

    prompts: Image.Image
    clusters: Image.Image | None
    masks: Image.Image


def draw_panels(image: ShownImage, max_side: int) -> Panels:
    """Draw a labelled image.

    Args:
        image: its `size_hw` is not None.
        max_side: pixels of each panel's longer side.
    """
    assert image.size_hw is not None
    width, height = panel_size(image.size_hw, max_side)
    fine_wh = (width * OVERSAMPLING, height * OVERSAMPLING)
    picture = _fine_picture(image, fine_wh)
    muted = _muted(picture)
    clusters, cluster_colors = None, None
    if image.cluster_map is not None:
        num_clusters = int(image.cluster_map.max(initial=-1)) + 1
        cluster_colors = _palette_colors(num_clusters, touching(image.cluster_map, 2))
        clusters = _smaller(_tinted(muted, _enlarged(image.cluster_map, fine_wh), cluster_colors, outer_lines=False))
    prompt_colors = _prompt_colors(image, cluster_colors)
    return Panels(
        prompts=_smaller(_with_prompts(picture, image, prompt_colors)),
        clusters=clusters,
        masks=_smaller(_draw_masks(muted, image.masks)),
    )


def panel_size(size_hw: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Return (width, height) of a panel for a picture of (height, width); a thin strip gets a side of 16 pixels."""
    height, width = size_hw
    scale = max_side / max(height, width)
    return max(round(width * scale), _MIN_SIDE), max(round(height * scale), _MIN_SIDE)


def paint_masks(masks: Sequence[Rle], size_wh: tuple[int, int]) -> np.ndarray:
    """Return which mask shows at each pixel when they are laid down in their order.

    A pixel belongs to a mask that covers half of it. A mask that covers half of no pixel keeps those it covers most, so
    that none vanishes.

    Args:
        masks: of one size, largest first, so that masks inside others stay visible.
        size_wh: (width, height) of the result in pixels.

    Returns:
        (height, width) int32, index in `masks`; -1 where there is none.
    """
    width, height = size_wh
    label_map = np.full((height, width), -1, np.int32)
    for index, mask in enumerate(masks):
        full = Image.fromarray(mask.to_array().view(np.uint8) * 255)
        coverage = np.asarray(full.resize(size_wh, Image.Resampling.BOX))
        cut = min(128, int(coverage.max()))
        if cut:
            label_map[coverage >= cut] = index
    return label_map


def _draw_masks(muted: np.ndarray, masks: Sequence[Rle]) -> np.ndarray:
    height, width = muted.shape[:2]
    label_map = paint_masks(masks, (width, height))
    reach = 3 * OVERSAMPLING
    return _tinted(muted, label_map, _palette_colors(len(masks), touching(label_map, reach)), outer_lines=True)


def _palette_colors(num_regions: int, pairs: set[tuple[int, int]]) -> np.ndarray:
    """Return (R, 3) float32 RGB."""
    return np.array([color(index) for index in assign_colors(num_regions, pairs)], np.float32).reshape(-1, 3)


def _fine_picture(image: ShownImage, fine_wh: tuple[int, int]) -> np.ndarray:
    if image.picture is None:
        return np.full((fine_wh[1], fine_wh[0], 3), _MISSING_GREY, np.uint8)
    return np.asarray(Image.fromarray(image.picture).resize(fine_wh, Image.Resampling.BICUBIC, reducing_gap=3))


def _muted(picture: np.ndarray) -> np.ndarray:
    """Return a picture in soft grey, (H, W, 3) float32, on which colours stand out and shapes can still be made out."""
    luma = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat((48 + 0.62 * luma)[..., None], 3, axis=2)


def _tinted(muted: np.ndarray, label_map: np.ndarray, colors: np.ndarray, *, outer_lines: bool) -> np.ndarray:
    """Return uint8 RGB: regions in their colours, negative labels left grey, thin light lines between regions.

    Args:
        muted: (H, W, 3) float32.
        label_map: (H, W) int32.
        colors: (R, 3) float32 RGB.
        outer_lines: draw lines towards negative labels too.
    """
    result = muted.copy()
    inside = label_map >= 0
    result[inside] = (1 - OPACITY) * muted[inside] + OPACITY * colors[label_map[inside]]
    edge = np.zeros(label_map.shape, bool)
    for axis in (0, 1):
        lines, labels, regions = (np.moveaxis(array, axis, 0) for array in (edge, label_map, inside))
        change = labels[1:] != labels[:-1]
        if not outer_lines:
            change &= regions[1:] & regions[:-1]
        lines[1:] |= change
        lines[:-1] |= change
    result[edge] = 0.25 * result[edge] + 0.75 * 255
    return result.clip(0, 255).astype(np.uint8)


def _enlarged(cluster_map: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    """Return the cluster of each pixel: patches as rectangles."""
    rows, columns = cluster_map.shape
    width, height = size_wh
    row = np.minimum(((np.arange(height) + 0.5) * rows / height).astype(int), rows - 1)
    column = np.minimum(((np.arange(width) + 0.5) * columns / width).astype(int), columns - 1)
    return cluster_map[row[:, None], column[None, :]].astype(np.int32)


def _prompt_colors(image: ShownImage, cluster_colors: np.ndarray | None) -> list[tuple[int, int, int]]:
    """Return the colour of each prompt: that of the cluster it lies in."""
    colors = [_LONE_PROMPT_COLOR] * len(image.point_coords)
    if image.cluster_map is None or cluster_colors is None or image.size_hw is None:
        return colors
    rows, columns = image.cluster_map.shape
    for number, (x, y) in enumerate(image.point_coords):
        row = min(int(y / image.size_hw[0] * rows), rows - 1)
        column = min(int(x / image.size_hw[1] * columns), columns - 1)
        label = image.cluster_map[row, column]
        if label >= 0:
            red, green, blue = cluster_colors[label].astype(int).tolist()
            colors[number] = (red, green, blue)
    return colors


def _with_prompts(picture: np.ndarray, image: ShownImage, colors: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Return the picture with a dot a prompt: its colour, a white ring, a dark rim, so that it shows on any ground."""
    assert image.size_hw is not None
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    fine_width, fine_height = canvas.size
    # Dots shrink when there are many; together they cover at most some five per cent of the panel.
    fitting = (0.05 * fine_width * fine_height / (3.14 * max(len(colors), 1))) ** 0.5
    radius = float(np.clip(fitting, 0.006 * max(canvas.size), 0.019 * max(canvas.size)))
    for (x, y), dot in zip(image.point_coords, colors, strict=True):
        center = float(x) / image.size_hw[1] * fine_width, float(y) / image.size_hw[0] * fine_height
        for share, fill in ((1.0, (25, 25, 25)), (0.85, (255, 255, 255)), (0.6, dot)):
            draw.circle(center, radius * share, fill=fill)
    return np.asarray(canvas)


def _smaller(fine: np.ndarray) -> Image.Image:
    return Image.fromarray(fine).reduce(OVERSAMPLING)
