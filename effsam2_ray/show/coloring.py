"""Colours for regions so that no two that touch share one, told apart by colour-blind people too.

The first eight colours stay at least 20 CIELAB units apart when blended with grey, for normal sight and for simulated
deutan, protan and tritan sight; the further ones are taken only where eight do not do.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable

import numpy as np

PALETTE: tuple[tuple[int, int, int], ...] = (
    (250, 230, 60),  # yellow
    (30, 90, 220),  # blue
    (255, 130, 200),  # pink
    (0, 158, 115),  # green
    (225, 70, 20),  # vermilion
    (190, 160, 255),  # lavender
    (150, 240, 190),  # mint
    (225, 40, 160),  # magenta
)
_SPARE = ((255, 159, 28), (150, 225, 255), (140, 40, 170))  # orange, light cyan, purple
_GOLDEN_RATIO = 0.618033988749895


def color(index: int) -> tuple[int, int, int]:
    """Return the RGB colour of a number: the palette, then spare colours, then hues without end."""
    if index < len(PALETTE):
        return PALETTE[index]
    index -= len(PALETTE)
    if index < len(_SPARE):
        return _SPARE[index]
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1, 0.55 + 0.4 * (index % 2), 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def touching(label_map: np.ndarray, reach: int) -> set[tuple[int, int]]:
    """Return the pairs of regions that come within `reach` pixels of each other.

    Args:
        label_map: (H, W) int, region of each pixel; negative is none.
        reach: largest distance along a row, a column or a diagonal that still counts, 1 or more.

    Returns:
        Pairs (low, high) of labels.
    """
    num_labels = int(label_map.max(initial=-1)) + 1
    height, width = label_map.shape
    # For a long reach not each step is looked at: regions are wider than half of it.
    distances = sorted({1, (reach + 1) // 2, reach})
    codes: set[int] = set()
    for distance in distances:
        for down, right in ((0, distance), (distance, 0), (distance, distance), (distance, -distance)):
            here = label_map[: max(height - down, 0), max(-right, 0) : width - max(right, 0)]
            there = label_map[down:, max(right, 0) : width + min(right, 0)]
            differ = (here != there) & (here >= 0) & (there >= 0)
            low, high = np.minimum(here[differ], there[differ]), np.maximum(here[differ], there[differ])
            codes.update(np.unique(low.astype(np.int64) * num_labels + high).tolist())
    return {divmod(code, num_labels) for code in codes}


def assign_colors(num_regions: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Return a colour number for each region, different for the two of every pair.

    Regions hemmed in by the most colours go first (DSATUR). Each takes the palette colour that it may and that is used
    least, so that few regions still show many colours.

    Reference: Brelaz, New methods to color the vertices of a graph, CACM 22 (1979).
    """
    neighbors: list[set[int]] = [set() for _ in range(num_regions)]
    for first, second in pairs:
        neighbors[first].add(second)
        neighbors[second].add(first)
    chosen = [-1] * num_regions
    taken: list[set[int]] = [set() for _ in range(num_regions)]  # colours of the neighbours
    uses = [0] * len(PALETTE)
    left = set(range(num_regions))
    while left:
        region = max(left, key=lambda r: (len(taken[r]), len(neighbors[r]), -r))
        left.remove(region)
        free = [index for index in range(len(PALETTE)) if index not in taken[region]]
        if free:
            index = min(free, key=lambda i: (uses[i], i))
            uses[index] += 1
        else:
            index = next(i for i in range(len(PALETTE), num_regions + 1) if i not in taken[region])
        chosen[region] = index
        for neighbor in neighbors[region]:
            taken[neighbor].add(index)
    return chosen
