"""A data set's URI -> the data set, its layout recognised."""

from __future__ import annotations

from typing import Literal, get_args

from effsam2_ray.datasets.bsds import open_bsds
from effsam2_ray.datasets.coco import open_coco
from effsam2_ray.datasets.files import Files, base_name, list_files, some, stem
from effsam2_ray.datasets.ground_truth import GroundTruth
from effsam2_ray.datasets.mask_folders import mask_roles, open_mask_folders
from effsam2_ray.datasets.sa1b import open_sa1b, pairs_beside
from effsam2_ray.errors import InputError
from effsam2_ray.storage import StorageOptions
from effsam2_ray.uris import canonical_uri, parent_uri, redact

Format = Literal["coco", "sa1b", "bsds", "masks", "instances"]
FORMATS: dict[str, str] = {
    "coco": "COCO or LVIS JSON, pictures below its folder",
    "sa1b": "SA-1B: one JSON a picture, beside it",
    "bsds": "BSDS500: groundTruth/*.mat",
    "masks": "images/ and masks/, one binary mask a picture",
    "instances": "images/ and masks/ or SegmentationObject/, every number (or colour) of a mask file an object",
}
"""How a data set can be read."""


def open_dataset(
    uri: str, storage_options: StorageOptions = None, format: Format | None = None, images: str | None = None
) -> GroundTruth:
    """Return a labelled data set; annotations are loaded picture by picture later.

    Without `format`, a JSON file is COCO's. Of a folder, the first of these decides: `annotations.json` (COCO), a JSON
    beside a picture of the same name (SA-1B), `.mat` files in a folder `groundTruth` (BSDS), a JSON file in the folder
    or in its `annotations/` (COCO; of several the one called `instances...`), folders of pictures and masks.

    Args:
        uri: a folder or a COCO JSON file, local or any fsspec URI.
        storage_options: for remote storage.
        format: one of `FORMATS`, instead of recognising it.
        images: folder of the pictures, where they do not lie below the folder of the annotations.

    Raises:
        InputError: the layout is not recognised, a file cannot be understood, or no annotated picture is there.
    """
    if format is not None and format not in get_args(Format):
        raise InputError(f"format must be one of {', '.join(FORMATS)}; got {format!r}")
    uri = canonical_uri(uri).rstrip("/")
    picture_files = list_files(images, storage_options) if images is not None else None
    if uri.lower().endswith(".json"):
        truth = _open_json(uri, picture_files, storage_options, format)
    else:
        files = list_files(uri, storage_options)
        truth = _open_folder(files, picture_files, storage_options, format)
    if not truth.records:
        raise InputError(
            f"no picture that {redact(uri)} has annotations of is there; e.g. {some(map(redact, truth.missing))}"
        )
    return truth


def _open_json(uri: str, images: Files | None, storage_options: StorageOptions, format: Format | None) -> GroundTruth:
    if format not in (None, "coco"):
        raise InputError(f"a JSON file is read as format coco; got {format} for {redact(uri)}")
    folder = parent_uri(uri)
    if base_name(folder) == "annotations":  # COCO's own layout: annotations/ beside val2017/
        folder = parent_uri(folder)
    name = base_name(folder) if stem(uri) == "annotations" else stem(uri)
    return open_coco(uri, images or list_files(folder, storage_options), storage_options, name)


def _open_folder(
    files: Files, images: Files | None, storage_options: StorageOptions, format: Format | None
) -> GroundTruth:
    name = base_name(files.root)
    chosen = format or _recognise(files, images)
    if chosen == "coco":
        return open_coco(files.uri(_coco_json(files)), images or files, storage_options, name)
    if chosen == "sa1b":
        return open_sa1b(files, storage_options, name)
    if chosen == "bsds":
        return open_bsds(files, images or files, storage_options, name)
    return open_mask_folders(files, images, format, storage_options, name)


def _recognise(files: Files, images: Files | None) -> Format:
    if "annotations.json" in files.names:
        return "coco"
    if pairs_beside(files)[0]:
        return "sa1b"
    if any(name.lower().endswith(".mat") and "groundtruth/" in name.lower() for name in files.names):
        return "bsds"
    if _json_names(files):
        return "coco"
    roles = mask_roles(files)
    if (images is not None and files.pictures) or (len(roles) > 1 and "image" in roles):
        return "masks"
    raise InputError(
        f"{redact(files.root)} is no known data set: it needs a COCO JSON, SA-1B JSON files beside the pictures, "
        f"groundTruth/*.mat, or folders of pictures and masks such as images/ and masks/; found {some(files.names)}"
    )


def _json_names(files: Files) -> list[str]:
    return [
        name
        for name in files.names
        if name.lower().endswith(".json") and name.rpartition("/")[0].lower() in ("", "annotations")
    ]


def _coco_json(files: Files) -> str:
    """Return the name of the folder's COCO JSON."""
    names = _json_names(files)
    if "annotations.json" in names:
        return "annotations.json"
    instances = [name for name in names if base_name(name).startswith("instances")]
    chosen = instances if len(instances) == 1 else names
    if len(chosen) != 1:
        found = f"several: {some(chosen, 5)}" if chosen else "none"
        raise InputError(f"give the JSON file of {redact(files.root)} that is meant; found {found}")
    return chosen[0]
