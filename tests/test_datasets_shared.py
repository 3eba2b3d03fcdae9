"""Every sample of ../shared/data, against the counts that its README states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from effsam2_ray.datasets import open_dataset
from effsam2_ray.errors import InputError
from effsam2_ray.images import decode_image


@pytest.mark.parametrize(
    ("name", "format", "read_as", "num_images", "num_objects", "num_crowds", "num_annotators", "num_single"),
    [
        ("coco_val2017", None, "coco", 88, 795, 11, 88, 0),
        ("lvis_v0.5_val", None, "coco", 5, 48, 0, 5, 0),
        ("sod", None, "masks", 41, 41, 0, 41, 41),
        ("bsds500_test", None, "bsds", 27, 2694, 0, 143, 0),
        ("camouflage", None, "masks", 2, 2, 0, 2, 2),
        ("davis2016_car-shadow", None, "masks", 6, 6, 0, 6, 6),
        ("voc_labelme", None, "coco", 2, 9, 0, 2, 0),
        ("voc_labelme", "instances", "instances", 2, 9, 0, 2, 0),
        ("ochuman", None, "coco", 2, 3, 0, 2, 0),
        ("nuclei", None, "masks", 1, 125, 0, 1, 0),
    ],
)
def test_counts(shared_data, name, format, read_as, num_images, num_objects, num_crowds, num_annotators, num_single):
    truth = open_dataset(str(shared_data / name), format=format)
    assert (truth.format, truth.name, len(truth.records)) == (read_as, name, num_images)
    assert truth.missing == () and truth.notes == () and truth.federated == (name == "lvis_v0.5_val")
    found = [truth.objects(uri) for uri in truth.image_uris]
    assert sum(image.num_objects for image in found) == num_objects
    assert sum(len(image.crowds) for image in found) == num_crowds
    assert sum(len(image.annotators) for image in found) == num_annotators
    assert sum(image.single_object for image in found) == num_single
    for image in found:
        rles = [mask for annotator in image.annotators for mask in annotator.masks] + list(image.crowds)
        assert {mask.size for mask in rles} <= {image.size_hw}
        assert all(mask.area > 0 for mask in rles)
        assert image.size_hw == decode_image(Path(image.image_uri.removeprefix("file://")).read_bytes()).shape[:2]


@pytest.mark.parametrize("name", ["coco_val2017", "lvis_v0.5_val", "voc_labelme", "ochuman"])
def test_masks_equal_pycocotools_own_reading(shared_data, name, capsys):
    oracle = COCO(str(shared_data / name / "annotations.json"))
    truth = open_dataset(str(shared_data / name))
    for uri in truth.image_uris:
        image = truth.objects(uri)
        for objects in image.annotators:
            for identifier, mask, area in zip(objects.ids, objects.masks, objects.areas, strict=True):
                annotation = oracle.anns[int(identifier)]
                assert np.array_equal(mask.to_array(), oracle.annToMask(annotation).astype(bool))
                assert area == annotation["area"]


def test_bsds_regions_partition_every_segmentation(shared_data):
    truth = open_dataset(str(shared_data / "bsds500_test"))
    image = truth.objects(truth.image_uris[0])
    for annotator in image.annotators:
        assert sum(annotator.areas) == image.size_hw[0] * image.size_hw[1]


def test_palette_masks_and_polygons_of_the_same_objects_agree(shared_data):
    """labelme drew both from the same polygons; pycocotools rounds borders differently, so a few pixels differ."""
    polygons = open_dataset(str(shared_data / "voc_labelme"))
    palettes = open_dataset(str(shared_data / "voc_labelme"), format="instances")
    for uri in polygons.image_uris:
        drawn, painted = polygons.objects(uri).annotators[0], palettes.objects(uri).annotators[0]
        masks = [mask.to_array() for mask in drawn.masks]
        for mask in painted.masks:
            pixels = mask.to_array()
            assert max((pixels & other).sum() / (pixels | other).sum() for other in masks) > 0.9


def test_sa1b_record(shared_data, tmp_path):
    """The set holds the record without its picture, so a blank one stands in."""
    with pytest.raises(InputError, match="sa_3032002.json is an SA-1B JSON; its picture must lie beside it"):
        open_dataset(str(shared_data / "sa1b_format_only"))
    (path,) = (shared_data / "sa1b_format_only").glob("*.json")
    shutil.copy(path, tmp_path)
    record = json.loads(path.read_text())
    Image.new("RGB", (record["image"]["width"], record["image"]["height"])).save(tmp_path / f"{path.stem}.jpg")
    truth = open_dataset(str(tmp_path))
    image = truth.objects(truth.image_uris[0])
    assert truth.format == "sa1b" and image.size_hw == (1500, 2000)
    assert image.annotators[0].masks[0].area == record["annotations"][0]["area"] == 2381
    assert image.annotators[0].ids == (str(record["annotations"][0]["id"]),)


def test_16_bit_nuclei_keep_their_numbers(shared_data):
    truth = open_dataset(str(shared_data / "nuclei"))
    image = truth.objects(truth.image_uris[0])
    label_map = np.asarray(Image.open(shared_data / "nuclei" / "masks" / "img2d_512.tif"))
    numbers = [int(number) for number in image.annotators[0].ids]
    assert numbers == sorted(set(np.unique(label_map).tolist()) - {0})
    for number, mask in zip(numbers, image.annotators[0].masks, strict=True):
        assert np.array_equal(mask.to_array(), label_map == number)
