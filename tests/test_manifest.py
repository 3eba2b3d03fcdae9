from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from effsam2_ray.errors import InputError
from effsam2_ray.inputs.manifest import ManifestEntry, read_manifest, read_parquet_manifest
from effsam2_ray.inputs.parquet import describe_parquet
from effsam2_ray.storage import stat


def entries(tmp_path: Path, name: str, text: str | bytes, **options) -> list[ManifestEntry]:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_manifest(stat(str(path)), **options))


def test_a_text_list(tmp_path: Path):
    found = entries(
        tmp_path, "list.txt", "\ufeffa.jpg\r\n\n# comment\n  sub/ü b.jpg  \ns3://b/c.jpg\n/x/d.jpg\n../e.jpg"
    )
    assert [entry.uri for entry in found] == [
        f"file://{tmp_path}/a.jpg",
        f"file://{tmp_path}/sub/ü b.jpg",
        "s3://b/c.jpg",
        "file:///x/d.jpg",
        f"file://{tmp_path.parent}/e.jpg",
    ]
    assert [entry.number for entry in found] == [1, 4, 5, 6, 7]


def test_csv_with_ids_and_kept_columns(tmp_path: Path):
    text = 'id,path,caption\n7,a.jpg,"one, two"\n8,"b,c.jpg","line\nbreak"\n'
    found = entries(tmp_path, "list.csv", text, id_column="id", keep_columns=["caption"])
    assert [(entry.uri, entry.image_id, json.loads(entry.kept)) for entry in found] == [
        (f"file://{tmp_path}/a.jpg", "7", {"caption": "one, two"}),
        (f"file://{tmp_path}/b,c.jpg", "8", {"caption": "line\nbreak"}),
    ]


def test_bad_lines_of_csv_are_rows_and_cost_no_others(tmp_path: Path):
    text = b"uri\tn\na.jpg\t1\n\nb.jpg\n\t3\nc.jpg\t4\t5\n\xff.jpg\t6\nd.jpg\t7\n"
    found = entries(tmp_path, "list.tsv", text)
    assert [(entry.number, entry.status) for entry in found] == [
        (2, "ok"),
        (4, "bad_entry"),
        (5, "bad_entry"),
        (6, "bad_entry"),
        (7, "bad_entry"),
        (8, "ok"),
    ]
    assert [entry.error for entry in found[1:5]] == [
        "1 cells; the header has 2",
        "no URI",
        "3 cells; the header has 2",
        "not UTF-8: '\\\\xff.jpg'",
    ]


def test_a_quote_that_never_ends_is_seen(tmp_path: Path):
    found = entries(tmp_path, "list.csv", 'uri\na.jpg\n"b.jpg\n' + "c.jpg\n" * 50_000)
    assert [entry.status for entry in found[:2]] == ["ok", "bad_entry"]
    assert "field larger than field limit" in (found[1].error or "")


def test_json_lines(tmp_path: Path):
    lines = [
        '{"url": "a.jpg", "id": 5, "tags": ["x"]}',
        '"b.jpg"',
        "{broken",
        "[1]",
        '{"id": 6}',
        "",
        '{"image_url": "c.jpg", "tags": null}',
        '{"url": 7}',
    ]
    found = entries(tmp_path, "list.jsonl", "\n".join(lines), id_column="id", keep_columns=["tags"])
    assert [entry.status for entry in found] == ["ok", "ok", *["bad_entry"] * 3, "ok", "bad_entry"]
    assert found[0].image_id == "5" and json.loads(found[0].kept) == {"tags": '["x"]'}
    assert found[5].uri == f"file://{tmp_path}/c.jpg" and found[5].image_id is None
    assert "not JSON" in (found[2].error or "") and "which column" in (found[4].error or "")


def test_the_column_of_uris(tmp_path: Path):
    text = "path,uri,other\na.jpg,b.jpg,c.jpg\n"
    assert entries(tmp_path, "x.csv", text)[0].uri == f"file://{tmp_path}/b.jpg"
    assert entries(tmp_path, "x.csv", text, image_column="other")[0].uri == f"file://{tmp_path}/c.jpg"
    with pytest.raises(InputError, match="has no column 'nope'; it has 'path', 'uri', 'other'"):
        entries(tmp_path, "x.csv", text, image_column="nope")
    with pytest.raises(InputError, match="which column of .* holds the URIs"):
        entries(tmp_path, "x.csv", "a,b\n1,2\n")
    with pytest.raises(InputError, match="has no header line"):
        entries(tmp_path, "x.csv", "")
    with pytest.raises(InputError, match="plain list"):
        entries(tmp_path, "x.txt", "a.jpg", id_column="id")


def test_uris_with_credentials_are_refused_and_not_repeated(tmp_path: Path):
    found = entries(
        tmp_path, "x.txt", "https://u:pw@h/a.jpg\nhttps://h/a.jpg?X-Amz-Signature=hush\nhttps://h/a.jpg?v=2"
    )
    assert [entry.status for entry in found] == ["denied", "denied", "ok"]
    assert "pw" not in str(found) and "hush" not in str(found)


def test_a_parquet_manifest(tmp_path: Path):
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["a.jpg", None, "s3://b/c.jpg"], "n": [1, 2, 3], "id": ["x", "y", None]}), path)
    table = describe_parquet(stat(str(path)), id_column="id", keep_columns=("n",))
    found = list(read_parquet_manifest(table))
    assert [(e.number, e.uri, e.image_id, e.status, json.loads(e.kept)) for e in found] == [
        (0, f"file://{tmp_path}/a.jpg", "x", "ok", {"n": 1}),
        (1, None, "y", "bad_entry", {"n": 2}),
        (2, "s3://b/c.jpg", None, "ok", {"n": 3}),
    ]
