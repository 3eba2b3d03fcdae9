"""COCO JSON and LVIS (v0.5 and v1), which is COCO's with federated categories.

The file is parsed once, and each picture's annotations are kept as JSON text: a tenth of the memory of parsed polygons,
and cheap to send to a worker.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from effsam2_ray.datasets.files import Files, base_name, some, stem
from effsam2_ray.datasets.frames import fit_orientation, read_frame, upright_rles
from effsam2_ray.datasets.ground_truth import GroundTruth
from effsam2_ray.datasets.segmentation import segmentation_rle
from effsam2_ray.errors import InputError, MaskError
from effsam2_ray.metrics.truth import AnnotationError, ImageTruth, ObjectSet
from effsam2_ray.storage import StorageOptions, read_bytes
from effsam2_ray.uris import redact

_KEPT = ("id", "segmentation", "area", "iscrowd")


@dataclass(frozen=True)
class CocoRecord:
    """One picture and its annotations.

    Attributes:
        image_uri: canonical URI.
        annotated_hw: (height, width) that the annotations are for; None where the JSON does not say.
        annotations: JSON list of objects with `id`, `segmentation`, `area`, `iscrowd`.
    """

    image_uri: str
    annotated_hw: tuple[int, int] | None
    annotations: bytes

    def load(self, storage_options: StorageOptions = None, image_bytes: bytes | None = None) -> ImageTruth:
        """Return the objects and crowd regions; errors as `ImageRecord.load`."""
        return annotated_truth(
            self.image_uri, self.annotated_hw, json.loads(self.annotations), storage_options, image_bytes
        )


def annotated_truth(
    image_uri: str,
    annotated_hw: tuple[int, int] | None,
    annotations: list[Mapping[str, Any]],
    storage_options: StorageOptions,
    image_bytes: bytes | None,
) -> ImageTruth:
    """Return what COCO annotations say of a picture.

    Args:
        image_uri: the picture.
        annotated_hw: (height, width) that the annotations are for; None for the stored pixels.
        annotations: with `id`, `segmentation`, and optionally `area` and `iscrowd`.
        storage_options, image_bytes: as `ImageRecord.load`.

    Raises:
        AnnotationError: a segmentation is wrong, or sizes do not fit.
    """
    frame = read_frame(image_uri, storage_options, image_bytes)
    annotated_hw = annotated_hw or frame.stored_hw
    orientation = fit_orientation(image_uri, frame, annotated_hw)
    objects, areas, ids, crowds = [], [], [], []
    for annotation in annotations:
        identifier = str(annotation.get("id"))
        try:
            rle = segmentation_rle(annotation.get("segmentation"), annotated_hw)
            area = float(rle.area if annotation.get("area") is None else annotation["area"])
        except (MaskError, TypeError, ValueError) as error:
            raise AnnotationError(image_uri, str(error), identifier) from error
        if annotation.get("iscrowd"):
            crowds.append(rle)
            continue
        objects.append(rle)
        areas.append(area)
        ids.append(identifier)
    return ImageTruth(
        image_uri=image_uri,
        size_hw=frame.shown_hw,
        annotators=(ObjectSet(tuple(upright_rles(objects, orientation)), tuple(areas), tuple(ids)),),
        crowds=tuple(upright_rles(crowds, orientation)),
    )


def read_json(uri: str, storage_options: StorageOptions) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        InputError: it cannot be read, or is not one JSON object.
    """
    try:
        value = json.loads(read_bytes(uri, storage_options))
    except OSError as error:
        raise InputError(f"cannot read {redact(uri)}: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise InputError(f"{redact(uri)} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{redact(uri)} must hold a JSON object; got a {type(value).__name__}")
    return value


def open_coco(json_uri: str, pictures: Files, storage_options: StorageOptions, name: str) -> GroundTruth:
    """Return the data set of a COCO or LVIS JSON file.

    Args:
        json_uri: the file.
        pictures: the folder in which its pictures lie, at any depth.
        storage_options: for the file and later for pictures.
        name: for tables.

    Raises:
        InputError: the file is not COCO's, or names pictures twice.
    """
    data = read_json(json_uri, storage_options)
    shown = redact(json_uri)
    if {"image", "annotations"} <= set(data):
        raise InputError(f"{shown} is an SA-1B JSON; its picture must lie beside it, and the data set is their folder")
    images, annotations = data.get("images"), data.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise InputError(f"{shown} is no COCO JSON: it needs the lists `images` and `annotations`; has {some(data, 9)}")
    if annotations and not any(isinstance(item, dict) and "segmentation" in item for item in annotations):
        raise InputError(f"no annotation of {shown} has a `segmentation`; captions, boxes and panoptic JSON are no use")
    try:
        by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for item in annotations:
            by_image[item["image_id"]].append({key: item[key] for key in _KEPT if key in item})
        identifiers = [image["id"] for image in images]
        twice = [str(identifier) for identifier, count in Counter(identifiers).items() if count > 1]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{shown}: every image needs an `id`, every annotation an `image_id` ({type(error).__name__}: {error})"
        ) from error
    if twice:
        raise InputError(f"{shown} has more than one image with the id {some(twice)}")
    records, missing = _records(images, by_image, pictures, stem(json_uri), shown)
    notes = []
    strays = set(by_image) - set(identifiers)
    if strays:
        num = sum(len(by_image[stray]) for stray in strays)
        if num == len(annotations):
            raise InputError(
                f"no annotation of {shown} belongs to one of its images, e.g. image_id {next(iter(strays))!r}"
            )
        notes.append(f"{num} annotations are of pictures that the JSON does not list; they are left out.")
    return GroundTruth(
        name=name,
        format="coco",
        records=tuple(sorted(records, key=lambda record: record.image_uri)),
        missing=tuple(sorted(missing)),
        notes=tuple(notes),
        federated=any("neg_category_ids" in image for image in images),
        storage_options=storage_options,
    )


def _records(
    images: list[dict[str, Any]], by_image: Mapping[Any, list[dict[str, Any]]], pictures: Files, hint: str, shown: str
) -> tuple[list[CocoRecord], list[str]]:
    """Return the records of the pictures that are there, and the names of those that are not."""
    all_names = [_names(image) for image in images]
    bases = Counter(base for names in all_names for base in {base_name(name) for name in names})
    records: dict[str, CocoRecord] = {}
    missing = []
    for image, names in zip(images, all_names, strict=True):
        if not names:
            raise InputError(f"{shown}: image {image['id']} has neither `file_name` nor `coco_url`")
        places = (pictures.find_picture(name, hint, bases[base_name(name)] == 1) for name in names)
        found = next((place for place in places if place is not None), None)
        if found is None:
            missing.append(names[0])
            continue
        uri = pictures.uri(found)
        if uri in records:
            raise InputError(f"{shown}: two images are the same file, {found} (the second has id {image['id']})")
        records[uri] = CocoRecord(uri, _size_hw(image, shown), json.dumps(by_image.get(image["id"], [])).encode())
    return list(records.values()), missing


def _names(image: Mapping[str, Any]) -> list[str]:
    """Return the names that a picture may have; LVIS v1 has `coco_url` alone, v0.5 an outdated `file_name`."""
    names = [str(image["file_name"])] if image.get("file_name") else []
    if image.get("coco_url"):
        parts = urlsplit(str(image["coco_url"])).path.strip("/").split("/")
        names += ["/".join(parts[-2:]), parts[-1]]
    return names


def _size_hw(image: Mapping[str, Any], shown: str) -> tuple[int, int] | None:
    if image.get("height") is None or image.get("width") is None:
        return None
    try:
        return int(image["height"]), int(image["width"])
    except (TypeError, ValueError) as error:
        raise InputError(f"{shown}: image {image['id']} needs a height and width in pixels") from error
