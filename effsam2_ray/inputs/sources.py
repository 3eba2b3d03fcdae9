"""INPUT strings -> files, each with what it is taken for.

An INPUT is any fsspec URI or local path. What it is follows from its name:

=================================  =================================================================================
`a.jpg`, `a.webp`, ...             one image; so is any other file that is named by itself
`a.tar`, `a.tar.gz`, `a.tgz`       a tar shard (WebDataset)
`a.parquet`, `a.pq`                a table of images, or a manifest if its image column holds text
`a.txt`, `.csv`, `.tsv`, `.jsonl`  a manifest of images
a folder or prefix                 every image file below it; shards and manifests beside them are not opened. One that
                                   holds no image: its tar or Parquet files, as if each were named
a glob (`*`, `?`, `[...]`, `**`)   files only; if it ends in a suffix above, what that names, otherwise images
`{000..012}`, `{a,b}`              each of them, one after the other
=================================  =================================================================================

A local file or folder that has braces or stars in its very name is taken as it is. Parts of an earlier run (files of a
folder with `_meta/job.json`, and below it) are never taken for shards of a folder.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from effsam2_ray.errors import InputError
from effsam2_ray.inputs.folder import glob_files, has_magic, walk_folder
from effsam2_ray.inputs.kinds import FileKind, file_kind
from effsam2_ray.storage import FileInfo, StorageOptions, stat
from effsam2_ray.uris import canonical_uri, redact, redact_text, scheme_of

SourceKind = Literal["image", "tar", "parquet", "manifest", "lost", "ignored"]
_RUN_MARK = "/_meta/job.json"


@dataclass(frozen=True, slots=True)
class Source:
    """A file of an input; `lost` where it is known to be out of reach, `ignored` where its name is not of the kind."""

    kind: SourceKind
    file: FileInfo


def sources(uri: str, storage_options: StorageOptions = None) -> Iterator[Source]:
    """Yield the files of one INPUT, in order.

    Raises:
        InputError: it matches nothing, or nothing but files of other kinds.
        OSError: the storage fails.
    """
    counts: Counter[str] = Counter()
    ignored_kinds: Counter[FileKind] = Counter()
    lost = ""
    for part in [uri] if _is_local_name(uri) else expand_braces(uri):
        for source in _part_sources(part, storage_options):
            counts[source.kind] += 1
            if source.kind == "ignored":
                ignored_kinds[file_kind(source.file.uri)] += 1
            elif source.kind == "lost":
                lost = f": {source.file.status}, {redact_text(source.file.error or '')}"
            yield source
    if not counts["image"] + counts["tar"] + counts["parquet"] + counts["manifest"]:
        found = ", ".join(f"{count} {kind} files" for kind, count in ignored_kinds.items())
        if not found:
            raise InputError(f"{redact(uri)} matches nothing{lost}")
        raise InputError(
            f"{redact(uri)} holds no images, only {found}; to read these, name them or give a glob that ends in "
            "their suffix"
        )


def expand_braces(text: str) -> list[str]:
    """Return what bash makes of `{a,b}` and `{000..012}`, in order; other braces stay as they are."""
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    head, inside, tails = text[: match.start()], match[1], expand_braces(text[match.end() :])
    numbers = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", inside)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        padded = any(re.match(r"-?0\d", number) for number in numbers.groups())
        width = max(map(len, numbers.groups())) if padded else 0
        choices = [f"{n:0{width}d}" for n in range(first, last + 1) or range(first, last - 1, -1)]
    elif "," in inside:
        choices = inside.split(",")
    else:
        choices = [match[0]]
    return [head + choice + tail for choice in choices for tail in tails]


def _part_sources(uri: str, storage_options: StorageOptions) -> Iterator[Source]:
    kind = file_kind(uri)
    if has_magic(uri) and not _is_local_name(uri):
        yield from _of_kind(glob_files(uri, storage_options), "image" if kind == "other" else kind)
        return
    named: SourceKind = "image" if kind == "other" else kind
    if named == "image" and scheme_of(uri) in ("http", "https"):
        # Its size would cost a request of its own, which many servers refuse.
        yield Source("image", FileInfo(canonical_uri(uri)))
        return
    try:
        yield Source(named, stat(uri, storage_options))
    except IsADirectoryError:
        if named != "image":
            raise InputError(f"{redact(uri)} is a folder; give a glob of the files in it") from None
        yield from _folder_sources(uri, storage_options)
    except FileNotFoundError:
        yield Source("lost", FileInfo(canonical_uri(uri), status="missing", error="there is no such file"))
    except PermissionError as error:
        yield Source("lost", FileInfo(canonical_uri(uri), status="denied", error=str(error)))


def _folder_sources(uri: str, storage_options: StorageOptions) -> Iterator[Source]:
    """Yield the images below a folder, or its shards where the last name is read and there was no image."""
    shards: list[Source] = []
    runs: list[str] = []
    has_images = False
    for source in _of_kind(walk_folder(uri, storage_options), "image"):
        kind = file_kind(source.file.uri)
        if source.file.uri.endswith(_RUN_MARK):
            runs.append(source.file.uri.removesuffix(_RUN_MARK) + "/")
        if source.kind == "image" and not has_images:
            has_images = True
            yield from (Source("ignored", shard.file) for shard in shards)
        if source.kind == "ignored" and not has_images and (kind == "tar" or kind == "parquet"):
            shards.append(Source(kind, source.file))
        else:
            yield source
    if has_images or not shards:
        return
    inputs = [shard for shard in shards if not shard.file.uri.startswith(tuple(runs))]
    if not inputs:
        raise InputError(f"{redact(uri)} holds no images, only the output of a run; to read its parts, give a glob")
    if len({shard.kind for shard in inputs}) > 1:
        raise InputError(
            f"{redact(uri)} holds no images, but tar files and Parquet files, which may describe one another; give a "
            "glob of those with the images"
        )
    yield from inputs
    yield from (Source("ignored", shard.file) for shard in shards if shard.file.uri.startswith(tuple(runs)))


def _of_kind(files: Iterator[FileInfo], wanted: SourceKind) -> Iterator[Source]:
    for file in files:
        if file.status != "ok":
            yield Source("lost", file)
        else:
            yield Source(wanted if file_kind(file.uri) == wanted else "ignored", file)


def _is_local_name(uri: str) -> bool:
    return scheme_of(uri) == "file" and os.path.exists(canonical_uri(uri).removeprefix("file://"))
