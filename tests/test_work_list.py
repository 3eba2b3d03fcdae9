from __future__ import annotations

import dataclasses
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from effsam2_ray.errors import InputError
from effsam2_ray.inputs.cutting import MAX_UNIT_BYTES, Run, UnitCutter
from effsam2_ray.inputs.parquet import ParquetTable
from effsam2_ray.inputs.tar import lost_ref
from effsam2_ray.inputs.work_list import (
    UNITS_PER_ROW_GROUP,
    ImageRef,
    Shard,
    WorkList,
    WorkListWriter,
    image_uid,
    shard_image_uri,
    unit_id,
)
from effsam2_ray.storage import FileInfo


def lone(number: int, size: int = 1000) -> ImageRef:
    uri = f"file:///p/{number:06d}.jpg"
    return ImageRef(image_uid(uri), uri, size_bytes=size, etag="e", image_id=str(number), kept='{"n": 1}')


def member(shard: str, name: str, ordinal: int = 0) -> ImageRef:
    uri = shard_image_uri(shard, name, ordinal)
    return ImageRef(image_uid(shard, name, ordinal), uri, shard, name, ordinal, size_bytes=10, offset=512)


def build(runs: list[Run], num_segmenters: int = 1) -> WorkList:
    writer = WorkListWriter()
    cutter = UnitCutter(writer, num_segmenters)
    for run in runs:
        cutter.add(run)
    cutter.finish()
    return writer.finish({"num_images": cutter.num_images, "kept_types": [["n", "int64"]], "inputs": ["/p"]})


def test_image_uid_is_the_same_for_ever():
    assert image_uid("file:///a.jpg") == 5424275254856336868
    assert image_uid("s3://b/a.tar", "x.jpg", 1) == 769304752587264713
    assert -(1 << 63) <= image_uid("x") < 1 << 63
    parts = [("a", None, None), ("a", "b", 0), ("a", "b", 1), ("ab", None, 0), ("a", None, 0), ("a", "b0", None)]
    assert len({image_uid(*part) for part in parts}) == len(parts)


def test_units_come_back_as_they_were():
    shard = Shard("s3://b/a.tar", 5000, "etag")
    tar_images = (member(shard.uri, "x.jpg"), member(shard.uri, "x.jpg", 1), lost_ref(shard.uri, "truncated", "cut"))
    table = ParquetTable(FileInfo("s3://b/t.parquet", 900, "e2"), "image", False, "id", (), ((3, 300), (2, 900)))
    bad = ImageRef(
        image_uid("file:///m.csv", None, 7),
        "file:///m.csv#row=7",
        "file:///m.csv",
        row=7,
        status="bad_entry",
        error="?",
    )
    runs = [
        Run("files", (lone(1), bad, lost_ref("file:///gone.tar", "missing", "no"))),
        Run("tar", tar_images, shard),
        Run("parquet", (), table.shard, table, 5),
    ]
    work_list = WorkList.from_bytes(build(runs).to_bytes())
    assert [unit.kind for unit in work_list.units()] == ["files"] * 2 + ["tar"] * 2 + ["parquet"] * 2
    images = [image for unit in work_list.units() for image in unit.images]
    assert images[:6] == [*runs[0].images, *tar_images]
    assert [(image.row, image.image_uri) for image in images[6:]] == [
        (row, f"s3://b/t.parquet#row={row}") for row in range(5)
    ]
    assert work_list.unit(2).shard == shard
    assert work_list.unit(5).shard == Shard("s3://b/t.parquet", 900, "e2", "image", "id")
    assert [unit.size_bytes for unit in work_list.units()][4:] == [300, 900]
    assert work_list.unit(0).kept_types == (("n", "int64"),)
    assert work_list.kept_schema == {"n": pa.int64()}
    assert work_list.summary.num_images == work_list.num_images == 11


@pytest.mark.parametrize(
    ("num_images", "num_segmenters", "sizes"),
    [
        (1, 8, [1]),
        (7, 2, [1] * 7),
        (16, 2, [2] * 8),
        (100, 1, [25] * 4),
        (103, 1, [25] * 4 + [3]),
        (2048, 1, [512] * 4),
        (5000, 1, [512] * 9 + [392]),
        (5000, 100, [12] * 416 + [8]),
    ],
)
def test_sizes_of_units(num_images: int, num_segmenters: int, sizes: list[int]):
    runs = [
        Run("files", [lone(n) for n in range(first, min(first + 700, num_images))])
        for first in range(0, num_images, 700)
    ]
    work_list = build(runs, num_segmenters)
    assert list(work_list.unit_num_images) == sizes
    assert [image.image_id for unit in work_list.units() for image in unit.images] == [
        str(n) for n in range(num_images)
    ]


def test_a_unit_closes_before_its_bytes_exceed_the_limit():
    third = MAX_UNIT_BYTES // 3
    images = [lone(0, third), lone(1, third), lone(2, third), lone(3, 2), lone(4, 2 * MAX_UNIT_BYTES), lone(5, 1)]
    work_list = build([Run("files", [*images, *(lone(n) for n in range(6, 3000))])])
    assert list(work_list.unit_num_images)[:4] == [3, 1, 1, 512]


def test_units_never_cross_shards():
    shards = [Shard(f"file:///{name}.tar") for name in "ab"]
    runs = [Run("tar", tuple(member(s.uri, f"{n}.jpg") for n in range(700)), s) for s in shards]
    runs.append(Run("files", [lone(n) for n in range(2000)]))
    work_list = build(runs)
    assert list(work_list.unit_num_images)[:5] == [512, 188, 512, 188, 512]


def table_of(*row_groups: tuple[int, int]) -> Run:
    """Rows and bytes of each row group."""
    table = ParquetTable(FileInfo("s3://b/t.parquet", 900, "e"), "image", False, None, (), row_groups)
    return Run("parquet", (), table.shard, table, table.num_rows)


MIB = 1 << 20


@pytest.mark.parametrize(
    ("row_groups", "sizes"),
    [
        ([(100, MIB)] * 7, [500, 200]),  # groups that fit are put together, never cut
        ([(300, MIB)] * 4, [300] * 4),
        ([(1000, MIB)] * 3, [1000] * 3),
        ([(1024, MIB), (1, 1)], [1024, 1]),
        ([(1025, MIB)], [512, 513]),
        ([(4096, 40 * MIB)], [1024] * 4),
        ([(10, 1000 * MIB)], [2] * 5),  # 100 MiB each: two fit into a unit
        ([(500, 250 * MIB), (10, 7 * MIB)], [500, 10]),
        ([(0, 0), (3, 0), (0, 0)], [3]),
    ],
)
def test_units_are_cut_at_row_groups(row_groups: list[tuple[int, int]], sizes: list[int]):
    many = Run("files", [lone(n) for n in range(2048)])  # so that units are full
    work_list = build([table_of(*row_groups), many])
    units = [unit for unit in work_list.units() if unit.kind == "parquet"]
    assert [unit.num_images for unit in units] == sizes
    assert [image.row for unit in units for image in unit.images] == list(range(sum(sizes)))
    assert work_list.unit_ids == build([table_of(*row_groups), many]).unit_ids


def test_a_limit_ends_inside_a_row_group():
    table = table_of((100, 100), (100, 300))
    work_list = build([dataclasses.replace(table, num_rows=150)])
    assert [(unit.num_images, unit.size_bytes) for unit in work_list.units()] == [(50, 50), (50, 50), (50, 150)]


def test_unit_ids_name_position_and_content():
    first, second = build([Run("files", [lone(1), lone(2)])]), build([Run("files", [lone(1), lone(3)])])
    assert first.unit_ids[0] == second.unit_ids[0] == unit_id(0, [lone(1).image_uid])
    assert first.unit_ids[1] != second.unit_ids[1]
    assert first.unit_ids[1].startswith("0000001-")


def test_skipped_units_are_not_unpacked():
    work_list = build([Run("files", [lone(n) for n in range(100)])], num_segmenters=25)
    assert len(work_list) == 100 > UNITS_PER_ROW_GROUP
    kept = set(work_list.unit_ids[::7])
    skip = [unit for unit in work_list.unit_ids if unit not in kept]
    assert [unit.unit_id for unit in work_list.units(skip)] == [u for u in work_list.unit_ids if u in kept]
    assert [work_list.unit(n).unit_id for n in (0, 15, 16, 99)] == [work_list.unit_ids[n] for n in (0, 15, 16, 99)]


def test_an_image_takes_few_bytes():
    images = [dataclasses.replace(lone(n), etag=f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}") for n in range(20_000)]
    data = build([Run("files", images)]).to_bytes()
    assert len(data) / 20_000 < 40  # a million: 40 MB


@pytest.mark.parametrize("data", [b"", b"hello", b"PAR1"])
def test_what_is_no_work_list(data: bytes):
    with pytest.raises(InputError, match="not a work list"):
        WorkList.from_bytes(data)


def test_a_parquet_file_that_is_no_work_list():
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), buffer)
    with pytest.raises(InputError, match="without its summary"):
        WorkList.from_bytes(buffer.getvalue())
