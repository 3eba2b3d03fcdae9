"""Masks -> polygons along the edges of their pixels.

Points are (x, y) corners of pixels: the mask of the single pixel (0, 0) is the square (0, 0), (1, 0), (1, 1), (0, 1).
Unsimplified, filling the rings by the even-odd rule gives the mask again, exactly. Pixels that touch at a corner only
are parts of their own.

A corner is where the outline turns. Along each row of corners, the outline runs between the first and the second, the
third and the fourth, and so on; along each column, too. So following it is to take turns between the two pairings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def trace_rings(mask: np.ndarray) -> list[np.ndarray]:
    """Return the closed outlines of a mask, each (K, 2) int64 points (x, y), the first not repeated at the end.

    Outer rings run clockwise as seen on the screen, holes the other way. An empty mask has none.

    Args:
        mask: (H, W) bool.
    """
    padded = np.pad(mask, 1)
    top_left, top_right = padded[:-1, :-1], padded[:-1, 1:]  # of each corner of pixels, (H + 1, W + 1)
    bottom_left, bottom_right = padded[1:, :-1], padded[1:, 1:]
    saddle = (top_left == bottom_right) & (top_right == bottom_left) & (top_left != top_right)
    turns = (top_left ^ top_right ^ bottom_left ^ bottom_right) | saddle
    ys, xs = np.nonzero(turns)
    doubled = saddle[ys, xs]
    # Two outlines meet at a saddle: the first of its two entries goes left, the second right.
    repeats = 1 + doubled.astype(np.int64)
    second = np.zeros(int(repeats.sum()), bool)
    second[np.cumsum(repeats)[doubled] - 1] = True
    falls = np.repeat(doubled & top_left[ys, xs], repeats)  # \: left goes with up
    is_double = np.repeat(doubled, repeats)
    ys, xs = np.repeat(ys, repeats), np.repeat(xs, repeats)
    goes_down = np.where(falls, second, ~second) & is_double
    by_column = np.lexsort((goes_down, ys, xs))
    partner = np.empty(len(xs), np.int64)
    partner[by_column[0::2]], partner[by_column[1::2]] = by_column[1::2], by_column[0::2]
    points = np.stack([xs, ys], axis=1)
    rings = []
    vertical = partner.tolist()
    seen = bytearray(len(vertical))
    for start in range(len(vertical)):
        if seen[start]:
            continue
        order = []
        at = start
        while not seen[at]:
            seen[at] = seen[at ^ 1] = 1
            order += [at, at ^ 1]
            at = vertical[at ^ 1]
        ring = points[order]
        # The first corner met is the topmost, leftmost: the pixel right below it lies within the ring.
        x, y = ring[0]
        rings.append(ring if bottom_right[y, x] else ring[::-1])
    return rings


def pixel_rings(rings: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return outlines as lines through the outermost pixels of the mask, (K, 2) int64 columns and rows.

    It is what OpenCV's `findContours` follows and what its `fillPoly`, which fills the line too, takes back.

    Args:
        rings: of a mask, as `trace_rings` gives them: the mask lies to the right of the way.
    """
    shifted = []
    for ring in rings:
        going_out = np.sign(np.roll(ring, -1, axis=0) - ring)
        going_in = np.roll(going_out, 1, axis=0)
        dx, dy = (going_in + going_out).T
        # To the right of (dx, dy) is (-dy, dx); half of it from the corner is the middle of a pixel of the mask.
        shifted.append(ring + (np.stack([-dy, dx], axis=1) - 1) // 2)
    return shifted


def simplify(rings: Sequence[np.ndarray], tolerance: float) -> list[np.ndarray]:
    """Return rings of fewer points, none of the dropped ones farther than `tolerance` pixels from the new outline.

    Douglas and Peucker's rule, all rings and all their pieces at once. A ring that would have fewer than three points
    stays as it is.
    """
    if not rings or tolerance <= 0:
        return list(rings)
    closed = [np.concatenate([ring, ring[:1]]).astype(np.float64) for ring in rings]
    points = np.concatenate(closed)
    bounds = np.concatenate(([0], np.cumsum([len(ring) for ring in closed])))
    kept = np.zeros(len(points), bool)
    kept[bounds[:-1]] = kept[bounds[1:] - 1] = True
    while True:
        ends = np.flatnonzero(kept)
        piece = np.cumsum(kept) - 1  # (K,) which kept point begins the piece
        first, last = points[ends[piece]], points[ends[np.minimum(piece + 1, len(ends) - 1)]]
        distance = _distances(points, first, last)
        distance[kept] = 0
        farthest = np.maximum.reduceat(distance, ends)[piece]
        candidates = np.flatnonzero((distance == farthest) & (distance > tolerance))
        if not len(candidates):
            break
        _, chosen = np.unique(piece[candidates], return_index=True)
        kept[candidates[chosen]] = True
    simple = [points[start : end - 1][kept[start : end - 1]] for start, end in zip(bounds, bounds[1:], strict=False)]
    return [short if len(short) >= 3 else ring for short, ring in zip(simple, rings, strict=True)]


def join_rings(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Return one closed ring that holds all of them, holes and lone parts tied on by a line there and back.

    The lines have no area, so the even-odd and the non-zero rule fill what they fill for the separate rings.

    Args:
        rings: at least one, as `trace_rings` gives them.
    """
    ordered = sorted(rings, key=lambda ring: -abs(_signed_area(ring)))
    joined = ordered[0]
    for ring in ordered[1:]:
        squares = ((joined[:, None, :] - ring[None, :, :]) ** 2).sum(axis=2)
        at, start = np.unravel_index(int(squares.argmin()), squares.shape)
        turned = np.concatenate([ring[start:], ring[: start + 1]])
        joined = np.concatenate([joined[: at + 1], turned, joined[at:]])
    return joined


def _distances(points: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return the distance of each point to the line segment from `first` to `last`, (K,)."""
    along = last - first
    length = (along**2).sum(axis=1)
    share = ((points - first) * along).sum(axis=1) / np.where(length > 0, length, 1)
    nearest = first + along * share.clip(0, 1)[:, None]
    result: np.ndarray = np.sqrt(((points - nearest) ** 2).sum(axis=1))
    return result


def _signed_area(ring: np.ndarray) -> float:
    x, y = ring[:, 0].astype(np.float64), ring[:, 1].astype(np.float64)
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)
