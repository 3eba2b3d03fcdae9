"""Find a weights file: official name, path, URI or hub id -> a file on this machine.

Downloads go to a cache folder, once a machine: a lock file keeps the other processes waiting, and a file has its final
name only when it is whole and its digest, where known, is right.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import IO

import fsspec
from filelock import FileLock

from effsam2_ray.errors import WeightsError
from effsam2_ray.model.backbones import BACKBONES, Backbone
from effsam2_ray.storage import retrying
from effsam2_ray.uris import redact, redact_text

DEMO = "demo"
_HUB_FILES = {
    f"facebook/{name.replace('_', '-')}": f"{name}.pt"
    for name, backbone in BACKBONES.items()
    if backbone.family == "sam2"
}
_logger = logging.getLogger(__name__)


def default_cache() -> Path:
    """Return the folder for downloaded weights: $EFFSAM2_CACHE, or ~/.cache/effsam2_ray."""
    return Path(os.environ.get("EFFSAM2_CACHE") or Path.home() / ".cache" / "effsam2_ray")


def demo_file(name: str) -> Path:
    """Return the path of a file of the demonstration weights in the installed package."""
    return Path(str(resources.files("effsam2_ray.demo").joinpath(name)))


def local_file(weights: str, cache_dir: Path | None = None) -> Path:
    """Return the path of a weights file on this machine, downloaded first where it has to be.

    Args:
        weights: `demo`, an official name (`backbones.BACKBONES`), a path, an fsspec URI, or a hub id such as
            `facebook/sam2.1-hiera-large`.
        cache_dir: where downloads are kept; None takes `default_cache()`.

    Raises:
        WeightsError: there is no such file, or it cannot be downloaded.
    """
    cache = cache_dir or default_cache()
    if weights == DEMO:
        path = demo_file("sam2_demo.pt")
        if not path.is_file():
            raise WeightsError(f"the demonstration weights are not in this installation: no {path}")
        return path
    if weights in BACKBONES:
        return _official(BACKBONES[weights], cache)
    if "://" in weights:
        return _from_uri(weights, cache)
    if Path(weights).is_file():
        return Path(weights)
    if weights in _HUB_FILES:
        return _from_hub(weights, cache)
    raise WeightsError(
        f"no weights called {weights!r}: neither a file, nor a URI, nor one of {DEMO}, "
        f"{', '.join(BACKBONES)}, {', '.join(_HUB_FILES)}"
    )


def file_sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _official(backbone: Backbone, cache: Path) -> Path:
    target = cache / backbone.url.rsplit("/", 1)[1]

    def write(file: IO[bytes]) -> None:
        _logger.info("downloading %s to %s", backbone.url, target)
        with urllib.request.urlopen(backbone.url, timeout=60) as response:
            shutil.copyfileobj(response, file, 1 << 20)
            expected = response.headers.get("Content-Length")
        if expected is not None and file.tell() != int(expected):
            raise ConnectionError(f"the connection ended after {file.tell()} of {expected} bytes")

    try:
        return retrying(lambda: _once(target, write, backbone.sha256))
    except (OSError, urllib.error.URLError) as error:
        raise WeightsError(
            f"cannot download {backbone.name} from {backbone.url}: {error}. Without internet, copy that file to "
            f"{target}, or give its path or URI as weights"
        ) from error


def _from_uri(uri: str, cache: Path) -> Path:
    try:
        file_system, path = fsspec.core.url_to_fs(uri)
        if "file" in (protocol := file_system.protocol) or "local" in protocol:
            if not file_system.isfile(path):
                raise WeightsError(f"no weights file at {redact(uri)}")
            return Path(path)
        # The file system's fingerprint of the file (size, date, tag) is in the name: a replaced file is fetched anew.
        tag = hashlib.sha256(f"{uri} {file_system.ukey(path)}".encode()).hexdigest()[:16]
        target = cache / f"{tag}_{re.sub(r'[^A-Za-z0-9._-]', '_', path.rsplit('/', 1)[-1])}"

        def write(file: IO[bytes]) -> None:
            with file_system.open(path, "rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)

        return retrying(lambda: _once(target, write, ""))
    except WeightsError:
        raise
    # Each store's client has its own exceptions, and none of them is a bug of ours.
    except Exception as error:
        reason = redact_text(f"{type(error).__name__}: {error}")
        raise WeightsError(f"cannot read the weights at {redact(uri)}: {reason}") from error


def _from_hub(hub_id: str, cache: Path) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        name = _HUB_FILES[hub_id].removesuffix(".pt")
        raise WeightsError(
            f"{hub_id} needs the package huggingface_hub (pip install huggingface_hub); "
            f"the weights called {name} are the same file"
        ) from error
    try:
        return Path(hf_hub_download(hub_id, _HUB_FILES[hub_id], cache_dir=str(cache / "hub")))
    # Offline, no such revision, no permission: the hub's own exceptions change between its versions.
    except Exception as error:
        raise WeightsError(f"cannot get {hub_id} from the hub: {type(error).__name__}: {error}") from error


def _once(target: Path, write: Callable[[IO[bytes]], None], sha256: str) -> Path:
    """Make `target` with `write` unless it is there; only one process of the machine does it.

    Args:
        target: where the file shall be.
        write: fills the open file.
        sha256: digest that the new file must have, "" for any.
    """
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_file():
            return target
        part = target.with_name(f"{target.name}.part-{os.getpid()}")
        try:
            with part.open("wb") as file:
                write(file)
            if sha256 and (found := file_sha256(part)) != sha256:
                raise OSError(f"sha256 should be {sha256}, but what came has {found}")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return target
