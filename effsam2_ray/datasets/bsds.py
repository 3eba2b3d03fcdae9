"""BSDS500: `groundTruth/*.mat`, several people's segmentations of each picture.

Every region of every person is an object: each person's regions are the ground truth once, and a picture's IoU is the
mean over people. All pixels belong to a region; there is no background.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from effsam2_ray.datasets.files import Files, read_file, stem
from effsam2_ray.datasets.frames import fit_orientation, read_frame, upright
from effsam2_ray.datasets.ground_truth import GroundTruth
from effsam2_ray.datasets.label_maps import label_objects
from effsam2_ray.metrics.truth import AnnotationError, ImageTruth, ObjectSet
from effsam2_ray.storage import StorageOptions
from effsam2_ray.uris import redact


@dataclass(frozen=True)
class BsdsRecord:
    """One picture and its MATLAB file; `version` is that of the latter."""

    image_uri: str
    mat_uri: str
    version: str

    def load(self, storage_options: StorageOptions = None, image_bytes: bytes | None = None) -> ImageTruth:
        """Return one set of objects a person; errors as `ImageRecord.load`."""
        frame = read_frame(self.image_uri, storage_options, image_bytes)
        annotators = []
        for person, label_map in enumerate(self._label_maps(storage_options)):
            size_hw = (int(label_map.shape[0]), int(label_map.shape[1]))
            label_map = upright(label_map, fit_orientation(self.image_uri, frame, size_hw))
            masks, labels = label_objects(label_map)
            areas = tuple(float(mask.area) for mask in masks)
            annotators.append(ObjectSet(masks, areas, tuple(f"{person}/{label}" for label in labels)))
        return ImageTruth(self.image_uri, frame.shown_hw, tuple(annotators))

    def _label_maps(self, storage_options: StorageOptions) -> list[np.ndarray]:
        from scipy.io import loadmat

        content = read_file(self.mat_uri, storage_options, self.image_uri)
        try:
            data = loadmat(io.BytesIO(content), variable_names=["groundTruth"])
            people = data["groundTruth"]
            maps = [np.asarray(people[0, person]["Segmentation"][0, 0]) for person in range(people.shape[1])]
        except Exception as error:  # a damaged file raises anything; MATLAB 7.3 files NotImplementedError
            raise AnnotationError(
                self.image_uri,
                f"{redact(self.mat_uri)} is no BSDS file: it needs groundTruth{{k}}.Segmentation "
                f"({type(error).__name__}: {error})",
            ) from error
        for label_map in maps:
            if label_map.ndim != 2 or not np.issubdtype(label_map.dtype, np.integer):
                raise AnnotationError(
                    self.image_uri, f"{redact(self.mat_uri)} needs 2-D label maps; got {label_map.shape}"
                )
        return maps


def open_bsds(files: Files, pictures: Files, storage_options: StorageOptions, name: str) -> GroundTruth:
    """Return the data set of a folder with `.mat` files and pictures of the same names."""
    by_stem = {stem(picture): picture for picture in pictures.pictures}
    records, missing = [], []
    for mat in (name for name in files.names if name.lower().endswith(".mat")):
        picture = by_stem.get(stem(mat))
        if picture is None:
            missing.append(stem(mat))
        else:
            records.append(BsdsRecord(pictures.uri(picture), files.uri(mat), files.versions[mat]))
    return GroundTruth(
        name=name,
        format="bsds",
        records=tuple(sorted(records, key=lambda record: record.image_uri)),
        missing=tuple(sorted(missing)),
        storage_options=storage_options,
    )
