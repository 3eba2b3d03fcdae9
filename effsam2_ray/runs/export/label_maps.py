"""Label maps: one number a pixel, 0 for no mask. Of masks that overlap, the smaller lies on top."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image
from scipy import ndimage

from effsam2_ray.errors import MaskError
from effsam2_ray.metrics.iou import paint_label_map
from effsam2_ray.runs.export.items import ExportItem, ExportOptions, FileWriter

_MOST_LABELS = 2**16 - 1


def write_label_pngs(items: Iterable[ExportItem], writer: FileWriter, options: ExportOptions) -> None:
    """Write `<name>.png`, 16-bit grey: 1 + the index of the mask in the row's list, 0 for none."""
    for item in items:
        if len(item.masks) > _MOST_LABELS:
            raise MaskError(f"a 16-bit label map holds at most {_MOST_LABELS} masks; got {len(item.masks)}")
        label_map = item_label_map(item, options.full_coverage).astype(np.uint16)
        writer.put(f"{item.name}.png", png_bytes(label_map))


def item_label_map(item: ExportItem, full_coverage: bool) -> np.ndarray:
    """Return an image's label map, (H, W) int32: 1 + the index in its list of masks, 0 for none."""
    label_map = paint_label_map([mask["segmentation"] for mask in item.masks], item.size_hw)
    return fill_gaps(label_map) if full_coverage else label_map


def fill_gaps(label_map: np.ndarray) -> np.ndarray:
    """Return a label map in which each pixel of no label has that of the nearest one; one without labels stays so."""
    gaps = label_map == 0
    if gaps.all() or not gaps.any():
        return label_map
    rows, columns = ndimage.distance_transform_edt(gaps, return_distances=False, return_indices=True)
    filled: np.ndarray = label_map[rows, columns]
    return filled


def png_bytes(pixels: np.ndarray) -> bytes:
    """Return a PNG file of (H, W) uint16 or (H, W, 3) uint8 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
