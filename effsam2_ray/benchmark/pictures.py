"""The pictures that are measured: drawn scenes, or files of a folder."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from effsam2_ray.demo.scenes import draw_scene, held_out_seed
from effsam2_ray.errors import ImageError, InputError
from effsam2_ray.images import decode_image
from effsam2_ray.storage import StorageOptions, list_dir, read_bytes
from effsam2_ray.uris import redact

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Picture:
    """One picture, encoded and decoded.

    Attributes:
        name: file name or seed.
        data: the encoded file.
        array: (H, W, 3) uint8 RGB.
    """

    name: str
    data: bytes
    array: np.ndarray

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.array.shape[0], self.array.shape[1]


def drawn_pictures(count: int, size_hw: tuple[int, int]) -> list[Picture]:
    """Return scenes of the package's generator as JPEG files; the same for the same `count` and size."""
    return [jpeg_picture(f"scene {n}", draw_scene(held_out_seed(n), size_hw).image) for n in range(count)]


def folder_pictures(uri: str, count: int, storage_options: StorageOptions = None) -> list[Picture]:
    """Return the first `count` pictures of a folder that can be read, by name.

    Raises:
        InputError: there is none.
    """
    pictures: list[Picture] = []
    for each in sorted(list_dir(uri, storage_options)):
        if len(pictures) == count:
            break
        if not each.lower().endswith(SUFFIXES):
            continue
        data = read_bytes(each, storage_options)
        try:
            pictures.append(Picture(each.rsplit("/", 1)[-1], data, decode_image(data)))
        except ImageError:
            continue
    if not pictures:
        raise InputError(f"{redact(uri)} holds no picture that can be read ({', '.join(SUFFIXES)})")
    return pictures


def resized(picture: Picture, size_hw: tuple[int, int]) -> Picture:
    """Return the same picture at another size."""
    height, width = size_hw
    image = Image.fromarray(picture.array).resize((width, height), Image.Resampling.BILINEAR)
    return jpeg_picture(f"{picture.name}, {width} x {height}", np.asarray(image))


def jpeg_picture(name: str, array: np.ndarray) -> Picture:
    """Return an (H, W, 3) uint8 array as a JPEG file and what that decodes to."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=90)
    return Picture(name, buffer.getvalue(), decode_image(buffer.getvalue()))
