"""Figures about a model on pictures whose objects are known: single points, attention heads, whole methods."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import adjusted_rand_score

from effsam2_ray.cluster_prompts import cluster_prompts
from effsam2_ray.config import Config
from effsam2_ray.demo.scene_pool import interior_point
from effsam2_ray.demo.scenes import draw_scene, held_out_seed
from effsam2_ray.labeller import Labeller
from effsam2_ray.metrics import best_iou, label_map_iou, object_masks
from effsam2_ray.model.interface import Head, SegmentationModel
from effsam2_ray.postprocess import finish

# Objects of interest cover more than this share of their picture.
MIN_AREA_FRAC = 0.005


@dataclass(frozen=True)
class Picture:
    """A picture and its known objects.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        objects: (K, H, W) bool, at least one; they may overlap in photographs.
    """

    image: np.ndarray
    objects: np.ndarray


@dataclass(frozen=True)
class PointFigures:
    """One point at each object's most interior pixel; means over objects, IoU at full size.

    Attributes:
        num_objects: objects asked for.
        scored_iou: IoU of the mask with the highest predicted IoU.
        best_iou: highest IoU of the three masks.
        correlation: Pearson's, of predicted and true IoU over the best-scored masks.
        correlation_all: the same over all three masks.
    """

    num_objects: int
    scored_iou: float
    best_iou: float
    correlation: float
    correlation_all: float


@dataclass(frozen=True)
class MethodFigures:
    """One way to prompt, filter and merge; means over pictures.

    Attributes:
        method: what was run.
        num_prompts, num_masks: a picture.
        best_iou, label_map_iou: as `effsam2_ray.metrics` defines them, over objects of interest.
        seconds: a picture, from encoding to masks, without the filter and merge variants.
    """

    method: str
    num_prompts: float
    num_masks: float
    best_iou: float
    label_map_iou: float
    seconds: float


def held_out_pictures(num_scenes: int, size: int | tuple[int, int]) -> Iterator[Picture]:
    """Draw scenes that training never sees, those without an object of interest left out."""
    for index in range(num_scenes):
        scene = draw_scene(held_out_seed(index), size)
        objects = object_masks(scene.label_map, MIN_AREA_FRAC)
        if len(objects):
            yield Picture(scene.image, objects)


def measure_points(model: SegmentationModel, pictures: Sequence[Picture]) -> PointFigures:
    """Ask for every known object by its most interior pixel."""
    predicted, true = [], []
    for picture in pictures:
        points = np.array([interior_point(mask) for mask in picture.objects], np.float32)
        encoded = model.encode([picture.image], [])[0]
        decoded = model.decode([(encoded, points)])[0]
        for logits, mask in zip(decoded.low_res_logits, picture.objects, strict=True):
            masks = (model.upsample(logits, encoded.size_hw) > 0).cpu().numpy()  # (3, H, W)
            true.append((masks & mask).sum(axis=(1, 2)) / (masks | mask).sum(axis=(1, 2)))
        predicted.append(decoded.predicted_iou.cpu().numpy())
    scores, ious = np.concatenate(predicted), np.stack(true)  # (objects, 3)
    chosen = scores.argmax(axis=1)[:, None]
    scored_iou, top_score = np.take_along_axis(ious, chosen, 1), np.take_along_axis(scores, chosen, 1)
    return PointFigures(
        num_objects=len(ious),
        scored_iou=float(scored_iou.mean()),
        best_iou=float(ious.max(axis=1).mean()),
        correlation=_pearson(top_score, scored_iou),
        correlation_all=_pearson(scores, ious),
    )


def measure_heads(
    model: SegmentationModel, num_scenes: int, size: int, min_samples: int, min_cluster_size: int
) -> dict[Head, float]:
    """Return, for every head that can be captured, the mean adjusted Rand index of its clusters on held-out scenes.

    The clusters of the patches are compared with the label that most of each patch shows; noise is a cluster, the
    background a region.
    """
    heads = model.info.all_heads
    scores: dict[Head, list[float]] = {head: [] for head in heads}
    for index in range(num_scenes):
        scene = draw_scene(held_out_seed(index), size)
        encoded = model.encode([scene.image], heads)[0]
        for head in heads:
            captured = encoded.captured[head]
            truth = majority_labels(scene.label_map, captured.grid_hw)
            labels = cluster_prompts(captured, encoded.size_hw, min_samples, min_cluster_size).labels
            scores[head].append(float(adjusted_rand_score(truth.ravel(), labels.ravel())))
    return {head: float(np.mean(values)) for head, values in scores.items()}


def majority_labels(label_map: np.ndarray, grid_hw: tuple[int, int]) -> np.ndarray:
    """Return the most frequent label in each cell of a grid, (rows, columns); of equally frequent ones the lowest.

    Raises:
        ValueError: the grid does not divide the label map.
    """
    (height, width), (rows, columns) = label_map.shape, grid_hw
    if height % rows or width % columns:
        raise ValueError(f"a {rows} x {columns} grid does not divide a {height} x {width} label map")
    cells = label_map.reshape(rows, height // rows, columns, width // columns).transpose(0, 2, 1, 3)
    flat = cells.reshape(rows, columns, -1)
    return np.array([[np.bincount(cell).argmax() for cell in row] for row in flat])


def measure_method(
    model: SegmentationModel, name: str, config: Config, pictures: Sequence[Picture]
) -> list[MethodFigures]:
    """Run one configuration on pictures, with and without its score filters, with and without joining masks.

    Every prompt is decoded once; the variants are made from the candidates' scores.

    Returns:
        Four figures: filtered or not, then joined by the configuration's method or not.
    """
    labeller = Labeller(model, config)
    thresholds = labeller.config.decode
    assert thresholds.pred_iou_thresh is not None and thresholds.stability_score_thresh is not None
    everything = dataclasses.replace(
        config,
        decode=dataclasses.replace(config.decode, pred_iou_thresh=-1.0, stability_score_thresh=-1.0),
        merge=dataclasses.replace(config.merge, method="none"),
    )
    open_labeller = Labeller(model, everything)
    variants = [(filtered, joined) for filtered in (True, False) for joined in (True, False)]
    rows: dict[tuple[bool, bool], list[tuple[float, ...]]] = {variant: [] for variant in variants}
    for picture in pictures:
        start = time.perf_counter()
        image = open_labeller.label(picture.image)
        seconds = time.perf_counter() - start
        kept = tuple(
            mask
            for mask in image.candidates
            if mask.predicted_iou > thresholds.pred_iou_thresh
            and mask.stability_score >= thresholds.stability_score_thresh
        )
        for filtered, joined in variants:
            merge = config.merge if joined else dataclasses.replace(config.merge, method="none")
            candidates = tuple(
                dataclasses.replace(mask, members=(number,))
                for number, mask in enumerate(kept if filtered else image.candidates)
            )
            masks = finish(dataclasses.replace(image, candidates=candidates), merge, config.filter).masks
            rles = [mask.segmentation.to_coco() for mask in masks]
            scores = (best_iou(rles, picture.objects), label_map_iou(rles, picture.objects))
            rows[filtered, joined].append((len(image.prompts), len(masks), *scores, seconds))
    figures = []
    for filtered, joined in variants:
        label = (
            f"{name}, {'score filters' if filtered else 'no filter'}, {config.merge.method if joined else 'all kept'}"
        )
        means = [float(value) for value in np.mean(rows[filtered, joined], axis=0)]
        figures.append(MethodFigures(label, *means))
    return figures


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
