"""Pictures that an EXIF orientation turns -> files whose pixels lie as they are shown.

Masks are in the frame of the picture as shown. Some loaders apply the orientation and some do not; of a file that has
none, all make the same.
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, JpegImagePlugin

from effsam2_ray.datasets.frames import read_frame
from effsam2_ray.images import turn_upright
from effsam2_ray.metrics.truth import AnnotationError

# How much a second compression may lose; what is not named here is lossless, or has no such setting.
_SETTINGS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95},
    "TIFF": {"compression": "tiff_deflate"},
}
# Where an orientation of a PNG can stand. To look for it, Pillow decodes the pixels: it may come after them.
_PNG_METADATA = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


def upright_picture(data: bytes) -> bytes | None:
    """Return a picture's file without an orientation: `data` itself where it is shown as it is stored.

    Otherwise the picture, the first of several, is turned and encoded anew in its own format; of its metadata the
    colour profile stays.

    Args:
        data: an encoded file that was labelled.

    Returns:
        The file; None where it cannot be read, or its format cannot be written.
    """
    if data.startswith(b"\x89PNG") and not any(mark in data for mark in _PNG_METADATA):
        return data
    try:
        if read_frame("", None, data).orientation == 1:
            return data
        with Image.open(io.BytesIO(data)) as image:
            kind = "JPEG" if image.format == "MPO" else image.format or ""
            settings = {"icc_profile": image.info.get("icc_profile"), **_SETTINGS.get(kind, {})}
            if kind == "JPEG":
                settings["subsampling"] = JpegImagePlugin.get_sampling(image)
            buffer = io.BytesIO()
            turn_upright(image).save(buffer, kind, **settings)
    except (AnnotationError, OSError, ValueError, KeyError):
        return None
    return buffer.getvalue()
