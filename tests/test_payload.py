"""Pins effsam2_ray/pipeline/payload.py."""

from __future__ import annotations

import tracemalloc

import pyarrow as pa
import pytest

from effsam2_ray.inputs.reader import ImageRecord
from effsam2_ray.pipeline.payload import PartTask, UnitImages, UnitTask, from_table, to_table


def unit_of(*contents: bytes | None) -> UnitImages:
    records = [
        ImageRecord(n, f"file:///{n}.jpg", None, None, None, None, None, None, {"n": n}, data, "ok", None)
        for n, data in enumerate(contents)
    ]
    return UnitImages(UnitTask(3, "0000003-0", (PartTask(0), PartTask(1, frozenset({1, 2})))), records)


@pytest.mark.parametrize("contents", [(), (b"",), (b"x", None, b"y" * 70_000), (b"a" * 65_535, b"b" * 65_536, b"c")])
def test_units_come_back_as_they_were(contents: tuple[bytes | None, ...]):
    unit = unit_of(*contents)
    assert from_table(to_table(unit), UnitImages) == [unit]


def test_tables_can_be_joined_sent_and_sliced():
    units = [unit_of(b"a" * 100_000), unit_of(b"b"), unit_of(None)]
    joined = pa.concat_tables([to_table(unit) for unit in units])
    assert joined.schema == pa.schema([("payload", pa.large_binary())])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, joined.schema) as writer:
        writer.write_table(joined.combine_chunks())
    received = pa.ipc.open_stream(sink.getvalue()).read_all()
    assert from_table(received, UnitImages) == units
    assert from_table(joined.slice(1, 1), UnitImages) == units[1:2]


def test_the_bytes_of_pictures_are_copied_once():
    unit = unit_of(*(bytes([n]) * (1 << 20) for n in range(32)))
    in_arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    table = to_table(unit)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak + pa.total_allocated_bytes() - in_arrow < 1.05 * (32 << 20)
    assert table.num_rows == 1
