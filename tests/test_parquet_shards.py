from __future__ import annotations

import datetime
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import ObjectStore, s3, s3_endpoint  # noqa: F401  fixtures

from effsam2_ray import storage
from effsam2_ray.errors import InputError
from effsam2_ray.inputs import parquet
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.inputs.parquet import describe_parquet, read_rows
from effsam2_ray.storage import put_bytes, read_range, stat

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def describe(path: str, **options: Any):
    return describe_parquet(stat(path), **options)


@pytest.mark.parametrize(
    ("columns", "found", "is_manifest"),
    [
        ({"image": pa.array([{"bytes": b"x", "path": "a"}], HF), "thumb": [b"y"]}, "image", False),
        ({"picture": [b"x"], "name": ["a.jpg"]}, "picture", False),
        ({"mask": [b"x"], "jpg": [b"y"], "url": ["a"]}, "jpg", False),
        ({"URL": ["a"], "caption": ["b"]}, "URL", True),
        ({"file_name": pa.array(["a"]).dictionary_encode(), "n": [1]}, "file_name", True),
        ({"data": pa.array([b"x"], pa.large_binary())}, "data", False),
    ],
)
def test_the_image_column_is_found(tmp_path: Path, columns: dict[str, Any], found: str, is_manifest: bool):
    table = describe(write(tmp_path / "a.parquet", columns))
    assert (table.image_column, table.is_manifest) == (found, is_manifest)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"left": [b"x"], "right": [b"y"]}, {}, r"which column of .* Name it with --image-column: left \(binary\)"),
        ({"caption": ["b"]}, {}, "which column of"),
        ({"n": [1]}, {"image_column": "n"}, "column 'n' of .* is int64; images are bytes"),
        ({"jpg": [b"x"]}, {"image_column": "png"}, "has no column 'png'; it has 'jpg'"),
        ({"jpg": [b"x"]}, {"id_column": "id"}, "has no column 'id'"),
        ({"jpg": [b"x"], "raw": [b"y"]}, {"image_column": "jpg", "keep_columns": ("raw",)}, "'raw' holds bytes"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path: Path, columns, options, message: str):
    with pytest.raises(InputError, match=message):
        describe(write(tmp_path / "a.parquet", columns), **options)


def test_types_of_kept_columns(tmp_path: Path):
    columns = {
        "jpg": [b"x"],
        "i": pa.array([1], pa.int16()),
        "u": pa.array([1], pa.uint64()),
        "f": pa.array([1.0], pa.float32()),
        "b": [True],
        "s": ["x"],
        "t": [datetime.datetime(2020, 1, 1)],
        "l": [[1]],
    }
    path = write(tmp_path / "a.parquet", columns)
    table = describe(path, keep_columns=("i", "u", "f", "b", "s", "t", "l"))
    assert [name for _, name in table.kept_types] == ["int64", "string", "double", "bool", "string", "string", "string"]


def test_row_groups_and_their_sizes(tmp_path: Path):
    columns = {"jpg": [bytes([n]) * 1000 for n in range(5)], "caption": ["long text" * 100] * 5}
    path = write(tmp_path / "a.parquet", columns, row_group_size=2, use_dictionary=False, write_statistics=False)
    table = describe(path)
    assert [rows for rows, _ in table.row_groups] == [2, 2, 1]
    assert all(1000 * rows <= size < 1100 * rows + 100 for rows, size in table.row_groups)
    assert table.num_rows == 5


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (0, 1), (2, 5), (6, 7), (3, 3)])
def test_any_range_of_rows(tmp_path: Path, start: int, stop: int):
    data = [f"{n}".encode() for n in range(7)]
    path = write(tmp_path / "a.parquet", {"jpg": data, "id": list(range(7)), "k": ["x"] * 7}, row_group_size=3)
    table = describe(path, id_column="id", keep_columns=("k",))
    rows = list(read_rows(table.shard, start, stop, ("k",)))
    assert [(row.number, row.cell, row.image_id, row.kept) for row in rows] == [
        (n, data[n], str(n), {"k": "x"}) for n in range(start, stop)
    ]


def test_rows_are_read_across_many_batches(tmp_path: Path):
    data = [f"{n}".encode() for n in range(500)]
    table = describe(write(tmp_path / "a.parquet", {"jpg": data}))
    assert [row.cell for row in read_rows(table.shard, 45, 333)] == data[45:333]


def test_nulls_and_structs(tmp_path: Path):
    cells = [{"bytes": b"x", "path": None}, None, {"bytes": None, "path": "a.jpg"}]
    table = describe(write(tmp_path / "a.parquet", {"image": pa.array(cells, HF)}))
    assert [row.cell for row in read_rows(table.shard, 0, 3)] == cells


def test_a_damaged_row_group_does_not_take_the_others_along(tmp_path: Path):
    data = [bytes([n]) * 4000 for n in range(9)]
    path = tmp_path / "a.parquet"
    write(path, {"jpg": data}, row_group_size=3, compression="zstd", use_dictionary=False)
    table = describe(str(path))
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    damaged = bytearray(path.read_bytes())
    for place in range(chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size):
        damaged[place] ^= 0x5A
    path.write_bytes(damaged)
    rows = list(read_rows(table.shard, 1, 8))
    assert [row.number for row in rows] == list(range(1, 8))
    assert [row.cell for row in rows] == [data[1], data[2], None, None, None, data[6], data[7]]
    assert all("row group 1 cannot be decoded" in (row.error or "") for row in rows[2:5])


def test_a_file_that_lost_rows_is_padded_with_errors(tmp_path: Path):
    table = describe(write(tmp_path / "a.parquet", {"jpg": [b"x"]}))
    rows = list(read_rows(table.shard, 0, 3))
    assert [row.error for row in rows] == [None, *["the file has fewer rows than when it was listed"] * 2]


def test_what_is_no_parquet(tmp_path: Path):
    for data in (b"", b"hello", b"PAR1" + bytes(100) + b"PAR1"):
        (tmp_path / "a.parquet").write_bytes(data)
        with pytest.raises((pa.ArrowException, OSError)):
            describe(str(tmp_path / "a.parquet"))


def test_from_a_store(s3: ObjectStore, tmp_path: Path):  # noqa: F811
    data = [bytes([n % 256]) * 5000 for n in range(100)]
    path = write(tmp_path / "a.parquet", {"jpg": data}, row_group_size=10, compression="none", use_dictionary=False)
    uri = f"{s3.root}/a.parquet"
    put_bytes(uri, Path(path).read_bytes(), s3.options)
    table = describe_parquet(stat(uri, s3.options), storage_options=s3.options)
    assert [row.cell for row in read_rows(table.shard, 25, 31, (), s3.options)] == data[25:31]


@pytest.mark.parametrize(("row_group_size", "most"), [(100, 1.1), (1000, 1.1), (3000, 2.1)])
def test_units_read_little_more_than_their_rows(monkeypatch: pytest.MonkeyPatch, row_group_size: int, most: float):
    noise = np.random.default_rng(0).bytes(3_000_000)
    columns = {"jpg": [noise[1000 * n : 1000 * n + 1000] * 2 for n in range(3000)]}
    buffer = io.BytesIO()
    options: dict[str, Any] = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    pq.write_table(pa.table(columns), buffer, row_group_size=row_group_size, data_page_size=1 << 16, **options)
    put_bytes("memory://tables/a.parquet", buffer.getvalue())
    work_list = build_work_list(["memory://tables/a.parquet"])
    fetched = []

    def counting(uri: str, start: int, end: int, options: Any) -> bytes:
        fetched.append(end - start)
        return read_range(uri, start, end, options)

    monkeypatch.setattr(storage, "read_range", counting)
    monkeypatch.setattr(parquet, "_WINDOW", 1 << 14)
    rows = 0
    for unit in work_list.units():
        rows += len(list(read_rows(unit.shard, unit.images[0].row, unit.images[-1].row + 1)))
    assert rows == 3000
    assert sum(fetched) <= most * 6_000_000
