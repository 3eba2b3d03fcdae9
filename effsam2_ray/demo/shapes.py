"""Random outlines of many kinds, and their antialiased rasters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

# Outlines are drawn this many times larger and averaged down: the coverage of a pixel in steps of 1/9.
SUPERSAMPLING = 3

# Compact shapes come twice: most things are, and lines and rims are the hardest to fill from one click.
KINDS = (
    "ellipse", "ellipse", "rectangle", "rectangle", "polygon", "polygon", "blob", "blob", "rough", "rough", "star",
    "rod", "curve", "ring", "crescent", "cross", "creature",
)  # fmt: skip


@dataclass(frozen=True)
class Outline:
    """A shape around the origin, of radius about 1, in the units of `rasterize`.

    Attributes:
        solids: polygons (K, 2) of (x, y) that are filled.
        strokes: (polyline (K, 2), width) pairs, drawn with round joints.
        holes: polygons cut out of the above.
    """

    solids: tuple[np.ndarray, ...] = ()
    strokes: tuple[tuple[np.ndarray, float], ...] = ()
    holes: tuple[np.ndarray, ...] = ()

    def points(self) -> np.ndarray:
        """Return every point that bounds the shape, (K, 2)."""
        stroke_points = [line + side * width / 2 for line, width in self.strokes for side in (-1.0, 1.0)]
        return np.concatenate([*self.solids, *stroke_points])


def random_outline(rng: np.random.Generator, kind: str | None = None) -> Outline:
    """Draw one outline of radius about 1, turned by a random angle.

    Args:
        rng: source of all choices.
        kind: one of `KINDS`; None picks one.
    """
    kind = kind or KINDS[rng.integers(len(KINDS))]
    outline = _upright_outline(rng, kind)
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return Outline(
        tuple(p @ turn for p in outline.solids),
        tuple((p @ turn, width) for p, width in outline.strokes),
        tuple(p @ turn for p in outline.holes),
    )


def rasterize(
    outline: Outline, center_xy: tuple[float, float], radius: float, size: tuple[int, int]
) -> tuple[int, int, np.ndarray]:
    """Draw an outline into the part of a picture that it touches.

    Args:
        outline: the shape.
        center_xy: where its origin lies, in pixels.
        radius: pixels a unit of the outline.
        size: (height, width) of the picture.

    Returns:
        (top, left, coverage): coverage is (h, w) float32 in [0, 1], the share of each pixel covered, whose
        corner (0, 0) is pixel (top, left) of the picture; h or w is 0 when nothing is inside.
    """
    height, width = size
    points = outline.points() * radius + np.asarray(center_xy)
    left, top = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 2, (width, height))
    if right <= left or bottom <= top:
        return 0, 0, np.zeros((0, 0), np.float32)
    scale = SUPERSAMPLING
    canvas = Image.new("L", (int(right - left) * scale, int(bottom - top) * scale))
    draw = ImageDraw.Draw(canvas)

    def to_canvas(polygon: np.ndarray) -> list[tuple[float, float]]:
        placed = (polygon * radius + np.asarray(center_xy) - (left, top)) * scale
        return [(float(x), float(y)) for x, y in placed]

    for polygon in outline.solids:
        draw.polygon(to_canvas(polygon), fill=255)
    for line, line_width in outline.strokes:
        pixels = max(1.5, line_width * radius) * scale
        placed = to_canvas(line)
        draw.line(placed, fill=255, width=round(pixels), joint="curve")
        for x, y in (placed[0], placed[-1]):
            draw.ellipse((x - pixels / 2, y - pixels / 2, x + pixels / 2, y + pixels / 2), fill=255)
    for polygon in outline.holes:
        draw.polygon(to_canvas(polygon), fill=0)
    coverage = np.asarray(canvas.reduce(scale), dtype=np.float32) / 255.0
    return int(top), int(left), coverage


def _upright_outline(rng: np.random.Generator, kind: str) -> Outline:
    aspect = float(np.exp(rng.uniform(-1.0, 0.0)))
    if kind == "ellipse":
        return Outline(solids=(_ellipse(1.0, aspect),))
    if kind == "rectangle":
        return Outline(solids=(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (0.9, 0.9 * aspect),))
    if kind == "polygon":
        return Outline(solids=(_radial(np.ones(rng.integers(3, 8))) * (1, max(aspect, 0.6)),))
    if kind == "star":
        num_points = int(rng.integers(4, 9))
        return Outline(solids=(_radial(np.tile([1.0, rng.uniform(0.35, 0.65)], num_points)),))
    if kind == "blob":
        return Outline(solids=(_blob(rng) * (1, max(aspect, 0.5)),))
    if kind == "rough":
        return Outline(solids=(_radial(rng.uniform(0.5, 1.0, rng.integers(7, 16))),))
    if kind == "rod":
        return Outline(strokes=((np.array([[-1.1, 0.0], [1.1, 0.0]]), rng.uniform(0.08, 0.3)),))
    if kind == "curve":
        return Outline(strokes=((_wave(rng), rng.uniform(0.1, 0.3)),))
    if kind == "ring":
        inner = rng.uniform(0.45, 0.75)
        return Outline(solids=(_ellipse(1.0, max(aspect, 0.6)),), holes=(_ellipse(1.0, max(aspect, 0.6)) * inner,))
    if kind == "crescent":
        return Outline(solids=(_ellipse(1.0, 1.0),), holes=(_ellipse(0.9, 0.9) + (rng.uniform(0.35, 0.6), 0.0),))
    if kind == "cross":
        arm = rng.uniform(0.2, 0.4)
        bar = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (1.0, arm)
        return Outline(solids=(bar, bar[:, ::-1] * rng.uniform(0.6, 1.0)))
    if kind == "creature":
        return _creature(rng)
    raise ValueError(f"kind must be one of {sorted(set(KINDS))}; got {kind!r}")


def _ellipse(a: float, b: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([a * np.cos(angles), b * np.sin(angles)], axis=1)


def _radial(radii: np.ndarray) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _blob(rng: np.random.Generator) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = np.arange(1, 7)
    amplitudes = rng.normal(0, 0.28, 6) / waves**0.8
    radii = np.exp((amplitudes[:, None] * np.cos(waves[:, None] * angles + rng.uniform(0, 6.3, (6, 1)))).sum(axis=0))
    return _radial(radii / radii.max())


def _wave(rng: np.random.Generator) -> np.ndarray:
    x = np.linspace(-1.1, 1.1, 24)
    y = rng.uniform(0.15, 0.6) * np.sin(rng.uniform(1.0, 4.0) * x + rng.uniform(0, 6.3))
    return np.stack([x, y], axis=1)


def _creature(rng: np.random.Generator) -> Outline:
    body = _blob(rng) * (0.75, rng.uniform(0.3, 0.5))
    head_at = np.array([rng.uniform(0.6, 0.85), -rng.uniform(0.1, 0.45)])
    head = _ellipse(rng.uniform(0.18, 0.3), rng.uniform(0.15, 0.26)) + head_at
    limbs = []
    for x in np.linspace(-0.45, 0.45, int(rng.integers(2, 5))):
        foot = np.array([x + rng.uniform(-0.2, 0.2), rng.uniform(0.55, 0.9)])
        limbs.append((np.array([[x, 0.1], (foot + (x, 0.1)) / 2 + rng.normal(0, 0.05, 2), foot]), 0.12))
    neck = (np.array([[0.35, -0.05], head_at]), rng.uniform(0.15, 0.25))
    return Outline(solids=(body, head), strokes=(*limbs, neck))
