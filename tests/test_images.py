from __future__ import annotations

import csv
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effsam2_ray.errors import ImageError
from effsam2_ray.images import MAX_TEXT_BYTES, STATUSES, decode_image, rgb_array


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def status_of(data: bytes, **options) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, **options)
    assert caught.value.status in STATUSES
    return caught.value.status


@pytest.fixture
def photo() -> Image.Image:
    """A smooth coloured gradient with structure; (H, W) = (90, 120)."""
    y, x = np.mgrid[:90, :120]
    noise = np.random.default_rng(0).integers(0, 20, (90, 120))
    return Image.fromarray(np.stack([x * 2, y * 2, (x + y) + noise], axis=2).clip(0, 255).astype(np.uint8))


# What is odd in these files is not the pixels, so that they show the same picture as `hopper.jpg`.
HOPPERS = {
    **{f"hopper_orientation_{n}.jpg": 6 for n in range(2, 9)},
    "hopper_orientation_2.webp": 6,
    "hopper.avif": 8,
    "hopper.gif": 12,
    "hopper.tif": 0,
    "hopper.iccprofile.tif": 0,
    "hopper_float_dpi_2.tif": 0,
}
REFUSED = {
    "broken_data_stream.png": "truncated",
    "decompression_bomb.gif": "too_large",
    "truncated_end_chunk.png": "truncated",
    "truncated_image.png": "truncated",
    "truncated_jpeg.jpg": "truncated",
}
# (file, (row, column), RGB): what GIMP or the format's own definition shows there.
PIXELS = [
    ("bw_gradient.png", (5, 0), (0, 0, 0)),
    ("bw_gradient.png", (5, 255), (255, 255, 255)),
    ("mode_16bit.png", (32, 64), (255, 0, 0)),
    ("multipage.tiff", (5, 5), (0, 128, 0)),
    ("p_trns_single.png", (32, 32), (255, 255, 255)),
    ("rgb_trns.png", (0, 0), (255, 0, 0)),
    ("rgb_trns.png", (32, 32), (255, 255, 255)),
    ("i_trns.png", (32, 32), (255, 255, 255)),
    ("tRNS_null_1x1.png", (0, 0), (255, 255, 255)),
    ("transparent.webp", (0, 0), (255, 255, 255)),
]


def test_every_odd_file_gives_its_picture_or_a_status(shared_data: Path):
    with open(shared_data / "odd" / "MANIFEST.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 52
    for row in rows:
        data = (shared_data / "odd" / "images" / row["file"]).read_bytes()
        if row["file"] in REFUSED:
            assert status_of(data) == REFUSED[row["file"]], row["file"]
            continue
        image = decode_image(data)
        size = (int(row["height"]), int(row["width"]))
        if row["file"] != "g4_orientation_6.tif" and row["exif_orientation"] in ("5", "6", "7", "8"):
            size = size[::-1]
        assert image.shape == (*size, 3), row["file"]
        assert image.dtype == np.uint8 and image.flags["C_CONTIGUOUS"], row["file"]


@pytest.mark.parametrize(("name", "tolerance"), HOPPERS.items())
def test_orientation_and_format_do_not_change_the_picture(shared_data: Path, name: str, tolerance: int):
    folder = shared_data / "odd" / "images"
    expected = np.asarray(Image.open(folder / "hopper.tif").convert("RGB")).astype(int)
    found = decode_image((folder / name).read_bytes()).astype(int)
    assert np.abs(found - expected).mean() <= tolerance


@pytest.mark.parametrize(("name", "place", "colour"), PIXELS)
def test_pixels_of_odd_files(shared_data: Path, name: str, place: tuple[int, int], colour: tuple[int, int, int]):
    assert tuple(decode_image((shared_data / "odd" / "images" / name).read_bytes())[place]) == colour


def test_cmyk_shows_what_the_rgb_version_of_the_picture_shows(shared_data: Path):
    folder = shared_data / "odd" / "images"
    rgb = decode_image((folder / "pil_sample_rgb.jpg").read_bytes()).astype(int)
    for name in ("pil_sample_cmyk.jpg", "tiff_strip_cmyk_jpeg.tif"):
        cmyk = decode_image((folder / name).read_bytes()).astype(int)
        # Inks have other colours than lights; a picture with inverted inks would be off by more than 200.
        assert np.abs(cmyk - rgb).mean() < 12


def test_nuclei_with_16_bit_values_below_256_are_not_black(shared_data: Path):
    image = decode_image(next((shared_data / "nuclei" / "images").iterdir()).read_bytes())
    assert (image.min(), image.max()) == (0, 255)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG2000"])
def test_16_bit_grey_runs_over_the_whole_range(file_format: str):
    values = np.array([[0, 257, 32768, 65535]] * 4, dtype=np.uint16)
    options = {"irreversible": False} if file_format == "JPEG2000" else {}
    image = decode_image(encode(Image.fromarray(values), file_format, **options))
    assert image[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (image == image[..., :1]).all()


def test_deep_grey_of_tiff_is_stretched():
    values = np.array([[100, 200, 300]], dtype=np.uint16)
    assert decode_image(encode(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    floats = np.array([[-2.0, 0.0, 2.0, np.nan, np.inf]], dtype=np.float32)
    assert decode_image(encode(Image.fromarray(floats), "TIFF"))[0, :, 0].tolist() == [0, 128, 255, 0, 0]
    unit = np.array([[0.0, 0.2, 0.4]], dtype=np.float32)
    assert decode_image(encode(Image.fromarray(unit), "TIFF"))[0, :, 0].tolist() == [0, 51, 102]
    flat = np.full((2, 2), 7, dtype=np.int32)
    assert decode_image(encode(Image.fromarray(flat), "TIFF")).max() == 0


def test_alpha_is_laid_over_white():
    rgba = Image.fromarray(np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]], dtype=np.uint8), "RGBA")
    assert decode_image(encode(rgba, "PNG"))[0].tolist() == [[200, 0, 0], [255, 255, 255], [244, 204, 204]]
    la = Image.fromarray(np.array([[[10, 255], [10, 0]]], dtype=np.uint8), "LA")
    assert decode_image(encode(la, "PNG"))[0].tolist() == [[10] * 3, [255] * 3]


def test_bilevel_grey_and_palette_become_rgb():
    bits = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert decode_image(encode(bits, "PNG"))[0].tolist() == [[0] * 3, [255] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.putdata([0, 1])
    assert decode_image(encode(palette, "PNG"))[0].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for file_format in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        assert decode_image(data)[0, 0].tolist() == [255, 0, 0], file_format


def test_orientation_6_turns_the_picture_right(photo: Image.Image):
    exif = Image.Exif()
    exif[274] = 6
    turned = decode_image(encode(photo, "PNG", exif=exif))
    assert np.array_equal(turned, np.rot90(np.asarray(photo), -1))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "JPEG2000", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_file_is_truncated(photo: Image.Image, file_format: str, share: float):
    data = encode(photo, file_format)
    assert decode_image(data).shape == (90, 120, 3)
    assert status_of(data[: int(len(data) * share)]) == "truncated"


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("JPEG", {"progressive": True}), ("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("AVIF", {})],
)
def test_a_file_whose_tail_was_never_written_is_truncated(photo: Image.Image, file_format: str, options: dict):
    data = encode(photo.resize((600, 450)), file_format, **options)
    half = data[: len(data) // 2]
    assert status_of(half + bytes(len(data) - len(half))) == "truncated"
    assert decode_image(data).shape == (450, 600, 3)


def test_the_end_marker_of_jpeg(photo: Image.Image):
    data = encode(photo, "JPEG")
    assert status_of(data[:-2]) == "truncated"
    assert decode_image(data + bytes(4096)).shape == (90, 120, 3)
    assert decode_image(data + b"trailer of a phone").shape == (90, 120, 3)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", "empty"),
        (b"hello, world", "not_image"),
        (bytes(1000), "not_image"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not_image"),
        (b'{"image": 1}', "not_image"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "unsupported"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported"),
        (b"%PDF-1.7", "unsupported"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported"),
        (b"8BPS\x00\x01", "unsupported"),
        (b"\xff\x0a\xfa\x1f", "unsupported"),
        (b"\xff\xd8\xff" + b"\x11" * 100, "corrupt"),
    ],
)
def test_what_is_no_picture(data: bytes, status: str):
    found = status_of(data)
    assert found == status or (status == "corrupt" and found == "truncated")


def test_pixels_are_capped_before_decoding(photo: Image.Image):
    data = encode(photo, "PNG")
    assert status_of(data, max_pixels=90 * 120 - 1) == "too_large"
    assert decode_image(data, max_pixels=90 * 120).shape == (90, 120, 3)


def with_chunk(png: bytes, kind: bytes, data: bytes, *, before: bytes = b"IDAT") -> bytes:
    """Put a chunk into a PNG."""
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    place = png.index(before) - 4
    return png[:place] + chunk + png[place:]


def text_chunk(kind: bytes, num_bytes: int) -> bytes:
    packed = zlib.compress(b"x" * num_bytes, 9)
    return {b"iTXt": b"key\0\1\0en\0key\0", b"zTXt": b"key\0\0", b"iCCP": b"name\0\0"}[kind] + packed


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(("kind", "num_bytes"), [(b"zTXt", 2 << 20), (b"iTXt", 2 << 20), (b"iCCP", 3 << 19)])
def test_long_texts_and_profiles_of_a_png_are_no_damage(photo: Image.Image, kind: bytes, num_bytes: int, before: bytes):
    png = encode(photo, "PNG")
    data = with_chunk(png, kind, text_chunk(kind, num_bytes), before=before)
    assert np.array_equal(decode_image(data), decode_image(png))


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_text_that_unpacks_to_more_than_the_limit_is_refused(photo: Image.Image, kind: bytes, before: bytes):
    bomb = text_chunk(kind, MAX_TEXT_BYTES + 1)
    assert len(bomb) < 100_000
    assert status_of(with_chunk(encode(photo, "PNG"), kind, bomb, before=before)) == "too_large"


def test_texts_of_a_png_are_bounded_together(photo: Image.Image):
    data = encode(photo, "PNG")
    for _ in range(5):
        data = with_chunk(data, b"zTXt", text_chunk(b"zTXt", MAX_TEXT_BYTES // 4))
    assert status_of(data) == "too_large"


def test_damage_never_escapes_as_another_error(photo: Image.Image):
    rng = np.random.default_rng(7)
    for file_format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "ICO"):
        data = np.frombuffer(encode(photo.resize((48, 32)), file_format), np.uint8)
        for _ in range(30):
            damaged = data.copy()
            places = rng.integers(0, len(data), 4)
            damaged[places] = rng.integers(0, 256, 4)
            try:
                assert decode_image(damaged.tobytes(), max_pixels=10_000_000).ndim == 3
            except ImageError as error:
                assert error.status in STATUSES


def test_rgb_array_takes_pil_images_of_any_mode(photo: Image.Image):
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"):
        image = photo.convert("L").convert(mode) if mode in ("I;16", "PA") else photo.convert(mode)
        assert rgb_array(image).shape == (90, 120, 3), mode
