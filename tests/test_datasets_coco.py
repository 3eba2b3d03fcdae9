"""COCO, LVIS and SA-1B JSON, from hand-made data sets and against pycocotools' own reading."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from effsam2_ray.datasets import AnnotationError, open_dataset
from effsam2_ray.datasets.segmentation import segmentation_rle
from effsam2_ray.errors import InputError, MaskError
from effsam2_ray.rle import encode

SIZE_WH = (8, 6)


def picture(path: Path, size_wh: tuple[int, int] = SIZE_WH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_wh, (90, 120, 60)).save(path)


def image(identifier: Any, name: str, size_wh: tuple[int, int] = SIZE_WH, **more: Any) -> dict[str, Any]:
    return {"id": identifier, "file_name": name, "width": size_wh[0], "height": size_wh[1], **more}


def box(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def write(path: Path, images: list[dict], annotations: list[dict], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, **more}))
    return path


def test_polygons_and_both_rles_are_read_and_crowds_are_no_objects(tmp_path: Path):
    picture(tmp_path / "images" / "a.png")
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:5] = True
    packed = encode(mask[None])[0].to_coco()
    runs = coco_mask.frPyObjects({"size": [6, 8], "counts": [13, 2, 4, 2, 4, 2, 21]}, 6, 8)
    assert coco_mask.decode(runs).astype(bool).tolist() == mask.tolist()
    annotations = [
        {"id": 11, "image_id": 5, "segmentation": box(2, 1, 3, 2), "area": 6.5, "iscrowd": 0},
        {"id": 12, "image_id": 5, "segmentation": packed},
        {
            "id": 13,
            "image_id": 5,
            "segmentation": {"size": [6, 8], "counts": [13, 2, 4, 2, 4, 2, 21]},
            "area": 6,
            "iscrowd": 1,
        },
    ]
    write(tmp_path / "annotations.json", [image(5, "a.png")], annotations)
    truth = open_dataset(str(tmp_path))
    assert (truth.format, truth.name, truth.missing, truth.notes) == ("coco", tmp_path.name, (), ())
    assert truth.image_uris == (f"file://{tmp_path}/images/a.png",)
    found = truth.objects(truth.image_uris[0])
    assert found.size_hw == (6, 8) and not found.single_object and found.void is None
    (objects,) = found.annotators
    assert objects.ids == ("11", "12") and objects.areas == (6.5, 6.0)
    assert [m.to_array().tolist() for m in (*objects.masks, *found.crowds)] == [mask.tolist()] * 3


def test_a_picture_without_annotations_has_no_objects(tmp_path: Path):
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "annotations.json", [image(5, "a.png")], [])
    truth = open_dataset(str(tmp_path))
    assert truth.objects(truth.image_uris[0]).num_objects == 0


def test_cocos_own_layout_finds_the_split_that_the_file_is_named_after(tmp_path: Path):
    for folder in ("train2017", "val2017"):
        picture(tmp_path / folder / "1.png")
    picture(tmp_path / "val2017" / "2.png")
    path = write(
        tmp_path / "annotations" / "instances_val2017.json",
        [image(2, "2.png"), image(1, "1.png")],
        [{"id": 1, "image_id": 1, "segmentation": box(0, 0, 2, 2)}],
    )
    write(tmp_path / "annotations" / "captions_val2017.json", [image(1, "1.png")], [{"image_id": 1, "caption": "a"}])
    for uri in (path, tmp_path):  # the folder's only instances_*.json
        truth = open_dataset(str(uri))
        assert [uri.rpartition("/")[0].rpartition("/")[2] for uri in truth.image_uris] == ["val2017", "val2017"]
    assert open_dataset(str(path)).name == "instances_val2017"


def test_several_json_files_and_several_places_are_asked_about(tmp_path: Path):
    picture(tmp_path / "x" / "1.png")
    picture(tmp_path / "y" / "1.png")
    for name in ("a.json", "b.json"):
        write(tmp_path / name, [image(1, "1.png")], [])
    with pytest.raises(InputError, match=r"give the JSON file .* several: a.json, b.json"):
        open_dataset(str(tmp_path))
    with pytest.raises(InputError, match=r"1.png may be x/1.png or y/1.png"):
        open_dataset(str(tmp_path / "a.json"))
    truth = open_dataset(str(tmp_path / "a.json"), images=str(tmp_path / "y"))
    assert truth.image_uris == (f"file://{tmp_path}/y/1.png",)


def test_a_json_named_after_its_set_beside_folders_of_pictures_and_masks(tmp_path: Path):
    """SIP, ILSO1K and SOC are passed around so: instances in JSON beside RGB/ and GT/."""
    picture(tmp_path / "RGB" / "1.jpg")
    picture(tmp_path / "GT" / "1.png")
    picture(tmp_path / "depth" / "1.png")
    write(tmp_path / "SIP.json", [image(1, "1.jpg")], [{"id": 1, "image_id": 1, "segmentation": box(0, 0, 2, 2)}])
    truth = open_dataset(str(tmp_path))
    assert truth.format == "coco" and truth.image_uris == (f"file://{tmp_path}/RGB/1.jpg",)


def test_folders_in_file_names_may_be_cut_off_or_kept(tmp_path: Path):
    picture(tmp_path / "images" / "a" / "1.png")
    picture(tmp_path / "images" / "b" / "1.png")
    picture(tmp_path / "images" / "7.png")
    images = [image(1, "a/1.png"), image(2, "b/1.png"), image(3, "JPEGImages/7.png"), image(4, "c/1.png")]
    write(tmp_path / "annotations.json", images, [])
    truth = open_dataset(str(tmp_path))
    assert [uri.partition("/images/")[2] for uri in truth.image_uris] == ["7.png", "a/1.png", "b/1.png"]
    assert truth.missing == ("c/1.png",)  # the other 1.png are other pictures


def test_missing_pictures_are_listed_and_all_missing_is_an_error(tmp_path: Path):
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "annotations.json", [image(1, "a.png"), image(2, "gone.png")], [])
    assert open_dataset(str(tmp_path)).missing == ("gone.png",)
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(InputError, match=r"no picture that .* has annotations of is there; e.g. a.png, gone.png"):
        open_dataset(str(tmp_path))


def test_lvis_pictures_are_found_by_coco_url_and_the_set_is_federated(tmp_path: Path):
    picture(tmp_path / "images" / "val2017" / "000000000009.jpg")
    picture(tmp_path / "images" / "000000000025.jpg")
    federated = {"neg_category_ids": [3], "not_exhaustive_category_ids": [7]}
    v1 = {"id": 9, "width": 8, "height": 6, "coco_url": "http://images.cocodataset.org/val2017/000000000009.jpg"}
    v05 = image(25, "COCO_val2014_000000000025.jpg", coco_url="http://images.cocodataset.org/val2017/000000000025.jpg")
    annotations = [{"id": 1, "image_id": 9, "category_id": 7, "segmentation": box(0, 0, 2, 2), "area": 4.0}]
    write(tmp_path / "lvis.json", [{**v1, **federated}, {**v05, **federated}], annotations)
    truth = open_dataset(str(tmp_path))
    assert truth.federated and not truth.missing
    assert [truth.objects(uri).num_objects for uri in truth.image_uris] == [0, 1]


def load_one(tmp_path: Path, annotation: dict[str, Any], size_wh: tuple[int, int] = SIZE_WH) -> Any:
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "annotations.json", [image(1, "a.png", size_wh)], [{"id": 77, "image_id": 1, **annotation}])
    truth = open_dataset(str(tmp_path))
    return truth.objects(truth.image_uris[0])


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (box(20, 1, 3, 3), r"lies outside the picture of 8 x 6 pixels: x 20.0 to 23.0, y 1.0 to 4.0"),
        (box(-9, 1, 3, 3), "lies outside the picture"),
        (box(1, 1, 15, 3), r"reaches 8.0 pixels out of the picture of 8 x 6: x 1.0 to 16.0"),
        ([[0, 0, 3, 3]], "no polygon of three points or more"),
        ([], "no polygon of three points or more"),
        ([[0, 0, 3, 0, 3]], "flat list of x, y pairs"),
        ([[0, 0, 3, 0, 3, float("nan")]], "all of them finite"),
        ([[[0, 0], [3, 0], [3, 3]]], "flat list of x, y pairs"),
        ([[0, 0, 3, 0, 3, "b"]], "flat list of numbers"),
        (None, "must be polygons or an RLE; got NoneType"),
        ({"size": [8, 6], "counts": [48]}, r"the RLE is of 6 x 8 pixels .* the annotated picture 8 x 6"),
        ({"size": [6, 8], "counts": [40]}, r"sum to 6 \* 8 = 48 pixels; got a sum of 40"),
        ({"size": [6, 8], "counts": [50, -2]}, "must be 0 or more"),
        ({"size": [6, 8], "counts": "0"}, "runs must sum to"),
        ({"size": [6, 8]}, "counts"),
        ({"counts": [48]}, "needs size"),
    ],
)
def test_a_wrong_annotation_is_an_error_of_its_picture_that_names_both(tmp_path: Path, segmentation, message: str):
    with pytest.raises(AnnotationError, match=f"images/a.png, annotation 77: .*{message}") as caught:
        load_one(tmp_path, {"segmentation": segmentation})
    assert caught.value.image_uri == f"file://{tmp_path}/images/a.png" and caught.value.annotation_id == "77"


def test_a_polygon_a_little_over_the_border_is_clipped(tmp_path: Path):
    found = load_one(tmp_path, {"segmentation": box(-2, -1, 5, 4)})
    expected = np.zeros((6, 8), bool)
    expected[:3, :3] = True
    assert found.annotators[0].masks[0].to_array().tolist() == expected.tolist()


def test_a_degenerate_polygon_beside_a_good_one_is_passed_over(tmp_path: Path):
    found = load_one(tmp_path, {"segmentation": [[0, 0, 1, 1], *box(2, 2, 2, 2)]})
    assert found.annotators[0].masks[0].area == 4


def test_an_object_smaller_than_a_pixel_stays_an_object(tmp_path: Path):
    found = load_one(tmp_path, {"segmentation": box(2.1, 2.1, 0.2, 0.2), "area": 0.04})
    assert found.annotators[0].areas == (0.04,) and found.num_objects == 1


def test_annotations_of_another_size_are_an_error_of_the_picture(tmp_path: Path):
    with pytest.raises(
        AnnotationError, match=r"for a picture of 16 x 12 pixels \(width x height\), the picture is 8 x 6"
    ):
        load_one(tmp_path, {"segmentation": box(0, 0, 2, 2)}, size_wh=(16, 12))


def test_a_picture_that_is_none_is_an_error_of_the_picture(tmp_path: Path):
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.png").write_bytes(b"no picture")
    write(tmp_path / "annotations.json", [image(1, "a.png")], [])
    truth = open_dataset(str(tmp_path))
    with pytest.raises(AnnotationError, match=r"a.png: the picture cannot be read: UnidentifiedImageError"):
        truth.objects(truth.image_uris[0])
    data = io.BytesIO()
    Image.new("RGB", SIZE_WH).save(data, "PNG")
    assert truth.records[0].load(image_bytes=data.getvalue()).size_hw == (6, 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "must hold a JSON object; got a list"),
        ('{"images": []}', "needs the lists `images` and `annotations`; has images"),
        ('{"images": [], "annotations": [{"image_id": 1, "caption": "a cat"}]}', "has a `segmentation`"),
        ('{"images": [{"file_name": "a.png"}], "annotations": []}', "every image needs an `id`"),
        ('{"images": [], "annotations": [{"segmentation": []}]}', "every annotation an `image_id`"),
        ('{"images": [{"id": [1], "file_name": "a.png"}], "annotations": []}', "every image needs an `id`"),
        ('{"images": [{"id": 1}], "annotations": []}', "image 1 has neither `file_name` nor `coco_url`"),
        (
            '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}], "annotations": []}',
            "more than one image with the id 1",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "x/a.png"}], "annotations": []}',
            None,
        ),
        (
            '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "images/a.png"}], "annotations": []}',
            "two images are the same file, images/a.png",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": "1", "segmentation": []}]}',
            "no annotation .* belongs to one of its images, e.g. image_id '1'",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a.png", "height": "x", "width": 3}], "annotations": []}',
            "needs a height and width",
        ),
    ],
)
def test_a_json_that_is_not_cocos_is_refused_when_it_is_opened(tmp_path: Path, content: str, message: str | None):
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "annotations.json").write_text(content)
    if message is None:
        assert open_dataset(str(tmp_path)).missing == ("x/a.png",)
        return
    with pytest.raises(InputError, match=message):
        open_dataset(str(tmp_path))


def test_stray_annotations_are_noted(tmp_path: Path):
    picture(tmp_path / "images" / "a.png")
    annotations = [{"id": n, "image_id": n, "segmentation": box(0, 0, 2, 2)} for n in (1, 2, 3)]
    write(tmp_path / "annotations.json", [image(1, "a.png")], annotations)
    truth = open_dataset(str(tmp_path))
    assert truth.notes == ("2 annotations are of pictures that the JSON does not list; they are left out.",)


def test_records_and_data_sets_can_be_sent_to_workers(tmp_path: Path):
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    annotations = [
        {"id": n, "image_id": 1 + n % 2, "segmentation": box(0, 0, 2, 2), "keypoints": [1]} for n in range(4)
    ]
    write(tmp_path / "annotations.json", [image(2, "b.png"), image(1, "a.png")], annotations)
    truth = open_dataset(str(tmp_path))
    assert [record.image_uri[-5:] for record in truth.limited(1).records] == ["a.png"]
    again = pickle.loads(pickle.dumps(truth))
    assert again.image_uris == truth.image_uris
    record = pickle.loads(pickle.dumps(truth.records[1]))
    assert record.load() == truth.objects(truth.image_uris[1]) == again.objects(again.image_uris[1])
    assert b"keypoints" not in record.annotations
    with pytest.raises(InputError, match="has no annotations of memory:///c.png"):
        truth.objects("memory:///c.png")


def test_segmentations_equal_pycocotools_own_reading():
    rng = np.random.default_rng(0)
    truth = COCO()
    truth.imgs = {1: {"height": 40, "width": 60}}
    for _ in range(30):
        corners = rng.uniform([0, 0], [60, 40], (rng.integers(3, 9), 2)).ravel().tolist()
        annotation = {"image_id": 1, "segmentation": [corners, box(3, 4, 5.5, 6.5)[0]]}
        rle = segmentation_rle(annotation["segmentation"], (40, 60))
        assert rle.to_array().tolist() == truth.annToMask(annotation).astype(bool).tolist()
    with pytest.raises(MaskError, match="must be polygons or an RLE; got str"):
        segmentation_rle("abc", (40, 60))


def sa1b_json(path: Path, size_wh: tuple[int, int] = SIZE_WH) -> None:
    mask = np.zeros((size_wh[1], size_wh[0]), bool)
    mask[1:3, 2:5] = True
    record = {"segmentation": encode(mask[None])[0].to_coco(), "area": 6, "id": 42, "predicted_iou": 0.9}
    about = {"image_id": 1, "width": size_wh[0], "height": size_wh[1], "file_name": f"{path.stem}.jpg"}
    path.write_text(json.dumps({"image": about, "annotations": [record]}))


def test_sa1b_has_one_json_beside_each_picture(tmp_path: Path):
    for name in ("sa_1", "sa_2"):
        picture(tmp_path / "sa_000000" / f"{name}.jpg")
        sa1b_json(tmp_path / "sa_000000" / f"{name}.json")
    sa1b_json(tmp_path / "sa_000000" / "sa_3.json")
    truth = open_dataset(str(tmp_path))
    assert truth.format == "sa1b" and len(truth.records) == 2
    assert truth.missing == (f"file://{tmp_path}/sa_000000/sa_3.jpg",)
    found = truth.objects(truth.image_uris[1])
    assert found.annotators[0].ids == ("42",) and found.annotators[0].masks[0].area == 6


def test_sa1b_errors_name_the_file(tmp_path: Path):
    picture(tmp_path / "sa_1.jpg")
    sa1b_json(tmp_path / "sa_1.json", (12, 12))
    truth = open_dataset(str(tmp_path))
    with pytest.raises(AnnotationError, match="for a picture of 12 x 12 pixels"):
        truth.objects(truth.image_uris[0])
    (tmp_path / "sa_1.json").write_text('{"image": {}, "annotations": []}')
    with pytest.raises(AnnotationError, match=r"sa_1.json is no SA-1B JSON \(KeyError: 'height'\)"):
        truth.objects(truth.image_uris[0])
    (tmp_path / "sa_1.json").unlink()
    with pytest.raises(AnnotationError, match=r"cannot read .*sa_1.json: missing"):
        truth.objects(truth.image_uris[0])
    (tmp_path / "sa_1.json").write_text('{"version": "4.0", "shapes": []}')
    with pytest.raises(InputError, match=r"is no SA-1B JSON: .* has shapes, version. Other forms \(labelme\)"):
        open_dataset(str(tmp_path))
    with pytest.raises(InputError, match="lies beside a picture of the same name"):
        (tmp_path / "sa_1.json").rename(tmp_path / "other.json")
        open_dataset(str(tmp_path), format="sa1b")
