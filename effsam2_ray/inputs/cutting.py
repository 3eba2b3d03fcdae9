"""Images -> units: at most so many images or bytes each, never across shards.

The number of images in a unit is `min(512, images / (4 x segmenters))`, so that a small job still keeps every segmenter
busy. The number of images is known only at the end of a listing, so images wait until there are enough for full units
whatever follows (2,048 for each segmenter); from then on nothing waits.
"""

from __future__ import annotations

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

MAX_UNIT_IMAGES = 512
MAX_UNIT_BYTES = 256 << 20
UNITS_PER_SEGMENTER = 4
ASSUMED_IMAGE_BYTES = MAX_UNIT_BYTES // MAX_UNIT_IMAGES
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

    def sized_images(self, assumed_bytes: int) -> Iterator[tuple[ImageRef, int]]:
        """Yield each image and its encoded size in bytes, `assumed_bytes` where nothing is known."""
        for image in self.images:
            yield image, assumed_bytes if image.size_bytes == UNKNOWN_SIZE else image.size_bytes
        if self.table is not None:
            row = 0
            for num_rows, size in self.table.row_groups:
                for _ in range(min(num_rows, self.num_rows - row)):
                    yield parquet_ref(self.table.file.uri, row), size // num_rows
                    row += 1


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
        if self.num_images >= MAX_UNIT_IMAGES * self._num_units_wanted:
            self._start(MAX_UNIT_IMAGES)

    def finish(self) -> None:
        """Write what is left."""
        if not self._images_per_unit:
            self._start(max(1, min(MAX_UNIT_IMAGES, self.num_images // self._num_units_wanted)))
        self._close()

    def _start(self, images_per_unit: int) -> None:
        self._images_per_unit = images_per_unit
        for run in self._waiting:
            self._cut(run)
        self._waiting = []

    def _cut(self, run: Run) -> None:
        for image, size in run.sized_images(self.assumed_bytes):
            if self._open is not None and (
                (self._open.run.kind, self._open.run.shard) != (run.kind, run.shard)
                or len(self._open.images) >= self._images_per_unit
                or self._open.size_bytes + size > MAX_UNIT_BYTES
            ):
                self._close()
            if self._open is None:
                self._open = _Open(run)
            self._open.images.append(image)
            self._open.size_bytes += size

    def _close(self) -> None:
        if self._open is None:
            return
        done, self._open = self._open, None
        number = unit_id(self.num_units, [image.image_uid for image in done.images])
        self._writer.add(Unit(number, done.run.kind, tuple(done.images), done.size_bytes, done.run.shard))
        self.num_units += 1
        self.size_bytes += done.size_bytes
