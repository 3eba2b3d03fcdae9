from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from object_store import ObjectStore, s3, s3_endpoint  # noqa: F401  fixtures

from effsam2_ray.inputs import tar
from effsam2_ray.inputs.tar import TarIndex, index_tar
from effsam2_ray.storage import FileInfo, put_bytes, read_range, stat


def tar_of(members: list[tuple[str, bytes] | tarfile.TarInfo], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def index_of(data: bytes, tmp_path: Path, name: str = "a.tar") -> TarIndex:
    path = tmp_path / name
    path.write_bytes(data)
    index = index_tar(stat(str(path)))
    raw = gzip.decompress(data) if name.endswith("gz") and index.images[-1].status == "ok" else data
    for image in index.images:
        if image.status == "ok" and not name.endswith("gz"):
            assert len(raw[image.offset : image.offset + image.size_bytes]) == image.size_bytes
    return index


def rows(index: TarIndex) -> list[tuple[str | None, int | None, str]]:
    return [(image.member, image.row, image.status) for image in index.images]


A, B, C = b"a" * 1000, b"b" * 2000, b"c" * 512


def test_members_are_images_by_name_in_the_order_of_the_tar(tmp_path: Path):
    data = tar_of([("x/2.jpg", A), ("x/2.json", b"{}"), ("x/1.PNG", B), ("1.cls", b"7"), ("0.webp", b"")])
    index = index_of(data, tmp_path)
    assert rows(index) == [("x/2.jpg", 0, "ok"), ("x/1.PNG", 0, "ok"), ("0.webp", 0, "ok")]
    assert index.num_ignored == 2
    first, second, third = index.images
    assert data[first.offset : first.offset + first.size_bytes] == A
    assert data[second.offset : second.offset + second.size_bytes] == B
    assert third.size_bytes == 0
    assert first.image_uri == f"file://{tmp_path}/a.tar#x/2.jpg"


def test_keys_with_dots_stay_apart_and_equal_names_are_counted(tmp_path: Path):
    index = index_of(tar_of([("p.1.jpg", A), ("p.2.jpg", B), ("p.1.jpg", C)]), tmp_path)
    assert rows(index) == [("p.1.jpg", 0, "ok"), ("p.2.jpg", 0, "ok"), ("p.1.jpg", 1, "ok")]
    assert len({image.image_uid for image in index.images}) == 3


def test_the_same_member_in_two_shards_is_two_images(tmp_path: Path):
    data = tar_of([("p.jpg", A)])
    first = index_of(data, tmp_path, "a.tar").images[0]
    second = index_of(data, tmp_path, "b.tar").images[0]
    assert first.image_uid != second.image_uid


def test_odd_members(tmp_path: Path):
    folder = tarfile.TarInfo("folder.jpg")
    folder.type = tarfile.DIRTYPE
    pipe = tarfile.TarInfo("pipe.jpg")
    pipe.type = tarfile.FIFOTYPE
    members = [
        folder,
        pipe,
        ("./._a.jpg", b"AppleDouble"),
        ("a.jpg", A),
        link("hard.jpg", "a.jpg", tarfile.LNKTYPE),
        link("soft.jpg", "a.jpg", tarfile.SYMTYPE),
        link("nowhere.jpg", "b.jpg", tarfile.LNKTYPE),
        ("../../etc/b.jpg", B),
    ]
    index = index_of(tar_of(members), tmp_path)
    assert rows(index) == [
        ("a.jpg", 0, "ok"),
        ("hard.jpg", 0, "ok"),
        ("soft.jpg", 0, "unsupported"),
        ("nowhere.jpg", 0, "unsupported"),
        ("../../etc/b.jpg", 0, "ok"),
    ]
    assert index.num_ignored == 2
    assert (index.images[1].offset, index.images[1].size_bytes) == (index.images[0].offset, 1000)


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names(tmp_path: Path, tar_format: int):
    names = ["d/" * 150 + "x.jpg", "über/写真.jpg", "n" * 180 + ".png"]
    data = tar_of([(name, A) for name in names], tar_format)
    index = index_of(data, tmp_path)
    assert [image.member for image in index.images] == names
    assert all(data[image.offset : image.offset + 1000] == A for image in index.images)


def test_names_that_are_not_utf8_can_be_stored(tmp_path: Path):
    data = tar_of([("caf\udce9.jpg", A)], tarfile.GNU_FORMAT)
    assert rows(index_of(data, tmp_path)) == [("caf\\xe9.jpg", 0, "ok")]


def test_concatenated_archives_are_read_to_the_end(tmp_path: Path):
    data = tar_of([("a.jpg", A)]) + tar_of([("b.jpg", B)])
    index = index_of(data, tmp_path)
    assert rows(index) == [("a.jpg", 0, "ok"), ("b.jpg", 0, "ok")]
    assert data[index.images[1].offset :][:2000] == B
    with_padding = tar_of([("a.jpg", A)]) + b"signature" * 100
    assert rows(index_of(with_padding, tmp_path)) == [("a.jpg", 0, "ok")]


def test_an_empty_archive_has_no_images(tmp_path: Path):
    assert index_of(tar_of([]), tmp_path).images == ()


@pytest.fixture
def three() -> bytes:
    """Members at 0 (1,000 bytes), 1,536 (2,000) and 4,096 (512); the end mark at 5,120."""
    data = tar_of([("a.jpg", A), ("b.jpg", B), ("c.jpg", C)], tarfile.USTAR_FORMAT)
    assert data[1536:1541] == b"b.jpg" and data[4096:4101] == b"c.jpg" and not any(data[5120:])
    return data


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (5120 + 1024, ["ok", "ok", "ok"]),
        (5120 + 512, ["ok", "ok", "ok"]),
        (5120 + 100, ["ok", "ok", "ok"]),
        (5120, ["ok", "ok", "ok", "truncated"]),  # between members
        (4096, ["ok", "ok", "truncated"]),
        (4096 + 100, ["ok", "ok", "truncated"]),  # inside a header
        (1536 + 511, ["ok", "truncated"]),
        (1536 + 512, ["ok", "truncated"]),  # inside an image
        (1536 + 512 + 1999, ["ok", "truncated"]),
        (1536 + 512 + 2000, ["ok", "ok", "truncated"]),  # inside the padding behind an image
        (300, ["truncated"]),
        (512, ["truncated"]),
    ],
)
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "memory"])
def test_a_cut_shard_shows_its_loss(three: bytes, tmp_path: Path, name: str, end: int, found: list[str]):
    data = gzip.compress(three[:end]) if name.endswith("gz") else three[:end]
    index = index_tar(stored(data)) if name == "memory" else index_of(data, tmp_path, name)
    assert [image.status for image in index.images] == found
    last = index.images[-1]
    if last.status == "truncated":
        inside = 1536 + 512 <= end < 1536 + 512 + 2000 or end == 512
        assert last.member == (("a.jpg" if end == 512 else "b.jpg") if inside else "")
        assert "lost" in (last.error or "")


def test_a_cut_inside_a_member_that_is_no_image_is_seen(tmp_path: Path):
    data = tar_of([("a.jpg", A), ("a.json", B)], tarfile.USTAR_FORMAT)
    assert rows(index_of(data[:2500], tmp_path)) == [("a.jpg", 0, "ok"), ("", None, "truncated")]


def test_a_cut_gzip_stream_is_seen(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8).tobytes()
    data = gzip.compress(tar_of([("a.jpg", noise), ("b.jpg", noise), ("c.jpg", noise)]))
    for end in (60_000, 100_100, len(data) - 4):
        index = index_of(data[:end], tmp_path, "a.tgz")
        assert index.images[-1].status == "truncated", end
    damaged = bytearray(data)
    damaged[70_000] ^= 0xFF
    assert index_of(bytes(damaged), tmp_path, "a.tgz").images[-1].status in ("truncated", "corrupt")


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"", "empty"), (b"<html>" * 500, "corrupt"), (bytes(1024), "ok"), (b"x" * 100, "truncated")],
)
def test_what_is_no_tar_is_one_row(tmp_path: Path, data: bytes, status: str):
    for index in (index_of(data, tmp_path), index_tar(stored(data))):
        assert [image.status for image in index.images] == ([] if status == "ok" else [status])


def test_damage_in_the_middle_is_one_row_for_the_rest(three: bytes, tmp_path: Path):
    data = bytearray(three)
    data[4096 + 10] ^= 0xFF  # the header's checksum no longer fits
    assert rows(index_of(bytes(data), tmp_path)) == [("a.jpg", 0, "ok"), ("b.jpg", 0, "ok"), ("", None, "corrupt")]


def test_random_damage_neither_hangs_nor_raises(three: bytes, tmp_path: Path):
    rng = np.random.default_rng(3)
    for _ in range(200):
        data = np.frombuffer(three, np.uint8).copy()
        places = rng.choice([0, 124, 130, 135, 148, 156, 1536, 1660, 1692, 4096, 4220, 4252], 3) + rng.integers(
            0, 12, 3
        )
        data[places] = rng.integers(0, 256, 3)
        local, remote = index_of(data.tobytes(), tmp_path), index_tar(stored(data.tobytes()))
        assert rows(local) == rows(remote)
        for image in local.images:
            assert image.status in ("ok", "truncated", "corrupt", "unsupported", "empty")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the ranges that are fetched of tars."""
    sizes: list[int] = []

    def counting(uri: str, start: int, end: int, options) -> bytes:
        sizes.append(end - start)
        return read_range(uri, start, end, options)

    monkeypatch.setattr(tar, "read_range", counting)
    return sizes


def stored(data: bytes) -> FileInfo:
    put_bytes("memory://tars/a.tar", data)
    return stat("memory://tars/a.tar")


@pytest.mark.parametrize(
    ("image_bytes", "most_requests", "most_bytes"),
    [  # of one sample: a picture and its JSON
        (30_000, 0.5, 32_000),  # read through, two samples or more at once
        (40_000, 1.1, 4_300),
        (100_000, 1.1, 4_300),
        (300_000, 1.1, 4_300),
    ],
)
def test_what_listing_costs(fetched: list[int], image_bytes: int, most_requests: float, most_bytes: int):
    members = [
        (f"{n:04d}.{kind}", bytes(size)) for n in range(80) for kind, size in (("jpg", image_bytes), ("json", 200))
    ]
    index = index_tar(stored(tar_of(members, tarfile.USTAR_FORMAT)))
    assert [image.member for image in index.images] == [f"{n:04d}.jpg" for n in range(80)]
    assert len(fetched) <= most_requests * 80
    assert sum(fetched) <= most_bytes * 80


def test_long_names_and_large_members_cost_one_request_each(fetched: list[int]):
    names = ["d/" * 150 + f"{n}.jpg" for n in range(20)]
    index = index_tar(stored(tar_of([(name, bytes(200_000)) for name in names])))
    assert [image.member for image in index.images] == names
    assert len(fetched) <= 22


def test_small_members_between_large_ones_change_nothing(tmp_path: Path):
    sizes = np.random.default_rng(5).choice([0, 1, 511, 512, 3000, 9000, 40_000, 70_000, 200_000], 300)
    data = tar_of([(f"{n}.jpg" if n % 3 else f"{n}.txt", bytes(int(size))) for n, size in enumerate(sizes)])
    local, remote = index_of(data, tmp_path), index_tar(stored(data))
    assert [(image.member, image.offset, image.size_bytes, image.status) for image in remote.images] == [
        (image.member, image.offset, image.size_bytes, image.status) for image in local.images
    ]
    assert remote.num_ignored == 100


def test_shards_of_s3_are_listed_and_read(s3: ObjectStore):  # noqa: F811
    uri = f"{s3.root}/shard.tar"
    put_bytes(uri, tar_of([(f"{n}.jpg", bytes([n]) * 100_000) for n in range(12)]), s3.options)
    index = index_tar(stat(uri, s3.options), s3.options)
    assert [read_range(uri, image.offset, image.offset + 1, s3.options)[0] for image in index.images] == list(range(12))


def test_a_missing_shard_is_an_error_of_the_storage(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        index_tar(FileInfo(f"file://{tmp_path}/none.tar", 1024))
