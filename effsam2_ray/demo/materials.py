"""Colours and textures: noise with the spectrum of photographs, and patterns made from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

PATTERNS = ("flat", "flat", "noise", "noise", "blotches", "stripes", "checks", "dots", "gradient")


@dataclass(frozen=True)
class Material:
    """How a surface looks: two colours, the pattern that mixes them, and a grain over both.

    Attributes:
        base, second: RGB in [0, 1].
        pattern: one of `PATTERNS`.
        frequency: periods of the pattern over the picture's longer side.
        angle: direction of the pattern, radians.
        warp: how much noise bends the pattern, in periods.
        grain: amplitude of the noise added to all channels.
        field: index of the noise field.
        offset: (row, column) shift of the noise field, in pixels.
    """

    base: tuple[float, float, float]
    second: tuple[float, float, float]
    pattern: str
    frequency: float
    angle: float
    warp: float
    grain: float
    field: int
    offset: tuple[int, int]


def noise_fields(rng: np.random.Generator, size: tuple[int, int], num_fields: int = 4) -> np.ndarray:
    """Draw periodic noise whose amplitude falls as 1 / frequency ** b, b from 0.5 to 1.8 over the fields.

    Photographs have b near 1 (Field, 1987).

    Returns:
        (num_fields, H, W) float32, each of mean 0 and standard deviation 1.
    """
    height, width = size
    fy = np.fft.fftfreq(height)[:, None] * max(size)
    fx = np.fft.rfftfreq(width)[None, :] * max(size)
    radius = np.sqrt(fy**2 + fx**2)
    radius[0, 0] = 1.0
    fields = np.empty((num_fields, height, width), np.float32)
    for index, exponent in enumerate(np.linspace(0.5, 1.8, num_fields)):
        # The frequencies below 2 periods are damped, else the steepest field is one slope.
        amplitude = radius ** -(exponent + 0.3) * np.minimum(1.0, radius / 2)
        spectrum = amplitude * np.exp(2j * np.pi * rng.random(radius.shape))
        spectrum[0, 0] = 0.0
        field = np.fft.irfft2(spectrum, s=size)
        fields[index] = field / (field.std() + 1e-12)
    return fields


def random_material(rng: np.random.Generator, num_fields: int, size: tuple[int, int]) -> Material:
    """Draw a material with colours that are mostly dull, as in photographs."""
    base = _random_color(rng)
    if rng.random() < 0.15:
        second = _random_color(rng)
    else:
        second = _shifted(base, rng, rng.uniform(0.05, 0.3))
    return Material(
        base=base,
        second=second,
        pattern=PATTERNS[rng.integers(len(PATTERNS))],
        frequency=float(np.exp(rng.uniform(np.log(8), np.log(45)))),
        angle=float(rng.uniform(0, np.pi)),
        warp=float(rng.choice([0.0, rng.uniform(0.0, 0.6)])),
        grain=float(rng.uniform(0.0, 0.08)),
        field=int(rng.integers(num_fields)),
        offset=(int(rng.integers(size[0])), int(rng.integers(size[1]))),
    )


def low_contrast(material: Material, rng: np.random.Generator, size: tuple[int, int]) -> Material:
    """Return a material that differs from `material` by a small step of colour."""
    step = rng.normal(0, 1, 3)
    step *= rng.uniform(0.09, 0.2) / (np.linalg.norm(step) + 1e-9)
    return replace(
        material,
        base=_clipped(np.asarray(material.base) + step),
        second=_clipped(np.asarray(material.second) + step),
        offset=(int(rng.integers(size[0])), int(rng.integers(size[1]))),
    )


def camouflaged(material: Material, rng: np.random.Generator, size: tuple[int, int]) -> Material:
    """Return a material of the same colours whose pattern is turned, shifted and of another scale."""
    patterned = replace(material, pattern="stripes") if material.pattern == "flat" else material
    return replace(
        patterned,
        angle=material.angle + float(rng.uniform(0.6, 2.5)),
        frequency=material.frequency * float(rng.choice([0.5, 1.8])),
        offset=(int(rng.integers(size[0])), int(rng.integers(size[1]))),
        base=_shifted(material.base, rng, 0.05),
    )


def color_distances(material: Material, colors: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance of a material's mean colour from each of the colours (N, 3), RGB in [0, 1]."""
    base, second = np.asarray(material.base), np.asarray(material.second)
    mean = base if material.pattern == "flat" else (base + second) / 2
    return np.linalg.norm(mean - colors, axis=-1)


def paint(material: Material, fields: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Paint a rectangle of a picture with a material.

    Args:
        material: what to paint.
        fields: (F, H, W) noise of the picture's size.
        top, left, height, width: the rectangle, in pixels.

    Returns:
        (height, width, 3) float32; values may leave [0, 1] slightly.
    """
    picture_h, picture_w = fields.shape[1:]
    rows, cols = np.arange(top, top + height), np.arange(left, left + width)
    wrap = np.ix_((rows + material.offset[0]) % picture_h, (cols + material.offset[1]) % picture_w)
    noise = fields[material.field][wrap]  # (height, width)
    along, across = _pattern_axes(material, rows, cols, max(picture_h, picture_w))
    mix = _pattern(material, along, across, noise)
    base, second = np.asarray(material.base, np.float32), np.asarray(material.second, np.float32)
    return base + mix[..., None] * (second - base) + (material.grain * noise)[..., None]


def _pattern_axes(
    material: Material, rows: np.ndarray, cols: np.ndarray, longer_side: int
) -> tuple[np.ndarray, np.ndarray]:
    x, y = cols[None, :] / longer_side, rows[:, None] / longer_side
    cosine, sine = np.cos(material.angle), np.sin(material.angle)
    return (x * cosine + y * sine).astype(np.float32), (y * cosine - x * sine).astype(np.float32)


def _pattern(material: Material, along: np.ndarray, across: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return the share of the second colour at each pixel, (h, w) in [0, 1]."""
    turn = np.float32(2 * np.pi)
    if material.pattern == "flat":
        return np.zeros_like(noise)
    if material.pattern == "noise":
        return np.clip(0.5 + 0.3 * noise, 0, 1)
    if material.pattern == "blotches":
        return np.clip(0.5 + 1.5 * noise, 0, 1)
    if material.pattern == "gradient":
        low, high = float(along.min()), float(along.max())
        return (along - low) / max(high - low, 1e-6)
    phase = along * material.frequency + material.warp * noise
    if material.pattern == "stripes":
        return 0.5 + 0.5 * np.clip(2 * np.sin(turn * phase), -1, 1)
    both = np.sin(turn * phase) * np.sin(turn * across * material.frequency)
    if material.pattern == "checks":
        return 0.5 + 0.5 * np.clip(4 * both, -1, 1)
    if material.pattern == "dots":
        return np.clip(4 * both - 1, 0, 1)
    raise ValueError(f"pattern must be one of {sorted(set(PATTERNS))}; got {material.pattern!r}")


def _random_color(rng: np.random.Generator) -> tuple[float, float, float]:
    gray = rng.uniform(0.15, 0.9)
    return _clipped(gray + rng.normal(0, 1, 3) * rng.choice([0.04, 0.12, 0.3]))


def _shifted(
    color: tuple[float, float, float], rng: np.random.Generator, distance: float
) -> tuple[float, float, float]:
    step = rng.normal(0, 1, 3) * 0.5 + rng.normal(0, 1)
    return _clipped(np.asarray(color) + step * distance / (np.linalg.norm(step) + 1e-9))


def _clipped(color: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = np.clip(color, 0.0, 1.0)
    return float(red), float(green), float(blue)
