"""Two small charts drawn with Pillow: points over two axes, and bars with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from effsam2_ray.show.coloring import color
from effsam2_ray.show.lettering import fit_text, plain_font

_PAPER, _INK, _QUIET, _LINE = (250, 250, 248), (28, 28, 30), (104, 104, 110), (222, 222, 218)
_Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ChartPoint:
    """One point of a scatter chart.

    Attributes:
        name: written beside it.
        x, y: where it is; x is above 0 where the axis is logarithmic.
        group: points of one group share a colour.
        bold: drawn larger, as a point that no other beats.
    """

    name: str
    x: float
    y: float
    group: int = 0
    bold: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar: its label, value and interval."""

    name: str
    value: float
    low: float
    high: float
    group: int = 0


def scatter(
    points: Sequence[ChartPoint], x_title: str, y_title: str, size_wh: tuple[int, int] = (760, 520)
) -> Image.Image:
    """Draw points; the x axis is logarithmic where its values span more than a factor of 8.

    Points with a number that is not finite are left out.
    """
    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    canvas = Image.new("RGB", size_wh, _PAPER)
    draw = ImageDraw.Draw(canvas)
    box = (70, 40, size_wh[0] - 30, size_wh[1] - 60)
    draw.text((box[0], 14), y_title, _INK, plain_font(15))
    draw.text((box[2], box[3] + 34), x_title, _INK, plain_font(15), anchor="ra")
    if not points:
        return canvas
    xs, ys = [point.x for point in points], [point.y for point in points]
    is_log = min(xs) > 0 and max(xs) / min(xs) > 8
    x_of = math.log10 if is_log else float
    x_low, x_high = _padded(x_of(min(xs)), x_of(max(xs)))
    y_low, y_high = _padded(min(ys), max(ys))
    x_ticks = _log_ticks(x_low, x_high) if is_log else _ticks(x_low, x_high)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return box[0] + across * (box[2] - box[0]), box[3] - up * (box[3] - box[1])

    for value in x_ticks:
        left, _ = place(x_of(value), y_low)
        draw.line((left, box[1], left, box[3]), _LINE)
        draw.text((left, box[3] + 8), f"{value:g}", _QUIET, plain_font(13), anchor="ma")
    for value in _ticks(y_low, y_high):
        _, top = place(x_low, value)
        draw.line((box[0], top, box[2], top), _LINE)
        draw.text((box[0] - 8, top), f"{value:g}", _QUIET, plain_font(13), anchor="rm")
    _draw_points(draw, points, [place(x_of(point.x), point.y) for point in points], box)
    return canvas


def bars(items: Sequence[Bar], title: str, width: int = 900) -> Image.Image:
    """Draw horizontal bars from 0, in order from the top, each with a line from `low` to `high`."""
    row, left, top = 24, 190, 48
    canvas = Image.new("RGB", (width, top + row * len(items) + 20), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((16, 14), title, _INK, plain_font(16))
    right = width - 90
    most = max((bar.high for bar in items), default=1.0) or 1.0
    for place, bar in enumerate(items):
        middle = top + row * place + row / 2
        ends = [left + (right - left) * max(0.0, value) / most for value in (bar.value, bar.low, bar.high)]
        draw.text((left - 10, middle), fit_text(bar.name, plain_font(14), left - 26), _INK, plain_font(14), anchor="rm")
        draw.rectangle((left, middle - 8, max(left + 1, ends[0]), middle + 8), color(bar.group))
        draw.line((ends[1], middle, ends[2], middle), _INK, 2)
        for end in ends[1:]:
            draw.line((end, middle - 5, end, middle + 5), _INK, 2)
        draw.text((width - 16, middle), f"{bar.value:.3f}", _QUIET, plain_font(14), anchor="rm")
    return canvas


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures side by side on one sheet."""
    sheet = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), _PAPER)
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width
    return sheet


def below(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures one below the other on one sheet."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), _PAPER)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def _draw_points(
    draw: ImageDraw.ImageDraw, points: Sequence[ChartPoint], places: Sequence[tuple[float, float]], box: _Box
) -> None:
    font = plain_font(12)
    taken: list[tuple[float, float, float, float]] = []
    for point, (left, top) in zip(points, places, strict=True):
        radius = 7 if point.bold else 5
        draw.circle((left, top), radius, color(point.group), _INK, 2 if point.bold else 1)
        text = fit_text(point.name, font, 220)
        length = font.getlength(text)
        at = left + 10 if left + 10 + length < box[2] else left - 10 - length
        area = (at, top - 7, at + length, top + 7)
        if any(a[0] < area[2] and area[0] < a[2] and a[1] < area[3] and area[1] < a[3] for a in taken):
            continue  # its name would lie on another's; the table has them all
        taken.append(area)
        draw.text((at, top), text, _INK, font, anchor="lm")


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or 0.06 * abs(high) or 0.5
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 6
    scale = 10 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= raw)
    return [round(n * step, 10) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [f * 10.0**p for p in powers for f in (1, 2, 5) if low <= math.log10(f * 10.0**p) <= high]
