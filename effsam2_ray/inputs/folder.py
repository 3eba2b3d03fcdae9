"""Files of a folder or a glob, in the order of their names, page by page.

A listing of millions is never held whole: S3 is read in pages of a thousand keys, other stores folder by folder, and
the folders right below the top are listed side by side, each at most a few pages ahead of its turn. Hidden names
(`.git`, `._photo.jpg`) are passed over.
"""

from __future__ import annotations

import itertools
import os
import queue
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from stat import S_ISREG
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from effsam2_ray.storage import (
    FileInfo,
    StorageOptions,
    failure_status,
    file_info,
    filesystem,
    is_s3,
    is_transient,
    retrying,
    s3_pages,
)
from effsam2_ray.uris import canonical_uri

LISTERS = 16
"""Folders listed side by side."""
_PAGE = 1000
_PAGES_AHEAD = 4
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder; for a folder, `info.uri` is all that is known."""

    name: str
    is_folder: bool
    info: FileInfo


def has_magic(uri: str) -> bool:
    """Return whether a URI is a glob: holds `*`, `?` or `[`; in `http` URLs only `*`."""
    return "*" in uri if uri.startswith(("http://", "https://")) else bool(_MAGIC.search(uri))


def walk_folder(uri: str, storage_options: StorageOptions = None) -> Iterator[FileInfo]:
    """Yield every file below a folder, in the order of the whole names.

    A folder inside that cannot be listed gives one entry with a status. Links to folders are followed, loops are not.

    Raises:
        FileNotFoundError, PermissionError, OSError: the folder itself cannot be listed.
    """
    fs, _ = filesystem(uri, storage_options)
    uri = canonical_uri(uri).rstrip("/")
    chain: tuple[str, ...] = (_real_path(uri),)
    top = _level(fs, uri)
    head = list(itertools.islice(top, 2))
    while len(head) == 1 and head[0].is_folder:  # nothing to spread over the listers yet
        uri = head[0].info.uri
        if _real_path(uri) in chain:
            return
        chain = (*chain, _real_path(uri))
        top = _level(fs, uri)
        head = list(itertools.islice(top, 2))
    pool = ThreadPoolExecutor(LISTERS, thread_name_prefix="list")
    stop = threading.Event()
    waiting: deque[FileInfo | _Background] = deque()
    num_background = 0
    try:
        for entry in itertools.chain(head, top):
            if entry.is_folder:
                waiting.append(_Background(pool, stop, _walker(fs, entry.info.uri, chain)))
                num_background += 1
            else:
                waiting.append(entry.info)
            while num_background > LISTERS or len(waiting) > _PAGES_AHEAD * _PAGE:
                first = waiting.popleft()
                num_background -= isinstance(first, _Background)
                yield from _files_of(first)
        while waiting:
            yield from _files_of(waiting.popleft())
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


def glob_files(pattern: str, storage_options: StorageOptions = None) -> Iterator[FileInfo]:
    """Yield the files that a glob matches, in order.

    `*` stays within a name, `**` crosses folders. Folders match nothing.
    """
    fs, _ = filesystem(pattern, storage_options)
    scheme, rest = canonical_uri(pattern).split("://", 1)
    parts = rest.split("/")
    first = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    yield from _match(fs, f"{scheme}://{'/'.join(parts[:first])}", parts[first:], storage_options)


def _match(fs: Any, folder: str, parts: list[str], storage_options: StorageOptions) -> Iterator[FileInfo]:
    part, rest = parts[0], parts[1:]
    try:
        if part == "**":
            matches = _path_pattern(rest or ["*"])
            start = len(folder.rstrip("/")) + 1
            yield from (file for file in walk_folder(folder, storage_options) if matches(file.uri[start:]))
            return
        matches = _path_pattern([part])
        for entry in _level(fs, folder, _MAGIC.split(part, maxsplit=1)[0]):
            if rest and entry.is_folder and matches(entry.name):
                yield from _match(fs, entry.info.uri.rstrip("/"), rest, storage_options)
            elif not rest and not entry.is_folder and matches(entry.name):
                yield entry.info
    except (FileNotFoundError, NotADirectoryError):
        return


def _path_pattern(parts: list[str]) -> Callable[[str], bool]:
    """Return a test of relative paths: any number of folders, then names that match `parts`."""
    names = (".*" if part == "**" else _name_pattern(part) for part in parts)
    compiled = re.compile("(?:[^/]+/)*" + "/".join(names), re.DOTALL)
    return lambda name: compiled.fullmatch(name) is not None


def _name_pattern(part: str) -> str:
    return re.sub(r"\[(!?)(.[^\]]*)\]|[*?]|.", _translate, part, flags=re.DOTALL)


def _translate(match: re.Match[str]) -> str:
    if match.group() in ("*", "?"):
        return "[^/]*" if match.group() == "*" else "[^/]"
    if match.group(2) is not None:
        inside = match.group(2).replace("\\", r"\\").replace("^", r"\^")
        return f"[{'^' if match.group(1) else ''}{inside}]"
    return re.escape(match.group())


def _level(fs: Any, uri: str, name_prefix: str = "") -> Iterator[Entry]:
    """Yield what lies directly in a folder, sorted as whole names sort: a folder counts with its slash."""
    if is_s3(fs):
        entries = _s3_level(fs, uri, name_prefix)
    elif isinstance(fs, LocalFileSystem):
        entries = _local_level(uri)
    else:
        entries = iter(sorted(retrying(lambda: _scan(fs, uri)), key=lambda e: e.name + "/" * e.is_folder))
    return (entry for entry in entries if entry.name.startswith(name_prefix) and not entry.name.startswith("."))


def _s3_level(fs: Any, uri: str, name_prefix: str) -> Iterator[Entry]:
    bucket, prefix = _bucket_and_prefix(uri)
    for page in s3_pages(fs, bucket, prefix + name_prefix, "/"):
        found = [(sub["Prefix"], FileInfo(f"s3://{bucket}/{sub['Prefix']}")) for sub in page.get("CommonPrefixes", [])]
        found += [(obj["Key"], _s3_info(bucket, obj)) for obj in page.get("Contents", [])]
        for key, info in sorted(found, key=lambda item: item[0]):
            if key != prefix:
                yield Entry(key[len(prefix) :].removesuffix("/"), key.endswith("/"), info)


def _local_level(uri: str) -> Iterator[Entry]:
    """Yield a local folder's entries; only names are held, not what is known of each file."""
    with os.scandir(_local_path(uri)) as scan:
        names = sorted(item.name + "/" * item.is_dir() for item in scan)
    for name in names:
        child = f"{uri.rstrip('/')}/{name.rstrip('/')}"
        if name.endswith("/"):
            yield Entry(name[:-1], True, FileInfo(child))
            continue
        try:
            found = os.stat(_local_path(child))
        except OSError:  # a link to nowhere, or gone since: reading will say so
            yield Entry(name, False, FileInfo(child))
            continue
        size = found.st_size if S_ISREG(found.st_mode) else -1
        yield Entry(name, False, FileInfo(child, size, f"{found.st_mtime:.6f}"))


def _walker(fs: Any, uri: str, chain: tuple[str, ...]) -> Callable[[], Iterator[FileInfo]]:
    if is_s3(fs):
        return lambda: _walk_s3(fs, uri)
    return lambda: _walk_tree(fs, uri, chain)


def _walk_s3(fs: Any, uri: str) -> Iterator[FileInfo]:
    bucket, prefix = _bucket_and_prefix(uri)
    for page in s3_pages(fs, bucket, prefix):
        for obj in page.get("Contents", []):
            key = obj["Key"]
            if not key.endswith("/") and "/." not in "/" + key[len(prefix) :]:
                yield _s3_info(bucket, obj)


def _walk_tree(fs: Any, uri: str, chain: tuple[str, ...]) -> Iterator[FileInfo]:
    real = _real_path(uri)
    if real in chain:  # a link back to a folder that we are inside of
        return
    try:
        entries = list(_level(fs, uri))
    except OSError as error:
        if is_transient(error):
            raise
        yield FileInfo(uri, status=failure_status(error), error=f"the folder cannot be listed: {error}")
        return
    for entry in entries:
        if entry.is_folder:
            yield from _walk_tree(fs, entry.info.uri, (*chain, real))
        else:
            yield entry.info


def _scan(fs: Any, uri: str) -> list[Entry]:
    path = fs._strip_protocol(uri)
    entries = []
    for info in fs.ls(path, detail=True, refresh=True):
        name = os.path.basename(info["name"].rstrip("/"))
        if not name or info["name"].rstrip("/") == path.rstrip("/"):
            if info["type"] != "directory":
                raise NotADirectoryError(uri)
            continue
        child = f"{uri.rstrip('/')}/{name}"
        is_folder = info["type"] == "directory"
        entries.append(Entry(name, is_folder, FileInfo(child) if is_folder else file_info(child, info)))
    return entries


def _bucket_and_prefix(uri: str) -> tuple[str, str]:
    """Split a folder's URI; of slashes at its end all but a missing one are part of the prefix (`a//b` is a key)."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, f"{key}/" if key and not key.endswith("/") else key


def _s3_info(bucket: str, obj: dict[str, Any]) -> FileInfo:
    return FileInfo(f"s3://{bucket}/{obj['Key']}", obj["Size"], str(obj.get("ETag", "")).strip('"'))


def _local_path(uri: str) -> str:
    return uri.removeprefix("file://") or "/"


def _real_path(uri: str) -> str:
    return os.path.realpath(_local_path(uri)) if uri.startswith("file://") else uri


def _files_of(item: FileInfo | _Background) -> Iterator[FileInfo]:
    return item.files() if isinstance(item, _Background) else iter((item,))


class _Background:
    """A listing that runs in a thread, a few pages ahead of who reads it."""

    def __init__(self, pool: ThreadPoolExecutor, stop: threading.Event, walk: Callable[[], Iterator[FileInfo]]):
        self._pages: queue.Queue[list[FileInfo] | Exception | None] = queue.Queue(_PAGES_AHEAD)
        self._stop = stop
        pool.submit(self._run, walk)

    def files(self) -> Iterator[FileInfo]:
        while (page := self._pages.get()) is not None:
            if isinstance(page, Exception):
                raise page
            yield from page

    def _run(self, walk: Callable[[], Iterator[FileInfo]]) -> None:
        try:
            files = walk()
            while page := list(itertools.islice(files, _PAGE)):
                self._put(page)
            self._put(None)
        except Exception as error:
            self._put(error)

    def _put(self, page: list[FileInfo] | Exception | None) -> None:
        while not self._stop.is_set():
            try:
                return self._pages.put(page, timeout=0.1)
            except queue.Full:
                continue
