from __future__ import annotations

import gzip
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import FaultProxy, ObjectStore, s3, s3_endpoint  # noqa: F401  fixtures
from test_tar_shards import tar_of

from effsam2_ray import storage
from effsam2_ray.errors import InputError
from effsam2_ray.inputs.folder import glob_files, walk_folder
from effsam2_ray.inputs.kinds import file_kind, is_image_name
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.inputs.sources import expand_braces
from effsam2_ray.inputs.work_list import ImageRef, WorkList
from effsam2_ray.storage import Retry, put_bytes


def images(work_list: WorkList) -> list[ImageRef]:
    return [image for unit in work_list.units() for image in unit.images]


def uris(work_list: WorkList) -> list[str]:
    return [image.image_uri for image in images(work_list)]


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def names(work_list: WorkList, folder: Path) -> list[str]:
    return [uri.removeprefix(f"file://{folder}/") for uri in uris(work_list)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.JPG", "image"),
        ("a.heic", "image"),
        ("https://h/a.png?w=2.tar", "image"),
        ("a.tar", "tar"),
        ("a.tar.gz", "tar"),
        ("a.parquet", "parquet"),
        ("a.csv", "manifest"),
        ("a.gz", "other"),
        ("jpg", "other"),
    ],
)
def test_kinds_by_name(name: str, kind: str):
    assert file_kind(name) == kind


def test_hidden_names_are_no_images():
    assert is_image_name("a/b.jpg") and not is_image_name("a/._b.jpg")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("a", ["a"]),
        ("{000..002}.tar", ["000.tar", "001.tar", "002.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("{a,}x", ["ax", "x"]),
        ("{uuid}-{1..2}", ["{uuid}-1", "{uuid}-2"]),
    ],
)
def test_braces(text: str, expanded: list[str]):
    assert expand_braces(text) == expanded


def test_a_folder_is_listed_in_the_order_of_whole_names(tmp_path: Path):
    fill(
        tmp_path,
        ["b/x.jpg", "b.jpg", "a/c/y.PNG", "a/b.webp", "b-1.jpg", "z.txt", ".git/x.jpg", "a/._b.webp", "a/n.json"],
    )
    work_list = build_work_list([str(tmp_path)])
    assert names(work_list, tmp_path) == sorted(["b/x.jpg", "b.jpg", "a/c/y.PNG", "a/b.webp", "b-1.jpg"])
    assert work_list.summary.num_ignored == 2
    assert images(work_list)[0].size_bytes == len("a/b.webp")


def test_links_are_followed_but_not_in_circles(tmp_path: Path):
    fill(tmp_path, ["a/x.jpg", "other/y.jpg"])
    os.symlink(tmp_path / "a", tmp_path / "a" / "self")
    os.symlink(tmp_path / "other", tmp_path / "a" / "more")
    os.symlink(tmp_path / "nowhere", tmp_path / "a" / "broken.jpg")
    os.symlink(tmp_path / "a", tmp_path / "other" / "back")
    found = names(build_work_list([str(tmp_path / "a")]), tmp_path)
    assert found == ["a/broken.jpg", "a/more/y.jpg", "a/x.jpg"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may list everything")
def test_a_folder_that_may_not_be_listed_is_a_row(tmp_path: Path):
    fill(tmp_path, ["a/x.jpg", "b/y.jpg"])
    (tmp_path / "b").chmod(0)
    found = images(build_work_list([str(tmp_path)]))
    (tmp_path / "b").chmod(0o755)
    assert [image.status for image in found] == ["ok", "denied"]


def test_a_folder_that_cannot_be_listed_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path, ["a/x.jpg", "b/y.jpg"])
    real = os.scandir

    def scandir(path: str) -> Any:
        if path.endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = images(build_work_list([str(tmp_path)]))
    assert [(image.status, image.image_uri) for image in found] == [
        ("ok", f"file://{tmp_path}/a/x.jpg"),
        ("denied", f"file://{tmp_path}/b"),
    ]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["a.jpg", "b[1].jpg"]),
        ("?.jpg", ["a.jpg"]),
        ("[!a]*.jpg", ["b[1].jpg"]),
        ("b[[]1].jpg", ["b[1].jpg"]),
        ("*/*.jpg", ["d/e.jpg"]),
        ("**/*.jpg", ["a.jpg", "b[1].jpg", "d/e.jpg", "d/f/g.jpg"]),
        ("d/**", ["d/e.jpg", "d/f/g.jpg"]),
        ("*/f/g.jpg", ["d/f/g.jpg"]),
        ("*", ["a.jpg", "b[1].jpg"]),
    ],
)
def test_globs(tmp_path: Path, pattern: str, found: list[str]):
    fill(tmp_path, ["a.jpg", "b[1].jpg", "d/e.jpg", "d/f/g.jpg", "c.png.txt", ".h.jpg"])
    assert names(build_work_list([f"{tmp_path}/{pattern}"]), tmp_path) == found


def test_a_local_name_with_magic_in_it_is_taken_as_it_is(tmp_path: Path):
    fill(tmp_path, ["b[1].jpg", "{a,b}.jpg"])
    assert names(build_work_list([f"{tmp_path}/b[1].jpg", f"{tmp_path}/{{a,b}}.jpg"]), tmp_path) == [
        "b[1].jpg",
        "{a,b}.jpg",
    ]


def test_named_files_need_no_suffix(tmp_path: Path):
    fill(tmp_path, ["IMG_1"])
    assert names(build_work_list([f"{tmp_path}/IMG_1"]), tmp_path) == ["IMG_1"]


@pytest.mark.parametrize(
    ("make", "uri", "message"),
    [
        ([], "none.jpg", "none.jpg matches nothing: missing, there is no such file"),
        ([], "none-{0..3}.tar", "matches nothing"),
        ([], "*.jpg", "matches nothing"),
        (["a.csv", "b.csv", "c.json"], "", r"holds no images, only 2 manifest files, 1 other files; to read these"),
        (["a.tar", "b.csv"], "*", r"holds no images, only 1 tar files, 1 manifest files; to read these, name them"),
        (["a.tar", "a.parquet"], "", "holds no images, but tar files and Parquet files, .*; give a glob of those"),
        (["0.parquet", "_meta/job.json"], "", "holds no images, only the output of a run; to read its parts"),
        (["p/0.parquet", "p/_meta/job.json", "q/0.parquet", "q/_meta/job.json"], "", "only the output of a run"),
        (["a.parquet/part.txt"], "a.parquet", "is a folder; give a glob"),
        (["x.txt"], "x.txt", "holds no images"),
    ],
)
def test_inputs_without_images(tmp_path: Path, make: list[str], uri: str, message: str):
    fill(tmp_path, make)
    if make == ["x.txt"]:
        (tmp_path / "x.txt").write_text("# nothing\n")
    with pytest.raises(InputError, match=message):
        build_work_list([f"{tmp_path}/{uri}"])


def same_images(first: WorkList, second: WorkList) -> bool:
    return list(first.units()) == list(second.units())


def test_a_folder_of_tars_is_what_its_tars_are_one_by_one(tmp_path: Path):
    fill(tmp_path, ["notes.txt", "b/001.json"])
    shards = ["b/000.tar", "b/001.tar.gz", "c.tar"]
    for shard in shards:
        data = tar_of([(f"{n}.jpg", b"%d" % n) for n in range(3)])
        put_bytes(f"{tmp_path}/{shard}", gzip.compress(data) if shard.endswith("gz") else data)
    work_list = build_work_list([f"{tmp_path}/"])
    assert uris(work_list) == [f"file://{tmp_path}/{shard}#{n}.jpg" for shard in shards for n in range(3)]
    assert same_images(work_list, build_work_list([f"{tmp_path}/{shard}" for shard in shards]))
    assert (work_list.summary.num_shards, work_list.summary.num_ignored) == (3, 2)


def test_a_folder_of_parquet_files_is_what_its_files_are_one_by_one(tmp_path: Path):
    for name in "ba":
        pq.write_table(pa.table({"jpg": [b"x", b"y"], "id": [1, 2]}), tmp_path / f"{name}.parquet")
    work_list = build_work_list([str(tmp_path)], id_column="id")
    assert [uri.rpartition("/")[2] for uri in uris(work_list)] == [f"{n}.parquet#row={r}" for n in "ab" for r in (0, 1)]
    assert same_images(work_list, build_work_list([f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet"], id_column="id"))


def test_shards_beside_images_are_ignored(tmp_path: Path):
    fill(tmp_path, ["a.parquet", "b.jpg", "c.tar"])
    work_list = build_work_list([str(tmp_path)])
    assert names(work_list, tmp_path) == ["b.jpg"]
    assert work_list.summary.num_ignored == 2


def test_parts_of_a_run_are_no_shards_of_a_folder(tmp_path: Path):
    put_bytes(f"{tmp_path}/s/0.tar", tar_of([("a.jpg", b"a")]))
    put_bytes(f"{tmp_path}/t.tar", tar_of([("a.jpg", b"a")]))
    fill(tmp_path, ["s/out/0.parquet", "s/out/_meta/job.json", "s/out/_meta/work_list.parquet"])
    work_list = build_work_list([str(tmp_path)])
    assert names(work_list, tmp_path) == ["s/0.tar#a.jpg", "t.tar#a.jpg"]
    assert work_list.summary.num_ignored == 3


def test_a_prefix_of_s3_with_shards(s3: ObjectStore):  # noqa: F811
    for key in ("shards/0.tar", "shards/1.tar"):
        s3.put(key, tar_of([("a.jpg", b"a"), ("b.jpg", b"b")]))
    options = {"storage_options": s3.options}
    named = build_work_list([f"{s3.root}/shards/{n}.tar" for n in (0, 1)], **options)
    for uri in (f"{s3.root}/shards/", f"{s3.root}/shards"):
        assert same_images(build_work_list([uri], **options), named)


def test_bad_arguments(tmp_path: Path):
    fill(tmp_path, ["a.jpg"])
    with pytest.raises(InputError, match="no inputs"):
        build_work_list([])
    with pytest.raises(InputError, match="limit must be 1 or more; got 0"):
        build_work_list([str(tmp_path)], limit=0)
    with pytest.raises(InputError, match="--id-column and --keep-columns are for"):
        build_work_list([str(tmp_path)], id_column="id")
    with pytest.raises(InputError, match="https://h/a.jpg: credentials belong in") as caught:
        build_work_list(["https://user:hush@h/a.jpg"])
    assert "hush" not in str(caught.value)


def test_duplicates_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path, ["a.jpg", "b.jpg"])
    put_bytes(f"{tmp_path}/s.tar", tar_of([("x.jpg", b"x")]))
    (tmp_path / "list.txt").write_text("a.jpg\n./a.jpg\nb.jpg\n")
    monkeypatch.chdir(tmp_path)
    work_list = build_work_list(["a.jpg", str(tmp_path), f"file://{tmp_path}/list.txt", "s.tar", "./s.tar"])
    assert names(work_list, tmp_path) == ["a.jpg", "b.jpg", "s.tar#x.jpg"]
    assert work_list.summary.num_duplicates == 5
    assert work_list.summary.num_shards == 1
    assert names(build_work_list(["a.jpg", "a.jpg"]), tmp_path) == ["a.jpg"]


def make_all_kinds(folder: Path) -> list[str]:
    fill(folder, [f"photos/{n:02d}.jpg" for n in range(5)])
    for shard in range(3):
        members = [(f"{shard}/{n}.jpg", b"%d" % n) for n in range(4)]
        put_bytes(f"{folder}/s-{shard:03d}.tar", tar_of(members))
    put_bytes(f"{folder}/z.tar.gz", gzip.compress(tar_of([("g.jpg", b"g"), ("g.txt", b"t")])))
    pq.write_table(
        pa.table({"jpg": [b"p"] * 6, "id": list("abcdef"), "n": range(6)}), folder / "t.parquet", row_group_size=4
    )
    pq.write_table(pa.table({"url": ["m/1.jpg", "m/2.jpg"], "id": [1, 2], "n": [1.5, None]}), folder / "m.parquet")
    (folder / "list.csv").write_text("path,id,n\nc/1.jpg,7,x\n,8,y\nc/2.jpg,9,z\n")
    return [
        f"{folder}/{name}" for name in ("photos", "s-{000..003}.tar", "*.tar.gz", "t.parquet", "m.parquet", "list.csv")
    ]


def test_all_kinds_together(tmp_path: Path):
    inputs = make_all_kinds(tmp_path)
    work_list = build_work_list(inputs, id_column="id", keep_columns=["n"])
    found = images(work_list)
    assert [image.image_uri.removeprefix(f"file://{tmp_path}/") for image in found] == [
        *(f"photos/{n:02d}.jpg" for n in range(5)),
        *(f"s-{shard:03d}.tar#{shard}/{n}.jpg" for shard in range(3) for n in range(4)),
        "s-003.tar",
        "z.tar.gz#g.jpg",
        *(f"t.parquet#row={n}" for n in range(6)),
        "m/1.jpg",
        "m/2.jpg",
        "c/1.jpg",
        "list.csv#row=3",
        "c/2.jpg",
    ]
    summary = work_list.summary
    assert (summary.num_images, summary.num_shards, summary.num_lost, summary.num_ignored) == (30, 5, 2, 1)
    assert summary.kept_types == (("n", "string"),)
    assert [image.status for image in found if image.status != "ok"] == ["missing", "bad_entry"]
    assert found[-1].image_id == "9"
    assert build_work_list(inputs, id_column="id", keep_columns=["n"]).to_bytes() == work_list.to_bytes()


@pytest.mark.parametrize("limit", [1, 3, 5, 6, 10, 18, 19, 22, 25, 28, 100])
def test_limit_takes_the_first_images(tmp_path: Path, limit: int):
    inputs = make_all_kinds(tmp_path)
    every = uris(build_work_list(inputs))
    work_list = build_work_list(inputs, limit=limit)
    assert uris(work_list) == every[:limit]
    assert work_list.summary.num_images == min(limit, 30)


def test_bad_shards_are_rows_and_stop_nothing(tmp_path: Path):
    put_bytes(f"{tmp_path}/0.tar", tar_of([("a.jpg", b"a")]))
    put_bytes(f"{tmp_path}/1.tar", b"<html>" * 200)
    put_bytes(f"{tmp_path}/2.tar", tar_of([("b.jpg", b"b" * 900)])[:1000])
    put_bytes(f"{tmp_path}/3.tar", b"")
    put_bytes(f"{tmp_path}/0.parquet", b"")
    put_bytes(f"{tmp_path}/1.parquet", b"no parquet")
    pq.write_table(pa.table({"jpg": [b"x"]}), tmp_path / "2.parquet")
    work_list = build_work_list([f"{tmp_path}/*.tar", f"{tmp_path}/*.parquet"])
    assert [(image.image_uri.rpartition("/")[2], image.status) for image in images(work_list)] == [
        ("0.tar#a.jpg", "ok"),
        ("1.tar", "corrupt"),
        ("2.tar#b.jpg", "truncated"),
        ("3.tar", "empty"),
        ("0.parquet", "empty"),
        ("1.parquet", "corrupt"),
        ("2.parquet#row=0", "ok"),
    ]
    assert work_list.summary.num_lost == 5


def test_progress_is_told(tmp_path: Path):
    told: list[tuple[int, int]] = []
    build_work_list(make_all_kinds(tmp_path), progress=lambda *counts: told.append(counts))
    assert told == sorted(told)
    assert told[-1] == (30, 5)


def fill_bucket(store: ObjectStore, keys: list[str]) -> None:
    from moto.s3.models import s3_backends

    backend = s3_backends["123456789012"]["global"]
    for key in keys:
        backend.put_object(store.root[5:], key, b"x" * 10)


def test_a_prefix_of_s3_is_paged_and_in_order(s3: ObjectStore):  # noqa: F811
    keys = [f"d/{n:04d}.jpg" for n in range(1100)]
    keys += [f"d/{folder}/{n:03d}.png" for folder in ("0500", "a", "b c#", "é") for n in range(60)]
    keys += ["d//odd.jpg", "d/x/", "d/.hidden/a.jpg", "d/notes.txt", "dd/no.jpg"]
    fill_bucket(s3, keys)
    work_list = build_work_list([f"{s3.root}/d"], storage_options=s3.options)
    wanted = sorted(
        key for key in keys if key.startswith("d/") and key.endswith(("jpg", "png")) and ".hidden" not in key
    )
    assert uris(work_list) == [f"{s3.root}/{key}" for key in wanted]
    first = images(work_list)[0]
    assert first.size_bytes == 10 and len(first.etag) == 32
    assert uris(build_work_list([f"{s3.root}/d/"], storage_options=s3.options)) == uris(work_list)


def test_globs_and_manifests_on_s3(s3: ObjectStore):  # noqa: F811
    fill_bucket(s3, ["p/x/1.jpg", "p/x/2.jpg", "p/y/1.jpg", "p/readme.txt"])
    s3.put("s/0.tar", tar_of([("a.jpg", b"a")]))
    s3.put("m/list.txt", b"../p/x/1.jpg\n../p/none.jpg\n")
    options = {"storage_options": s3.options}
    assert [f.uri for f in glob_files(f"{s3.root}/p/*/1.jpg", s3.options)] == [f"{s3.root}/p/{d}/1.jpg" for d in "xy"]
    found = uris(build_work_list([f"{s3.root}/p/**", f"{s3.root}/s/*.tar", f"{s3.root}/m/list.txt"], **options))
    assert found == [
        f"{s3.root}/{key}" for key in ("p/x/1.jpg", "p/x/2.jpg", "p/y/1.jpg", "s/0.tar#a.jpg", "p/none.jpg")
    ]
    with pytest.raises(InputError, match="matches nothing"):
        build_work_list([f"{s3.root}/nothing"], **options)


def test_a_store_that_keeps_failing_freezes_no_list(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    monkeypatch.setattr(storage, "RETRY", Retry(attempts=3, base_s=0.01, longest_s=0.02))
    s3.put("s/0.tar", tar_of([("a.jpg", b"a")]))
    s3.put("s/1.tar", tar_of([("a.jpg", b"a")]))
    with FaultProxy(s3.endpoint, [["GET", "1.tar", "503", 2]]) as proxy:
        options = {**s3.options, "endpoint_url": proxy.endpoint}
        assert len(uris(build_work_list([f"{s3.root}/s/*.tar"], storage_options=options))) == 2
        proxy.faults.append(["GET", "1.tar", "503", 99])
        with pytest.raises(InputError, match="cannot be listed: .*Reduce your request rate"):
            build_work_list([f"{s3.root}/s/*.tar"], storage_options=options)


class ManyFiles(fsspec.AbstractFileSystem):
    """A store with 100 folders of 1,000 images that exist only as names."""

    protocol = "manyfiles"

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[dict[str, Any]]:
        path = self._strip_protocol(path)
        if path.count("/"):
            return [
                {"name": f"{path}/{n:06d}.jpg", "size": 1000, "type": "file", "etag": f"{n:x}"} for n in range(1000)
            ]
        return [{"name": f"{path}/{n:03d}", "size": 0, "type": "directory"} for n in range(100)]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": 0, "type": "directory"}


@pytest.fixture
def many_files() -> Iterator[str]:
    fsspec.register_implementation("manyfiles", ManyFiles, clobber=True)
    yield "manyfiles://root"


def test_a_hundred_thousand_lone_images_in_little_memory(many_files: str):
    tracemalloc.start()
    work_list = build_work_list([many_files], num_segmenters=4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert work_list.num_images == 100_000
    assert len(work_list) == 196
    assert images(work_list)[1000].image_uri == "manyfiles://root/001/000000.jpg"
    assert peak < 40e6
    assert len(work_list.to_bytes()) < 3e6


def test_a_listing_that_is_left_early_stops_its_threads(many_files: str):
    import threading

    walk = walk_folder(many_files)
    assert next(walk).uri == "manyfiles://root/000/000000.jpg"
    walk.close()
    for thread in threading.enumerate():
        if thread.name.startswith("list"):
            thread.join(5)
            assert not thread.is_alive()
