"""Annotations of stored pixels and of the picture as shown, for every EXIF orientation."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from effsam2_ray.datasets import AnnotationError, open_dataset
from effsam2_ray.datasets.frames import Frame, read_frame, upright
from effsam2_ray.images import decode_image
from effsam2_ray.rle import encode

ORIENTATIONS = range(1, 9)
# (H, W) = (4, 6), another picture under every turn and mirroring.
STORED = np.zeros((4, 6), np.uint8)
STORED[0, :4] = STORED[1, 0] = 255


def with_orientation(image: Image.Image, orientation: int, file_format: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, file_format, exif=exif.tobytes() if file_format != "TIFF" else exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_upright_turns_as_pillow_does(orientation: int):
    image = Image.open(io.BytesIO(with_orientation(Image.fromarray(STORED), orientation)))
    assert upright(STORED, orientation).tolist() == np.asarray(ImageOps.exif_transpose(image)).tolist()


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_frame_has_the_size_that_the_labeller_sees(orientation: int, file_format: str):
    data = with_orientation(Image.fromarray(STORED).convert("RGB"), orientation, file_format)
    frame = read_frame("memory:///a", None, data)
    assert frame == Frame((4, 6), orientation)
    assert frame.shown_hw == decode_image(data).shape[:2]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_masks_of_stored_pixels_are_turned_with_their_picture(tmp_path: Path, orientation: int):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    data = with_orientation(Image.fromarray(STORED).convert("RGB"), orientation)
    (tmp_path / "images" / "a.png").write_bytes(data)
    Image.fromarray(STORED).save(tmp_path / "masks" / "a.png")
    segmentation = encode((STORED > 0)[None])[0].to_coco()
    about = {"id": 1, "file_name": "a.png", "width": 6, "height": 4}
    (tmp_path / "annotations.json").write_text(
        json.dumps({"images": [about], "annotations": [{"id": 1, "image_id": 1, "segmentation": segmentation}]})
    )
    shown = decode_image(data)[..., 0] > 0
    for format in ("coco", "masks"):
        truth = open_dataset(str(tmp_path), format=format)  # type: ignore[arg-type]
        found = truth.objects(truth.image_uris[0])
        assert found.size_hw == shown.shape
        assert found.annotators[0].masks[0].to_array().tolist() == shown.tolist()


def test_masks_of_the_picture_as_shown_are_taken_as_they_are(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(with_orientation(Image.fromarray(STORED).convert("RGB"), 6))
    shown = np.zeros((6, 4), np.uint8)
    shown[5, 3] = 255
    Image.fromarray(shown).save(tmp_path / "masks" / "a.png")
    truth = open_dataset(str(tmp_path))
    assert truth.objects(truth.image_uris[0]).annotators[0].masks[0].to_array().tolist() == (shown > 0).tolist()


def test_a_size_of_neither_frame_is_an_error_and_says_the_shown_one(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(with_orientation(Image.fromarray(STORED).convert("RGB"), 6))
    Image.fromarray(STORED).resize((12, 8)).save(tmp_path / "masks" / "a.png")
    truth = open_dataset(str(tmp_path))
    with pytest.raises(AnnotationError, match=r"for a picture of 12 x 8 pixels .* the picture is 4 x 6"):
        truth.objects(truth.image_uris[0])


def test_square_pictures_are_annotated_as_stored():
    assert Frame((4, 4), 6).orientation_of((4, 4)) == 6
    assert Frame((4, 6), 6).orientation_of((6, 4)) == 1
    assert Frame((4, 6), 3).orientation_of((4, 6)) == 3
    assert Frame((4, 6), 3).orientation_of((6, 4)) is None


def test_orientations_that_do_not_exist_are_upright():
    assert read_frame("memory:///a", None, with_orientation(Image.fromarray(STORED), 0)).orientation == 1
    assert read_frame("memory:///a", None, with_orientation(Image.fromarray(STORED), 12)).orientation == 1
