"""Images -> the file names that they have in an export: short, unique, and the same each time."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

from effsam2_ray.inputs.kinds import TAR_SUFFIXES, file_kind
from effsam2_ray.inputs.work_list import ImageRef
from effsam2_ray.uris import canonical_uri

_MAGIC = re.compile(r"[*?\[{]")
_MOST_BYTES = 180
"""File systems take names of 255 bytes; temporary names and suffixes are added to ours."""


def input_root(uris: Sequence[str]) -> str:
    """Return the folder that all the inputs of a run lie in, with a slash at its end; "" where there is none."""
    roots = [_folder_of(canonical_uri(uri)) for uri in uris]
    if not roots:
        return ""
    shared = os.path.commonprefix([root.split("/") for root in roots])
    # `scheme://place` alone is three pieces; below it nothing is shared that would make names shorter.
    return "/".join(shared) + "/" if len(shared) >= 3 else ""


class ImageNamer:
    """Names images in the order of the work list.

    A lone image is named by its path below the inputs' folder, a member of a tar by the tar's and its own, a row of a
    Parquet file by the file's and its number. What has no such folder is named by its whole path. An image that would
    have the name of an earlier one, but for the suffix, has its own suffix or its image_uid in its name.

    Args:
        root: `input_root` of the run's inputs.

    It remembers a hash of each name: about 100 MB for a million images.
    """

    def __init__(self, root: str):
        self._root = root
        self._seen: set[int] = set()

    def name(self, image: ImageRef) -> tuple[str, str]:
        """Return (name, suffix): `("cats/0001", ".jpg")`; the suffix is "" for a row of a Parquet file."""
        shard = image.shard_uri
        if shard is None:
            path = self._below_root(image.image_uri)
        elif image.member:
            path = f"{_without(self._below_root(shard), TAR_SUFFIXES)}/{image.member}"
        else:
            path = f"{os.path.splitext(self._below_root(shard))[0]}/{image.row or 0:08d}"
        path = _clean(path, image.image_uid)
        stem, suffix = os.path.splitext(path) if file_kind(path) == "image" else (path, "")
        if image.member and image.row:  # an ordinal among equal names
            stem = f"{stem}-{image.row}"
        for choice in (stem, f"{stem}-{suffix[1:]}", f"{stem}-{image.image_uid & (2**64 - 1):016x}"):
            digest = int.from_bytes(hashlib.blake2b(choice.encode("utf-8", "surrogatepass"), digest_size=8).digest())
            if digest not in self._seen:
                break
        self._seen.add(digest)
        return choice, suffix

    def _below_root(self, uri: str) -> str:
        if self._root and uri.startswith(self._root):
            return uri[len(self._root) :]
        return uri.partition("://")[2] or uri


def run_inputs(job: dict[str, Any] | None, listed: Sequence[str]) -> list[str]:
    """Return a run's inputs as whole URIs.

    Args:
        job: its `job.json`; one of a run made with `--work-list` names no inputs.
        listed: the inputs that its work list names.
    """
    return list((job or {}).get("fingerprint", {}).get("inputs.uris") or listed)


def _folder_of(uri: str) -> str:
    match = _MAGIC.search(uri)
    if match:
        return uri[: match.start()].rpartition("/")[0]
    return uri.rpartition("/")[0] if file_kind(uri) != "other" else uri.rstrip("/")


def _without(path: str, suffixes: Sequence[str]) -> str:
    ending = next((suffix for suffix in suffixes if path.lower().endswith(suffix)), "")
    return path[: len(path) - len(ending)]


def _clean(path: str, image_uid: int) -> str:
    """Return a relative path that stays below the folder it is put in, of names that file systems take."""
    parts = [part.replace("\0", "_") for part in path.split("/") if part not in ("", ".", "..")]
    return "/".join(_shortened(part, image_uid) for part in parts) or f"{image_uid & (2**64 - 1):016x}"


def _shortened(part: str, image_uid: int) -> str:
    if len(part.encode("utf-8", "surrogatepass")) <= _MOST_BYTES:
        return part
    stem, suffix = os.path.splitext(part)
    kept = stem.encode("utf-8", "surrogatepass")[: _MOST_BYTES - 40].decode("utf-8", "ignore")
    return f"{kept}-{image_uid & (2**64 - 1):016x}{suffix[:12]}"
