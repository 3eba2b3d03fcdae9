"""Mask files -> objects: binary masks, label maps, palette pictures.

A file holds one number a pixel (or one colour). What the numbers mean is not written in the file, so by default:

- 1-bit pictures, and 8-bit ones with at most two values (0 and 1, 0 and 255, ...): one object, where it is not 0.
- JPEG, and 8-bit grey of which most that is not 0 is 250 or more: a soft binary mask, the object where it is above 127.
- Palette pictures: each index but 0 is an object, and 255 is void, as in VOC; with no other index than 0 and 255, one
  binary mask.
- Other 8-bit grey: each value but 0 is an object, and 255 is void where there is no 254.
- 16 and 32 bits: each value but 0 is an object; with no other value than 0 and 65535, one binary mask.
- Colour: each colour but black is an object, and VOC's void colour (224, 224, 192) is void.

`binary` and `labels` say what it is where this guesses wrong.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from effsam2_ray.errors import MaskError
from effsam2_ray.rle import Rle, encode

MaskKind = Literal["auto", "binary", "labels"]

_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "JPEG", "WEBP", "PPM")
_VOID = 255
_VOID_COLOUR = (224 << 16) | (224 << 8) | 192


@dataclass(frozen=True)
class MaskFile:
    """Decoded numbers of a mask file.

    Attributes:
        values: (H, W) integers; a colour is `red << 16 | green << 8 | blue`.
        kind: `bit`, `grey8`, `palette`, `deep` (16 or 32 bits) or `colour`.
        is_lossy: JPEG: values are only nearly those that were saved.
    """

    values: np.ndarray
    kind: Literal["bit", "grey8", "palette", "deep", "colour"]
    is_lossy: bool = False


@dataclass(frozen=True)
class MaskObjects:
    """Objects of a mask file.

    Attributes:
        masks: one an object.
        labels: their numbers in the file.
        void: (H, W) bool, pixels that count for nobody; None where there is none.
        is_binary: the file was taken for one binary mask.
    """

    masks: tuple[Rle, ...]
    labels: tuple[int, ...]
    void: np.ndarray | None
    is_binary: bool


def open_mask(data: bytes) -> Image.Image:
    """Return a mask file with its size known and no pixel decoded.

    Raises:
        MaskError: it is no picture of a format that masks come in.
    """
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as error:
        raise MaskError(f"cannot read the mask's header: {type(error).__name__}: {error}") from error


def decode_mask(image: Image.Image) -> MaskFile:
    """Return the numbers of a mask file.

    Raises:
        MaskError: it is damaged, or of a pixel format that masks do not come in.
    """
    is_lossy = image.format == "JPEG"
    try:
        values = np.asarray(image.convert("L") if is_lossy else image)
    except Exception as error:
        raise MaskError(f"cannot decode the mask: {type(error).__name__}: {error}") from error
    if image.mode == "1":
        return MaskFile(values.astype(np.uint8), "bit")
    if image.mode == "L" or is_lossy:
        return MaskFile(values, "grey8", is_lossy)
    if image.mode == "P":
        return MaskFile(values, "palette")
    if image.mode == "LA":
        return MaskFile(values[..., 0], "grey8")
    if image.mode in ("RGB", "RGBA"):
        colours = values[..., :3].astype(np.int32)
        if (colours == colours[..., :1]).all():
            return MaskFile(values[..., 0], "grey8")
        return MaskFile(colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2], "colour")
    if image.mode == "F" and np.array_equal(values, np.rint(values)):
        values = values.astype(np.int64)
    if values.ndim == 2 and np.issubdtype(values.dtype, np.integer):
        return MaskFile(values, "deep")
    raise MaskError(f"masks must hold whole numbers or colours; got colour mode {image.mode}")


def mask_objects(file: MaskFile, kind: MaskKind = "auto") -> MaskObjects:
    """Return the objects of a mask file; see the module for what is taken for what.

    Args:
        file: the numbers, already in the frame that the masks are wanted in.
        kind: `binary`: one object, whatever the numbers; `labels`: an object for each number; `auto`: by the file.

    Raises:
        MaskError: `labels` are asked of a JPEG.
    """
    values = file.values
    present = np.unique(values)
    if kind == "binary" or (kind == "auto" and _looks_binary(file, present)):
        if file.kind == "grey8" and present[-1] > 127:
            mask = values > 127
        elif file.kind == "palette" and not _is_subset(present, (0, _VOID)):
            mask = (values != 0) & (values != _VOID)
        else:
            mask = values != 0
        found = mask.any()
        return MaskObjects(tuple(encode(mask[None])) if found else (), (1,) if found else (), None, True)
    if file.is_lossy:
        raise MaskError("a JPEG cannot hold the numbers of objects")
    void = _void(file, present)
    masks, labels = label_objects(np.where(void, 0, values))
    return MaskObjects(masks, labels, void if void.any() else None, False)


def label_objects(label_map: np.ndarray) -> tuple[tuple[Rle, ...], tuple[int, ...]]:
    """Return the mask and the number of every label but 0, in the order of the numbers.

    Args:
        label_map: (H, W) integers; numbers need not be contiguous.
    """
    labels = [int(label) for label in np.unique(label_map) if label != 0]
    return tuple(encode((label_map == label)[None])[0] for label in labels), tuple(labels)


def _looks_binary(file: MaskFile, present: np.ndarray) -> bool:
    if file.kind == "bit" or file.is_lossy:
        return True
    if file.kind == "palette":
        return _is_subset(present, (0, _VOID))
    if file.kind == "deep":
        return _is_subset(present, (0, 65535))
    if file.kind == "colour":
        return False
    if len(present) == 1 or (len(present) == 2 and present[0] == 0):
        return True
    return bool(2 * np.count_nonzero(file.values >= 250) > np.count_nonzero(file.values))


def _void(file: MaskFile, present: np.ndarray) -> np.ndarray:
    if file.kind == "colour":
        return np.asarray(file.values == _VOID_COLOUR)
    # In grey, 255 alone may be the object, and next to 254 it is one of very many.
    is_void = file.kind == "palette" or (file.kind == "grey8" and len(present) > 2 and 254 not in present)
    return np.asarray((file.values == _VOID) & is_void)


def _is_subset(present: np.ndarray, allowed: tuple[int, ...]) -> bool:
    return bool(np.isin(present, allowed).all())
