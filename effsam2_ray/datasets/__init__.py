"""Labelled data sets: what is known to be in pictures, read as it was published."""

from effsam2_ray.datasets.ground_truth import GroundTruth, ImageRecord
from effsam2_ray.datasets.opening import FORMATS, Format, open_dataset
from effsam2_ray.metrics.truth import AnnotationError, ImageTruth, ObjectSet

__all__ = [
    "FORMATS",
    "AnnotationError",
    "Format",
    "GroundTruth",
    "ImageRecord",
    "ImageTruth",
    "ObjectSet",
    "open_dataset",
]
