"""The output folder: parts, and what lies under `_meta/`.

::

    OUT/part-<unit>.parquet        one part a unit, and nothing else beside them
    OUT/_meta/job.json             written first: configuration, fingerprint, versions
    OUT/_meta/work_list.parquet    the frozen units
    OUT/_meta/driver.json          the driver's sign of life, while it is at work
    OUT/_meta/attempts/<unit>.json present only while a unit is being labelled, or after it killed its process
    OUT/_meta/failures.parquet     one row a failed image
    OUT/_meta/summary.json         written last

A unit is done when its part exists. A part is built in memory and put whole under the name of its unit, so a retry or a
second driver writes the same name with the same rows.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from effsam2_ray.errors import OutputError
from effsam2_ray.fingerprint import differences
from effsam2_ray.storage import (
    StorageOptions,
    exists,
    list_dir,
    open_seekable,
    put_bytes,
    put_if_absent,
    read_bytes,
    stat,
)
from effsam2_ray.uris import redact

SUMMARY_KEY = b"effsam2_ray.unit_summary"

_FAILURES = pa.schema(
    [
        ("image_uid", pa.int64()),
        ("image_uri", pa.string()),
        ("member", pa.string()),
        ("step", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("attempts", pa.int32()),
        ("unit", pa.string()),
    ]
)


@dataclass(frozen=True)
class OutputFolder:
    """Where a run's parts go.

    Attributes:
        uri: the folder, any fsspec URI.
        storage_options: passed to fsspec.
    """

    uri: str
    storage_options: StorageOptions = None

    def part_uri(self, unit_id: str) -> str:
        """Return the URI of a unit's part."""
        return f"{self.uri.rstrip('/')}/part-{unit_id}.parquet"

    def meta_uri(self, name: str) -> str:
        """Return the URI of a file under `_meta/`."""
        return f"{self.uri.rstrip('/')}/_meta/{name}"

    def finished_units(self) -> set[str]:
        """Return the ids of the units whose part exists, from one listing."""
        names = (uri.rsplit("/", 1)[-1] for uri in list_dir(self.uri, self.storage_options))
        return {name[5:-8] for name in names if name.startswith("part-") and name.endswith(".parquet")}

    def put_part(self, unit_id: str, table: pa.Table, summary: Mapping[str, Any]) -> int:
        """Write a unit's part whole and return its size in bytes; `summary` goes into the file's metadata."""
        metadata = {**(table.schema.metadata or {}), SUMMARY_KEY: json.dumps(summary).encode()}
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
        data = buffer.getvalue()
        put_bytes(self.part_uri(unit_id), data, self.storage_options)
        return len(data)

    def read_part(self, unit_id: str) -> pa.Table:
        """Return a finished unit's rows."""
        return pq.read_table(io.BytesIO(read_bytes(self.part_uri(unit_id), self.storage_options)))

    def read_unit_summary(self, unit_id: str) -> dict[str, Any]:
        """Return the summary in a finished part's metadata, reading no more than the file's end."""
        uri = self.part_uri(unit_id)
        size_bytes = stat(uri, self.storage_options).size_bytes
        try:
            with open_seekable(uri, size_bytes, self.storage_options) as file:
                metadata = pq.read_schema(file).metadata or {}
            summary: dict[str, Any] = json.loads(metadata[SUMMARY_KEY])
        except (pa.ArrowInvalid, KeyError, ValueError) as error:
            raise OutputError(
                f"{redact(uri)} is damaged, or no part of this tool's; remove it and run the job again "
                f"({type(error).__name__})"
            ) from error
        return summary

    def read_job(self) -> dict[str, Any] | None:
        """Return `job.json`, None where the folder holds no run."""
        return self.read_json("job.json")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file under `_meta/`, None where there is none."""
        uri = self.meta_uri(name)
        if not exists(uri, self.storage_options):
            return None
        try:
            value: dict[str, Any] = json.loads(read_bytes(uri, self.storage_options))
        except ValueError as error:
            raise OutputError(f"{redact(uri)} is not JSON: {error}") from error
        return value

    def claim(self, job: Mapping[str, Any]) -> bool:
        """Write `job.json`, or check that the one there has the same fingerprint. Returns whether it was there.

        Raises:
            OutputError: the folder belongs to another configuration, or holds parts but no job.
        """
        before = self.read_job()
        if before is None:
            if self.finished_units():
                raise OutputError(
                    f"{redact(self.uri)} holds parts but no _meta/job.json; choose an empty output folder"
                )
            data = json.dumps(job, indent=2).encode()
            if put_if_absent(self.meta_uri("job.json"), data, self.storage_options):
                return False
            before = self.read_job() or {}
        lines = differences(before.get("fingerprint", {}), job["fingerprint"])
        if lines:
            raise OutputError(
                f"{redact(self.uri)} belongs to a run with other settings; choose another output, or repeat its "
                "settings:\n  " + "\n  ".join(lines)
            )
        return True

    def put_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file under `_meta/`."""
        put_bytes(self.meta_uri(name), json.dumps(value, indent=2).encode(), self.storage_options)

    def put_failures(self, failures: Iterable[Mapping[str, Any]]) -> None:
        """Write the failures table, one row a failed image."""
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, _FAILURES, compression="zstd") as writer:
            rows = map(dict, failures)
            while batch := list(itertools.islice(rows, 10_000)):
                writer.write_table(pa.Table.from_pylist(batch, schema=_FAILURES))
        put_bytes(self.meta_uri("failures.parquet"), buffer.getvalue(), self.storage_options)
