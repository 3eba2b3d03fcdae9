from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from object_store import FaultProxy, ObjectStore, s3, s3_endpoint  # noqa: F401  fixtures
from ray_head import free_port

from effsam2_ray import storage, uris
from effsam2_ray.cli import main
from effsam2_ray.errors import InputError
from effsam2_ray.inputs import listing, reader
from effsam2_ray.storage import (
    Retry,
    delete,
    exists,
    failure_status,
    is_transient,
    list_dir,
    open_seekable,
    put_bytes,
    put_if_absent,
    read_bytes,
    read_range,
    retrying,
    stat,
)
from effsam2_ray.uris import canonical_uri, has_secret, join_uri, redact, redact_text


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRY", Retry(attempts=4, base_s=0.01, longest_s=0.05))


@pytest.mark.parametrize(
    ("uri", "canonical"),
    [
        ("/data/a.jpg", "file:///data/a.jpg"),
        ("/data/x/../a.jpg", "file:///data/a.jpg"),
        ("file:/data/a.jpg", "file:///data/a.jpg"),
        ("file:///data//a.jpg", "file:///data/a.jpg"),
        ("local:///data/a.jpg", "file:///data/a.jpg"),
        ("/data/a::b.jpg", "file:///data/a::b.jpg"),
        ("/data/50%.jpg", "file:///data/50%.jpg"),
        ("s3a://b/k//x", "s3://b/k//x"),
        ("S3://b/k", "s3://b/k"),
        ("gcs://b/k", "gs://b/k"),
        ("memory://a/b", "memory:///a/b"),
        ("HTTPS://Example.COM/A.jpg", "https://example.com/A.jpg"),
    ],
)
def test_canonical_uri(uri: str, canonical: str):
    assert canonical_uri(uri) == canonical
    assert canonical_uri(canonical) == canonical


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert canonical_uri("a/b.jpg") == f"file://{tmp_path}/a/b.jpg"
    assert canonical_uri("./a/b.jpg") == canonical_uri(str(tmp_path / "a" / "b.jpg"))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://user:pass@host/a.jpg", "https://host/a.jpg"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("https://h/a.jpg?X-Amz-Signature=abc&w=3&X-Amz-Credential=k", "https://h/a.jpg?w=3"),
        ("https://h/a.jpg?sig=abc", "https://h/a.jpg"),
        ("https://h/a.jpg?id=7", "https://h/a.jpg?id=7"),
        ("s3://bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        ("/data/a?token=1.jpg", "/data/a?token=1.jpg"),
    ],
)
def test_redact(uri: str, shown: str):
    assert redact(uri) == shown
    assert has_secret(uri) == (uri != shown)


def test_redact_text_finds_uris_in_messages():
    assert redact_text("cannot read 'https://u:p@h/x?token=abc' now") == "cannot read 'https://h/x' now"


@pytest.mark.parametrize(
    ("folder", "name", "joined"),
    [
        ("/data/lists", "../a.jpg", "file:///data/a.jpg"),
        ("s3://b/lists", "x/../a.jpg", "s3://b/lists/a.jpg"),
        ("s3://b/lists", "../../../a.jpg", "s3://b/a.jpg"),
        ("s3://b", "a.jpg", "s3://b/a.jpg"),
        ("memory://m", "a.jpg", "memory:///m/a.jpg"),
        ("s3://b/lists", "s3a://c/a.jpg", "s3://c/a.jpg"),
        ("s3://b/lists", "/disk/a.jpg", "file:///disk/a.jpg"),
    ],
)
def test_join_uri(folder: str, name: str, joined: str):
    assert join_uri(folder, name) == joined


def test_an_unknown_scheme_is_an_input_error():
    with pytest.raises(InputError, match="cannot read nonsense:// URIs"):
        read_bytes("nonsense://a/b")


@pytest.fixture(params=["file", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str] | None]:
    if request.param == "file":
        return str(tmp_path), None
    if request.param == "memory":
        return f"memory://{tmp_path.name}", None
    store: ObjectStore = request.getfixturevalue("s3")
    return f"{store.root}/out", store.options


def test_what_was_put_is_read(root):
    folder, options = root
    uri = f"{folder}/deep/er/part-1.parquet"
    assert not exists(uri, options)
    put_bytes(uri, b"first", options)
    put_bytes(uri, b"0123456789", options)
    assert read_bytes(uri, options) == b"0123456789"
    assert read_range(uri, 3, 6, options) == b"345"
    assert read_range(uri, 8, 99, options) == b"89"
    assert read_range(uri, 4, 4, options) == b""
    assert stat(uri, options).size_bytes == 10
    assert exists(uri, options)
    assert exists(f"{folder}/deep", options)
    with open_seekable(uri, 10, options, window=4) as stream:
        stream.seek(-4, os.SEEK_END)
        assert stream.read(2) == b"67"
        stream.seek(1)
        assert stream.read() == b"123456789"
    delete(uri, options)
    delete(uri, options)
    assert not exists(uri, options)


def test_list_dir_gives_files_only_and_nothing_for_no_folder(root):
    folder, options = root
    for name in ("b.parquet", "a.parquet", "_meta/job.json", "c d#%?.parquet"):
        put_bytes(f"{folder}/{name}", b"x", options)
    base = canonical_uri(folder)
    assert list_dir(folder, options) == [f"{base}/a.parquet", f"{base}/b.parquet", f"{base}/c d#%?.parquet"]
    assert list_dir(f"{folder}/_meta/", options) == [f"{base}/_meta/job.json"]
    assert list_dir(f"{folder}/nothing", options) == []


def test_list_dir_goes_past_one_page_of_s3(s3: ObjectStore):  # noqa: F811
    from moto.s3.models import s3_backends

    bucket = s3_backends["123456789012"]["global"]
    for number in range(1203):
        bucket.put_object(s3.root[5:], f"out/{number:05d}", b"")
    assert len(list_dir(f"{s3.root}/out", s3.options)) == 1203


def test_put_if_absent_lets_exactly_one_win(root):
    folder, options = root
    uri = f"{folder}/job.json"
    assert put_if_absent(uri, b"mine", options)
    assert not put_if_absent(uri, b"theirs", options)
    assert not put_if_absent(uri, b"mine", options)
    assert read_bytes(uri, options) == b"mine"


def test_put_if_absent_in_a_race_of_threads(tmp_path: Path):
    barrier = threading.Barrier(8)

    def race(number: int) -> bool:
        barrier.wait()
        return put_if_absent(str(tmp_path / "x"), b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    assert sum(won) == 1
    assert (tmp_path / "x").read_bytes() == b"%d" % won.index(True)


def test_a_local_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "part.parquet"
    put_bytes(str(target), b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        put_bytes(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["part.parquet"]


def test_reading_a_pipe_fails_instead_of_hanging(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(IsADirectoryError, match="not a regular file"):
        read_bytes(str(tmp_path / "pipe.jpg"))


def test_transient_errors_are_retried_and_permanent_ones_are_not():
    calls = []

    def fail_with(error: Exception, times: int) -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    assert retrying(lambda: fail_with(OSError(errno.EBUSY, "slow down"), 3)) == "done"
    assert len(calls) == 4
    for error in (FileNotFoundError("x"), PermissionError("x"), ValueError("x"), OSError(errno.ENOSPC, "full")):
        calls.clear()
        with pytest.raises(type(error)):
            retrying(lambda error=error: fail_with(error, 99))
        assert len(calls) == 1
    calls.clear()
    with pytest.raises(TimeoutError):
        retrying(lambda: fail_with(TimeoutError("stalled"), 99))
    assert len(calls) == 4


def test_as_many_connections_as_threads_that_wait_for_them():
    fs, _ = storage.filesystem("s3://bucket/a", {"endpoint_url": "http://127.0.0.1:9"})
    assert fs.config_kwargs["max_pool_connections"] >= max(reader.READERS, listing.INDEXERS) >= 32


def test_errors_of_a_storage_client_are_os_errors(monkeypatch: pytest.MonkeyPatch):
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError

    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(PermissionError, match="NoCredentialsError: Unable to locate credentials"):
        retrying(lambda: fail(NoCredentialsError()))
    with pytest.raises(OSError, match="EndpointConnectionError: .*127.0.0.1:9"):
        retrying(lambda: fail(EndpointConnectionError(endpoint_url="http://127.0.0.1:9")))


@pytest.mark.parametrize(
    "words",
    [
        "check s3://nobody/run",
        "label s3://nobody/in --dry-run --output s3://nobody/out",
        "export s3://nobody/run --format coco --output s3://nobody/coco",
        "show s3://nobody/run",
        "evaluate s3://nobody/data --methods low_latency --output s3://nobody/report",
        "frames s3://nobody/clip.mp4 --output s3://nobody/frames",
        "compare s3://nobody/a s3://nobody/b",
        "manifest s3://nobody/in --output s3://nobody/list.parquet",
        "plan s3://nobody/in --gpu-hour-price 1 --rate 1",
        "calibrate s3://nobody/data --output s3://nobody/heads.json",
        "remerge s3://nobody/run --output s3://nobody/new",
    ],
)
def test_a_storage_that_cannot_be_reached_is_one_line(words: str, monkeypatch, capsys):
    # A port on which nothing listens; the retries of conftest are short.
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port('127.0.0.1')}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(storage, "RETRY", storage.Retry(attempts=1))
    assert main(words.split()) == 2
    assert "EndpointConnectionError" in capsys.readouterr().err


def test_statuses_of_errors():
    class HttpError(Exception):
        def __init__(self, status: int):
            self.status = status

    assert failure_status(FileNotFoundError()) == "missing"
    assert failure_status(PermissionError()) == "denied"
    assert failure_status(HttpError(403)) == "denied"
    assert failure_status(OSError(errno.EIO, "x")) == "unreadable"
    assert is_transient(HttpError(503))
    assert not is_transient(HttpError(400))


@pytest.mark.parametrize("kind", ["503", "cut", "stall"])
def test_reads_survive_faults_of_the_store(s3: ObjectStore, monkeypatch, kind: str):  # noqa: F811
    if kind == "stall":
        monkeypatch.setattr(storage, "READ_TIMEOUT_S", 2.0)
    data = bytes(range(256)) * 400
    uri = s3.put("dir/a.jpg", data)
    with FaultProxy(s3.endpoint, [["GET", "a.jpg", kind, 2]], stall_s=5.0) as proxy:
        options = {**s3.options, "endpoint_url": proxy.endpoint}
        assert read_bytes(uri, options) == data
        assert proxy.requests.count(("GET", f"/{uri[5:]}")) == 3


def test_a_store_that_keeps_failing_ends_in_an_error(s3: ObjectStore):  # noqa: F811
    uri = s3.put("a.jpg", b"x")
    with FaultProxy(s3.endpoint, [["GET", "a.jpg", "503", 99]]) as proxy:
        with pytest.raises(OSError, match="Reduce your request rate"):
            read_bytes(uri, {**s3.options, "endpoint_url": proxy.endpoint})
        assert len(proxy.requests) == 4


@pytest.mark.parametrize("kind", ["503", "lost"])
def test_a_put_is_whole_after_faults(s3: ObjectStore, kind: str):  # noqa: F811
    data = os.urandom(300_000)
    with FaultProxy(s3.endpoint, [["PUT", "part", kind, 2]]) as proxy:
        put_bytes(f"{s3.root}/out/part.parquet", data, {**s3.options, "endpoint_url": proxy.endpoint})
        assert [method for method, _ in proxy.requests] == ["PUT"] * 3
    assert s3.get("out/part.parquet") == data


def test_put_if_absent_knows_its_own_file_after_a_lost_answer(s3: ObjectStore):  # noqa: F811
    with FaultProxy(s3.endpoint, [["PUT", "job", "lost", 1]]) as proxy:
        options = {**s3.options, "endpoint_url": proxy.endpoint}
        assert put_if_absent(f"{s3.root}/job.json", b"mine", options)
        assert not put_if_absent(f"{s3.root}/job.json", b"theirs", options)


def test_a_listing_survives_503(s3: ObjectStore):  # noqa: F811
    s3.put("out/a", b"x")
    with FaultProxy(s3.endpoint, [["GET", "list-type", "503", 2]]) as proxy:
        assert list_dir(f"{s3.root}/out", {**s3.options, "endpoint_url": proxy.endpoint}) == [f"{s3.root}/out/a"]


def test_missing_and_denied_of_s3(s3: ObjectStore):  # noqa: F811
    with pytest.raises(FileNotFoundError):
        read_bytes(f"{s3.root}/none.jpg", s3.options)
    assert list_dir("s3://no-such-bucket-at-all/x", s3.options) == []
    assert not exists(f"{s3.root}/none.jpg", s3.options)


def test_endpoint_and_credentials_from_the_environment(s3: ObjectStore, monkeypatch):  # noqa: F811
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr(storage, "_filesystems", {})
    put_bytes(f"{s3.root}/env.txt", b"x")
    assert s3.get("env.txt") == b"x"


def test_options_go_to_their_own_scheme():
    options = {"endpoint_url": "http://x", "gs.token": "anon", "s3.key": "k"}
    assert storage._options_for("s3", options) == {"endpoint_url": "http://x", "key": "k"}
    assert storage._options_for("gs", options) == {"endpoint_url": "http://x", "token": "anon"}
    assert storage._options_for("file", options) == {}
    assert uris.scheme_of("a.jpg") == "file"
