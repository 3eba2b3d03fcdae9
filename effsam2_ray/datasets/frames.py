"""Two frames of a picture: the pixels as stored, and the picture as a viewer shows it (EXIF orientation applied).

Predictions are in the shown frame. Annotations are in one or the other, and their size tells which: photographs that
are stored lying have height and width swapped. Where both frames have one size (a square picture, or an orientation
that only mirrors or turns upside down) annotations are taken to be of the stored pixels, as COCO's are.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from effsam2_ray.metrics.truth import AnnotationError
from effsam2_ray.rle import Rle, decode, encode
from effsam2_ray.storage import StorageOptions, read_bytes

_UPRIGHT = 1


@dataclass(frozen=True)
class Frame:
    """Size and EXIF orientation of a picture.

    Attributes:
        stored_hw: (height, width) of the stored pixels.
        orientation: 1 to 8; 1 is upright, from 5 on height and width are swapped.
    """

    stored_hw: tuple[int, int]
    orientation: int = _UPRIGHT

    @property
    def shown_hw(self) -> tuple[int, int]:
        """(height, width) as a viewer shows it."""
        height, width = self.stored_hw
        return (width, height) if self.orientation >= 5 else (height, width)

    def orientation_of(self, annotated_hw: tuple[int, int]) -> int | None:
        """Return the orientation that annotations of this size need to be shown upright; None if they fit neither."""
        if annotated_hw == self.stored_hw:
            return self.orientation
        return _UPRIGHT if annotated_hw == self.shown_hw else None


def read_frame(image_uri: str, storage_options: StorageOptions, image_bytes: bytes | None = None) -> Frame:
    """Return the frame of a picture, of which only the header is decoded.

    Raises:
        AnnotationError: the picture cannot be read.
    """
    try:
        data = read_bytes(image_uri, storage_options) if image_bytes is None else image_bytes
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # storage errors, and whatever a decoder raises on damaged bytes
        raise AnnotationError(image_uri, f"the picture cannot be read: {type(error).__name__}: {error}") from error
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT))
    except Exception:  # as `effsam2_ray.images`: broken EXIF says nothing of orientation
        orientation = _UPRIGHT
    orientation = orientation if 1 <= orientation <= 8 else _UPRIGHT
    width, height = image.size
    if image.format == "TIFF" and orientation >= 5:  # Pillow gives the size of a TIFF as it is shown
        width, height = height, width
    return Frame((height, width), orientation)


def fit_orientation(image_uri: str, frame: Frame, annotated_hw: tuple[int, int]) -> int:
    """Return the orientation that annotations of a size need to be shown upright.

    Raises:
        AnnotationError: the size is that of neither frame.
    """
    orientation = frame.orientation_of(annotated_hw)
    if orientation is None:
        height, width = frame.shown_hw
        raise AnnotationError(
            image_uri,
            f"the annotations are for a picture of {annotated_hw[1]} x {annotated_hw[0]} pixels (width x height), "
            f"the picture is {width} x {height}",
        )
    return orientation


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels, (H, W), into the picture as shown: (W, H) for an orientation of 5 or more.

    Reference: EXIF 2.3, tag 274; the same turns as `PIL.ImageOps.exif_transpose`.
    """
    if orientation in (3, 4):
        array = array[::-1]
    if orientation in (2, 3):
        array = array[:, ::-1]
    if orientation in (7, 8):
        array = array[:, ::-1]
    if orientation in (6, 7):
        array = array[::-1]
    return np.ascontiguousarray(array.T if orientation >= 5 else array)


def upright_rles(rles: list[Rle], orientation: int) -> list[Rle]:
    """Turn masks of stored pixels into masks of the picture as shown."""
    if orientation == _UPRIGHT:
        return rles
    return [encode(upright(decode([rle])[0], orientation)[None])[0] for rle in rles]
