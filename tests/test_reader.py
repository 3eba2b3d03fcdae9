from __future__ import annotations

import dataclasses
import gzip
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import FaultProxy, ObjectStore, s3, s3_endpoint  # noqa: F401  fixtures
from test_tar_shards import link, tar_of

from effsam2_ray import storage
from effsam2_ray.images import STATUSES, decode_image
from effsam2_ray.inputs import reader
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.inputs.reader import ImageRecord, read_unit
from effsam2_ray.inputs.work_list import ImageRef, WorkList
from effsam2_ray.storage import Retry, put_bytes


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRY", Retry(attempts=4, base_s=0.01, longest_s=0.05))


def read_all(work_list: WorkList, options=None, **flags) -> list[ImageRecord]:
    records = []
    for unit in work_list.units():
        found = read_unit(unit, options, **flags)
        assert [record.image_uid for record in found] == [image.image_uid for image in unit.images]
        for record in found:
            assert record.status in STATUSES
            assert (record.data is not None) == (record.status == "ok") == (record.error is None)
        records += found
    return records


def outcome(records: list[ImageRecord]) -> list[bytes | str | None]:
    return [record.data if record.status == "ok" else record.status for record in records]


@pytest.fixture
def photos(shared_data: Path) -> dict[str, bytes]:
    folder = shared_data / "coco_val2017" / "images"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())[:8]}


def test_the_same_photographs_come_out_of_every_kind_of_input(photos: dict[str, bytes], tmp_path: Path):
    for name, data in photos.items():
        put_bytes(f"{tmp_path}/photos/{name}", data)
    tar = tar_of(list(photos.items()))
    put_bytes(f"{tmp_path}/a.tar", tar)
    put_bytes(f"{tmp_path}/a.tar.gz", gzip.compress(tar, 1))
    cells = [{"bytes": data, "path": name} for name, data in photos.items()]
    pq.write_table(pa.table({"image": cells}), tmp_path / "t.parquet", row_group_size=3)
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"photos/{name}\n" for name in photos))
    for uri in ("photos", "a.tar", "a.tar.gz", "t.parquet", "list.csv", "photos/*"):
        records = read_all(build_work_list([f"{tmp_path}/{uri}"], num_segmenters=1))
        assert outcome(records) == list(photos.values()), uri
        assert [record.size_bytes for record in records] == [len(data) for data in photos.values()]
    assert decode_image(records[0].data or b"").ndim == 3


def test_kept_columns_and_ids(tmp_path: Path):
    table = {"jpg": [b"a", b"b"], "id": [1, 2], "n": [3, None], "s": ["x", "y"], "when": pa.array([0, 1], pa.date32())}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    work_list = build_work_list([f"{tmp_path}/t.parquet"], id_column="id", keep_columns=["n", "s", "when"])
    records = read_all(work_list)
    assert [record.image_id for record in records] == ["1", "2"]
    assert records[0].kept == {"n": 3, "s": "x", "when": "1970-01-01"}
    schema = pa.schema(list(work_list.kept_schema.items()))
    assert pa.Table.from_pylist([dict(record.kept) for record in records], schema=schema).num_rows == 2
    (tmp_path / "m.csv").write_text("path,id,n,s,when\na.jpg,9,7,z,now\n")
    both = build_work_list(
        [f"{tmp_path}/t.parquet", f"{tmp_path}/m.csv"], id_column="id", keep_columns=["n", "s", "when"]
    )
    assert both.kept_schema == {"n": pa.string(), "s": pa.string(), "when": pa.string()}
    assert [record.kept["n"] for record in read_all(both)] == ["3", None, "7"]


def test_bad_lone_images_have_a_status_and_cost_no_others(tmp_path: Path):
    put_bytes(f"{tmp_path}/ok.jpg", b"ok")
    put_bytes(f"{tmp_path}/empty.jpg", b"")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    lines = ["ok.jpg", "empty.jpg", "none.jpg", "pipe.jpg", "folder.jpg", "nonsense://a/b.jpg", "https://u:p@h/c.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    records = read_all(build_work_list([f"{tmp_path}/list.txt"]))
    assert outcome(records) == [b"ok", "empty", "missing", "unreadable", "unreadable", "unreadable", "denied"]
    assert "not a regular file" in (records[3].error or "")
    assert "cannot read nonsense:// URIs" in (records[5].error or "")
    assert "u:p" not in str(records)


def test_members_of_a_tar_are_fetched_by_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "_GAP_BYTES", 2000)
    monkeypatch.setattr(reader, "_RANGE_BYTES", 6000)
    members = [(f"{n}.jpg", bytes([n]) * (500 + 700 * n)) for n in range(1, 9)]
    members.insert(3, ("big.json", b"j" * 9000))
    members.append(("empty.jpg", b""))
    put_bytes(f"{tmp_path}/a.tar", tar_of([*members, link("hard.jpg", "1.jpg", b"1"), link("soft.jpg", "1.jpg", b"2")]))
    work_list = build_work_list([f"{tmp_path}/a.tar"], num_segmenters=1)
    assert len(work_list) > 1
    images = [data for name, data in members if name.endswith("jpg")]
    assert outcome(read_all(work_list)) == [*images[:-1], "empty", images[0], "unsupported"]
    put_bytes(f"{tmp_path}/b.tgz", gzip.compress((tmp_path / "a.tar").read_bytes()))
    assert outcome(read_all(build_work_list([f"{tmp_path}/b.tgz"]))) == [
        *images[:-1],
        "empty",
        images[0],
        "unsupported",
    ]


def test_neighbours_in_a_tar_share_a_request(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "_GAP_BYTES", 100)
    monkeypatch.setattr(reader, "_RANGE_BYTES", 1000)
    places = [(0, 300), (400, 300), (800, 300), (1101, 10), (1212, 5000), (6212, 1), (0, 300)]
    images = [ImageRef(n, "", offset=offset, size_bytes=size) for n, (offset, size) in enumerate(places)]
    groups = [[image.image_uid for image in group] for group in reader._neighbours(images)]
    assert groups == [[0, 6, 1], [2, 3], [4], [5]]


def test_a_unit_of_a_tar_fetches_only_its_own_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put_bytes(f"{tmp_path}/a.tar", tar_of([(f"{n}.jpg", bytes([n]) * 50_000) for n in range(40)]))
    work_list = build_work_list([f"{tmp_path}/a.tar"], num_segmenters=1)
    fetched: list[tuple[int, int]] = []
    real = reader.read_range

    def read_range(uri: str, start: int, end: int, options) -> bytes:
        fetched.append((start, end))
        return real(uri, start, end, options)

    monkeypatch.setattr(reader, "read_range", read_range)
    unit = work_list.unit(2)
    read_unit(unit)
    assert unit.num_images == 10
    assert fetched == [(unit.images[0].offset, unit.images[-1].offset + 50_000)]


def test_rows_of_a_table_that_hold_no_picture(tmp_path: Path):
    put_bytes(f"{tmp_path}/beside.jpg", b"beside")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [
        {"bytes": b"x", "path": "whatever"},
        None,
        {"bytes": None, "path": "beside.jpg"},
        {"bytes": None, "path": "none.jpg"},
        {"bytes": None, "path": None},
        {"bytes": b"", "path": None},
        {"bytes": None, "path": "https://u:p@h/c.jpg"},
    ]
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), tmp_path / "t.parquet")
    records = read_all(build_work_list([f"{tmp_path}/t.parquet"], num_segmenters=1))
    assert outcome(records) == [b"x", "null", b"beside", "missing", "null", "empty", "denied"]
    assert [record.row for record in records] == list(range(7))


def test_any_rows_of_a_table(tmp_path: Path):
    pq.write_table(pa.table({"image": [b"%d" % row for row in range(30)]}), tmp_path / "t.parquet", row_group_size=7)
    first, *others = build_work_list([f"{tmp_path}/t.parquet"], num_segmenters=1).units()
    images = first.images + tuple(image for unit in others for image in unit.images)
    wanted = tuple(images[row] for row in (0, 1, 5, 6, 7, 20, 29))
    records = read_unit(dataclasses.replace(first, images=wanted))
    assert [(record.row, record.data) for record in records] == [(row, b"%d" % row) for row in (0, 1, 5, 6, 7, 20, 29)]
    assert read_unit(dataclasses.replace(first, images=())) == []


def test_an_image_of_too_many_bytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "MAX_IMAGE_BYTES", 100)
    put_bytes(f"{tmp_path}/big.jpg", b"x" * 101)
    put_bytes(f"{tmp_path}/a.tar", tar_of([("big.jpg", b"x" * 101), ("small.jpg", b"x" * 100)]))
    pq.write_table(pa.table({"jpg": [b"x" * 101, b"x"]}), tmp_path / "t.parquet")
    records = read_all(build_work_list([f"{tmp_path}/{name}" for name in ("big.jpg", "a.tar", "t.parquet")]))
    assert outcome(records) == ["too_large", "too_large", b"x" * 100, "too_large", b"x"]


def test_a_shard_that_changed_since_it_was_listed(tmp_path: Path):
    put_bytes(f"{tmp_path}/a.tar", tar_of([("1.jpg", b"1"), ("2.jpg", b"2")]))
    pq.write_table(pa.table({"jpg": [b"x"]}), tmp_path / "t.parquet")
    put_bytes(f"{tmp_path}/lone.jpg", b"before")
    work_list = build_work_list([f"{tmp_path}/{name}" for name in ("a.tar", "t.parquet", "lone.jpg")])
    time.sleep(0.01)
    put_bytes(f"{tmp_path}/a.tar", tar_of([("0.jpg", b"0"), ("1.jpg", b"1"), ("2.jpg", b"2")]))
    pq.write_table(pa.table({"jpg": [b"y", b"x"]}), tmp_path / "t.parquet")
    put_bytes(f"{tmp_path}/lone.jpg", b"after")
    assert outcome(read_all(work_list)) == ["changed", "changed", "changed", b"after"]
    assert outcome(read_all(work_list, check_changed=True))[-1] == "changed"
    for name in ("a.tar", "t.parquet", "lone.jpg"):
        os.remove(tmp_path / name)
    assert outcome(read_all(work_list)) == ["missing"] * 4


def test_listed_losses_come_out_as_they_were_listed(tmp_path: Path):
    data = tar_of([("a.jpg", b"a" * 600), ("b.jpg", b"b" * 600)])
    put_bytes(f"{tmp_path}/0.tar", data[:2300])
    put_bytes(f"{tmp_path}/1.tar.gz", gzip.compress(data)[:-20])
    put_bytes(f"{tmp_path}/2.tar", b"")
    records = read_all(build_work_list([f"{tmp_path}/*.tar", f"{tmp_path}/*.tar.gz"]))
    assert [record.status for record in records][:3] == ["ok", "truncated", "empty"]
    assert records[1].member == "b.jpg"
    assert "truncated" in [record.status for record in records[3:]]


def test_pickles_are_data(tmp_path: Path):
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    bomb = pickle.dumps(Bomb())
    put_bytes(f"{tmp_path}/a.tar", tar_of([("x.pkl", bomb), ("x.pyd", bomb), ("x.jpg", bomb)]))
    pq.write_table(pa.table({"jpg": [bomb]}), tmp_path / "t.parquet")
    records = read_all(build_work_list([f"{tmp_path}/a.tar", f"{tmp_path}/t.parquet"]))
    assert outcome(records) == [bomb, bomb]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["503", "cut"])
def test_everything_from_a_failing_store(s3: ObjectStore, tmp_path: Path, kind: str):  # noqa: F811
    photos = {f"{n}.jpg": os.urandom(3000 + n) for n in range(6)}
    for name, data in photos.items():
        s3.put(f"photos/{name}", data)
    s3.put("a.tar", tar_of(list(photos.items())))
    pq.write_table(pa.table({"jpg": list(photos.values())}), tmp_path / "t.parquet")
    s3.put("t.parquet", (tmp_path / "t.parquet").read_bytes())
    s3.put("list.txt", b"photos/0.jpg\nphotos/none.jpg\n")
    with FaultProxy(s3.endpoint) as proxy:
        options = {**s3.options, "endpoint_url": proxy.endpoint}
        inputs = [f"{s3.root}/{name}" for name in ("photos", "a.tar", "t.parquet", "list.txt")]
        work_list = build_work_list(inputs, storage_options=options)
        for part in ("photos/1.jpg", "photos/4.jpg", "a.tar", "t.parquet"):
            proxy.faults.append(["GET", part, kind, 2])
        records = read_all(work_list, options)
    assert outcome(records) == [*photos.values(), *photos.values(), *photos.values(), "missing"]
    assert all(fault[3] == 0 for fault in proxy.faults)
    assert len(records[0].etag or "") == 32


def test_a_store_that_keeps_failing_costs_only_its_images(s3: ObjectStore):  # noqa: F811
    s3.put("p/1.jpg", b"1")
    s3.put("p/2.jpg", b"2")
    s3.put("a.tar", tar_of([("1.jpg", b"1")]))
    with FaultProxy(s3.endpoint) as proxy:
        options = {**s3.options, "endpoint_url": proxy.endpoint}
        work_list = build_work_list([f"{s3.root}/p", f"{s3.root}/a.tar"], storage_options=options)
        proxy.faults += [["GET", "p/1.jpg", "503", 99], ["GET", "a.tar", "503", 99]]
        assert outcome(read_all(work_list, options)) == ["unreadable", b"2", "unreadable"]
