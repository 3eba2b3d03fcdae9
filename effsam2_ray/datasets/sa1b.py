"""SA-1B: one JSON file a picture, beside it, with `image` and `annotations`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from effsam2_ray.datasets.coco import annotated_truth, read_json
from effsam2_ray.datasets.files import Files, read_file
from effsam2_ray.datasets.ground_truth import GroundTruth
from effsam2_ray.errors import InputError
from effsam2_ray.metrics.truth import AnnotationError, ImageTruth
from effsam2_ray.storage import StorageOptions
from effsam2_ray.uris import redact


@dataclass(frozen=True)
class Sa1bRecord:
    """One picture and its JSON file, which is read when it is asked for; `version` is that of the latter."""

    image_uri: str
    json_uri: str
    version: str

    def load(self, storage_options: StorageOptions = None, image_bytes: bytes | None = None) -> ImageTruth:
        """Return the objects; errors as `ImageRecord.load`."""
        where = redact(self.json_uri)
        try:
            data = json.loads(read_file(self.json_uri, storage_options, self.image_uri))
            size_hw = (int(data["image"]["height"]), int(data["image"]["width"]))
            annotations = list(data["annotations"])
        except (KeyError, TypeError, ValueError) as error:
            raise AnnotationError(
                self.image_uri, f"{where} is no SA-1B JSON ({type(error).__name__}: {error})"
            ) from error
        return annotated_truth(self.image_uri, size_hw, annotations, storage_options, image_bytes)


def pairs_beside(files: Files) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (picture, JSON) names that differ in their suffix only, and the JSON names without a picture."""
    by_path = {name.rpartition(".")[0]: name for name in files.pictures}
    pairs, alone = [], []
    for name in files.names:
        if name.lower().endswith(".json"):
            picture = by_path.get(name[: -len(".json")])
            if picture is None:
                alone.append(name)
            else:
                pairs.append((picture, name))
    return pairs, alone


def open_sa1b(files: Files, storage_options: StorageOptions, name: str) -> GroundTruth:
    """Return the data set of a folder of pictures and JSON files in SA-1B's form.

    Raises:
        InputError: no JSON file lies beside a picture, or the first is not SA-1B's.
    """
    pairs, alone = pairs_beside(files)
    if not pairs:
        raise InputError(f"no JSON file below {redact(files.root)} lies beside a picture of the same name")
    first = read_json(files.uri(pairs[0][1]), storage_options)
    if not {"image", "annotations"} <= set(first):
        raise InputError(
            f"{redact(files.uri(pairs[0][1]))} is no SA-1B JSON: it needs `image` and `annotations`; has "
            f"{', '.join(sorted(first)[:9])}. Other forms (labelme) must be turned into COCO JSON first"
        )
    records = (
        Sa1bRecord(files.uri(picture), files.uri(json_name), files.versions[json_name]) for picture, json_name in pairs
    )
    return GroundTruth(
        name=name,
        format="sa1b",
        records=tuple(sorted(records, key=lambda record: record.image_uri)),
        missing=tuple(f"{files.uri(json_name)[:-5]}.jpg" for json_name in alone),
        storage_options=storage_options,
    )
