"""Manifests: files that name images, one a line.

====================  ===============================================================================================
`.txt`                one URI a line; empty lines and lines that start with `#` are passed over
`.csv`, `.tsv`        a header, then one image a line
`.jsonl`, `.ndjson`   one object a line (or one text)
`.parquet`            a text column
====================  ===============================================================================================

The column is `--image-column`, else the first of `uri`, `url`, `path`, ... that there is. A relative URI starts at the
manifest's own folder. Every entry is an image; a shard named in a manifest is not opened as one. A line that cannot be
understood gives a row with status `bad_entry`, and a URI with credentials in it one with `denied`, since rows and work
lists must not hold secrets.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from effsam2_ray.errors import InputError
from effsam2_ray.inputs.columns import convert_all, need_columns
from effsam2_ray.inputs.parquet import URI_COLUMNS, ParquetTable, read_rows
from effsam2_ray.storage import FileInfo, StorageOptions, open_seekable
from effsam2_ray.uris import has_secret, join_uri, parent_uri, redact

_WINDOW = 1 << 20


@dataclass(frozen=True)
class ManifestEntry:
    """One line of a manifest.

    Attributes:
        number: line number, from 1; in Parquet the row number, from 0.
        uri: canonical URI of the image; None where the line names none.
        image_id: the user's own id.
        kept: JSON object of the kept columns.
        status, error: what is wrong with the line.
    """

    number: int
    uri: str | None
    image_id: str | None = None
    kept: str = "{}"
    status: str = "ok"
    error: str | None = None


def read_manifest(
    file: FileInfo,
    *,
    image_column: str | None = None,
    id_column: str | None = None,
    keep_columns: Sequence[str] = (),
    storage_options: StorageOptions = None,
) -> Iterator[ManifestEntry]:
    """Yield the entries of a text, CSV or JSON-lines manifest, reading it as it goes.

    Raises:
        InputError: a column is missing.
        OSError: the storage fails.
    """
    columns = _Columns(redact(file.uri), image_column, id_column, tuple(keep_columns))
    folder = parent_uri(file.uri)
    suffix = file.uri.lower().rpartition(".")[2]
    with open_seekable(file.uri, file.size_bytes, storage_options, _WINDOW) as raw:
        # Bytes that are no UTF-8 become surrogates, which the check of each entry finds.
        lines = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        if suffix == "txt":
            if columns.id_column or columns.keep_columns:
                raise InputError(f"{columns.where} is a plain list and has no columns")
            rows = _text_rows(lines)
        elif suffix in ("csv", "tsv"):
            rows = _csv_rows(lines, "\t" if suffix == "tsv" else ",", columns)
        else:
            rows = _json_rows(lines, columns)
        for number, row in rows:
            yield row if isinstance(row, ManifestEntry) else _entry(number, row, columns, folder)


def read_parquet_manifest(table: ParquetTable, storage_options: StorageOptions = None) -> Iterator[ManifestEntry]:
    """Yield the entries of a Parquet manifest.

    Raises:
        pyarrow.ArrowException: the file cannot be read.
        OSError: the storage fails.
    """
    folder = parent_uri(table.file.uri)
    kept_names = tuple(name for name, _ in table.kept_types)
    for row in read_rows(table.shard, 0, table.num_rows, kept_names, storage_options):
        if row.error is not None:
            yield _bad(row.number, row.error)
            continue
        entry = _resolve(row.number, row.cell, folder)
        kept = json.dumps(convert_all(row.kept or {}, table.kept_types))
        yield ManifestEntry(row.number, entry.uri, row.image_id, kept, entry.status, entry.error)


@dataclass(frozen=True)
class _Columns:
    where: str
    image_column: str | None
    id_column: str | None
    keep_columns: tuple[str, ...]

    def choose(self, names: Sequence[str]) -> str:
        """Return the column of URIs among those that there are."""
        need_columns(self.where, names, [self.image_column, self.id_column, *self.keep_columns])
        if self.image_column is not None:
            return self.image_column
        lower = {name.lower(): name for name in reversed(names)}
        if found := next((lower[name] for name in URI_COLUMNS if name in lower), None):
            return found
        raise InputError(
            f"which column of {self.where} holds the URIs? Name it with --image-column: {', '.join(names)}"
        )


_Rows = Iterator[tuple[int, dict[str, Any] | ManifestEntry]]
_URI = "\0uri"
"""Key of the URI in a row, whatever its column is called; no column has a NUL in its name."""


def _text_rows(lines: io.TextIOWrapper) -> _Rows:
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield number, {_URI: text}


def _csv_rows(lines: io.TextIOWrapper, delimiter: str, columns: _Columns) -> _Rows:
    reader = csv.reader(lines, delimiter=delimiter)
    header: list[str] | None = None
    column = ""
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield number, _bad(number, f"not a line of CSV: {error}")
            continue
        if not any(cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            column = columns.choose(header)
        elif len(cells) != len(header):
            yield number, _bad(number, f"{len(cells)} cells; the header has {len(header)}")
        else:
            row = dict(zip(header, cells, strict=True))
            yield number, {**row, _URI: row[column]}
    if header is None:
        raise InputError(f"{columns.where} has no header line")


def _json_rows(lines: io.TextIOWrapper, columns: _Columns) -> _Rows:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, _bad(number, f"not JSON: {error}")
            continue
        if isinstance(row, str):
            yield number, {_URI: row}
        elif not isinstance(row, dict):
            yield number, _bad(number, f"neither an object nor a text: {str(line)[:80]}")
        else:
            # Objects may leave out what is null, so only the image column is looked for in each.
            names = [*row, *(name for name in (columns.id_column, *columns.keep_columns) if name)]
            try:
                column = columns.choose(names)
            except InputError as error:
                yield number, _bad(number, str(error))
                continue
            yield number, {**row, _URI: row[column]}


def _entry(number: int, row: dict[str, Any], columns: _Columns, folder: str) -> ManifestEntry:
    entry = _resolve(number, row[_URI], folder)
    image_id = row.get(columns.id_column) if columns.id_column else None
    types = tuple((name, "string") for name in columns.keep_columns)
    kept = {name: _clean(value) for name, value in convert_all(row, types).items()}
    image_id = None if image_id is None else _clean(str(image_id))
    return ManifestEntry(number, entry.uri, image_id, json.dumps(kept), entry.status, entry.error)


def _resolve(number: int, text: Any, folder: str) -> ManifestEntry:
    """Return the entry that a URI as written stands for."""
    if not isinstance(text, str) or not text.strip():
        return _bad(number, "no URI")
    text = text.strip()
    if any(character in text for character in "\0\n\r"):
        return _bad(number, f"a URI with a line break in it: {text[:80]!r}")
    if not text.isascii() and text != _clean(text):
        return _bad(number, f"not UTF-8: {_clean(text)[:80]!r}")
    if has_secret(text):
        error = "the URI carries credentials; give them in the environment or with --storage-option"
        return ManifestEntry(number, None, status="denied", error=f"{error}: {redact(text)}")
    return ManifestEntry(number, join_uri(folder, text))


def _bad(number: int, error: str) -> ManifestEntry:
    return ManifestEntry(number, None, status="bad_entry", error=_clean(error))


def _clean(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
