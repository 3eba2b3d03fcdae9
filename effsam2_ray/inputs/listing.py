"""INPUT strings -> the frozen work list. What an INPUT may be is said in `sources`.

Order is that of the inputs, and of names within each. An image or shard that is listed twice counts once. A shard that
cannot be read is one row with a status; an input that matches nothing is an error, and so is a storage that keeps
failing, since a list with a hole must not be frozen.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from stat import S_ISREG

import pyarrow as pa

from effsam2_ray.errors import InputError
from effsam2_ray.inputs.columns import KeptTypes, merge_types
from effsam2_ray.inputs.cutting import Run, UnitCutter
from effsam2_ray.inputs.manifest import ManifestEntry, read_manifest, read_parquet_manifest
from effsam2_ray.inputs.parquet import ParquetTable, describe_parquet
from effsam2_ray.inputs.sources import Source, sources
from effsam2_ray.inputs.tar import TarIndex, index_tar, lost_ref
from effsam2_ray.inputs.work_list import (
    UNKNOWN_SIZE,
    ImageRef,
    WorkList,
    WorkListWriter,
    image_uid,
    shard_image_uri,
)
from effsam2_ray.storage import FileInfo, StorageOptions, failure_status, is_transient, stat
from effsam2_ray.uris import canonical_uri, has_secret, redact, redact_text, scheme_of

INDEXERS = 64
"""Shards of a store indexed side by side, and at most held ahead of their turn: their threads wait for the network."""
_LOCAL_INDEXERS = 16
SAMPLED_SIZES = 32
"""Images of a remote manifest whose size is looked up, to guess that of the others."""
_BATCH = 4096

ProgressCallback = Callable[[int, int], None]
"""Called with (images, shards) listed so far."""


@dataclass(frozen=True)
class ColumnChoice:
    """The columns of Parquet files and manifests that the user named."""

    image_column: str | None = None
    id_column: str | None = None
    keep_columns: tuple[str, ...] = ()


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
        inputs: folders, globs, shards, manifests, images; see `sources`.
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
    if limit is not None and limit < 1:
        raise InputError(f"limit must be 1 or more; got {limit}")
    for uri in inputs:
        if has_secret(uri):
            raise InputError(f"{redact(uri)}: credentials belong in the environment or --storage-option, not in a URI")
    columns = ColumnChoice(image_column, id_column, tuple(keep_columns))
    listing = _Listing(columns, limit, num_segmenters, storage_options, progress)
    for uri in inputs:
        try:
            listing.add_input(uri)
        except OSError as error:
            raise InputError(f"{redact(uri)} cannot be listed: {redact_text(str(error))}") from error
        if listing.room() == 0:
            break
    return listing.finish(inputs)


class _Listing:
    """What has been listed so far."""

    def __init__(
        self,
        columns: ColumnChoice,
        limit: int | None,
        num_segmenters: int,
        storage_options: StorageOptions,
        progress: ProgressCallback | None,
    ) -> None:
        self._columns = columns
        self._limit = limit
        self._options = storage_options
        self._progress = progress
        self._writer = WorkListWriter()
        self._cutter = UnitCutter(self._writer, num_segmenters)
        self._seen_images: set[int] = set()
        self._seen_shards: set[str] = set()
        self._kept_types: KeptTypes = ()
        self._num_shards = self._num_duplicates = self._num_ignored = self._num_lost = 0
        self._has_columns = False

    def room(self) -> int:
        """Return how many images more may be listed."""
        return (1 << 62) if self._limit is None else max(0, self._limit - self._cutter.num_images)

    def add_input(self, uri: str) -> None:
        """List one INPUT."""
        before = self._cutter.num_images + self._num_duplicates
        num_indexers = _LOCAL_INDEXERS if scheme_of(uri) == "file" else INDEXERS
        for item in _ahead(self._index, self._new_sources(uri), num_indexers):
            if isinstance(item, list):
                self._add_images(item)
            elif isinstance(item, TarIndex):
                self._num_shards += 1
                self._num_ignored += item.num_ignored
                self._add_run(Run("tar", item.images[: self.room()], item.shard))
            elif isinstance(item, FileInfo):
                self._add_entries(item.uri, self._manifest_entries(item))
            else:
                self._add_table(item)
            if self.room() == 0:
                return
        if self._cutter.num_images + self._num_duplicates == before:
            raise InputError(f"{redact(uri)} holds no images")

    def finish(self, inputs: Sequence[str]) -> WorkList:
        """Return the list."""
        if (self._columns.id_column or self._columns.keep_columns) and not self._has_columns:
            raise InputError("--id-column and --keep-columns are for Parquet files and manifests; no input is one")
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
                "inputs": [redact(canonical_uri(uri)) for uri in inputs],
            }
        )

    def _new_sources(self, uri: str) -> Iterator[Source]:
        """Yield the sources of an input that are not ignored; of shards, those not seen before."""
        for source in sources(uri, self._options):
            if source.kind == "ignored":
                self._num_ignored += 1
            elif source.kind in ("tar", "parquet") and source.file.uri in self._seen_shards:
                self._num_duplicates += 1
            else:
                if source.kind in ("tar", "parquet"):
                    self._seen_shards.add(source.file.uri)
                yield source

    def _index(self, source: Source) -> list[ImageRef] | TarIndex | ParquetTable | FileInfo:
        """Look into a shard; one that cannot be read becomes one image with a status."""
        file = source.file
        try:
            if source.kind == "tar":
                return index_tar(file, self._options)
            if source.kind == "parquet":
                columns = self._columns
                return describe_parquet(
                    file,
                    image_column=columns.image_column,
                    id_column=columns.id_column,
                    keep_columns=columns.keep_columns,
                    storage_options=self._options,
                )
            if source.kind == "manifest":
                return file
            return [lost_ref(file.uri, file.status, redact_text(file.error or ""))]
        except pa.ArrowException as error:
            status = "corrupt" if file.size_bytes else "empty"
            return [lost_ref(file.uri, status, f"not a Parquet file, or cut: {error}")]
        except OSError as error:
            if is_transient(error):
                raise
            return [lost_ref(file.uri, failure_status(error), redact_text(str(error)))]

    def _add_table(self, table: ParquetTable) -> None:
        self._note_columns(table.kept_types)
        if table.is_manifest:
            self._add_entries(table.file.uri, read_parquet_manifest(table, self._options))
        else:
            self._num_shards += 1
            self._add_run(Run("parquet", (), table.shard, table, min(table.num_rows, self.room())))

    def _manifest_entries(self, file: FileInfo) -> Iterator[ManifestEntry]:
        columns = self._columns
        if not file.uri.lower().endswith(".txt"):
            self._note_columns(tuple((name, "string") for name in columns.keep_columns))
        return read_manifest(
            file,
            image_column=columns.image_column,
            id_column=columns.id_column,
            keep_columns=columns.keep_columns,
            storage_options=self._options,
        )

    def _add_entries(self, manifest: str, entries: Iterator[ManifestEntry]) -> None:
        refs = (_entry_ref(manifest, entry) for entry in entries)
        first = list(itertools.islice(refs, SAMPLED_SIZES))
        self._cutter.assumed_bytes = _mean_size(first, self._options) or self._cutter.assumed_bytes
        every = itertools.chain(first, refs)
        while self.room() and (batch := list(itertools.islice(every, _BATCH))):
            self._add_images(batch)

    def _add_images(self, images: Iterable[ImageRef]) -> None:
        new = []
        for image in images:
            if image.image_uid in self._seen_images:
                self._num_duplicates += 1
            else:
                self._seen_images.add(image.image_uid)
                new.append(image)
        self._add_run(Run("files", new[: self.room()]))

    def _add_run(self, run: Run) -> None:
        self._num_lost += sum(image.status != "ok" for image in run.images)
        self._cutter.add(run)
        if self._progress is not None:
            self._progress(self._cutter.num_images, self._num_shards)

    def _note_columns(self, types: KeptTypes) -> None:
        self._has_columns = True
        self._kept_types = merge_types(self._kept_types, types)


_Item = list[ImageRef] | TarIndex | ParquetTable | FileInfo


def _ahead(index: Callable[[Source], _Item], found: Iterator[Source], num_indexers: int) -> Iterator[_Item]:
    """Yield lone images in batches and everything else indexed, in order, a few shards ahead of who reads."""
    pool = ThreadPoolExecutor(num_indexers, thread_name_prefix="index")
    waiting: deque[Future[_Item] | list[ImageRef]] = deque()
    try:
        for source in found:
            if source.kind == "image":
                if not waiting or not isinstance(waiting[-1], list) or len(waiting[-1]) >= _BATCH:
                    waiting.append([])
                batch = waiting[-1]
                assert isinstance(batch, list)
                batch.append(_file_ref(source.file))
            else:
                waiting.append(pool.submit(index, source))
            if len(waiting) > num_indexers or (len(waiting) > 1 and isinstance(waiting[0], list)):
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _result(item: Future[_Item] | list[ImageRef]) -> _Item:
    return item.result() if isinstance(item, Future) else item


def _file_ref(file: FileInfo) -> ImageRef:
    return ImageRef(image_uid(file.uri), file.uri, size_bytes=file.size_bytes, etag=file.etag)


def _entry_ref(manifest: str, entry: ManifestEntry) -> ImageRef:
    """Return the image that a line of a manifest names, or the row that says that it names none."""
    if entry.uri is None:
        return ImageRef(
            image_uid(manifest, None, entry.number),
            shard_image_uri(manifest, None, entry.number),
            shard_uri=manifest,
            row=entry.number,
            image_id=entry.image_id,
            kept=entry.kept,
            status=entry.status,
            error=entry.error,
        )
    size, etag = UNKNOWN_SIZE, ""
    if entry.uri.startswith("file://"):  # on a disk this costs nothing
        try:
            found = os.stat(entry.uri.removeprefix("file://"))
            if S_ISREG(found.st_mode):
                size, etag = found.st_size, f"{found.st_mtime:.6f}"
        except OSError:
            pass
    return ImageRef(
        image_uid(entry.uri), entry.uri, image_id=entry.image_id, size_bytes=size, etag=etag, kept=entry.kept
    )


def _mean_size(images: Sequence[ImageRef], storage_options: StorageOptions) -> int:
    """Return the mean encoded size of the images whose size is not known yet, 0 where it cannot be had."""
    unknown = [image.image_uri for image in images if image.status == "ok" and image.size_bytes == UNKNOWN_SIZE]

    def size_of(uri: str) -> int:
        try:
            return stat(uri, storage_options).size_bytes
        except (OSError, InputError):
            return UNKNOWN_SIZE

    with ThreadPoolExecutor(SAMPLED_SIZES) as pool:
        sizes = [size for size in pool.map(size_of, unknown) if size > 0]
    return sum(sizes) // len(sizes) if sizes else 0
