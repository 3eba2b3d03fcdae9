"""Data sets on an object store and in memory."""

from __future__ import annotations

import io
import json

import fsspec
import numpy as np
import pytest
from object_store import ObjectStore, s3, s3_endpoint  # noqa: F401  fixtures
from PIL import Image
from scipy.io import savemat

from effsam2_ray.datasets import AnnotationError, open_dataset
from effsam2_ray.errors import InputError


def picture(mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (8, 6), 255 if mode == "L" else (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


COCO = json.dumps(
    {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
        "annotations": [{"id": 1, "image_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]}],
    }
).encode()


def test_every_format_is_read_from_an_object_store(s3: ObjectStore):  # noqa: F811
    s3.put("coco/images/a.png", picture())
    s3.put("coco/annotations.json", COCO)
    s3.put("masks/images/a.png", picture())
    s3.put("masks/masks/a.png", picture("L"))
    s3.put("bsds/images/a.png", picture())
    mat, people = io.BytesIO(), np.empty((1, 1), object)
    people[0, 0] = {"Segmentation": np.ones((6, 8), np.uint16)}
    savemat(mat, {"groundTruth": people})
    s3.put("bsds/groundTruth/a.mat", mat.getvalue())
    for name, format in (("coco", "coco"), ("masks", "masks"), ("bsds", "bsds")):
        truth = open_dataset(f"{s3.root}/{name}/", s3.options)
        assert truth.format == format and truth.name == name
        assert truth.image_uris == (f"{s3.root}/{name}/images/a.png",)
        assert truth.objects(truth.image_uris[0]).num_objects == 1
        assert truth.records[0].load(s3.options).size_hw == (6, 8)
        assert "secret" not in repr(truth)


def test_a_file_that_is_gone_since_is_an_error_of_its_picture(s3: ObjectStore):  # noqa: F811
    s3.put("images/a.png", picture())
    s3.put("masks/a.png", picture("L"))
    truth = open_dataset(s3.root, s3.options)
    s3._client().delete_object(Bucket=s3.root[5:], Key="masks/a.png")
    with pytest.raises(AnnotationError, match=r"images/a.png: cannot read s3://.*/masks/a.png: missing"):
        truth.objects(truth.image_uris[0])


def test_a_data_set_in_memory():
    fs = fsspec.filesystem("memory")
    fs.pipe("/truth/set/images/a.png", picture())
    fs.pipe("/truth/set/annotations.json", COCO)
    for uri in ("memory://truth/set", "memory://truth/set/annotations.json"):
        truth = open_dataset(uri)
        assert truth.image_uris == ("memory:///truth/set/images/a.png",) and truth.name == "set"
        assert truth.objects(truth.image_uris[0]).annotators[0].masks[0].area == 9
    with pytest.raises(InputError, match="memory:///truth/nothing"):
        open_dataset("memory://truth/nothing")
    with pytest.raises(InputError, match="cannot read memory:///truth/set/other.json: FileNotFoundError"):
        open_dataset("memory://truth/set/other.json")
