"""Run-length encoded masks: COCO's compressed format, made and combined without decoding.

Pixels are read down each column, left column first. Runs alternate between background and object, and the first is
background: its length is 0 where pixel (0, 0) is on the object. Packing, unions and intersections of runs are
pycocotools'; only the search for the runs is ours, because pycocotools wants Fortran order and the transposition that
this costs takes ten times as long as the search.

Reference: COCO API, common/maskApi.h.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from effsam2_ray.errors import MaskError

# pycocotools holds run lengths and areas in 32 bits.
_MAX_PIXELS = 2**32 - 1
# Characters of a packed run: five bits each, and two runs differ by less than 2**32.
_MAX_CHARS_PER_RUN = 7

# Masks whose changes are looked for together: enough to share the cost of the calls, few enough to stay in a cache.
_PIXELS_AT_ONCE = 1 << 20

# Asked for the areas of more masks at once, pycocotools 2.0 raises OverflowError: it puts their number into a uint8.
_MOST_AREAS = 255


@dataclass(frozen=True)
class Rle:
    """One mask as COCO's compressed runs.

    Attributes:
        size: (height, width) in pixels.
        counts: packed run lengths in printable ASCII.
    """

    size: tuple[int, int]
    counts: bytes

    def to_coco(self) -> dict[str, Any]:
        """Return `{"size": [height, width], "counts": str}`, which `pycocotools.mask.decode` takes as it stands."""
        return {"size": list(self.size), "counts": self.counts.decode("ascii")}

    @classmethod
    def from_coco(cls, segmentation: Mapping[str, Any]) -> Rle:
        """Return the RLE that a COCO dictionary holds, checked by `validate`.

        Args:
            segmentation: `size` (height, width) and compressed `counts` as str or bytes.

        Raises:
            MaskError: a key is missing, `counts` is not compressed, or the runs do not fill the size.
        """
        try:
            height, width = (int(side) for side in segmentation["size"])
            counts = segmentation["counts"]
        except (KeyError, TypeError, ValueError) as error:
            raise MaskError(f"a segmentation needs size [height, width] and counts; got {segmentation!r}") from error
        if not isinstance(counts, str | bytes):
            raise MaskError(f"counts must be compressed (str or bytes); got {type(counts).__name__}")
        try:
            packed = counts.encode("ascii") if isinstance(counts, str) else counts
        except UnicodeEncodeError as error:
            raise MaskError("counts hold characters that are not COCO's") from error
        found = cls((height, width), packed)
        found.validate()
        return found

    def validate(self, size_hw: tuple[int, int] | None = None) -> None:
        """Check that the runs fill the size.

        The runs cannot tell (height, width) from (width, height), and a swapped size decodes silently into another
        picture, so pass the picture's own size wherever it is known.

        Args:
            size_hw: (height, width) that `size` must equal.

        Raises:
            MaskError: `counts` is malformed, the runs do not sum to height * width, or the size is another.
        """
        height, width = self.size
        if height < 1 or width < 1 or height * width > _MAX_PIXELS:
            raise MaskError(f"size must be (height, width) of at least one pixel and under 2**32; got {self.size}")
        total = int(self.runs().sum())
        if total != height * width:
            raise MaskError(f"runs must sum to {height} * {width} = {height * width} pixels; got {total}")
        if size_hw is not None and self.size != tuple(size_hw):
            raise MaskError(f"size must be that of the picture, {tuple(size_hw)}; got {self.size}")

    def runs(self) -> np.ndarray:
        """Return the run lengths, (R,) int64: background, object, background, ...

        Raises:
            MaskError: `counts` is malformed.
        """
        codes = np.frombuffer(self.counts, np.uint8).astype(np.int64) - 48
        if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
            raise MaskError("counts must be complete runs in COCO's characters '0' to 'o'")
        last = np.flatnonzero(codes & 0x20 == 0)  # a run ends where the continuation bit is off
        first = np.concatenate(([0], last[:-1] + 1))
        length = last - first + 1
        if length.max() > _MAX_CHARS_PER_RUN:
            raise MaskError("counts hold a run of 2**32 pixels or more")
        place = np.arange(codes.size) - np.repeat(first, length)
        values = np.add.reduceat((codes & 0x1F) << (5 * place), first)
        values -= np.where(codes[last] & 0x10, np.int64(1) << (5 * length), 0)
        # From the fourth run on, the difference to the run two before is stored.
        values[1::2] = np.cumsum(values[1::2])
        values[2::2] = np.cumsum(values[2::2])
        if values.min() < 0:
            raise MaskError("counts hold a run of negative length")
        return values

    def to_array(self) -> np.ndarray:
        """Return the mask as (height, width) bool in C order.

        Raises:
            MaskError: as `validate`.
        """
        self.validate()
        return np.ascontiguousarray(coco_mask.decode(_coco(self))).view(bool)

    @property
    def area(self) -> int:
        """Pixels on the object."""
        return int(areas([self])[0])

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """Box around the object as (x, y, width, height) in whole pixels; all 0 where the mask is empty."""
        x, y, width, height = boxes([self])[0].tolist()
        return x, y, width, height


def encode(masks: np.ndarray) -> list[Rle]:
    """Run-length encode masks; the bytes equal `pycocotools.mask.encode(np.asfortranarray(mask))`.

    Args:
        masks: (P, H, W) bool, or uint8 where every value but 0 is on the object. Fastest in C order.

    Raises:
        MaskError: `masks` is not 3-D, is neither bool nor uint8, or has no or too many pixels a mask.
    """
    if masks.ndim != 3 or masks.dtype not in (np.bool_, np.uint8):
        raise MaskError(f"masks must be (P, H, W) bool or uint8; got {masks.shape} {masks.dtype}")
    size_hw = (int(masks.shape[1]), int(masks.shape[2]))
    at_once = max(1, _PIXELS_AT_ONCE // _num_pixels(size_hw))
    rles: list[Rle] = []
    for start in range(0, len(masks), at_once):
        part = masks[start : start + at_once]
        pixels = np.ascontiguousarray(part) if part.dtype == np.bool_ else np.ascontiguousarray(part != 0)
        rles += encode_changes(_changes(pixels.view(np.uint8)), len(pixels), size_hw)
    return rles


def encode_changes(changes: np.ndarray, num_masks: int, size_hw: tuple[int, int]) -> list[Rle]:
    """Return masks from the places where they change, which is how they leave a GPU.

    Args:
        changes: (K,) int64, in any order. `p * H * W + column * H + row` for every pixel of mask p that differs from
            the pixel before it in column order; the pixel before the first is background.
        num_masks: P.
        size_hw: (height, width) in pixels.
    """
    height, width = size_hw
    num_pixels = _num_pixels(size_hw)
    firsts = np.arange(num_masks + 1) * num_pixels
    ends = np.concatenate((firsts, changes))
    if firsts[-1] < 2**31:
        ends = ends.astype(np.int32)  # sorted in half the time
    ends.sort()
    runs = np.diff(ends)
    cuts = np.searchsorted(ends, firsts.astype(ends.dtype))
    packed = coco_mask.frPyObjects(
        [{"size": [height, width], "counts": runs[cuts[p] : cuts[p + 1]]} for p in range(num_masks)], height, width
    )
    return [Rle(size_hw, item["counts"]) for item in packed]


def decode(rles: Sequence[Rle]) -> np.ndarray:
    """Return masks of one size as (P, H, W) bool in C order; P is at least 1.

    Raises:
        MaskError: no masks, masks of several sizes, or as `Rle.validate`.
    """
    common_size(rles)
    return np.stack([rle.to_array() for rle in rles])


def areas(rles: Sequence[Rle]) -> np.ndarray:
    """Return the pixels on each object, (P,) int64."""
    # pycocotools gives uint32, in which a difference of areas would wrap.
    parts = [
        np.asarray(coco_mask.area([_coco(rle) for rle in rles[start : start + _MOST_AREAS]])).astype(np.int64)
        for start in range(0, len(rles), _MOST_AREAS)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def boxes(rles: Sequence[Rle]) -> np.ndarray:
    """Return the boxes around the objects, (P, 4) float64 as (x, y, width, height); all 0 for an empty mask."""
    if not rles:
        return np.zeros((0, 4))
    return np.asarray(coco_mask.toBbox([_coco(rle) for rle in rles]), np.float64).reshape(-1, 4)


def union(rles: Sequence[Rle]) -> Rle:
    """Return the pixels that any of the masks holds.

    Raises:
        MaskError: no masks, or masks of several sizes.
    """
    size_hw = common_size(rles)
    if len(rles) == 1:
        return rles[0]
    return Rle(size_hw, coco_mask.merge([_coco(rle) for rle in rles])["counts"])


def intersection_areas(
    first: Sequence[Rle], second: Sequence[Rle], first_areas: np.ndarray | None = None
) -> np.ndarray:
    """Return the pixels that each pair shares, (len(first), len(second)) int64, without decoding.

    Pairs whose boxes do not meet cost next to nothing.

    Args:
        first, second: masks of one size.
        first_areas: what `areas(first)` returns, where it is known and nowhere 0.

    Raises:
        MaskError: masks of several sizes.
    """
    if not first or not second:
        return np.zeros((len(first), len(second)), np.int64)
    common_size([*first, *second])
    # Against a crowd, pycocotools divides the intersection by the area of the first mask alone.
    shares = coco_mask.iou([_coco(rle) for rle in first], [_coco(rle) for rle in second], [1] * len(second))
    if first_areas is None:  # an empty mask gives 0 / 0
        shares, first_areas = np.nan_to_num(shares), areas(first)
    # A share times its area is off by far less than half a pixel.
    shared: np.ndarray = np.rint(shares * first_areas[:, None]).astype(np.int64)
    return shared


def common_size(rles: Sequence[Rle]) -> tuple[int, int]:
    """Return the (height, width) that all the masks have.

    Raises:
        MaskError: no masks, or masks of several sizes.
    """
    sizes = {rle.size for rle in rles}
    if len(sizes) != 1:
        raise MaskError(f"masks must be of one (height, width); got {sorted(sizes) or 'no masks'}")
    return sizes.pop()


def _changes(pixels: np.ndarray) -> np.ndarray:
    """Return where masks change in column order, as `encode_changes` takes it.

    Args:
        pixels: (P, H, W) uint8 of 0 and 1 in C order.
    """
    num_masks, height, width = pixels.shape
    # Rows of whole words, so that the rare changes are looked for eight pixels at a time.
    words_a_row = -(-width // 8)
    if width % 8 == 0:
        padded = pixels
    else:
        padded = np.zeros((num_masks, height, 8 * words_a_row), np.uint8)
        padded[:, :, :width] = pixels
    rows_of_words = padded.view(np.uint64)  # (P, H, words_a_row)
    words = np.flatnonzero(rows_of_words[:, 1:] != rows_of_words[:, :-1])
    words += words // ((height - 1) * words_a_row) * words_a_row if height > 1 else 0
    flat = rows_of_words.reshape(-1)
    changed = np.flatnonzero((flat[words] ^ flat[words + words_a_row]).view(bool))
    index = words[changed >> 3] * 8 + (changed & 7)  # of the pixel above, in `padded`
    row_of_all = index // (8 * words_a_row)
    column = index - row_of_all * (8 * words_a_row)
    mask = row_of_all // height
    row = row_of_all - mask * height
    inside = (mask * width + column) * height + row + 1
    # The pixel before the top of a column is the bottom of the column to its left, and of the first one, background.
    tops = pixels[:, 0].copy()
    tops[:, 1:] ^= pixels[:, -1, :-1]
    return np.concatenate((np.flatnonzero(tops.view(bool)) * height, inside))


def _num_pixels(size_hw: tuple[int, int]) -> int:
    num_pixels = size_hw[0] * size_hw[1]
    if not 0 < num_pixels <= _MAX_PIXELS:
        raise MaskError(f"a mask must have at least one pixel and under 2**32; got (height, width) {size_hw}")
    return num_pixels


def _coco(rle: Rle) -> dict[str, Any]:
    return {"size": list(rle.size), "counts": rle.counts}
