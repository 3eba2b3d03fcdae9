"""Limits on masks in the picture's own pixels: area, holes, specks and the border. All off by default.

Holes and specks are found as sam2's `remove_small_regions` finds them, with 8-connectivity for both. A hole is a
separate region of background, so a corner of the picture that the mask cuts off is one too; a speck is a separate part
of the mask. Where every part is a speck, the largest stays. Unlike there, regions of exactly the given area go as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from effsam2_ray.masks import Mask
from effsam2_ray.rle import encode

_EIGHT_CONNECTED = np.ones((3, 3), bool)


def filter_masks(
    masks: Sequence[Mask],
    *,
    min_area: int = 0,
    max_area: int | None = None,
    min_area_frac: float = 0.0,
    max_area_frac: float | None = None,
    fill_holes_area: int = 0,
    remove_specks_area: int = 0,
    drop_border: bool = False,
) -> list[Mask]:
    """Return the masks within the limits, in the same order; holes and specks go first, then the limits apply.

    Args:
        masks: masks of one picture.
        min_area: fewest pixels; 0 is off.
        max_area: most pixels; None is off.
        min_area_frac: smallest share of the picture's pixels; 0 is off.
        max_area_frac: largest share of the picture's pixels; None is off.
        fill_holes_area: holes of at most this many pixels are filled; 0 is off.
        remove_specks_area: separate parts of at most this many pixels are removed; 0 is off.
        drop_border: drop masks that reach the first or last row or column of the picture.

    Returns:
        Masks with at least one pixel; area and box of changed ones are their new ones, scores stay.
    """
    if fill_holes_area > 0 or remove_specks_area > 0:
        masks = [_clean(mask, fill_holes_area, remove_specks_area) for mask in masks]
    kept = []
    for mask in masks:
        height, width = mask.size_hw
        num_pixels = height * width
        too_small = mask.area < max(1, min_area) or mask.area < min_area_frac * num_pixels
        too_large = (max_area is not None and mask.area > max_area) or (
            max_area_frac is not None and mask.area > max_area_frac * num_pixels
        )
        if not too_small and not too_large and not (drop_border and _touches_border(mask)):
            kept.append(mask)
    return kept


def _touches_border(mask: Mask) -> bool:
    x, y, box_width, box_height = mask.bbox
    height, width = mask.size_hw
    return x <= 0 or y <= 0 or x + box_width >= width or y + box_height >= height


def _clean(mask: Mask, fill_holes_area: int, remove_specks_area: int) -> Mask:
    if mask.area == 0:
        return mask
    x, y, box_width, box_height = (int(side) for side in mask.bbox)
    # Only the box and a margin are labelled. Background that leaves the box on one side fills the margin there, and the
    # margin alone holds more than `fill_holes_area` pixels: it counts as large, as it does in the whole picture.
    margin_x, margin_y = fill_holes_area // box_height + 1, fill_holes_area // box_width + 1
    top, left = max(0, y - margin_y), max(0, x - margin_x)
    window = (slice(top, y + box_height + margin_y), slice(left, x + box_width + margin_x))
    full = mask.to_array()
    before = full[window]
    after = before
    if fill_holes_area > 0:
        after = after | _small_regions(~after, fill_holes_area)
    if remove_specks_area > 0:
        specks = _small_regions(after, remove_specks_area)
        after = after & ~specks if (after & ~specks).any() else _largest_region(after)
    if np.array_equal(after, before):
        return mask
    full[window] = after
    segmentation = encode(full[None])[0]
    return dataclasses.replace(mask, segmentation=segmentation, area=segmentation.area, bbox=segmentation.bbox)


def _small_regions(pixels: np.ndarray, max_area: int) -> np.ndarray:
    """Return the pixels of (H, W) bool that lie in regions of at most `max_area` pixels."""
    labels, _ = ndimage.label(pixels, structure=_EIGHT_CONNECTED)
    region_areas = np.bincount(labels.ravel())
    small = region_areas <= max_area
    small[0] = False  # label 0 is what lies outside `pixels`
    regions: np.ndarray = small[labels]
    return regions


def _largest_region(pixels: np.ndarray) -> np.ndarray:
    """Return the region of (H, W) bool with most pixels, the first in row order of equals."""
    labels, _ = ndimage.label(pixels, structure=_EIGHT_CONNECTED)
    region_areas = np.bincount(labels.ravel())
    region_areas[0] = 0
    largest: np.ndarray = labels == region_areas.argmax()
    return largest
