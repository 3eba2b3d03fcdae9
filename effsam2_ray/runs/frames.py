"""A video file -> its frames as pictures, named by their number, which `effsam2 label` then takes as a folder.

Decoding is FFmpeg's, through PyAV (extra `video`). Frames are numbered from 0 in the order in which they are shown.
Rotation that the file asks for is applied, as players do.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from effsam2_ray.errors import ConfigError, InputError
from effsam2_ray.runs.export.items import FileWriter
from effsam2_ray.storage import StorageOptions, open_seekable, stat
from effsam2_ray.uris import redact, redact_text

_DIGITS = 6
"""Enough for nine hours at 30 frames a second; later frames have longer names."""
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class FoundFrames:
    """How many frames a video had.

    Attributes:
        decoded: frames that could be decoded.
        written: those of them that were written.
        error: why decoding stopped before the end; "" where it did not.
    """

    decoded: int
    written: int
    error: str


def write_frames(
    video: str,
    output: str,
    *,
    every: int = 1,
    file_format: Literal["png", "jpg"] = "png",
    storage_options: StorageOptions = None,
) -> FoundFrames:
    """Write frames 0, `every`, 2 * `every`, ... of a video as `<output>/000000.png` and so on.

    Args:
        video: any format that FFmpeg decodes, at any fsspec URI.
        output: a folder, any fsspec URI.
        every: 1 writes all.
        file_format: `png` keeps every pixel, `jpg` takes a tenth of the room.
        storage_options: passed to fsspec.

    Raises:
        ConfigError: PyAV is not installed, or `every` is below 1.
        InputError: there is no such file, or no picture can be decoded from it.
    """
    if every < 1:
        raise ConfigError(f"every must be 1 or more; got {every}")
    av = _load_av()
    decoded = written = 0
    try:
        size_bytes = stat(video, storage_options).size_bytes
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{redact(video)} is no file") from None
    if not size_bytes:
        raise InputError(f"{redact(video)} cannot be decoded: it is empty")
    errors: list[str] = []
    with (
        open_seekable(video, size_bytes, storage_options, window=1 << 20) as file,
        FileWriter(output, storage_options) as writer,
    ):
        for frame in _decode(av, file, errors):
            if decoded % every == 0:
                writer.put(f"{decoded:0{_DIGITS}d}.{file_format}", _encode(_upright(frame), file_format))
                written += 1
            decoded += 1
    error = redact_text(" ".join(errors))
    if not decoded:
        raise InputError(f"{redact(video)} cannot be decoded: {error or 'it has no frame'}")
    return FoundFrames(decoded, written, error)


def _decode(av: Any, file: BinaryIO, errors: list[str]) -> Iterator[Any]:
    """Yield a video's frames in the order in which they are shown; what ends them early goes into `errors`."""
    try:
        with av.open(file) as container:
            if not container.streams.video:
                errors.append("it has no pictures")
                return
            yield from container.decode(video=0)
    except av.FFmpegError as error:
        errors.append(str(error))
    except OSError as error:
        if error.errno != errno.EINVAL:  # a damaged index makes FFmpeg seek to before the start
            raise
        errors.append(str(error))


def _load_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ConfigError("reading videos needs PyAV: pip install 'effsam2_ray[video]', or pip install av") from error
    return av


def _upright(frame: Any) -> np.ndarray:
    """Return a frame as a player shows it, (H, W, 3) uint8 RGB."""
    pixels = frame.to_ndarray(format="rgb24")
    # Degrees by which the picture is to be turned counter-clockwise; only quarter turns occur.
    quarters = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters))


def _encode(pixels: np.ndarray, file_format: str) -> bytes:
    buffer = io.BytesIO()
    if file_format == "jpg":
        Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    else:
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
