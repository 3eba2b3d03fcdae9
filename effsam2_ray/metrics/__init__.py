"""Figures that compare predicted masks with known objects; every one is defined where it is computed."""

from effsam2_ray.metrics.average_recall import (
    AR_NAMES,
    AREA_RANGES,
    IOU_THRESHOLDS,
    MAX_DETS,
    RecallCounts,
    average_recall,
    image_recall,
    recall_counts,
)
from effsam2_ray.metrics.clusters import adjusted_rand_index, cluster_purity, patch_labels, truth_label_map
from effsam2_ray.metrics.image_scores import SCORE_COLUMNS, ImageScores, score_image
from effsam2_ray.metrics.intervals import Interval, bootstrap_difference, bootstrap_mean
from effsam2_ray.metrics.iou import (
    Masks,
    best_iou,
    coverage,
    iou_matrix,
    label_map_iou,
    object_masks,
    paint_label_map,
)
from effsam2_ray.metrics.single_object import SingleObjectScores, single_object_scores
from effsam2_ray.metrics.truth import AnnotationError, ImageTruth, ObjectSet

__all__ = [
    "AREA_RANGES",
    "AR_NAMES",
    "IOU_THRESHOLDS",
    "MAX_DETS",
    "SCORE_COLUMNS",
    "AnnotationError",
    "ImageScores",
    "ImageTruth",
    "Interval",
    "Masks",
    "ObjectSet",
    "RecallCounts",
    "SingleObjectScores",
    "adjusted_rand_index",
    "average_recall",
    "best_iou",
    "bootstrap_difference",
    "bootstrap_mean",
    "cluster_purity",
    "coverage",
    "image_recall",
    "iou_matrix",
    "label_map_iou",
    "object_masks",
    "paint_label_map",
    "patch_labels",
    "recall_counts",
    "score_image",
    "single_object_scores",
    "truth_label_map",
]
