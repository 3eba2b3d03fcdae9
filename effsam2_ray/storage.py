"""Reading and writing bytes anywhere fsspec reaches, so that a cut connection costs time and never a half-written file.

- Every call is tried again, with jitter and a bound, when the storage is busy, cuts the connection or stalls. What will
  not get better (missing, denied) is raised at once, as `FileNotFoundError` or `PermissionError`.
- A file appears whole or not at all: one PUT on object stores; elsewhere a temporary name, then a rename.

S3 endpoints and credentials come from the usual AWS environment variables (`AWS_ENDPOINT_URL`, ...) or from storage
options.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from effsam2_ray.errors import InputError
from effsam2_ray.uris import SCHEME_ALIASES, canonical_uri, is_chained
from effsam2_ray.uris import redact as redact

StorageOptions = Mapping[str, Any] | None
"""Keyword arguments of remote fsspec filesystems; `s3.endpoint_url` goes to those of one scheme only."""

T = TypeVar("T")


@dataclass(frozen=True)
class Retry:
    """How long a failing call is repeated; the pause after attempt n is random, at most `base_s * 2**n`."""

    attempts: int = 8
    base_s: float = 0.5
    longest_s: float = 20.0


RETRY = Retry()
CONNECT_TIMEOUT_S = 10
MAX_CONNECTIONS = 64
"""To S3, of one process: as many as threads wait for it."""
READ_TIMEOUT_S = 30
"""A connection that says nothing for this long counts as stalled (S3; other stores have their own)."""

# Stores whose PUT shows the whole object at once; on anything else a file is written aside and moved.
_OBJECT_STORES = frozenset({"s3", "gs", "az", "abfs", "abfss", "adl", "oss", "oci", "r2", "memory"})
_TRANSIENT_ERRNO = frozenset(
    getattr(errno, name)
    for name in (
        "EBUSY EIO EAGAIN ETIMEDOUT ESTALE ENETUNREACH ENETDOWN EHOSTUNREACH ECONNRESET EPIPE EREMOTEIO EINTR".split()
    )
    if hasattr(errno, name)
)
_PERMANENT = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
# By name, since none of these packages need be installed.
_TRANSIENT_CLASSES = frozenset(
    "FSTimeoutError HTTPClientError ConnectionError ClientPayloadError ClientConnectionError ResponseParserError "
    "IncompleteRead IncompleteReadError ProtocolError ResponseStreamingError".split()
)

# What a metadata service that does not answer for a moment, or a token that has just expired, gives.
_CREDENTIAL_CLASSES = frozenset(
    "NoCredentialsError PartialCredentialsError CredentialRetrievalError TokenRetrievalError UnauthorizedSSOTokenError "
    "RefreshError".split()
)
_CREDENTIAL_CODES = ("ExpiredToken", "RequestExpired", "RequestTimeTooSkewed", "TokenRefreshRequired")
CREDENTIAL_ATTEMPTS = 4
"""Fewer than of other calls: often there are none, and somebody waits for the answer."""
ASK_AGAIN_S = 0.2

# Packages whose errors need not be OSErrors.
_CLIENT_PACKAGES = frozenset("botocore aiobotocore aiohttp gcsfs google azure adlfs ossfs ocifs".split())

_filesystems: dict[Any, Any] = {}
_filesystems_lock = threading.Lock()
_asked_s = -math.inf  # when credentials were last asked for anew


NO_CREDENTIALS = "no valid credentials"


class CredentialsError(PermissionError):
    """The storage's client found no credentials, or they have expired; its message begins with `NO_CREDENTIALS`."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file as its storage describes it.

    Attributes:
        uri: canonical URI.
        size_bytes: -1 where the storage does not tell.
        etag: ETag or its like, without quotes; of a local file the modification time; "" where there is none.
        status: `ok`, or why there is no telling: a folder that cannot be listed is one such entry.
        error: what went wrong.
    """

    uri: str
    size_bytes: int = -1
    etag: str = ""
    status: str = "ok"
    error: str | None = None


def filesystem(uri: str, storage_options: StorageOptions = None) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URI and the path within it.

    Raises:
        InputError: an unknown scheme, or one whose package is not installed.
    """
    uri = canonical_uri(uri)
    if is_chained(uri):
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(uri))
    scheme = uri.partition("://")[0]
    options = _options_for(scheme, storage_options)
    key = (os.getpid(), scheme, repr(sorted(options.items())))
    with _filesystems_lock:
        if key not in _filesystems:
            _filesystems[key] = _new_filesystem(scheme, options)
        fs = _filesystems[key]
    return fs, fs._strip_protocol(uri)


def failure_status(error: BaseException) -> str:
    """Return the row status that a storage error stands for: `missing`, `denied` or `unreadable`."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing"
    if isinstance(error, PermissionError) or names & _CREDENTIAL_CLASSES:
        return "denied"
    return "denied" if _http_status(error) in (401, 403) else "unreadable"


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed a little later."""
    if _lacks_credentials(error):
        return True
    if isinstance(error, _PERMANENT):
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    reason = getattr(error, "reason", None)  # of urllib's URLError
    if isinstance(error, OSError) and isinstance(reason, BaseException):
        return is_transient(reason)
    status = _http_status(error)
    if status is not None:
        return status in (408, 409, 425, 429) or status >= 500
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return True
    return any(cls.__name__ in _TRANSIENT_CLASSES for cls in type(error).__mro__)


def retrying(action: Callable[[], T]) -> T:
    """Call `action` until it succeeds, fails for good, or has failed `RETRY.attempts` times.

    Raises:
        CredentialsError: there are no credentials, or they have expired, and asking for new ones did not help.
        PermissionError: they do not do.
        OSError: any other error of a storage's client.
        Whatever else `action` raises.
    """
    for attempt in range(1, RETRY.attempts + 1):
        try:
            return action()
        except Exception as error:
            lacks_credentials = _lacks_credentials(error)
            attempts = min(RETRY.attempts, CREDENTIAL_ATTEMPTS) if lacks_credentials else RETRY.attempts
            if attempt >= attempts or not is_transient(error):
                if (plain := _as_os_error(error)) is error:
                    raise
                raise plain from error
            if lacks_credentials:
                _forget_credentials()
        # Full jitter: readers that were refused together do not come back together.
        time.sleep(random.uniform(0, min(RETRY.longest_s, RETRY.base_s * 2**attempt)))
    raise AssertionError("RETRY.attempts must be 1 or more")


def read_bytes(uri: str, storage_options: StorageOptions = None) -> bytes:
    """Return a whole file."""
    fs, path = filesystem(uri, storage_options)
    if isinstance(fs, LocalFileSystem):
        return retrying(lambda: _read_local(path))
    # s3fs asks for the size first unless told to read in one piece.
    extra = {"max_concurrency": 1} if is_s3(fs) else {}
    return retrying(lambda: cast(bytes, fs.cat_file(path, **extra)))


def read_range(uri: str, start: int, end: int, storage_options: StorageOptions = None) -> bytes:
    """Return bytes [start, end) of a file, fewer where it ends before `end`."""
    if start >= end:
        return b""
    fs, path = filesystem(uri, storage_options)
    return retrying(lambda: cast(bytes, fs.cat_file(path, start=start, end=end)))


def stat(uri: str, storage_options: StorageOptions = None) -> FileInfo:
    """Return size and ETag of a file.

    Raises:
        FileNotFoundError, PermissionError: it is not there or not ours.
        IsADirectoryError: it is no regular file.
    """
    fs, path = filesystem(uri, storage_options)
    info = retrying(lambda: cast("dict[str, Any]", fs.info(path)))
    if info.get("type") != "file":
        raise IsADirectoryError(errno.EISDIR, f"a {info.get('type')}, not a regular file", redact(uri))
    return file_info(canonical_uri(uri), info)


def file_info(uri: str, info: Mapping[str, Any]) -> FileInfo:
    """Return what fsspec's `info` dictionary of a file says."""
    size = info.get("size")
    etag = next((info[name] for name in ("ETag", "etag", "mtime", "md5Hash") if info.get(name)), "")
    if isinstance(etag, float):
        etag = f"{etag:.6f}"
    return FileInfo(uri, -1 if size is None else int(size), str(etag).strip('"'))


def exists(uri: str, storage_options: StorageOptions = None) -> bool:
    """Return whether there is a file or folder; an error that is no answer is raised."""
    fs, path = filesystem(uri, storage_options)
    try:
        retrying(lambda: fs.info(path))
    except FileNotFoundError:
        return False
    return True


def is_folder(uri: str, storage_options: StorageOptions = None) -> bool:
    """Return whether there is a folder, or objects under this prefix."""
    fs, path = filesystem(uri, storage_options)
    try:
        return retrying(lambda: cast(str, fs.info(path)["type"])) == "directory"
    except FileNotFoundError:
        return False


def list_dir(uri: str, storage_options: StorageOptions = None) -> list[str]:
    """Return the URIs of the files in a folder, sorted, without those of its folders; none where it does not exist."""
    fs, path = filesystem(uri, storage_options)
    if is_s3(fs):
        bucket, key, _ = fs.split_path(path)
        pages = s3_pages(fs, bucket, f"{key.rstrip('/')}/" if key else "", "/")
        return [f"s3://{bucket}/{entry['Key']}" for page in pages for entry in page.get("Contents", [])]
    try:
        entries = retrying(lambda: cast("list[dict[str, Any]]", fs.ls(path, detail=True, refresh=True)))
    except FileNotFoundError:
        return []
    prefix = canonical_uri(uri).rstrip("/")
    return sorted(f"{prefix}/{os.path.basename(e['name'].rstrip('/'))}" for e in entries if e["type"] != "directory")


def s3_pages(fs: Any, bucket: str, prefix: str, delimiter: str = "") -> Iterator[Mapping[str, Any]]:
    """Yield the answers to ListObjectsV2, a thousand keys each, in the order of the keys.

    s3fs itself gathers a whole listing in memory before it returns any of it.
    """
    token: dict[str, str] = {}
    while True:
        request = {"Bucket": bucket, "Prefix": prefix, "Delimiter": delimiter, **token}
        try:
            page = retrying(lambda request=request: fs.call_s3("list_objects_v2", **request))  # type: ignore[misc]
        except FileNotFoundError:  # no such bucket
            return
        yield page
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def put_bytes(uri: str, data: bytes, storage_options: StorageOptions = None) -> None:
    """Write a whole file; a reader sees the old one or the new one, never a part. Folders are made as needed."""
    fs, path = filesystem(uri, storage_options)
    if isinstance(fs, LocalFileSystem):
        with _local_temporary(path, data) as temporary:
            os.replace(temporary, path)
            _sync_folder(path)
    elif _store(fs) in _OBJECT_STORES:
        # Below 5 GB one PUT; s3fs would cut at 100 MB.
        extra = {"chunksize": 2 << 30} if is_s3(fs) else {}
        retrying(lambda: fs.pipe_file(path, data, **extra))
    else:
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        retrying(lambda: fs.makedirs(fs._parent(path), exist_ok=True))
        retrying(lambda: fs.pipe_file(temporary, data))
        retrying(lambda: fs.mv(temporary, path))


def put_if_absent(uri: str, data: bytes, storage_options: StorageOptions = None) -> bool:
    """Write a whole file unless there is one. Of several writers at once exactly one gets True."""
    fs, path = filesystem(uri, storage_options)
    if isinstance(fs, LocalFileSystem):
        with _local_temporary(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:  # no hard links here; two writers in the same instant could then both see True
                if os.path.exists(path):
                    return False
                os.replace(temporary, path)
            _sync_folder(path)
            return True
    # A PUT whose answer was lost is sent again, by us or below us, and then finds its own file.
    writer = uuid.uuid4().hex
    extra = {"Metadata": {"writer": writer}} if is_s3(fs) else {}
    try:
        retrying(lambda: fs.pipe_file(path, data, mode="create", **extra))
        return True
    except FileExistsError:
        if not extra:
            return False
        bucket, key, _ = fs.split_path(path)
        head = retrying(lambda: cast("dict[str, Any]", fs.call_s3("head_object", Bucket=bucket, Key=key)))
        return bool(head.get("Metadata", {}).get("writer") == writer)


def delete(uri: str, storage_options: StorageOptions = None) -> None:
    """Remove a file; it is no error if there is none."""
    fs, path = filesystem(uri, storage_options)
    with contextlib.suppress(FileNotFoundError):
        retrying(lambda: fs.rm_file(path))


def open_seekable(uri: str, size_bytes: int, storage_options: StorageOptions = None, window: int = 1 << 18) -> BinaryIO:
    """Open a file for reading at any place; a remote one is fetched in ranges of `window` bytes, each with retries."""
    fs, path = filesystem(uri, storage_options)
    if isinstance(fs, LocalFileSystem):
        return open(path, "rb")  # the caller closes it
    return cast(BinaryIO, io.BufferedReader(_RangeFile(uri, size_bytes, storage_options), buffer_size=window))


class _RangeFile(io.RawIOBase):
    """A remote file as a seekable stream of range reads."""

    def __init__(self, uri: str, size_bytes: int, storage_options: StorageOptions):
        self._uri, self._size, self._options = uri, size_bytes, storage_options
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._size, self._position + len(buffer))
        data = read_range(self._uri, self._position, end, self._options)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _options_for(scheme: str, storage_options: StorageOptions) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name, value in (storage_options or {}).items():
        prefix, dot, rest = name.partition(".")
        if dot:
            if SCHEME_ALIASES.get(prefix, prefix) == scheme:
                chosen[rest] = value
        elif scheme not in ("file", "memory", "http", "https"):
            chosen.setdefault(name, value)
    return chosen


def _new_filesystem(scheme: str, options: dict[str, Any]) -> Any:
    if scheme == "file":
        return LocalFileSystem()
    if scheme == "s3":
        # Retries are made here, in one layer with jitter, not in three that multiply.
        config = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"max_attempts": 0},
            "max_pool_connections": MAX_CONNECTIONS,
        }
        options = {"config_kwargs": config, "use_listings_cache": False, **options}
    try:
        fs = fsspec.filesystem(scheme, skip_instance_cache=True, **options)
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot read {scheme}:// URIs: {error}") from error
    if scheme == "s3":
        fs.retries = 1
    return fs


def _read_local(path: str) -> bytes:
    if not S_ISREG(os.stat(path).st_mode):  # reading a pipe or a device may never end
        raise IsADirectoryError(errno.EISDIR, "not a regular file", path)
    return Path(path).read_bytes()


def _store(fs: Any) -> str:
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return SCHEME_ALIASES.get(protocol, protocol)


def is_s3(fs: Any) -> bool:
    """Return whether a filesystem is S3 through s3fs."""
    return _store(fs) == "s3" and hasattr(fs, "call_s3")


def _as_os_error(error: Exception) -> Exception:
    """Return an error of a storage's client as an OSError; any other as it is."""
    if _lacks_credentials(error):
        return CredentialsError(f"{NO_CREDENTIALS}: {type(error).__name__}: {error}")
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    if isinstance(error, OSError) or not packages & _CLIENT_PACKAGES:
        return error
    kind = PermissionError if failure_status(error) == "denied" else OSError
    return kind(f"{type(error).__name__}: {error}")


def _lacks_credentials(error: BaseException) -> bool:
    """Return whether an error says that the client has no valid credentials, as opposed to too few rights."""
    if isinstance(error, CredentialsError):  # asked for anew already
        return False
    if {cls.__name__ for cls in type(error).__mro__} & _CREDENTIAL_CLASSES:
        return True
    answers = (getattr(each, "response", None) for each in (error, error.__cause__))
    return any(isinstance(a, Mapping) and a.get("Error", {}).get("Code") in _CREDENTIAL_CODES for a in answers)


def _forget_credentials() -> None:
    """Make the S3 clients of this process ask for credentials anew; one that got none keeps that answer for ever."""
    global _asked_s
    with _filesystems_lock:
        now = time.monotonic()
        if now - _asked_s < ASK_AGAIN_S:  # another thread has just done it
            return
        _asked_s = now
        for fs in _filesystems.values():
            if is_s3(fs):
                with contextlib.suppress(Exception):  # the next attempt tells
                    fs.connect(refresh=True)


def _http_status(error: BaseException) -> int | None:
    for name in ("status", "status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    return None


@contextlib.contextmanager
def _local_temporary(path: str, data: bytes) -> Iterator[str]:
    """Write a file beside `path`, under a name that readers of Parquet folders skip, and remove what is left of it."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name[:80]}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def _sync_folder(path: str) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot
        pass
    finally:
        os.close(descriptor)
