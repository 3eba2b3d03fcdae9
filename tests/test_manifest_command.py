"""`effsam2 manifest`: the frozen list, its progress, and a million objects in bounded memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import ObjectStore, s3, s3_endpoint  # noqa: F401  fixtures
from test_listing import fill, fill_bucket

from effsam2_ray import storage
from effsam2_ray.cli import main
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.inputs.listing_progress import ListingProgress
from effsam2_ray.inputs.work_list import WorkList

ROOT = Path(__file__).resolve().parents[1]


def test_the_file_is_the_list_that_a_job_would_freeze(tmp_path: Path, capsys):
    fill(tmp_path / "in", [f"{n}.jpg" for n in range(9)])
    out = tmp_path / "deep" / "list.parquet"
    assert main(["manifest", str(tmp_path / "in"), "--output", str(out), "--num-segmenters", "2"]) == 0
    assert out.read_bytes() == build_work_list([str(tmp_path / "in")], num_segmenters=2).to_bytes()
    told = capsys.readouterr().out
    assert told.startswith(f"Work list: {out}\n9 images, 0 shards, 9 units, 0.00 GB; listed in ")
    assert told.endswith("0 listed twice, 0 files that are no images by name, 0 already known to be lost\n")


def test_a_list_is_frozen_once(tmp_path: Path, capsys):
    fill(tmp_path / "in", ["a.jpg"])
    command = ["manifest", str(tmp_path / "in"), "--output", str(tmp_path / "list.parquet")]
    assert main(command) == 0 and main(command) == 0
    before = (tmp_path / "list.parquet").read_bytes()
    fill(tmp_path / "in", ["b.jpg"])
    assert main(command) == 2
    assert "list.parquet is there and lists other images; choose another name" in capsys.readouterr().err
    assert (tmp_path / "list.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none matches nothing"),
        (["in", "--keep-columns", "status"], "keep_columns cannot hold status"),
        (["in", "--id-column", "id"], "--id-column and --keep-columns are for Parquet files and manifests"),
    ],
)
def test_mistakes_write_nothing(tmp_path: Path, capsys, monkeypatch, arguments: list[str], message: str):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "in", ["a.jpg"])
    assert main(["manifest", *arguments, "--output", "list.parquet"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "list.parquet").exists()


def test_from_and_to_an_object_store(s3: ObjectStore, capsys):  # noqa: F811
    fill_bucket(s3, [f"in/{n:04d}.jpg" for n in range(1200)])
    options = [text for name, value in s3.options.items() for text in ("--storage-option", f"{name}={value}")]
    assert main(["manifest", f"{s3.root}/in/", "--output", f"{s3.root}/lists/a.parquet", *options]) == 0
    assert WorkList.from_bytes(s3.get("lists/a.parquet")).num_images == 1200
    assert "test" not in capsys.readouterr().out.replace("latest", "")


def test_progress_is_a_line_at_a_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines: list[str] = []
    progress = ListingProgress(lines.append, interval_s=10)
    for passed_s, images, shards in [(4, 1000, 0), (10, 4000, 0), (19, 5000, 0), (20, 9000, 3), (25, 9999, 4)]:
        now[0] = 100 + passed_s
        progress(images, shards)
    assert lines == [
        "Listing: 4,000 images so far, 400 a second",
        "Listing: 9,000 images in 3 shards so far, 450 a second",
    ]


class PagedStore:
    """What s3fs is to the listing: ListObjectsV2 over images that exist only as names, a thousand a page.

    A page takes `page_s` and at most one a prefix is under way, as with the real store.
    """

    protocol = "s3"

    def __init__(self, num_folders: int, num_images: int, page_s: float):
        self.num_folders, self.num_images, self.page_s = num_folders, num_images, page_s
        self.pages = self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def _strip_protocol(self, uri: str) -> str:
        return uri.removeprefix("s3://").rstrip("/")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": 0, "type": "directory"}

    def call_s3(self, method: str, Bucket: str, Prefix: str, Delimiter: str, ContinuationToken: str = "0", **_: Any):
        assert method == "list_objects_v2"
        with self._lock:
            self.pages += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.page_s)
        with self._lock:
            self.at_once -= 1
        if Delimiter and self.num_folders:
            return {"CommonPrefixes": [{"Prefix": f"{Prefix}{n:04d}/"} for n in range(self.num_folders)]}
        first, last = int(ContinuationToken), min(int(ContinuationToken) + 1000, self.num_images)
        contents = [{"Key": f"{Prefix}{n:07d}.jpg", "Size": 100_000, "ETag": f'"{n:032x}"'} for n in range(first, last)]
        return {"Contents": contents, "IsTruncated": last < self.num_images, "NextContinuationToken": str(last)}


@pytest.fixture
def paged_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def use(store: PagedStore) -> dict[str, Any]:
        monkeypatch.setattr(storage, "_new_filesystem", lambda *_: store)
        return {"synthetic": str(id(store))}

    yield use
    for key in [key for key in storage._filesystems if "synthetic" in str(key)]:
        del storage._filesystems[key]


def test_folders_are_listed_side_by_side_and_in_order(paged_store):
    store = PagedStore(num_folders=40, num_images=2500, page_s=0.2)
    work_list = build_work_list(["s3://bucket/in"], storage_options=paged_store(store))
    assert work_list.num_images == 100_000 and store.pages == 1 + 40 * 3
    assert store.most_at_once >= 8
    uris = [image.image_uri for unit in work_list.units() for image in unit.images]
    assert uris == [f"s3://bucket/in/{folder:04d}/{n:07d}.jpg" for folder in range(40) for n in range(2500)]


def test_one_flat_prefix_is_paged(paged_store):
    store = PagedStore(num_folders=0, num_images=20_500, page_s=0.0)
    work_list = build_work_list(["s3://bucket/in"], storage_options=paged_store(store))
    assert work_list.num_images == 20_500 and store.pages == 21


MILLION = """
import re, sys
sys.path[:0] = [{tests!r}]
from test_manifest_command import PagedStore
from effsam2_ray import storage
from effsam2_ray.cli import main
store = PagedStore(*{shape}, page_s=0.1)
storage._new_filesystem = lambda scheme, options: store if scheme == "s3" else storage.LocalFileSystem()
import effsam2_ray.inputs.listing, effsam2_ray.inputs.listing_progress, effsam2_ray.schema
kib = lambda name: int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
before = kib("VmRSS")
code = main(["manifest", "s3://bucket/in", "--output", {out!r}, "--num-segmenters", "32"])
print("memory", kib("VmHWM") - before, "KiB more")
sys.exit(code)
"""


@pytest.mark.soak
@pytest.mark.parametrize("shape", [(1000, 1000), (0, 1_000_000)], ids=["folders", "flat"])
def test_a_million_objects_are_listed_in_minutes_and_little_memory(tmp_path: Path, shape: tuple[int, int]):
    """At 0.1 s a page of a thousand keys: S3 answers in that, or faster."""
    out = tmp_path / "list.parquet"
    code = MILLION.format(tests=str(ROOT / "tests"), shape=shape, out=str(out))
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr
    print(done.stdout, done.stderr, f"{time.monotonic() - start:.1f} s, {out.stat().st_size / 1e6:.1f} MB")
    assert "1,000,000 images, 0 shards" in done.stdout and "Listing: " in done.stderr
    memory_kib = int(done.stdout.rpartition("memory ")[2].split()[0])
    assert memory_kib < 250 << 10  # 160 MiB were seen, most of it the set of identities seen
