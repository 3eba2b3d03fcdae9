"""One job over everything that can be wrong with an input: one row an image, and no bad one costs another."""

from __future__ import annotations

import io
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_process import GRID, finish, start
from object_store import FaultProxy, ObjectStore, s3, s3_endpoint  # noqa: F401  fixtures
from PIL import Image

from effsam2_ray import Config, Labeller
from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.inputs import reader
from effsam2_ray.inputs.listing import build_work_list

SIZE_HW = (72, 96)
SECRET, STORE_SECRET = "hunter2", "swordfish"


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_scene(seed, SIZE_HW).image).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def tar_of(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


GOOD = png()
DAMAGED = GOOD[:60] + bytes(40) + GOOD[100:]
BAD = {"empty": b"", "truncated": GOOD[: len(GOOD) // 2], "corrupt": DAMAGED, "not_image": b"no picture at all" * 9}
BLOCK = 512


def blocks(size_bytes: int) -> int:
    """Return how many bytes a member's content takes in a tar."""
    return -(-size_bytes // BLOCK) * BLOCK


def test_what_cannot_be_read_costs_no_other_image_of_its_unit(tmp_path, monkeypatch):
    plain = reader.read_bytes

    def read_bytes(uri: str, storage_options: object = None) -> bytes:
        if uri.endswith("forbidden.png"):
            raise PermissionError(13, "Permission denied", uri)
        return plain(uri)

    monkeypatch.setattr(reader, "read_bytes", read_bytes)
    names = ["0.png", "gone.png", "1.png", "forbidden.png", "2.png", "3.png", "4.png", "nosuch://host/a.png"]
    for name in names:
        if name[0].isdigit() or name == "forbidden.png":
            (tmp_path / name).write_bytes(GOOD)
    (tmp_path / "list.txt").write_text("\n".join(names * 4))  # named again, an image counts once
    units = list(build_work_list([str(tmp_path / "list.txt")]).units())
    assert [unit.num_images for unit in units] == [2, 2, 2, 2]
    statuses = [[record.status for record in reader.read_unit(unit)] for unit in units]
    assert statuses == [["ok", "missing"], ["ok", "denied"], ["ok", "ok"], ["ok", "unreadable"]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("bad")
    folder = root / "folder"
    folder.mkdir()
    for status, data in [*BAD.items(), ("too_large", bomb()), ("good", GOOD)]:
        (folder / f"{status}.png").write_bytes(data)
    (folder / "png_by_content.jpg").write_bytes(GOOD)
    (folder / "drawing.heic").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(32))
    (folder / "notes.txt").write_text("no image by name")

    tars = root / "tars"
    tars.mkdir()
    three = [("a.png", GOOD), ("b.png", GOOD), ("c.png", GOOD)]
    whole = tar_of(*three)
    one = BLOCK + blocks(len(GOOD))
    (tars / "cut_in_image.tar").write_bytes(whole[: one + BLOCK + len(GOOD) // 2])
    (tars / "cut_in_header.tar").write_bytes(whole[: 2 * one + 100])
    (tars / "cut_between.tar").write_bytes(whole[: 2 * one])
    (tars / "damaged_header.tar").write_bytes(whole[: one + 5] + b"\xff" + whole[one + 6 :])
    (tars / "no.tar").write_bytes(b"<html>not found</html>" * 99)
    (tars / "odd.tar").write_bytes(
        tar_of(
            ("photo.2.png", GOOD),
            ("photo.json", b"{}"),
            ("same.png", GOOD),
            ("empty.png", b""),
            ("photo.1.png", GOOD),
            ("same.png", BAD["truncated"]),
            ("photo.2.txt", b"a caption"),
            ("same.png", GOOD),
        )
    )
    (tars / "same_names.tar").write_bytes(tar_of(("photo.1.png", GOOD), ("same.png", GOOD)))

    cells = [GOOD, None, b"", BAD["corrupt"], GOOD, BAD["not_image"]]
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), root / "cells.parquet")
    structs = [{"bytes": GOOD, "path": None}, None, {"bytes": None, "path": None}, {"bytes": None, "path": "gone.png"}]
    pq.write_table(pa.table({"image": structs}), root / "structs.parquet")
    (root / "cut.parquet").write_bytes((root / "cells.parquet").read_bytes()[:-50])
    (root / "readable.png").write_bytes(GOOD)
    (root / "forbidden.png").write_bytes(GOOD)
    return root


@pytest.fixture(scope="module")
def expected_masks() -> list[dict]:
    config = Config().with_overrides(
        [
            "prompts.source=grid",
            "prompts.count=12",
            "decode.pred_iou_thresh=0.3",
            "decode.stability_score_thresh=0.5",
        ]
    )
    masks = Labeller.from_weights("demo", config=config).label(GOOD).masks
    assert len(masks) > 1
    return [mask.segmentation.to_coco() for mask in masks]


def rows_in(out: Path) -> Iterator[dict]:
    for path in sorted(out.glob("*.parquet")):
        yield from pq.read_table(path).to_pylist()


def contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # a process of Ray that ends still replaces its files
        return b""


@pytest.fixture
def ray_folder(monkeypatch) -> Iterator[Path]:
    """Where Ray keeps its logs; its sockets lie there too, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def test_one_job_over_all_that_can_be_wrong(inputs, expected_masks, s3: ObjectStore, tmp_path, ray_folder):  # noqa: F811
    out = tmp_path / "out"
    remote_good, remote_denied = s3.put("good.png", GOOD), s3.put("denied.png", GOOD)
    (inputs / "list.txt").write_text(
        f"readable.png\ngone.png\nnosuch://host/a.png\nlogged://{inputs}/readable.png\nlogged://{inputs}/forbidden.png\n"
        f"{remote_good}\n{remote_denied}\n{s3.root}/absent.png\nhttps://me:{SECRET}@host/private.png\n{inputs}/folder\n"
    )
    with FaultProxy(s3.endpoint) as proxy:
        proxy.faults += [[method, "denied.png", "403", 1 << 30] for method in ("GET", "HEAD")]
        options = {**s3.options, "endpoint_url": proxy.endpoint, "secret": STORE_SECRET}
        arguments = [text for name, value in options.items() for text in ("--storage-option", f"s3.{name}={value}")]
        process = start(
            [inputs / "folder", inputs / "tars" / "*.tar", *sorted(inputs.glob("*.parquet")), inputs / "list.txt"],
            out,
            *GRID,
            *arguments,
            faults=tmp_path,
            names="files",
        )
        code, output = finish(process)
    assert code == 0, output

    rows = list(rows_in(out))
    assert len({row["image_uid"] for row in rows}) == len(rows)
    told = {}
    for row in rows:
        uri = row["image_uri"]
        place = uri.removeprefix(f"file://{inputs}/").removeprefix(s3.root + "/").replace(str(inputs), "")
        ordinal = f" ({row['row']})" if row["member"] else ""
        told[place + ordinal] = row["status"]
    assert len(told) == len(rows)
    assert told == {
        **{f"folder/{status}.png": status for status in (*BAD, "too_large")},
        "folder/good.png": "ok",
        "folder/png_by_content.jpg": "ok",
        "folder/drawing.heic": "unsupported",
        # What lies before the damage is labelled; one row stands for all that lies behind it.
        "tars/cut_in_image.tar#a.png (0)": "ok",
        "tars/cut_in_image.tar#b.png (0)": "truncated",
        "tars/cut_in_header.tar#a.png (0)": "ok",
        "tars/cut_in_header.tar#b.png (0)": "ok",
        "tars/cut_in_header.tar": "truncated",
        "tars/cut_between.tar#a.png (0)": "ok",
        "tars/cut_between.tar#b.png (0)": "ok",
        "tars/cut_between.tar": "truncated",
        "tars/damaged_header.tar#a.png (0)": "ok",
        "tars/damaged_header.tar": "corrupt",
        "tars/no.tar": "corrupt",
        "tars/odd.tar#photo.1.png (0)": "ok",
        "tars/odd.tar#photo.2.png (0)": "ok",
        "tars/odd.tar#empty.png (0)": "empty",
        "tars/odd.tar#same.png (0)": "ok",
        "tars/odd.tar#same.png (1)": "truncated",
        "tars/odd.tar#same.png (2)": "ok",
        "tars/same_names.tar#photo.1.png (0)": "ok",
        "tars/same_names.tar#same.png (0)": "ok",
        "cells.parquet#row=0": "ok",
        "cells.parquet#row=1": "null",
        "cells.parquet#row=2": "empty",
        "cells.parquet#row=3": "corrupt",
        "cells.parquet#row=4": "ok",
        "cells.parquet#row=5": "not_image",
        "structs.parquet#row=0": "ok",
        "structs.parquet#row=1": "null",
        "structs.parquet#row=2": "null",
        "structs.parquet#row=3": "missing",
        "cut.parquet": "corrupt",
        "readable.png": "ok",
        "gone.png": "missing",
        "nosuch://host/a.png": "unreadable",
        "logged:///readable.png": "ok",
        "logged:///forbidden.png": "denied",
        "good.png": "ok",
        "denied.png": "denied",
        "absent.png": "missing",
        "list.txt#row=9": "denied",  # credentials are never stored
        "folder": "unreadable",  # a manifest names pictures, not folders
    }
    for row in rows:
        assert (row["error"] is None) == (row["status"] == "ok")
        masks = [mask["segmentation"] for mask in row["masks"]]
        assert masks == (expected_masks if row["status"] == "ok" else []), row["image_uri"]
    failures = pq.read_table(out / "_meta" / "failures.parquet").to_pylist()
    assert {failure["image_uid"]: failure["status"] for failure in failures} == {
        row["image_uid"]: row["status"] for row in rows if row["status"] != "ok"
    }
    written = {path: contents(path) for folder in (out, ray_folder) for path in folder.rglob("*") if path.is_file()}
    assert any(path.suffix == ".log" and data for path, data in written.items())
    for secret in (SECRET, STORE_SECRET):
        assert secret not in output
        assert [path for path, data in written.items() if secret.encode() in data] == []
