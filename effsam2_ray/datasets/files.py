"""The files of a data set, found by the names that its annotations use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from effsam2_ray.errors import InputError
from effsam2_ray.inputs.folder import walk_folder
from effsam2_ray.inputs.kinds import is_image_name
from effsam2_ray.metrics.truth import AnnotationError
from effsam2_ray.storage import StorageOptions, failure_status, read_bytes
from effsam2_ray.uris import canonical_uri, redact


@dataclass(frozen=True)
class Files:
    """Every file below a folder.

    Attributes:
        root: canonical URI of the folder.
        names: paths relative to it, sorted.
        versions: size and ETag (or modification time) of each, by name.
    """

    root: str
    names: tuple[str, ...]
    versions: Mapping[str, str]

    def uri(self, name: str) -> str:
        """Return the URI of a file."""
        return f"{self.root}/{name}"

    @cached_property
    def pictures(self) -> tuple[str, ...]:
        """Names that are those of pictures."""
        return tuple(name for name in self.names if is_image_name(name))

    @cached_property
    def _by_base(self) -> dict[str, list[str]]:
        by_base = defaultdict(list)
        for name in self.pictures:
            by_base[base_name(name)].append(name)
        return dict(by_base)

    def find_picture(self, wanted: str, hint: str = "", by_base_alone: bool = True) -> str | None:
        """Return the picture whose path ends in `wanted`, else, if allowed, the one with its last part as name.

        Of several, one in a folder called `images` or in a folder whose name occurs in `hint` goes first, then one
        higher up.

        Raises:
            InputError: several are equally good.
        """
        wanted = wanted.strip("/")
        same_base = self._by_base.get(base_name(wanted), [])
        found = [name for name in same_base if f"/{name}".endswith(f"/{wanted}")]
        if not found and by_base_alone:
            found = same_base
        if len(found) < 2:
            return found[0] if found else None
        ranked = sorted((_rank(name, hint), name) for name in found)
        if ranked[0][0] == ranked[1][0]:
            raise InputError(
                f"{wanted} may be {ranked[0][1]} or {ranked[1][1]} below {redact(self.root)}; say which folder holds "
                f"the pictures"
            )
        return ranked[0][1]


def list_files(folder: str, storage_options: StorageOptions) -> Files:
    """Return the files below a folder.

    Raises:
        InputError: the folder is not there or cannot be listed.
    """
    root = canonical_uri(folder).rstrip("/")
    try:
        found = list(walk_folder(root, storage_options))
    except OSError as error:
        raise InputError(f"cannot list the folder {redact(root)}: {type(error).__name__}: {error}") from error
    broken = next((info for info in found if info.status != "ok"), None)
    if broken is not None:
        raise InputError(f"cannot list {redact(broken.uri)}: {broken.error}")
    if not found:
        raise InputError(f"there is no file below {redact(root)}")
    versions = {info.uri[len(root) + 1 :]: f"{info.size_bytes} {info.etag}" for info in found}
    return Files(root, tuple(sorted(versions)), versions)


def read_file(uri: str, storage_options: StorageOptions, image_uri: str) -> bytes:
    """Return a file of a picture's annotations.

    Raises:
        AnnotationError: it cannot be read.
    """
    try:
        return read_bytes(uri, storage_options)
    except Exception as error:  # every storage has errors of its own
        raise AnnotationError(
            image_uri, f"cannot read {redact(uri)}: {failure_status(error)} ({type(error).__name__})"
        ) from error


def base_name(name: str) -> str:
    """Return the last part of a path."""
    return name.rpartition("/")[2]


def stem(name: str) -> str:
    """Return the last part of a path without its suffix."""
    base = base_name(name)
    return base.rpartition(".")[0] or base


def some(names: Iterable[str], most: int = 3) -> str:
    """Return the first few names for a message."""
    listed = sorted(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def _rank(name: str, hint: str) -> tuple[bool, int]:
    folders = name.split("/")[:-1]
    preferred = any(folder.lower() == "images" or (len(folder) > 1 and folder in hint) for folder in folders)
    return not preferred, len(folders)
