"""Growth curves as one picture: an SVG of small log-log charts, so that a straight line is a power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from effsam2_ray.benchmark.growth import Curve

_WIDTH, _HEIGHT = 340, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 30, 42


def growth_svg(curves: Sequence[Curve]) -> str:
    """Return an SVG with one chart a curve, side by side: seconds a picture, with a grey line of slope 1."""
    width = _WIDTH * len(curves)
    charts = "\n".join(
        f'<g transform="translate({index * _WIDTH},0)">\n{_chart(curve)}\n</g>' for index, curve in enumerate(curves)
    )
    style = "text{font:11px sans-serif;fill:#333}.title{font-weight:bold}.axis{stroke:#999}.grid{stroke:#e5e5e5}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" '
        f'viewBox="0 0 {width} {_HEIGHT}"><style>{style}</style>\n'
        f'<rect width="{width}" height="{_HEIGHT}" fill="#fff"/>\n{charts}\n</svg>\n'
    )


def _chart(curve: Curve) -> str:
    medians = [spread.median for spread in curve.seconds]
    x_range = (min(curve.values), max(curve.values))
    y_range = _decades(min(spread.low for spread in curve.seconds), max(spread.high for spread in curve.seconds))

    def x(value: float) -> float:
        return _LEFT + _share(value, x_range) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - _share(value, y_range) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<text class="title" x="{_LEFT}" y="18">{escape(curve.quantity)}</text>']
    tick = y_range[0]
    while tick <= y_range[1] * 1.001:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g} s</text>')
        tick *= 10
    for value in curve.values:
        label = f"{value:.3g}"
        parts.append(f'<text x="{x(value):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{label}</text>')
    linear = [value / curve.values[-1] * medians[-1] for value in curve.values]
    shown = [(value, line) for value, line in zip(curve.values, linear, strict=True) if line >= y_range[0]]
    parts.append(_line([(x(value), y(line)) for value, line in shown], "#bbb", dashed=True))
    parts.append(_line([(x(value), y(median)) for value, median in zip(curve.values, medians, strict=True)], "#1f6fb2"))
    for value, spread in zip(curve.values, curve.seconds, strict=True):
        at = f"{x(value):.1f}"
        parts.append(f'<line stroke="#1f6fb2" x1="{at}" x2="{at}" y1="{y(spread.low):.1f}" y2="{y(spread.high):.1f}"/>')
        parts.append(f'<circle cx="{at}" cy="{y(spread.median):.1f}" r="3" fill="#1f6fb2"/>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">seconds a picture; dashed: linear</text>')
    return "\n".join(parts)


def _line(points: Sequence[tuple[float, float]], colour: str, dashed: bool = False) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<polyline fill="none" stroke="{colour}" stroke-width="1.5"{dash} points="{path}"/>'


def _decades(low: float, high: float) -> tuple[float, float]:
    return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high * 1.0001))


def _share(value: float, between: tuple[float, float]) -> float:
    low, high = between
    return math.log(value / low) / math.log(high / low) if high > low else 0.5
