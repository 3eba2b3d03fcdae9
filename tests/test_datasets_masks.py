"""Mask files of every kind, folder layouts as published, and BSDS."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from effsam2_ray.datasets import AnnotationError, open_dataset
from effsam2_ray.datasets.label_maps import decode_mask, mask_objects, open_mask
from effsam2_ray.errors import InputError, MaskError

LABELS = np.array([[0, 0, 1, 1, 1], [0, 2, 2, 1, 1], [0, 2, 2, 0, 9]], np.uint8)
BINARY = LABELS == 1


def saved(image: Image.Image, suffix: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, {"png": "PNG", "tif": "TIFF", "jpg": "JPEG", "bmp": "BMP"}[suffix], **options)
    return file.getvalue()


def palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values.astype(np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([(37 * n + k) % 256 for n in range(256) for k in (0, 11, 101)])
    return image


def read(data: bytes, kind="auto"):
    return mask_objects(decode_mask(open_mask(data)), kind)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(BINARY),  # 1-bit
        Image.fromarray(BINARY.astype(np.uint8)),
        Image.fromarray(BINARY.astype(np.uint8) * 255),
        Image.fromarray(BINARY.astype(np.uint8) * 128),
        palette(BINARY * 255),
        Image.fromarray(np.repeat(BINARY[..., None] * 255, 3, axis=2).astype(np.uint8)),
        Image.fromarray(np.stack([BINARY * 255] * 3 + [BINARY * 0 + 255], axis=2).astype(np.uint8)),
        Image.fromarray(np.stack([BINARY * 255, BINARY * 0 + 255], axis=2).astype(np.uint8), "LA"),
        Image.fromarray(BINARY.astype(np.uint16) * 65535),
    ],
    ids=["1-bit", "0/1", "0/255", "0/128", "palette 0/255", "rgb", "rgba", "grey-alpha", "16-bit 0/65535"],
)
def test_binary_masks_of_every_kind_are_one_object(image: Image.Image):
    found = read(saved(image))
    assert found.is_binary and found.void is None
    assert [mask.to_array().tolist() for mask in found.masks] == [BINARY.tolist()]


def test_soft_edges_are_cut_at_the_middle():
    soft = np.array([[0, 3, 127, 128, 255, 255], [0, 0, 60, 250, 255, 255]], np.uint8)
    found = read(saved(Image.fromarray(soft)))
    assert found.is_binary and found.masks[0].to_array().tolist() == (soft > 127).tolist()


def test_a_jpeg_is_a_soft_binary_mask_and_holds_no_labels():
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    for image in (Image.fromarray(mask), Image.fromarray(mask).convert("RGB")):
        data = saved(image, "jpg", quality=70)
        assert read(data).masks[0].to_array().tolist() == (mask > 0).tolist()
        with pytest.raises(MaskError, match="a JPEG cannot hold the numbers of objects"):
            read(data, "labels")


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.fromarray(LABELS)),
        saved(palette(LABELS)),
        saved(Image.fromarray(LABELS.astype(np.uint16))),
        saved(Image.fromarray(LABELS.astype(np.uint16)), "tif"),
        saved(Image.fromarray(LABELS.astype(np.int32)), "tif"),
        saved(Image.fromarray(LABELS.astype(np.float32)), "tif"),
    ],
    ids=["8-bit", "palette", "16-bit PNG", "16-bit TIFF", "32-bit TIFF", "float TIFF"],
)
def test_every_number_of_a_label_map_is_an_object(data: bytes):
    found = read(data)
    assert not found.is_binary and found.void is None and found.labels == (1, 2, 9)
    assert [mask.to_array().tolist() for mask in found.masks] == [(LABELS == n).tolist() for n in (1, 2, 9)]


def test_16_bit_numbers_are_not_cut_to_8_bits():
    labels = np.array([[0, 1, 257], [513, 257, 60000]], np.uint16)
    for suffix in ("png", "tif"):
        assert read(saved(Image.fromarray(labels), suffix)).labels == (1, 257, 513, 60000)


@pytest.mark.parametrize("make", [palette, lambda values: Image.fromarray(values.astype(np.uint8))])
def test_255_beside_labels_is_void(make):
    labels = LABELS.copy()
    labels[0, 0] = 255
    found = read(saved(make(labels)))
    assert found.labels == (1, 2, 9) and not found.is_binary
    assert found.void is not None and np.argwhere(found.void).tolist() == [[0, 0]]


def test_255_of_very_many_labels_is_an_object():
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = read(saved(Image.fromarray(labels)))
    assert found.labels == tuple(range(1, 256)) and found.void is None


def test_every_colour_but_black_is_an_object_and_vocs_border_colour_is_void():
    colours = np.array([[0, 0, 0], [200, 10, 10], [10, 200, 10], [224, 224, 192]], np.uint8)
    index = np.array([[0, 1, 1], [2, 3, 0]])
    found = read(saved(Image.fromarray(colours[index])))
    assert [mask.to_array().tolist() for mask in found.masks] == [(index == 2).tolist(), (index == 1).tolist()]
    assert found.void is not None and found.void.tolist() == (index == 3).tolist()


def test_what_a_file_is_taken_for_can_be_said():
    assert read(saved(Image.fromarray(LABELS)), "binary").masks[0].to_array().tolist() == (LABELS > 0).tolist()
    assert read(saved(palette(LABELS * 28)), "binary").masks[0].area == 10
    single = read(saved(Image.fromarray(BINARY.astype(np.uint8) * 255)), "labels")
    assert single.labels == (255,) and not single.is_binary and single.void is None


def test_an_empty_mask_holds_no_object():
    found = read(saved(Image.fromarray(np.zeros((3, 5), np.uint8))))
    assert found.masks == () and found.is_binary


def test_files_that_are_no_masks_are_refused():
    with pytest.raises(MaskError, match="cannot read the mask's header: UnidentifiedImageError"):
        open_mask(b"nothing")
    with pytest.raises(MaskError, match="whole numbers or colours; got colour mode F"):
        read(saved(Image.fromarray(np.full((3, 5), 0.5, np.float32)), "tif"))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    with pytest.raises(MaskError, match="cannot decode the mask"):
        read(saved(Image.fromarray(noise))[:900])


def put(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


PHOTO = Image.new("RGB", (5, 3), (9, 99, 200))
MASK = Image.fromarray(BINARY.astype(np.uint8) * 255)
INSTANCES = Image.fromarray(LABELS)


@pytest.mark.parametrize(
    ("image_name", "mask_name"),
    [
        ("images/a.jpg", "masks/a.png"),
        ("Imgs/a.jpg", "GT/a.png"),  # SOC, NC4K, ECSSD
        ("imgs/a.jpg", "gt/a.png"),  # ILSO1K
        ("RGB/a.jpg", "GT/a.png"),  # SIP
        ("Test/Image/a.jpg", "Test/GT_Object/a.png"),  # COD10K
        ("Images/Test/a.jpg", "GT/a.png"),  # CAMO
        ("DUTS-TE-Image/a.jpg", "DUTS-TE-Mask/a.png"),
        ("images/test/a.jpg", "ground_truth_mask/test/a.png"),
        ("images/a.jpg", "masks/a_mask.png"),
        ("images/b/a.jpg", "masks/b/a-GT.png"),
    ],
)
def test_published_layouts_of_single_object_sets(tmp_path: Path, image_name: str, mask_name: str):
    put(tmp_path / image_name, PHOTO)
    put(tmp_path / mask_name, MASK)
    for other in ("GT_Edge", "depth", "Edges"):
        put(tmp_path / other / "a.png", MASK)
    truth = open_dataset(str(tmp_path))
    assert (truth.format, truth.missing, truth.notes) == ("masks", (), ())
    assert truth.image_uris == (f"file://{tmp_path}/{image_name}",)
    found = truth.objects(truth.image_uris[0])
    assert found.single_object and found.size_hw == (3, 5)
    assert found.annotators[0].masks[0].to_array().tolist() == BINARY.tolist()
    assert found.annotators[0].areas == (5.0,)


def test_instance_masks_beside_object_masks_are_chosen_by_format(tmp_path: Path):
    for split in ("Train", "Test"):
        put(tmp_path / split / "Image" / "a.jpg", PHOTO)
        put(tmp_path / split / "GT_Object" / "a.png", MASK)
        put(tmp_path / split / "GT_Instance" / "a.png", INSTANCES)
    assert [open_dataset(str(tmp_path)).objects(uri).num_objects for uri in open_dataset(str(tmp_path)).image_uris] == [
        1,
        1,
    ]
    truth = open_dataset(str(tmp_path), format="instances")
    assert truth.format == "instances" and len(truth.records) == 2
    found = truth.objects(truth.image_uris[0])
    assert found.num_objects == 3 and not found.single_object and found.annotators[0].ids == ("1", "2", "9")


def test_socs_instance_folder_and_an_instance_folder_alone(tmp_path: Path):
    put(tmp_path / "Imgs" / "a.jpg", PHOTO)
    put(tmp_path / "Instance gt" / "a.png", INSTANCES)
    truth = open_dataset(str(tmp_path))
    assert truth.objects(truth.image_uris[0]).num_objects == 3


def test_voc_has_void_borders(tmp_path: Path):
    labels = LABELS.copy()
    labels[2, 3] = 255
    put(tmp_path / "JPEGImages" / "2007_1.jpg", PHOTO)
    put(tmp_path / "JPEGImages" / "2007_2.jpg", PHOTO)
    put(tmp_path / "SegmentationObject" / "2007_1.png", palette(labels))
    put(tmp_path / "SegmentationClass" / "2007_1.png", palette(BINARY))
    truth = open_dataset(str(tmp_path))
    assert truth.notes == ("1 pictures have no mask and are left out (JPEGImages/2007_2.jpg).",)
    found = truth.objects(truth.image_uris[0])
    assert found.num_objects == 3 and not found.single_object
    assert found.void is not None and np.argwhere(found.void.to_array()).tolist() == [[2, 3]]


def test_masks_may_lie_elsewhere_than_pictures(tmp_path: Path):
    put(tmp_path / "photos" / "deep" / "a.jpg", PHOTO)
    put(tmp_path / "truth" / "a.png", MASK)
    truth = open_dataset(str(tmp_path / "truth"), images=str(tmp_path / "photos"))
    assert truth.image_uris == (f"file://{tmp_path}/photos/deep/a.jpg",)
    assert truth.objects(truth.image_uris[0]).num_objects == 1


def test_masks_without_a_picture_are_missing_and_two_masks_of_one_are_an_error(tmp_path: Path):
    put(tmp_path / "images" / "a.jpg", PHOTO)
    put(tmp_path / "masks" / "a.png", MASK)
    put(tmp_path / "masks" / "b.png", MASK)
    assert open_dataset(str(tmp_path)).missing == ("masks/b.png",)
    put(tmp_path / "masks" / "a_mask.png", MASK)
    with pytest.raises(InputError, match="images/a.jpg has two masks, masks/a.png and masks/a_mask.png"):
        open_dataset(str(tmp_path))


def test_equal_names_in_several_folders_are_paired_by_folder(tmp_path: Path):
    for folder in ("b", "c"):
        put(tmp_path / "images" / folder / "a.jpg", PHOTO)
        put(tmp_path / "masks" / folder / "a_mask.png", MASK)
    truth = open_dataset(str(tmp_path))
    folders = [(record.image_uri.split("/")[-2], record.mask_uri.split("/")[-2]) for record in truth.records]
    assert folders == [("b", "b"), ("c", "c")]


def test_a_mask_of_another_size_or_damaged_is_an_error_of_its_picture(tmp_path: Path):
    put(tmp_path / "images" / "a.jpg", PHOTO)
    put(tmp_path / "masks" / "a.png", MASK.resize((10, 6)))
    truth = open_dataset(str(tmp_path))
    with pytest.raises(AnnotationError, match=r"a.jpg: the annotations are for a picture of 10 x 6 pixels"):
        truth.objects(truth.image_uris[0])
    (tmp_path / "masks" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(AnnotationError, match=r"a.jpg: mask file://.*masks/a.png: cannot read the mask's header"):
        truth.objects(truth.image_uris[0])
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(AnnotationError, match=r"cannot read .*masks/a.png: missing \(FileNotFoundError\)"):
        truth.objects(truth.image_uris[0])


def test_layouts_that_are_not_known_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="cannot list the folder"):
        open_dataset(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no file below"):
        open_dataset(str(tmp_path))
    put(tmp_path / "images" / "a.jpg", PHOTO)
    with pytest.raises(InputError, match=r"is no known data set: it needs .*; found images/a.jpg"):
        open_dataset(str(tmp_path))
    with pytest.raises(InputError, match=r"no folder of masks \(masks, GT, GT_Object, ...\)"):
        open_dataset(str(tmp_path), format="masks")
    with pytest.raises(InputError, match=r"give the JSON file .* found none"):
        open_dataset(str(tmp_path), format="coco")
    with pytest.raises(InputError, match="format must be one of coco, sa1b, bsds, masks, instances; got 'yolo'"):
        open_dataset(str(tmp_path), format="yolo")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a JSON file is read as format coco; got masks"):
        open_dataset(str(tmp_path / "a.json"), format="masks")


def write_mat(path: Path, *label_maps: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    people = np.empty((1, len(label_maps)), object)
    for person, label_map in enumerate(label_maps):
        people[0, person] = {"Segmentation": label_map, "Boundaries": label_map > 1}
    savemat(path, {"groundTruth": people})


def test_bsds_gives_each_persons_regions(tmp_path: Path):
    put(tmp_path / "images" / "test" / "12.jpg", PHOTO)
    halves = np.repeat([[1, 1, 1, 2, 2]], 3, axis=0).astype(np.uint16)
    write_mat(tmp_path / "groundTruth" / "test" / "12.mat", halves, LABELS.astype(np.uint16) + 1)
    write_mat(tmp_path / "groundTruth" / "test" / "13.mat", halves)
    truth = open_dataset(str(tmp_path))
    assert truth.format == "bsds" and truth.missing == ("13",)
    found = truth.objects(truth.image_uris[0])
    assert [annotator.ids for annotator in found.annotators] == [("0/1", "0/2"), ("1/1", "1/2", "1/3", "1/10")]
    assert found.annotators[0].areas == (9.0, 6.0) and not found.single_object
    assert found.annotators[1].masks[3].to_array().tolist() == (LABELS == 9).tolist()


def test_bsds_errors_are_of_the_picture(tmp_path: Path):
    put(tmp_path / "images" / "12.jpg", PHOTO)
    write_mat(tmp_path / "groundTruth" / "12.mat", np.ones((5, 3), np.uint16))
    truth = open_dataset(str(tmp_path))
    with pytest.raises(AnnotationError, match=r"for a picture of 3 x 5 pixels .*, the picture is 5 x 3"):
        truth.objects(truth.image_uris[0])
    savemat(tmp_path / "groundTruth" / "12.mat", {"other": 1})
    with pytest.raises(AnnotationError, match=r"12.mat is no BSDS file: it needs groundTruth\{k\}.Segmentation"):
        truth.objects(truth.image_uris[0])
    (tmp_path / "groundTruth" / "12.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(200))
    with pytest.raises(AnnotationError, match="12.mat is no BSDS file"):
        truth.objects(truth.image_uris[0])


def test_the_digest_changes_with_a_mask(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.png")
    Image.new("L", (8, 6), 255).save(tmp_path / "masks" / "a.png")
    first = open_dataset(str(tmp_path)).digest()
    assert open_dataset(str(tmp_path)).digest() == first
    Image.new("L", (8, 6), 1).save(tmp_path / "masks" / "a.png")
    assert open_dataset(str(tmp_path)).digest() != first
