"""INPUT strings -> the frozen work list.

An INPUT is any fsspec URI or local path. What it is follows from its name:

=================================  ==================================================================================
`a.jpg`, `a.webp`, ...             one image; so is any other file that is named by itself
`a.tar`, `a.tar.gz`, `a.tgz`       a tar shard (WebDataset)
`a.parquet`, `a.pq`                a table of images, or a manifest if its image column holds text
`a.txt`, `.csv`, `.tsv`, `.jsonl`  a manifest of images
a folder or prefix                 every image file below it; shards and manifests in it are not opened
a glob (`*`, `?`, `[...]`, `**`)   files only; a pattern that ends in a suffix above takes what it names, any other images
`{000..012}`, `{a,b}`              each of them, one after the other
=================================  ==================================================================================

Order is that of the inputs, and of names within each. An image or shard that is listed twice counts once. A shard that cannot
be read is one row with a status; an input that matches nothing is an error, and so is a storage that keeps failing,
since a list with a hole must not be frozen.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from effsam2_ray.errors import InputError
from effsam2_ray.inputs.columns import KeptTypes, merge_types
from effsam2_ray.inputs.cutting import Run, UnitCutter
from effsam2_ray.inputs.folder import glob_files, has_magic, walk_folder
from effsam2_ray.inputs.kinds import FileKind, file_kind, is_image_name
from effsam2_ray.inputs.manifest import ManifestEntry, read_manifest, read_parquet_manifest
from effsam2_ray.inputs.parquet import ParquetTable, describe_parquet
from effsam2_ray.inputs.tar import TarIndex, index_tar, lost_ref
from effsam2_ray.inputs.work_list import ImageRef, Shard, WorkList, WorkListWriter, image_uid, shard_image_uri
from effsam2_ray.storage import FileInfo, StorageOptions, failure_status, is_folder, is_transient, stat
from effsam2_ray.uris import canonical_uri, has_secret, redact, redact_text, scheme_of

INDEXERS = 16
"""Shards indexed side by side."""
SAMPLED_SIZES = 32
"""Images of a remote manifest whose size is looked up, to guess that of the others."""
_RUN = 4096

ProgressCallback = Callable[[int, int], None]
"""Called with (images, shards) listed so far."""


def build_work_list(
    inputs: Sequence[str],
    *,
    id_column: str | None = None,
    image_column: str | None = None,
    keep_columns: Sequence[str] = (),
    limit: int | None = None,
    num_segmenters: int = 1,
    storage_options: StorageOptions = None,
    progress: ProgressCallback | None = None,
) -> WorkList:
    """List the images of all inputs and cut them into units.

    Args:
        inputs: see the module's page.
        id_column: column of Parquet files and manifests with the user's own ids.
        image_column: column with the images or URIs; found by type and name where None.
        keep_columns: columns that go along into the output.
        limit: list only the first so many images.
        num_segmenters: the most segmenters that will work on the list; decides how small the units of a small job are.
        storage_options: passed to fsspec.
        progress: called now and then.

    Raises:
        InputError: an input matches nothing or holds no image, a column is missing, or the storage keeps failing.
    """
    if not inputs:
        raise InputError("no inputs")
    for uri in inputs:
        if has_secret(uri):
            raise InputError(
                f"{redact(uri)} was given with credentials in it; give them in the environment or with --storage-option"
            )
    columns = _Columns(image_column, id_column, tuple(keep_columns), storage_options)
    listing = _Listing(columns, limit, num_segmenters, progress)
    try:
        for uri in inputs:
            listing.add_input(uri)
    except OSError as error:
        raise InputError(f"the inputs cannot be listed: {redact_text(str(error))}") from error
    return listing.finish(inputs)


def expand_braces(text: str) -> list[str]:
    """Return what bash makes of `{a,b}` and `{000..012}`, in order; other braces stay as they are."""
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    inside = match.group(1)
    numbers = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", inside)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        padded = any(len(number.lstrip("-")) > 1 and number.lstrip("-")[0] == "0" for number in numbers.groups())
        width = max(len(numbers[1]), len(numbers[2])) if padded else 0
        choices = [f"{n:0{width}d}" for n in range(first, last + 1) or range(first, last - 1, -1)]
    elif "," in inside:
        choices = inside.split(",")
    else:  # no choice: keep these braces and look behind them
        head = text[: match.end()]
        return [head + tail for tail in expand_braces(text[match.end() :])]
    return [
        text[: match.start()] + choice + tail for choice in choices for tail in expand_braces(text[match.end() :])
    ]


@dataclass(frozen=True)
class _Columns:
    image_column: str | None
    id_column: str | None
    keep_columns: tuple[str, ...]
    storage_options: StorageOptions


class _Listing:
    """What has been listed so far."""

    def __init__(
        self, columns: _Columns, limit: int | None, num_segmenters: int, progress: ProgressCallback | None
    ) -> None:
        self._columns = columns
        self._limit = limit
        self._progress = progress
        self._writer = WorkListWriter()
        self._cutter = UnitCutter(self._writer, num_segmenters)
        self._seen: set[int] = set()
        self._kept_types: KeptTypes = ()
        self._num_shards = self._num_duplicates = self._num_ignored = self._num_lost = 0
        self._has_columns = False
        self._others: dict[FileKind, int] = {}

    def add_input(self, uri: str) -> None:
        """List one INPUT."""
        before, self._others = self._cutter.num_images + self._num_duplicates, {}
        missing: list[FileNotFoundError] = []
        found = False
        for part in [uri] if _exists_here(uri) else expand_braces(uri):
            try:
                found |= self._add_part(part)
            except FileNotFoundError as error:
                missing.append(error)
            if self._is_full():
                return
        if not found:
            raise InputError(f"{redact(uri)} matches nothing")
        for error in missing:
            self._add_images([lost_ref(canonical_uri(str(error.filename)), "missing", "named, but not there")])
        if self._cutter.num_images + self._num_duplicates == before:
            others = ", ".join(f"{count} {kind} files" for kind, count in self._others.items())
            hint = "; to read shards or manifests, name them or use a glob with their suffix" if others else ""
            raise InputError(f"{redact(uri)} holds no images{f', but {others}' if others else ''}{hint}")

    def finish(self, inputs: Sequence[str]) -> WorkList:
        """Return the list."""
        wanted = self._columns.id_column or self._columns.keep_columns
        if wanted and not self._has_columns:
            raise InputError("--id-column and --keep-columns apply to Parquet files and manifests; no input is one")
        self._cutter.finish()
        return self._writer.finish(
            {
                "num_images": self._cutter.num_images,
                "num_shards": self._num_shards,
                "num_units": self._cutter.num_units,
                "size_bytes": self._cutter.size_bytes,
                "num_duplicates": self._num_duplicates,
                "num_ignored": self._num_ignored,
                "num_lost": self._num_lost,
                "kept_types": self._kept_types,
                "inputs": [redact(uri) for uri in inputs],
            }
        )

    def _add_part(self, uri: str) -> bool:
        """List an input without braces; return whether anything was there.

        Raises:
            FileNotFoundError: it names one file, which is not there; its `filename` is `uri`.
        """
        options = self._columns.storage_options
        if has_magic(uri) and not _exists_here(uri):
            wanted = file_kind(uri)
            return self._add_files(glob_files(uri, options), "image" if wanted == "other" else wanted)
        kind = file_kind(uri)
        if kind in ("image", "other") and is_folder(uri, options):
            return self._add_files(walk_folder(uri, options), "image")
        if scheme_of(uri) in ("http", "https"):
            file = FileInfo(canonical_uri(uri)) if kind in ("image", "other") else _stat_http(uri, options)
        else:
            try:
                file = stat(uri, options)
            except FileNotFoundError as error:
                raise FileNotFoundError(error.errno, "not there", uri) from error
            except IsADirectoryError:
                raise InputError(f"{redact(uri)} is a folder; use a glob such as {redact(uri)}/*{_suffix(uri)}") from None
            except PermissionError as error:
                file = FileInfo(canonical_uri(uri), status="denied", error=str(error))
        return self._add_files(iter([file]), "image" if kind == "other" else kind, named=True)

    def _add_files(self, files: Iterator[FileInfo], wanted: FileKind, *, named: bool = False) -> bool:
        """List the files of a kind among `files`; return whether there was any file at all."""
        found = False

        def chosen() -> Iterator[FileInfo]:
            nonlocal found
            for file in files:
                found = True
                kind = file_kind(file.uri)
                if named or kind == wanted or file.status != "ok":
                    yield file
                else:
                    self._num_ignored += 1
                    if kind != "other":
                        self._others[kind] = self._others.get(kind, 0) + 1

        if wanted == "image":
            # The files of one folder or glob differ; those of several inputs may not.
            for batch in _batches(map(_file_ref, chosen())):
                self._add_images(batch)
                if self._is_full():
                    break
        elif wanted == "manifest":
            for file in chosen():
                self._add_manifest(file)
        else:
            self._add_shards(chosen(), wanted)
        return found

    def _add_shards(self, files: Iterator[FileInfo], kind: FileKind) -> None:
        def new_files() -> Iterator[FileInfo]:
            for file in files:
                if self._is_new(image_uid(file.uri, "", None)):
                    yield file

        index = self._index_tar if kind == "tar" else self._index_parquet
        for result in _ahead(index, new_files()):
            if isinstance(result, ImageRef):
                self._add_images([result])
            elif isinstance(result, TarIndex):
                self._num_shards += 1
                self._num_ignored += result.num_ignored
                self._add_tar(result)
            elif result.is_manifest:
                self._has_columns = True
                self._kept_types = merge_types(self._kept_types, result.kept_types)
                self._add_entries(result.file.uri, read_parquet_manifest(result, self._columns.storage_options))
            else:
                self._num_shards += 1
                self._has_columns = True
                self._kept_types = merge_types(self._kept_types, result.kept_types)
                num_rows = min(result.num_rows, self._room())
                if num_rows:
                    self._add(Run("parquet", shard=result.shard, table=result, num_rows=num_rows))
            if self._is_full():
                return

    def _add_tar(self, index: TarIndex) -> None:
        images = index.images[: self._room()]
        self._num_lost += sum(image.status != "ok" for image in images)
        if images:
            self._add(Run("tar", images, shard=index.shard))

    def _index_tar(self, file: FileInfo) -> TarIndex | ImageRef:
        return _or_lost(file, lambda: index_tar(file, self._columns.storage_options))

    def _index_parquet(self, file: FileInfo) -> ParquetTable | ImageRef:
        columns = self._columns
        return _or_lost(
            file,
            lambda: describe_parquet(
                file,
                image_column=columns.image_column,
                id_column=columns.id_column,
                keep_columns=columns.keep_columns,
                storage_options=columns.storage_options,
            ),
        )

    def _add_manifest(self, file: FileInfo) -> None:
        if file.status != "ok":
            raise InputError(f"{redact(file.uri)}: {file.status}: {file.error}")
        columns = self._columns
        if not file.uri.lower().endswith(".txt"):
            self._has_columns = True
            self._kept_types = merge_types(self._kept_types, tuple((name, "string") for name in columns.keep_columns))
        entries = read_manifest(
            file,
            image_column=columns.image_column,
            id_column=columns.id_column,
            keep_columns=columns.keep_columns,
            storage_options=columns.storage_options,
        )
        self._add_entries(file.uri, entries)

    def _add_entries(self, manifest: str, entries: Iterator[ManifestEntry]) -> None:
        refs = (_entry_ref(manifest, entry) for entry in entries)
        first = list(itertools.islice(refs, SAMPLED_SIZES))
        self._cutter.assumed_bytes = _mean_size(first, self._columns.storage_options) or self._cutter.assumed_bytes
        for batch in _batches(itertools.chain(first, refs)):
            self._add_images(batch)
            if self._is_full():
                return

    def _add_images(self, images: Iterable[ImageRef]) -> None:
        new = [image for image in images if self._is_new(image.image_uid)][: self._room()]
        self._num_lost += sum(image.status != "ok" for image in new)
        if new:
            self._add(Run("files", new))

    def _add(self, run: Run) -> None:
        self._cutter.add(run)
        if self._progress is not None:
            self._progress(self._cutter.num_images, self._num_shards)

    def _is_new(self, uid: int) -> bool:
        if uid in self._seen:
            self._num_duplicates += 1
            return False
        self._seen.add(uid)
        return True

    def _room(self) -> int:
        return (1 << 62) if self._limit is None else max(0, self._limit - self._cutter.num_images)

    def _is_full(self) -> bool:
        return self._room() == 0
