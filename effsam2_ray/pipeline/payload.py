"""What travels between the stages: one row a unit, its content pickled by us and never by anyone else.

A unit stays one row until its part is written, because Ray cuts blocks anew; encoded bytes and RLE are small.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from effsam2_ray.inputs.reader import ImageRecord
from effsam2_ray.results import ImageCandidates

T = TypeVar("T")


@dataclass(frozen=True)
class PartTask:
    """One part to write: a unit's rows in one run.

    Attributes:
        run: position of the run among those of the job.
        only: image_uids to take up again; None takes all.
    """

    run: int
    only: frozenset[int] | None = None


@dataclass(frozen=True)
class UnitTask:
    """One unit to do.

    Attributes:
        number: its position in the work list.
        unit_id: its id, which names its parts.
        parts: the runs that lack it, one or more.
    """

    number: int
    unit_id: str
    parts: tuple[PartTask, ...] = (PartTask(0),)

    def wants(self, image_uid: int) -> bool:
        """Return whether any part takes up this image."""
        return any(part.only is None or image_uid in part.only for part in self.parts)


@dataclass(frozen=True)
class UnitImages:
    """A unit after reading: one record an image, encoded bytes included."""

    task: UnitTask
    records: Sequence[ImageRecord]


@dataclass(frozen=True)
class ImageOutcome:
    """One image after segmentation.

    Attributes:
        record: where it came from, without its bytes.
        candidates: what was found; None unless `status` is `ok`.
        status: `ok` or the reason of the failure.
        error: the failure in words, "" for `ok`.
        step: the step that failed, "" for `ok`.
        attempts: how often it was tried.
    """

    record: ImageRecord
    candidates: ImageCandidates | None
    status: str = "ok"
    error: str = ""
    step: str = ""
    attempts: int = 1


@dataclass(frozen=True)
class UnitCandidates:
    """A unit after segmentation.

    Attributes:
        task: what was asked for.
        outcomes: for each run of the task, one outcome an image in the unit's order.
        warning: what the user should know of the segmenter, "" for nothing.
    """

    task: UnitTask
    outcomes: Mapping[int, Sequence[ImageOutcome]]
    warning: str = ""


class _Pieces(list[bytes]):
    """A file of what is written to it; pickle hands the bytes of pictures over as they are, not as copies."""

    write = list[bytes].append


def to_table(value: object) -> pa.Table:
    """Return a table of one row that holds `value`. Bytes in it are copied once, since a unit holds up to 256 MiB."""
    pieces = _Pieces()
    pickle.dump(value, pieces, protocol=5)
    content = pa.py_buffer(b"".join(pieces))
    offsets = pa.py_buffer(struct.pack("<qq", 0, content.size))
    return pa.table({"payload": pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, content])})


def from_table(table: pa.Table, kind: type[T]) -> list[T]:
    """Return the values in a table's rows."""
    values = []
    for payload in table["payload"]:
        value = pickle.loads(payload.as_buffer())
        assert isinstance(value, kind)
        values.append(value)
    return values
