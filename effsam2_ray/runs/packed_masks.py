"""Many RLE masks measured at once, straight from their Arrow columns: what they hold, and whether they are sound.

One mask at a time, Python alone would cost more than the arithmetic; here the runs of all the masks of a batch are
unpacked by a few dozen numpy calls. `rle.Rle` does the same for one mask and is the reference that tests compare with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MOST_PIXELS = 2**32 - 1
_MAX_CHARS_PER_RUN = 7


@dataclass(frozen=True)
class Runs:
    """Run lengths of M masks, one after another.

    Attributes:
        lengths: (R,) int64; background, object, background, ... anew for each mask.
        bounds: (M + 1,) int64; mask m has `lengths[bounds[m] : bounds[m + 1]]`, none where it is malformed.
    """

    lengths: np.ndarray
    bounds: np.ndarray

    def malformed(self) -> np.ndarray:
        """Return (M,) bool: masks whose characters are no runs."""
        return np.diff(self.bounds) == 0


@dataclass(frozen=True)
class MaskMeasures:
    """What M masks hold.

    Attributes:
        sound: (M,) bool; the counts are well formed and fill the size. The rest is 0 where they do not.
        size_hw: (M, 2) int64, (height, width) of each mask as it says itself.
        areas: (M,) int64 pixels.
        boxes: (M, 4) int64, (x, y, width, height); all 0 for an empty mask.
        starts, ends: (K,) int64, first and one past last position of every object run, in column order.
        run_bounds: (M + 1,) int64; mask m has `starts[run_bounds[m] : run_bounds[m + 1]]`.
    """

    sound: np.ndarray
    size_hw: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    run_bounds: np.ndarray


def measure_masks(segmentations: pa.StructArray) -> MaskMeasures:
    """Unpack and measure the `segmentation` values of many masks.

    Args:
        segmentations: structs of `size` (list of two numbers) and `counts` (string), M of them.
    """
    size_hw = _sizes(pc.struct_field(segmentations, "size"))
    runs = unpack_runs(*_characters(pc.struct_field(segmentations, "counts")))
    totals = _sums(runs.lengths, runs.bounds)
    num_pixels = size_hw[:, 0] * size_hw[:, 1]
    sound = ~runs.malformed() & (size_hw > 0).all(axis=1) & (num_pixels <= _MOST_PIXELS) & (totals == num_pixels)
    stops = np.cumsum(runs.lengths) - np.repeat(_before(runs.lengths, runs.bounds), np.diff(runs.bounds))
    which = np.repeat(np.arange(len(sound)), np.diff(runs.bounds))
    # A run of length 0 holds no pixel, and would count towards the box.
    on_object = (_places(runs.bounds) % 2 == 1) & (runs.lengths > 0) & sound[which]
    ends, which = stops[on_object], which[on_object]
    starts = ends - runs.lengths[on_object]
    run_bounds = np.searchsorted(which, np.arange(len(sound) + 1))
    areas = _sums(ends - starts, run_bounds)
    boxes = _boxes(starts, ends, which, run_bounds, size_hw[:, 0])
    return MaskMeasures(sound, size_hw, areas, boxes, starts, ends, run_bounds)


def sound_rows(batch: pa.RecordBatch) -> np.ndarray:
    """Return (B,) bool: rows of a run whose masks are all well formed and of their picture's size."""
    lists = batch.column("masks")
    counts = without_nulls(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(batch.num_rows), counts)
    sides = (without_nulls(batch.column(side), 0).to_numpy(zero_copy_only=False) for side in ("height", "width"))
    size_hw = np.stack(list(sides), axis=1)  # (B, 2)
    measures = measure_masks(pc.struct_field(lists.flatten(), "segmentation"))
    bad = ~measures.sound | (measures.size_hw != size_hw[rows]).any(axis=1)
    sound: np.ndarray = (np.bincount(rows[bad], minlength=batch.num_rows) == 0) & (size_hw > 0).all(axis=1)
    return sound


def union_areas(measures: MaskMeasures, mask_bounds: np.ndarray) -> np.ndarray:
    """Return the pixels that the masks of each picture cover together, (B,) int64.

    Args:
        measures: of the masks of B pictures, one picture after the other.
        mask_bounds: (B + 1,) int64; picture b has masks `mask_bounds[b] : mask_bounds[b + 1]`.
    """
    bounds = measures.run_bounds[mask_bounds]
    # Pictures are laid end to end with a gap, so that one sort serves them all.
    shift = np.repeat(np.arange(len(bounds) - 1) * (_MOST_PIXELS + 2), np.diff(bounds))
    starts, ends = np.sort(measures.starts + shift), np.sort(measures.ends + shift)
    covered = np.zeros(len(bounds) - 1, np.int64)
    filled = np.flatnonzero(np.diff(bounds))
    if not len(filled):
        return covered
    # With both ends sorted, nothing is open between ends[i] and starts[i + 1] where the start is the larger.
    gaps = np.maximum(starts[1:] - ends[:-1], 0)
    before = np.concatenate(([0], np.cumsum(gaps)))  # (K,)
    first, last = bounds[filled], bounds[filled + 1] - 1
    covered[filled] = ends[last] - starts[first] - (before[last] - before[first])
    return covered


def unpack_runs(characters: np.ndarray, bounds: np.ndarray) -> Runs:
    """Return the run lengths of masks in COCO's compressed form.

    Args:
        characters: (C,) uint8, the `counts` of all masks one after another.
        bounds: (M + 1,) int64; mask m has `characters[bounds[m] : bounds[m + 1]]`.

    Reference: COCO API, common/maskApi.c, rleFrString.
    """
    num_chars = np.diff(bounds)
    codes = characters - np.uint8(48)  # wraps below '0', to more than 63
    goes_on = codes & 0x20 != 0
    bad = num_chars == 0
    bad[~bad] = goes_on[bounds[1:][~bad] - 1]
    bad |= _sums(codes > 63, bounds) > 0
    if bad.any():
        return _without(bad, codes, num_chars)
    last = np.flatnonzero(~goes_on)
    first = np.concatenate(([0], last[:-1] + 1)) if len(last) else last
    width = last - first + 1
    run_bounds = np.searchsorted(last, bounds)
    if len(width) and width.max() > _MAX_CHARS_PER_RUN:
        return _without(_sums(width > _MAX_CHARS_PER_RUN, run_bounds) > 0, codes, num_chars)
    lengths = (codes[first] & 0x1F).astype(np.int64)
    longer = first
    for place in range(1, int(width.max(initial=1))):  # five bits a character, lowest first
        wide = np.flatnonzero(width > place)
        longer = first[wide] + place
        lengths[wide] |= (codes[longer] & 0x1F).astype(np.int64) << (5 * place)
    lengths -= np.where(codes[last] & 0x10, np.int64(1) << (5 * width), 0)
    _undo_differences(lengths, run_bounds)
    negative = _sums(lengths < 0, run_bounds) > 0
    if negative.any():
        return _without(negative, codes, num_chars)
    return Runs(lengths, run_bounds)


def _without(bad: np.ndarray, codes: np.ndarray, num_chars: np.ndarray) -> Runs:
    """Unpack the masks that are not bad; give the others no runs."""
    kept = codes[np.repeat(~bad, num_chars)] + np.uint8(48)
    runs = unpack_runs(kept, np.concatenate(([0], np.cumsum(num_chars[~bad]))))
    counts = np.zeros(len(bad), np.int64)
    counts[~bad] = np.diff(runs.bounds)
    return Runs(runs.lengths, np.concatenate(([0], np.cumsum(counts))))


def _undo_differences(lengths: np.ndarray, bounds: np.ndarray) -> None:
    """Turn stored values into run lengths, in place: from the fourth on, they are differences to the run two before."""
    places = _places(bounds)
    counts = np.diff(bounds)
    for chain, sizes in ((places % 2 == 1, counts // 2), ((places % 2 == 0) & (places > 0), (counts - 1) // 2)):
        chained = lengths[chain]
        chain_bounds = np.concatenate(([0], np.cumsum(sizes)))
        lengths[chain] = np.cumsum(chained) - np.repeat(_before(chained, chain_bounds), sizes)


def _places(bounds: np.ndarray) -> np.ndarray:
    """Return the number of each value within its own group."""
    return np.arange(bounds[-1]) - np.repeat(bounds[:-1], np.diff(bounds))


def _before(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the sum of all values before each group."""
    sums: np.ndarray = np.concatenate(([0], np.cumsum(values)))[bounds[:-1]]
    return sums


def _sums(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the sum of each group, 0 for an empty one."""
    sums: np.ndarray = np.diff(np.concatenate(([0], np.cumsum(values, dtype=np.int64)))[bounds])
    return sums


def _boxes(
    starts: np.ndarray, ends: np.ndarray, which: np.ndarray, bounds: np.ndarray, heights: np.ndarray
) -> np.ndarray:
    boxes = np.zeros((len(bounds) - 1, 4), np.int64)
    filled = np.flatnonzero(np.diff(bounds))
    if not len(filled):
        return boxes
    height = heights[which]
    left, right = starts // height, (ends - 1) // height
    top, bottom = starts - left * height, ends - 1 - right * height
    crosses = right > left  # a run that goes on in the next column touches bottom and top
    top[crosses], bottom[crosses] = 0, height[crosses] - 1
    first = bounds[filled]
    x, y = np.minimum.reduceat(left, first), np.minimum.reduceat(top, first)
    boxes[filled, 0], boxes[filled, 1] = x, y
    boxes[filled, 2] = np.maximum.reduceat(right, first) - x + 1
    boxes[filled, 3] = np.maximum.reduceat(bottom, first) - y + 1
    return boxes


def without_nulls(array: pa.Array, value: object) -> pa.Array:
    """Return an array with nulls replaced; `fill_null` takes its time even where there are none."""
    return pc.fill_null(array, value) if array.null_count else array


def _characters(counts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of all strings and where each starts; a null is an empty string."""
    counts = without_nulls(counts, "")
    if not len(counts):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = counts.buffers()
    bounds = np.frombuffer(offsets, np.int32)[counts.offset : counts.offset + len(counts) + 1].astype(np.int64)
    if data is None:
        return np.zeros(0, np.uint8), np.zeros(len(counts) + 1, np.int64)
    return np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]], bounds - bounds[0]


def _sizes(sizes: pa.ListArray) -> np.ndarray:
    """Return (M, 2) int64; (0, 0) where a size is not two numbers."""
    lengths = without_nulls(pc.list_value_length(sizes), 0).to_numpy(zero_copy_only=False)
    values = without_nulls(sizes.flatten(), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    result = np.zeros((len(sizes), 2), np.int64)
    result[lengths == 2] = values[np.repeat(lengths == 2, lengths)].reshape(-1, 2)
    return result
