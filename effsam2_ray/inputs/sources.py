"""INPUT strings -> files, each with what it is taken for.

An INPUT is any fsspec URI or local path. What it is follows from its name:

=================================  =================================================================================
`a.jpg`, `a.webp`, ...             one image; so is any other file that is named by itself
`a.tar`, `a.tar.gz`, `a.tgz`       a tar shard (WebDataset)
`a.parquet`, `a.pq`                a table of images, or a manifest if its image column holds text
`a.txt`, `.csv`, `.tsv`, `.jsonl`  a manifest of images
a folder or prefix                 every image file below it; shards and manifests in it are not opened
a glob (`*`, `?`, `[...]`, `**`)   files only; if it ends in a suffix above, what that names, otherwise images
`{000..012}`, `{a,b}`              each of them, one after the other
=================================  =================================================================================

A local file or folder that has braces or stars in its very name is taken as it is.
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
            f"{redact(uri)} holds no images, only {found}; to read shards or manifests, name them or give a glob that "
            "ends in their suffix"
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
        yield from _of_kind(walk_folder(uri, storage_options), "image")
    except FileNotFoundError:
        yield Source("lost", FileInfo(canonical_uri(uri), status="missing", error="there is no such file"))
    except PermissionError as error:
        yield Source("lost", FileInfo(canonical_uri(uri), status="denied", error=str(error)))


def _of_kind(files: Iterator[FileInfo], wanted: SourceKind) -> Iterator[Source]:
    for file in files:
        if file.status != "ok":
            yield Source("lost", file)
        else:
            yield Source(wanted if file_kind(file.uri) == wanted else "ignored", file)


def _is_local_name(uri: str) -> bool:
    return scheme_of(uri) == "file" and os.path.exists(canonical_uri(uri).removeprefix("file://"))
