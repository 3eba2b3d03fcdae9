"""Procedural scenes with their label maps: what the demo weights are trained and measured on.

A scene is drawn back to front: one to five background regions, then objects from large to small (with some disorder),
each with a material, shading and a soft shadow; some carry parts, some come as crowds of near copies. The camera
comes last: illumination, blur, noise, and now and then JPEG.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import label

from effsam2_ray.demo.materials import (
    Material,
    camouflaged,
    color_distances,
    low_contrast,
    noise_fields,
    paint,
    random_material,
)
from effsam2_ray.demo.shapes import Outline, random_outline, rasterize

# Mean colours closer than this (Euclidean, RGB in [0, 1]) are for the objects that are hidden on purpose.
MIN_COLOR_DISTANCE = 0.2
# An object that stands out may still lie on this share of such pixels.
MAX_ALIKE_SHARE = 0.1
MAX_MATERIAL_DRAWS = 16
# An object in front leaves this share of what shows of another, and cuts off at most that share of the rest.
MIN_SHARE_LEFT, MAX_CUT_OFF = 0.4, 0.1
MAX_PLACES = 5


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        label_map: (H, W) int32; 0 is the background, each object has its own positive label. A part inside a
            whole has a label of its own, and the whole keeps the rest.
    """

    image: np.ndarray
    label_map: np.ndarray


def training_seed(index: int) -> int:
    """Return the seed of the `index`-th training scene: even numbers only."""
    return 2 * index


def held_out_seed(index: int) -> int:
    """Return the seed of the `index`-th held-out scene: odd numbers only."""
    return 2 * index + 1


def draw_scene(seed: int, size: int | tuple[int, int]) -> Scene:
    """Draw the scene of a seed.

    Args:
        seed: 0 or more; the same seed and size give the same scene.
        size: (height, width) in pixels, or one number for a square; 32 or more.

    Raises:
        ValueError: a side is under 32 pixels.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 32:
        raise ValueError(f"size must be 32 or more on both sides; got ({height}, {width})")
    canvas = _Canvas.blank(np.random.default_rng(seed), (height, width))
    canvas.lay_background()
    for item in _plan_objects(canvas):
        canvas.place(item)
    return Scene(_photograph(canvas), canvas.label_map)


@dataclass(frozen=True)
class _Item:
    outline: Outline
    center_xy: tuple[float, float]
    radius: float
    material: Material | None  # None: drawn when the object is placed, unlike what lies below it
    with_parts: bool


@dataclass
class _Canvas:
    """The picture while it is drawn."""

    rng: np.random.Generator
    fields: np.ndarray
    colors: np.ndarray
    label_map: np.ndarray
    backdrop: list[Material] = field(default_factory=list)
    num_labels: int = 0

    @classmethod
    def blank(cls, rng: np.random.Generator, size: tuple[int, int]) -> _Canvas:
        return cls(rng, noise_fields(rng, size), np.zeros((*size, 3), np.float32), np.zeros(size, np.int32))

    @property
    def size(self) -> tuple[int, int]:
        return self.label_map.shape  # type: ignore[return-value]

    def lay_background(self) -> None:
        """Fill the picture with one region, or with several whose borders are bent by noise."""
        height, width = self.size
        num_regions = int(self.rng.choice([1, 1, 1, 2, 2, 3, 5]))
        regions = np.zeros(self.size, np.int32)
        if num_regions > 1:
            sites = self.rng.uniform(0, 1, (num_regions, 2)) * (height, width)
            bend = 0.04 * max(height, width) * self.fields[-1]
            rows, cols = np.arange(height)[:, None] + bend, np.arange(width)[None, :] + bend[::-1, ::-1]
            distances = [(rows - y) ** 2 + (cols - x) ** 2 for y, x in sites]
            regions = np.argmin(distances, axis=0).astype(np.int32)
        for region in range(num_regions):
            material = random_material(self.rng, len(self.fields), self.size)
            self.backdrop.append(material)
            inside = regions == region
            self.colors[inside] = paint(material, self.fields, 0, 0, height, width)[inside]
        self.label_map[:] = regions
        self.num_labels = num_regions - 1

    def place(self, item: _Item) -> None:
        """Draw an object, its shadow before it and its parts after it; elsewhere, or not, if it spoils others."""
        height, width = self.size
        for _ in range(MAX_PLACES):
            top, left, coverage = rasterize(item.outline, item.center_xy, item.radius, self.size)
            if coverage.size and (coverage >= 0.5).any() and self._leaves_others_whole(top, left, coverage):
                break
            item = replace(item, center_xy=(self.rng.uniform(0, width), self.rng.uniform(0, height)))
        else:
            return
        if item.material is None:
            item = replace(item, material=self._distinct_material(top, left, coverage))
        if self.rng.random() < 0.5:
            self._cast_shadow(top, left, coverage, item.radius)
        self._cover(top, left, coverage, item)
        # Parts cut lines and rims into scraps: wholes are at least about a third of their circle.
        if item.with_parts and coverage.sum() > item.radius**2:
            for _ in range(int(self.rng.integers(1, 4))):
                self._place_part(top, left, coverage, item)

    def _leaves_others_whole(self, top: int, left: int, coverage: np.ndarray) -> bool:
        """Tell whether every object below keeps most of what shows of it, in one piece but for scraps.

        One click cannot ask for pieces far apart, and a sliver does not tell what it belongs to.
        """
        window = (slice(top, top + coverage.shape[0]), slice(left, left + coverage.shape[1]))
        hidden = coverage >= 0.5
        for value in np.unique(self.label_map[window][hidden]):
            if value == 0:
                continue
            shown = self.label_map == value
            before = shown.sum()
            shown[window] &= ~hidden
            pieces = np.bincount(label(shown)[0].ravel())[1:]
            if pieces.sum() < MIN_SHARE_LEFT * before or pieces.max() < (1 - MAX_CUT_OFF) * pieces.sum():
                return False
        return True

    def _place_part(self, top: int, left: int, whole: np.ndarray, item: _Item) -> None:
        rows, cols = np.nonzero(whole >= 0.99)
        if len(rows) == 0:
            return
        at = int(self.rng.integers(len(rows)))
        center = (left + cols[at] + 0.5, top + rows[at] + 0.5)
        part = replace(
            item,
            outline=random_outline(self.rng),
            center_xy=center,
            radius=item.radius * self.rng.uniform(0.2, 0.45),
            material=None,
        )
        part_top, part_left, coverage = rasterize(part.outline, center, part.radius, self.size)
        clip = np.zeros(self.size, np.float32)
        clip[top : top + whole.shape[0], left : left + whole.shape[1]] = whole
        coverage = coverage * clip[part_top : part_top + coverage.shape[0], part_left : part_left + coverage.shape[1]]
        if not (coverage >= 0.5).any() or not self._leaves_others_whole(part_top, part_left, coverage):
            return
        part = replace(part, material=self._distinct_material(part_top, part_left, coverage))
        self._cover(part_top, part_left, coverage, part)

    def _distinct_material(self, top: int, left: int, coverage: np.ndarray) -> Material:
        """Draw a material that the eye tells from what is there; objects hidden by chance would teach nothing."""
        height, width = coverage.shape
        below = self.colors[top : top + height, left : left + width][coverage >= 0.5]
        below = below[:: 1 + len(below) // 256]
        for _ in range(MAX_MATERIAL_DRAWS):
            material = random_material(self.rng, len(self.fields), self.size)
            alike = color_distances(material, below) < MIN_COLOR_DISTANCE
            if alike.sum() <= MAX_ALIKE_SHARE * len(below):
                break
        return material

    def _cover(self, top: int, left: int, coverage: np.ndarray, item: _Item) -> None:
        assert item.material is not None
        height, width = coverage.shape
        window = (slice(top, top + height), slice(left, left + width))
        surface = paint(item.material, self.fields, top, left, height, width)
        surface = surface * self._shading(top, left, coverage, item)[..., None]
        alpha = coverage[..., None]
        self.colors[window] += alpha * (surface - self.colors[window])
        self.num_labels += 1
        self.label_map[window][coverage >= 0.5] = self.num_labels

    def _shading(self, top: int, left: int, coverage: np.ndarray, item: _Item) -> np.ndarray:
        """Return the factor of light: a slope, a ball's falloff, a darker rim, or some of each."""
        height, width = coverage.shape
        y = ((np.arange(top, top + height) - item.center_xy[1]) / item.radius)[:, None]
        x = ((np.arange(left, left + width) - item.center_xy[0]) / item.radius)[None, :]
        angle = self.rng.uniform(0, 2 * np.pi)
        slope = self.rng.uniform(0.0, 0.3) * (x * np.cos(angle) + y * np.sin(angle))
        light = 1.0 + slope
        if self.rng.random() < 0.35:
            lit = (x - 0.4 * np.cos(angle)) ** 2 + (y - 0.4 * np.sin(angle)) ** 2
            light = light * (1.15 - self.rng.uniform(0.1, 0.45) * np.minimum(lit, 1.5))
        if self.rng.random() < 0.3 and item.radius > 3:
            blurred = _blurred(coverage, item.radius * self.rng.uniform(0.05, 0.2))
            light = light * (0.6 + 0.4 * np.clip(2 * blurred - 1, 0, 1))
        return light.astype(np.float32)

    def _cast_shadow(self, top: int, left: int, coverage: np.ndarray, radius: float) -> None:
        softness = radius * self.rng.uniform(0.05, 0.3) + 0.5
        pad = int(3 * softness) + 1
        shadow = _blurred(np.pad(coverage, pad), softness) * self.rng.uniform(0.15, 0.55)
        shift = self.rng.normal(0, 0.15, 2) * radius
        top, left = top - pad + round(shift[0]), left - pad + round(shift[1])
        bottom, right = min(top + shadow.shape[0], self.size[0]), min(left + shadow.shape[1], self.size[1])
        y0, x0 = max(top, 0), max(left, 0)
        if y0 < bottom and x0 < right:
            self.colors[y0:bottom, x0:right] *= 1 - shadow[y0 - top : bottom - top, x0 - left : right - left, None]


def _plan_objects(canvas: _Canvas) -> list[_Item]:
    """Choose the objects, in the order in which they are drawn."""
    rng, (height, width) = canvas.rng, canvas.size
    short = min(height, width)
    items = []
    for _ in range(int(rng.integers(3, 11))):
        smallest = 0.02 if rng.random() < 0.12 else 0.06
        radius = short * float(np.exp(rng.uniform(np.log(smallest), np.log(0.36))))
        center = (rng.uniform(0, width), rng.uniform(0, height))
        items.append(_Item(random_outline(rng), center, radius, _object_material(canvas), rng.random() < 0.2))
    if rng.random() < 0.15:
        items.extend(_crowd(canvas, short))
    items = [replace(item, with_parts=item.with_parts and item.radius > 0.08 * short) for item in items]
    return sorted(items, key=lambda item: -item.radius * np.exp(rng.normal(0, 0.35)))


def _crowd(canvas: _Canvas, short: int) -> list[_Item]:
    """Scatter near copies of one object around a place."""
    rng, (height, width) = canvas.rng, canvas.size
    radius = short * rng.uniform(0.04, 0.1)
    kind_rng_seed = int(rng.integers(2**31))
    material = random_material(rng, len(canvas.fields), canvas.size)
    middle, spread = rng.uniform(0.2, 0.8, 2) * (width, height), short * rng.uniform(0.12, 0.35)
    items = []
    for _ in range(int(rng.integers(4, 13))):
        # The same seed draws the same outline again: copies differ in place, size and colour only.
        outline = random_outline(np.random.default_rng(kind_rng_seed))
        near = low_contrast(material, rng, canvas.size) if rng.random() < 0.6 else material
        x, y = middle + rng.normal(0, spread, 2)
        items.append(_Item(outline, (x, y), radius * rng.uniform(0.8, 1.25), near, False))
    return items


def _object_material(canvas: _Canvas) -> Material | None:
    rng = canvas.rng
    behind = canvas.backdrop[rng.integers(len(canvas.backdrop))]
    draw = rng.random()
    if draw < 0.05:
        return low_contrast(behind, rng, canvas.size)
    if draw < 0.08:
        return camouflaged(behind, rng, canvas.size)
    return None


def _photograph(canvas: _Canvas) -> np.ndarray:
    """Light, blur and record the picture as a cheap camera would, (H, W, 3) uint8."""
    rng, (height, width) = canvas.rng, canvas.size
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    angle = rng.uniform(0, 2 * np.pi)
    light = 1.0 + rng.uniform(0, 0.25) * (x * np.cos(angle) + y * np.sin(angle)) + 0.06 * canvas.fields[-1]
    picture = np.clip(canvas.colors * light[..., None].astype(np.float32), 0, 1) ** np.float32(rng.uniform(0.8, 1.3))
    image = Image.fromarray((picture * 255).astype(np.uint8))
    if rng.random() < 0.5:
        image = image.filter(
            ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9)) * max(1.0, min(height, width) / 512))
        )
    amplitude = float(rng.choice([0.0, rng.uniform(0.0, 4.0), rng.uniform(0.0, 10.0)]))
    noisy = np.asarray(image, np.float32) + rng.standard_normal((height, width, 3), np.float32) * amplitude
    image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    if rng.random() < 0.2:
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=int(rng.integers(40, 95)))
        image = Image.open(encoded)
    return np.array(image)


def _blurred(coverage: np.ndarray, sigma: float) -> np.ndarray:
    image = Image.fromarray((coverage * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(sigma))
    return np.asarray(image, np.float32) / 255.0
