"""Encoded bytes -> the picture as a viewer shows it, or a status that says why not.

What "as a viewer shows it" means here:

- EXIF orientation is applied; of animations and multi-page files the first frame is taken; ICC profiles are ignored.
- Transparent pixels are laid over white.
- 16-bit grey of PNG, PGM and JPEG 2000 runs from 0 to 65535, whatever values occur: so say the formats. In a TIFF, 16
  bits are often 12 or 8 of a camera or microscope, and 32-bit and float grey have no range at all: those are stretched
  from their minimum to their maximum, except floats within [0, 1], which are taken as they are. NaN is black.
- A file that ends early is `truncated`, never a picture with a grey lower half.

Only formats that are pure pixels are opened: nothing that runs a program (EPS, PDF) is ever handed to a decoder.
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from effsam2_ray.errors import ImageError

STATUSES: dict[str, str] = {
    "ok": "labelled; the row may still hold no mask",
    "missing": "there is no such file, object or shard",
    "denied": "the storage refuses access, or the URI carries credentials, which are never stored",
    "unreadable": "the storage kept failing, or the shard cannot be understood",
    "bad_entry": "a manifest line that names no image",
    "changed": "the file or shard is no longer the one that was listed",
    "null": "the Parquet row holds no bytes",
    "empty": "the file has no bytes",
    "not_image": "the bytes are no picture of a known format",
    "unsupported": "a picture of a format or kind that is not read",
    "truncated": "the picture or the shard ends early",
    "corrupt": "the bytes cannot be decoded",
    "too_large": "more pixels or bytes than the limit",
    "oom": "did not fit into memory, even alone",
    "timeout": "hung its process, alone",
    "crashed": "killed its process, alone",
    "failed": "labelling raised an error",
}
"""Every value of the output column `status`, and what it means."""

DEFAULT_MAX_PIXELS = 120_000_000
"""Largest width x height that is decoded: 360 MB as RGB; the largest phone cameras but one fit."""

MAX_TEXT_BYTES = 64 << 20
"""Largest text or colour profile of a PNG, unpacked, and most of all its texts; Pillow's own limit is 1 MiB each."""

_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "DIB", "JPEG2000", "PPM", "ICO")

# Leading bytes of formats that are recognised but not read, for the message.
_UNSUPPORTED = (
    (b"8BPS", "PSD"),
    (b"%PDF", "PDF"),
    (b"%!PS", "EPS"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"<svg", "SVG"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"SIMPLE  =", "FITS"),
    (b"FUJIFILMCCD-RAW", "camera RAW"),
    (b"II\x2b\x00", "BigTIFF"),
    (b"MM\x00\x2b", "BigTIFF"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"crx ")
# Leading bytes of the formats that are read, for files that the decoder cannot even open.
_SUPPORTED = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"II\x2a\x00", "TIFF"),
    (b"MM\x00\x2a", "TIFF"),
)

_JPEG_END = b"\xff\xd9"


def decode_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """Decode one picture as a viewer shows it.

    Args:
        data: the encoded file.
        max_pixels: largest width x height; it is checked before any pixel is decoded.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: its `status` is `empty`, `not_image`, `unsupported`, `truncated`, `corrupt` or `too_large`.
    """
    if not data:
        raise ImageError("empty", "the file has no bytes")
    image = _open(data, max_pixels)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too_large", f"{width} x {height} pixels; at most {max_pixels} pixels are decoded")
    if image.format in ("JPEG", "MPO") and _JPEG_END not in data:
        raise ImageError("truncated", "the JPEG file has no end marker")
    if image.format in ("JPEG", "MPO", "WEBP", "AVIF") and _ends_in_zeros(data):
        raise ImageError("truncated", f"the {image.format} file ends in zeros")
    try:
        image.load()
    except MemoryError as error:
        raise ImageError("too_large", f"{width} x {height} pixels do not fit into memory") from error
    except Exception as error:  # decoders raise anything on damaged bytes: SyntaxError, struct.error, IndexError, ...
        raise ImageError(_damage(data, error), f"cannot decode the {image.format} data: {error}") from error
    return rgb_array(image)


def rgb_array(image: Image.Image) -> np.ndarray:
    """Return an opened picture as (H, W, 3) uint8 RGB: orientation applied, alpha over white, deep grey scaled.

    Raises:
        ImageError: `unsupported` for a colour mode without a conversion to RGB.
    """
    file_format = image.format  # a transposed copy forgets it
    image = turn_upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _rgb_from_deep_grey(image, file_format)
    try:
        if image.has_transparency_data:
            rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)  # (H, W, 4)
            alpha = rgba[..., 3:]
            return np.asarray((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255, dtype=np.uint8)
        return np.array(image.convert("RGB"))
    except (ValueError, KeyError, OSError) as error:
        raise ImageError("unsupported", f"colour mode {image.mode} cannot be shown as RGB: {error}") from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and limit < max_pixels:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limits are those of the whole process; they are only raised
    PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, MAX_TEXT_BYTES)
    PngImagePlugin.MAX_TEXT_MEMORY = max(PngImagePlugin.MAX_TEXT_MEMORY, MAX_TEXT_BYTES)
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too_large", f"at most {max_pixels} pixels are decoded: {error}") from error
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    except Exception as error:
        raise ImageError(_damage(data, error), f"cannot read the picture's header: {error}") from error


def _unidentified(data: bytes) -> ImageError:
    head = data[:64].lstrip() if data[:1].isspace() else data[:64]
    for magic, name in _UNSUPPORTED:
        if head.startswith(magic):
            return ImageError("unsupported", f"{name} files are not read")
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return ImageError("unsupported", "HEIF files (HEIC, CR3) are not read")
    if head.startswith(b"<?xml") and b"<svg" in data[:4096]:
        return ImageError("unsupported", "SVG files are not read")
    for magic, name in _SUPPORTED:
        if head.startswith(magic):
            if name == "TIFF" and not _ends_early(data):
                return ImageError("unsupported", "a TIFF of a pixel layout that is not read, or with a damaged header")
            return ImageError(_damage(data, None), f"starts as {name}, but its header cannot be read")
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return ImageError(_damage(data, None), "starts as WebP, but cannot be read")
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return ImageError(_damage(data, None), "starts as AVIF, but its header cannot be read")
    return ImageError("not_image", f"no known picture format; starts with {data[:12]!r}")


def _damage(data: bytes, error: Exception | None) -> str:
    """Tell a file that ends early, or has too much text, from one that is damaged inside."""
    text = str(error).lower()
    if "max_text_" in text:  # the PNG decoder names the limit that it met
        return "too_large"
    if _ends_early(data) or any(word in text for word in ("truncated", "end of file", "eof")):
        return "truncated"
    return "corrupt"


def _ends_in_zeros(data: bytes) -> bool:
    """Return whether the tail was never written.

    A copy that stopped on a preallocated disk goes on in zeros, which the decoders draw as grey without an error.
    """
    return data.endswith(bytes(512)) and not data.rstrip(b"\0").endswith(_JPEG_END)


def _ends_early(data: bytes) -> bool:
    """Return whether a file's own lengths and end marks say that something is missing at its end."""
    if data[:4] == b"RIFF":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND" not in data[-64:]
    if data.startswith((b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")):
        return not data.endswith(_JPEG_END)  # JPEG 2000 ends with the same marker
    if data[4:8] == b"ftyp":
        return _box_overruns(data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"
        directory = int.from_bytes(data[4:8], order)
        num_tags = int.from_bytes(data[directory : directory + 2], order)
        return directory + 2 + 12 * num_tags + 4 > len(data)
    return False


def _box_overruns(data: bytes) -> bool:
    """Return whether an ISO media file's (AVIF's) last box says that it is longer than the file."""
    offset = 0
    while offset + 8 <= len(data):
        length = int.from_bytes(data[offset : offset + 4], "big")
        if length < 8:  # 0: up to the end of the file; 1: 64-bit length
            return False
        offset += length
    return offset != len(data)


def turn_upright(image: Image.Image) -> Image.Image:
    """Return an opened picture as its EXIF orientation, or that of its XMP, says that it is shown."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF that breaks its own format says nothing of orientation; viewers show the picture as it is
        return image


def _rgb_from_deep_grey(image: Image.Image, file_format: str | None) -> np.ndarray:
    """Scale 16-bit, 32-bit or float grey to 8 bits and repeat it three times."""
    values = np.asarray(image)
    if file_format == "PPM" or (file_format != "TIFF" and image.mode.startswith("I;16")):  # Pillow scales PGM to 65535
        grey = (values.astype(np.uint32) + 128) // 257
    else:
        values = values.astype(np.float64)
        finite = np.isfinite(values)
        low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
        if image.mode == "F" and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        span = high - low if high > low else 1.0
        grey = np.rint((np.where(finite, values, low) - low) / span * 255)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey = np.where(values == key, 255, grey)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
