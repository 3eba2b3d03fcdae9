"""Images -> units: so many images or bytes each, never across shards.

The number of images in a unit is `min(512, images / (4 x segmenters))`, so that a small job still keeps every segmenter
busy. The number of images is known only at the end of a listing, so images wait until there are enough for full units
whatever follows (2,048 for each segmenter); from then on nothing waits.

Rows of a Parquet file can only be reached by reading their row group from its start, so units are cut at the borders
of row groups: a group stays whole if it has at most twice the images of a unit and the bytes of one, and a larger one
is cut into the fewest equal units for which this holds. Each of these reads the group up to its own end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from effsam2_ray.inputs.parquet import ParquetTable
from effsam2_ray.inputs.work_list import (
    UNKNOWN_SIZE,
    ImageRef,
    Kind,
    Shard,
    Unit,
    WorkListWriter,
    parquet_ref,
    unit_id,
)

UNIT_IMAGES = 512
WHOLE_GROUP_UNITS = 2
"""A row group of a Parquet file stays whole up to so many times the images of a unit."""
MAX_UNIT_IMAGES = WHOLE_GROUP_UNITS * UNIT_IMAGES
MAX_UNIT_BYTES = 256 << 20
UNITS_PER_SEGMENTER = 4
ASSUMED_IMAGE_BYTES = MAX_UNIT_BYTES // UNIT_IMAGES
"""Size of an image of which nothing tells the size."""


@dataclass(frozen=True)
class Run:
    """Images that were listed together: lone ones, those of one tar, or the first `num_rows` rows of one table."""

    kind: Kind
    images: Sequence[ImageRef] = ()
    shard: Shard | None = None
    table: ParquetTable | None = None
    num_rows: int = 0

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.images) or self.num_rows

    def pieces(self, images_per_unit: int, assumed_bytes: int) -> Iterator[tuple[list[ImageRef], int]]:
        """Yield images that stay in one unit, and their encoded bytes.

        Args:
            images_per_unit: most images of a unit.
            assumed_bytes: size of an image where nothing is known.
        """
        for image in self.images:
            yield [image], assumed_bytes if image.size_bytes == UNKNOWN_SIZE else image.size_bytes
        if self.table is not None:
            first = 0
            for num_rows, size in self.table.row_groups:
                row_bytes = size // max(1, num_rows)
                for start, stop in _cut_group(min(num_rows, self.num_rows - first), row_bytes, images_per_unit):
                    rows = range(first + start, first + stop)
                    yield [parquet_ref(self.table.file.uri, row) for row in rows], row_bytes * len(rows)
                first += num_rows


@dataclass
class _Open:
    """The unit that is being filled."""

    run: Run
    images: list[ImageRef] = field(default_factory=list)
    size_bytes: int = 0


class UnitCutter:
    """Takes runs of images as they are listed and writes units.

    Args:
        writer: takes the units.
        num_segmenters: the most segmenters that the job will have.
    """

    def __init__(self, writer: WorkListWriter, num_segmenters: int):
        """Start with no unit."""
        self._writer = writer
        self._num_units_wanted = UNITS_PER_SEGMENTER * max(1, num_segmenters)
        self._waiting: list[Run] = []
        self._open: _Open | None = None
        self._images_per_unit = 0  # 0: not decided yet
        self.assumed_bytes = ASSUMED_IMAGE_BYTES
        self.num_images = 0
        self.num_units = 0
        self.size_bytes = 0

    def add(self, run: Run) -> None:
        """Append images to the list."""
        self.num_images += run.num_images
        if self._images_per_unit:
            self._cut(run)
            return
        self._waiting.append(run)
        if self.num_images >= UNIT_IMAGES * self._num_units_wanted:
            self._start(UNIT_IMAGES)

    def finish(self) -> None:
        """Write what is left."""
        if not self._images_per_unit:
            self._start(max(1, min(UNIT_IMAGES, self.num_images // self._num_units_wanted)))
        self._close()

    def _start(self, images_per_unit: int) -> None:
        self._images_per_unit = images_per_unit
        for run in self._waiting:
            self._cut(run)
        self._waiting = []

    def _cut(self, run: Run) -> None:
        for images, size in run.pieces(self._images_per_unit, self.assumed_bytes):
            if self._open is not None and (
                (self._open.run.kind, self._open.run.shard) != (run.kind, run.shard)
                or len(self._open.images) + len(images) > self._images_per_unit
                or self._open.size_bytes + size > MAX_UNIT_BYTES
            ):
                self._close()
            if self._open is None:
                self._open = _Open(run)
            self._open.images += images
            self._open.size_bytes += size

    def _close(self) -> None:
        if self._open is None:
            return
        done, self._open = self._open, None
        number = unit_id(self.num_units, [image.image_uid for image in done.images])
        self._writer.add(Unit(number, done.run.kind, tuple(done.images), done.size_bytes, done.run.shard))
        self.num_units += 1
        self.size_bytes += done.size_bytes


def _cut_group(num_rows: int, row_bytes: int, images_per_unit: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the end of each part of a row group that is too large to stay whole."""
    if num_rows <= 0:
        return
    most_rows = max(1, min(WHOLE_GROUP_UNITS * images_per_unit, MAX_UNIT_BYTES // max(1, row_bytes)))
    num_parts = math.ceil(num_rows / most_rows)
    yield from itertools.pairwise(part * num_rows // num_parts for part in range(num_parts + 1))
