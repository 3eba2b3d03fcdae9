"""A labelled data set: which pictures it holds, and what is known of each, loaded when it is asked for."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from effsam2_ray.errors import InputError
from effsam2_ray.metrics.truth import ImageTruth
from effsam2_ray.storage import StorageOptions
from effsam2_ray.uris import redact


class ImageRecord(Protocol):
    """One picture of a data set and where its annotations are: small and picklable, to be sent to a worker.

    Its `repr` changes with its annotations.
    """

    @property
    def image_uri(self) -> str:
        """Canonical URI of the picture."""
        ...

    def load(self, storage_options: StorageOptions = None, image_bytes: bytes | None = None) -> ImageTruth:
        """Return what is known of the picture.

        Args:
            storage_options: for its files.
            image_bytes: the encoded picture, if it is at hand; only its size and EXIF orientation are looked at.

        Raises:
            AnnotationError: the annotations or the picture cannot be read, or do not fit each other.
        """
        ...


@dataclass(frozen=True)
class GroundTruth:
    """A labelled data set.

    Attributes:
        name: for tables.
        format: how it was read, one of `effsam2_ray.datasets.FORMATS`.
        records: one a picture, in the order of their URIs.
        missing: pictures that have annotations and are not there; they are not in `records`.
        notes: what else a reader of the figures should know, in sentences.
        federated: annotators looked for a few categories in each picture only (LVIS), so that objects of others may be
            unlabelled. No figure of `effsam2_ray.metrics` calls a prediction without an object wrong.
        storage_options: for the data set's files.
    """

    name: str
    format: str
    records: tuple[ImageRecord, ...]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    federated: bool = False
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def image_uris(self) -> tuple[str, ...]:
        """URIs of the pictures, in order."""
        return tuple(record.image_uri for record in self.records)

    def record(self, image_uri: str) -> ImageRecord:
        """Return the record of one picture.

        Raises:
            InputError: the data set has no such picture.
        """
        if image_uri not in self._by_uri:
            raise InputError(f"{self.name} has no annotations of {redact(image_uri)}")
        return self._by_uri[image_uri]

    def objects(self, image_uri: str) -> ImageTruth:
        """Return what is known of one picture; errors as `ImageRecord.load` and `record`."""
        return self.record(image_uri).load(self.storage_options)

    def digest(self) -> str:
        """Return what changes with any annotation: their text, or size and ETag of their files."""
        return hashlib.sha256("\n".join(map(repr, self.records)).encode()).hexdigest()

    def limited(self, num: int) -> GroundTruth:
        """Return the same data set with its first `num` pictures only."""
        return dataclasses.replace(self, records=self.records[:num])

    @cached_property
    def _by_uri(self) -> dict[str, ImageRecord]:
        return {record.image_uri: record for record in self.records}
