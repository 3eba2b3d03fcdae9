"""What a file is taken for, by its name alone."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

# HEIF and JPEG XL are not read, but are listed, so that each gives a row that says so.
IMAGE_SUFFIXES = (
    ".jpg .jpeg .jpe .jfif .png .apng .webp .avif .gif .bmp .dib .tif .tiff .jp2 .j2k .jpx .j2c .jpc .ppm .pgm .pbm "
    ".pnm .mpo .ico .heic .heif .jxl"
).split()
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
PARQUET_SUFFIXES = (".parquet", ".pq")
MANIFEST_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson")

FileKind = Literal["image", "tar", "parquet", "manifest", "other"]
_KINDS: tuple[tuple[FileKind, tuple[str, ...]], ...] = (
    ("image", tuple(IMAGE_SUFFIXES)),
    ("tar", TAR_SUFFIXES),
    ("parquet", PARQUET_SUFFIXES),
    ("manifest", MANIFEST_SUFFIXES),
)


def file_kind(uri: str) -> FileKind:
    """Return what a file's name says that it is; the query of a URL is not part of its name."""
    if uri.startswith(("http://", "https://")):
        uri = urlsplit(uri).path
    name = uri.lower()
    return next((kind for kind, suffixes in _KINDS if name.endswith(suffixes)), "other")


def is_image_name(name: str) -> bool:
    """Return whether a file or tar member is an image by name; hidden names (macOS' `._photo.jpg`) are not."""
    return file_kind(name) == "image" and not name.rpartition("/")[2].startswith(".")
