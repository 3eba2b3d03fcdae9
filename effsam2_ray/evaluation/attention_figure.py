"""Pictures of attention: where a patch looks, and the clusters that rows of attention fall into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from effsam2_ray.cluster_prompts import cluster_prompts
from effsam2_ray.config import ClusterSettings
from effsam2_ray.model.interface import EncodedImage, Head, SegmentationModel
from effsam2_ray.show.drawing import draw_panels, panel_size
from effsam2_ray.show.lettering import fit_text, plain_font
from effsam2_ray.show.run_images import ShownImage

NUM_PATCHES = 3
_SIDE, _CAPTION, _GAP = 300, 26, 6
_PAPER, _INK = (250, 250, 248), (28, 28, 30)


@dataclass(frozen=True)
class AttentionPanels:
    """What is drawn of one head on one picture.

    Attributes:
        rows: attention of each chosen patch, (rows, columns) float32 each, summing to 1.
        patches: the chosen patches, indices in row-major order.
        cluster_map: (rows, columns) int16, -1 for noise.
        point_coords: (P, 2) float32 (x, y) of the clusters' medoids, pixels.
    """

    rows: tuple[np.ndarray, ...]
    patches: tuple[int, ...]
    cluster_map: np.ndarray
    point_coords: np.ndarray


def attention_panels(
    encoded: EncodedImage, head: Head, settings: ClusterSettings, patch: tuple[float, float] | None = None
) -> AttentionPanels:
    """Return what a head says about a picture.

    Args:
        encoded: the picture, with the head captured.
        head: (block, head).
        settings: how its rows are clustered.
        patch: (x, y) in [0, 1] of the grid, whose attention is wanted; by default the medoids of the three largest
            clusters, or the middle of the picture where there are none.
    """
    captured = encoded.captured[head]
    rows, columns = captured.grid_hw
    found = cluster_prompts(
        captured, encoded.grid_extent_hw, settings.min_samples, settings.min_cluster_size, settings.noise_floor
    )
    points = found.prompts.point_coords
    extent_wh = np.array(encoded.grid_extent_hw[::-1])
    if patch is not None:
        chosen = np.array([patch])
    elif len(points):
        largest = np.argsort(-found.prompts.cluster_size, kind="stable")[:NUM_PATCHES]
        chosen = points[largest] / extent_wh
    else:
        chosen = np.array([(0.5, 0.5)])
    places = np.minimum((chosen * (columns, rows)).astype(int), (columns - 1, rows - 1))
    patches = tuple(int(y) * columns + int(x) for x, y in places)
    attention = captured.attention()[list(patches)].cpu().numpy().reshape(-1, rows, columns)
    return AttentionPanels(tuple(attention), patches, found.labels, points)


def draw_attention(picture: np.ndarray, panels: AttentionPanels, name: str) -> Image.Image:
    """Draw one line: the picture with its prompts, the attention of each chosen patch, the clusters.

    Args:
        picture: (H, W, 3) uint8.
        panels: of this picture.
        name: caption.
    """
    size_hw = (picture.shape[0], picture.shape[1])
    shown = ShownImage(name, name, "ok", "", "", "", size_hw, panels.point_coords, panels.cluster_map, (), picture, "")
    drawn = draw_panels(shown, _SIDE)
    images = [("prompts", drawn.prompts)]
    for number, (row, patch) in enumerate(zip(panels.rows, panels.patches, strict=True)):
        images.append((f"attention of patch {number + 1}", _heat(picture, row, patch)))
    if drawn.clusters is not None:
        images.append(("clusters", drawn.clusters))
    width, height = panel_size(size_hw, _SIDE)
    line = Image.new("RGB", (len(images) * (width + _GAP) + _GAP, height + 2 * _CAPTION + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(line), plain_font(14)
    draw.text((_GAP, 6), fit_text(name, font, line.width - 2 * _GAP), _INK, font)
    for place, (title, image) in enumerate(images):
        left = _GAP + place * (width + _GAP)
        draw.text((left, _CAPTION + 6), title, _INK, plain_font(13))
        line.paste(image, (left, 2 * _CAPTION))
    return line


def figure(
    model: SegmentationModel,
    pictures: Sequence[tuple[str, np.ndarray]],
    head: Head,
    settings: ClusterSettings,
    patch: tuple[float, float] | None = None,
) -> list[Image.Image]:
    """Encode pictures one by one and return a line of panels for each; see `attention_panels`."""
    lines = []
    for name, picture in pictures:
        encoded = model.encode([picture], [head])[0]
        lines.append(draw_attention(picture, attention_panels(encoded, head, settings, patch), name))
    return lines


def _heat(picture: np.ndarray, attention: np.ndarray, patch: int) -> Image.Image:
    """Return the picture in grey under its attention, dark blue to yellow, with a ring around the patch that looks.

    Attention is shown relative to its largest value, by its square root: a row's values span orders of magnitude.
    """
    width, height = panel_size((picture.shape[0], picture.shape[1]), _SIDE)
    grey = np.asarray(Image.fromarray(picture).convert("L").resize((width, height)), np.float32)[..., None]
    strength = np.sqrt(attention / max(float(attention.max()), 1e-12)).astype(np.float32)
    share = np.asarray(Image.fromarray(strength).resize((width, height), Image.Resampling.BILINEAR))[..., None]
    stops = np.array([(20, 24, 82), (150, 40, 130), (250, 120, 50), (255, 240, 120)], np.float32)
    at = share[..., 0] * (len(stops) - 1)
    low = np.minimum(at.astype(int), len(stops) - 2)
    heat = stops[low] + (at - low)[..., None] * (stops[low + 1] - stops[low])
    image = Image.fromarray((0.45 * grey + 0.55 * heat).clip(0, 255).astype(np.uint8))
    rows, columns = attention.shape
    row, column = divmod(patch, columns)
    center = ((column + 0.5) / columns * width, (row + 0.5) / rows * height)
    draw = ImageDraw.Draw(image)
    draw.circle(center, 6, None, (20, 20, 20), 4)
    draw.circle(center, 6, None, (255, 255, 255), 2)
    return image
