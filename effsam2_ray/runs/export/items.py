"""What an export gets to write: labelled images with their names, and a place to put files."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from effsam2_ray.storage import StorageOptions, put_bytes

_WRITERS = 16
_FILES_AHEAD = 64


@dataclass(frozen=True)
class ExportItem:
    """One labelled image.

    Attributes:
        number: its place in the work list, 1 for the first; the same in every export of runs of one work list.
        name: its path in the export without the suffix.
        suffix: of its file, with the dot; "" where it is not known.
        row: its row's values.
        picture: the encoded file; None where the export does not need it.
    """

    number: int
    name: str
    suffix: str
    row: dict[str, Any]
    picture: bytes | None

    @property
    def file_name(self) -> str:
        """Path of the picture's file, relative to the pictures' folder."""
        return self.name + self.suffix

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.row["height"], self.row["width"]

    @property
    def masks(self) -> list[dict[str, Any]]:
        """The final masks, as in the output table."""
        return self.row["masks"] or []


@dataclass(frozen=True)
class ExportOptions:
    """Settings of an export.

    Attributes:
        format: one of `FORMATS`.
        with_pictures: copy the pictures too.
        full_coverage: give pixels of no mask to the nearest one, in label maps.
        polygon_tolerance: pixels that a polygon may be off, to need fewer points.
    """

    format: str
    with_pictures: bool = False
    full_coverage: bool = False
    polygon_tolerance: float = 1.0


class FileWriter:
    """Puts whole files below a folder, several at once.

    Args:
        uri: the folder.
        storage_options: passed to fsspec.
    """

    def __init__(self, uri: str, storage_options: StorageOptions = None):
        self._uri, self._options = uri.rstrip("/"), storage_options
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="put")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        try:
            while self._waiting and error is None:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def put(self, name: str, data: bytes) -> None:
        """Write a file; an error of it is raised here, by a later call, or at the end."""
        while len(self._waiting) >= _FILES_AHEAD:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(put_bytes, f"{self._uri}/{name}", data, self._options))
