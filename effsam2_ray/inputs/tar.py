"""Tar shards: which images one holds and where, and what of it is lost.

Every member with the name of an image is an image of its own, under its whole name: `photo.1.jpg` and `photo.2.jpg` are
two. Other members are ignored. An uncompressed shard is indexed by its headers and later read only where its images
lie. From a store, a few kilobytes are fetched behind each large member, which is one request for each; members below
some 30 KB are read through. So is a `.tar.gz`. Nothing in a shard is ever unpacked to disk.

A shard that ends early never just has fewer rows:

- cut inside an image: that image's row says `truncated`;
- cut inside a header or another member, or between members (no end-of-archive mark): one row with an empty member name
  stands for the unknown number of images behind the cut.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

from effsam2_ray.inputs.kinds import is_image_name
from effsam2_ray.inputs.work_list import ImageRef, Shard, image_uid, shard_image_uri
from effsam2_ray.storage import FileInfo, StorageOptions, is_transient, open_seekable, read_range
from effsam2_ray.uris import scheme_of

BLOCK = 512
# What is fetched of a store at once: room for the end of a member, a few small ones behind it and the next header.
_SMALL_WINDOW = 1 << 12
# As far as the window grows where members are small: then one request serves two of them or more.
_LARGE_WINDOW = 1 << 16
_GZIP_WINDOW = 4 << 20
# What tarfile, gzip and zlib raise on bytes that are not what they should be.
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError, MemoryError)


@dataclass(frozen=True)
class TarIndex:
    """The images of a shard in the order of its members, and the number of members that are no images by name."""

    shard: Shard
    images: tuple[ImageRef, ...]
    num_ignored: int


class _CutError(Exception):
    """The shard cannot be followed any further. Args: row status, message."""


def is_compressed(uri: str) -> bool:
    """Return whether a shard must be read from its start."""
    return uri.lower().endswith((".gz", ".tgz"))


@contextmanager
def open_tar(shard: FileInfo, storage_options: StorageOptions = None) -> Iterator[BinaryIO]:
    """Open a shard as the stream of its uncompressed bytes."""
    compressed = is_compressed(shard.uri)
    if not compressed and scheme_of(shard.uri) != "file":
        yield cast(BinaryIO, _HeaderStream(shard, storage_options))
        return
    with open_seekable(shard.uri, shard.size_bytes, storage_options, _GZIP_WINDOW) as raw:
        if compressed:
            with gzip.GzipFile(fileobj=raw) as stream:
                yield cast(BinaryIO, stream)
        else:
            yield raw


class _HeaderStream(io.RawIOBase):
    """A tar of a store, for reading headers: what is fetched at once is little behind a skip and more where none is."""

    def __init__(self, shard: FileInfo, storage_options: StorageOptions):
        self._shard, self._options = shard, storage_options
        self._position = self._start = 0
        self._window = _SMALL_WINDOW // 2  # the first fetch doubles it
        self._data = b""  # the bytes from `_start` on

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        assert whence == os.SEEK_SET
        self._position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, fewer only at the end of the shard."""
        end = self._position + size
        if size < 0 or end > self._shard.size_bytes:
            end = max(self._position, self._shard.size_bytes)
        if not self._start <= self._position <= end <= self._start + len(self._data):
            self._fetch(end)
        data = self._data[self._position - self._start : end - self._start]
        self._position += len(data)
        return data

    def _fetch(self, end: int) -> None:
        has_small_members = self._start <= self._position < self._start + len(self._data) + _LARGE_WINDOW // 2
        self._window = min(2 * self._window, _LARGE_WINDOW) if has_small_members else _SMALL_WINDOW
        end = min(max(end, self._position + self._window), self._shard.size_bytes)
        self._data = read_range(self._shard.uri, self._position, end, self._options)
        self._start = self._position


def index_tar(shard: FileInfo, storage_options: StorageOptions = None) -> TarIndex:
    """Find the images of a tar shard.

    Args:
        shard: the file as listed; its size is needed unless it is local.

    Raises:
        OSError: the storage fails. Damage inside the shard is no error: it gives images with a status.
    """
    index = TarIndex(Shard(shard.uri, shard.size_bytes, shard.etag), (), 0)
    images: list[ImageRef] = []
    places: dict[str, tuple[int, int]] = {}
    ordinals: Counter[str] = Counter()
    num_ignored = 0
    with open_tar(shard, storage_options) as stream:
        try:
            for member in _members(stream):
                name = _printable(member.name)
                if member.isdir():
                    continue
                if not is_image_name(name) or not (member.isreg() or member.islnk() or member.issym()):
                    num_ignored += 1
                    continue
                image = _image(shard.uri, name, ordinals[name], member, places)
                ordinals[name] += 1
                if image.status == "ok" and not _holds(stream, image.offset + image.size_bytes):
                    text = "the shard ends inside this image; whatever came after it is lost"
                    images.append(replace(image, status="truncated", error=text))
                    break
                places[member.name] = (image.offset, image.size_bytes)
                images.append(image)
        except _CutError as cut:
            images.append(lost_ref(shard.uri, *cut.args))
    return replace(index, images=tuple(images), num_ignored=num_ignored)


def lost_ref(shard_uri: str, status: str, error: str) -> ImageRef:
    """Return the row that stands for what could not be listed of a shard."""
    return ImageRef(
        image_uid=image_uid(shard_uri, "", None),
        image_uri=shard_uri,
        shard_uri=shard_uri,
        member="",
        status=status,
        error=error,
    )


def _image(uri: str, name: str, ordinal: int, member: tarfile.TarInfo, places: dict[str, tuple[int, int]]) -> ImageRef:
    image = ImageRef(
        image_uid=image_uid(uri, name, ordinal),
        image_uri=shard_image_uri(uri, name, ordinal),
        shard_uri=uri,
        member=name,
        row=ordinal,
        size_bytes=member.size,
        offset=member.offset_data,
    )
    if member.islnk() and member.linkname in places:  # a hard link stands for an earlier member's bytes
        offset, size = places[member.linkname]
        return replace(image, offset=offset, size_bytes=size)
    if member.islnk() or member.issym():
        text = f"a link to {_printable(member.linkname)!r}, which the shard does not hold before it"
        return replace(image, status="unsupported", error=text)
    if member.issparse():
        return replace(image, status="unsupported", error="a sparse member")
    return image


def _members(stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of all archives that follow each other in a stream (`cat a.tar b.tar`).

    Raises:
        _CutError: the stream ends or breaks before an end-of-archive mark.
    """
    start: int | None = 0
    while start is not None:
        stream.seek(start)
        try:
            archive = tarfile.open(fileobj=stream, mode="r:")
            position = -1
            while (member := archive.next()) is not None:
                if archive.offset <= position or member.size < 0:  # a forged size would make tarfile go in circles
                    raise tarfile.ReadError("a header with an impossible size")
                position = archive.offset
                yield member
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
            if start and position < 0:
                return  # what follows a complete archive and is none itself is padding or a signature
            start = _next_archive(stream, archive.offset)
        except _DAMAGE as error:
            if isinstance(error, OSError) and is_transient(error):
                raise
            raise _cut(stream, error) from error


def _next_archive(stream: BinaryIO, offset: int) -> int | None:
    """Return where another archive begins behind the end-of-archive mark at `offset`, None where there is none.

    Raises:
        _CutError: there is no such mark.
    """
    stream.seek(offset)
    block = stream.read(BLOCK)
    if not block:
        raise _CutError("truncated", "the shard has no end-of-archive mark; images at its end may be lost")
    if any(block):
        if len(block) < BLOCK:
            raise _CutError("truncated", "the shard ends inside a header; images at its end are lost")
        raise _CutError("corrupt", f"no tar header at byte {offset}; all images behind it are lost")
    while any(block) is False:
        offset += len(block)
        block = stream.read(BLOCK)
        if not block:
            return None
    return offset


def _cut(stream: BinaryIO, error: BaseException) -> _CutError:
    text = str(error)
    if isinstance(error, EOFError) or "end of data" in text or "truncated" in text or "unexpected end" in text:
        return _CutError("truncated", f"the shard ends early, images at its end are lost: {text}")
    if "empty" in text:
        return _CutError("empty", "the shard has no bytes")
    return _CutError("corrupt", f"the shard cannot be read on as a tar, images are lost: {text}")


def _holds(stream: BinaryIO, end: int) -> bool:
    """Return whether a stream has at least `end` bytes."""
    if end == 0:
        return True
    try:
        stream.seek(end - 1)
        return bool(stream.read(1))
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False


def _printable(name: str) -> str:
    """Return a member's name as text that every file format can hold; bytes that are no UTF-8 become `\\\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
