"""Our clustering, decoder, runs and whole labeller beside the packages that do the same, in turns in one process.

Each comparison first checks that both sides give the same answer, wherever the same answer is promised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import hdbscan
import numpy as np
import sklearn.cluster
import torch
from pycocotools import mask as coco_mask

from effsam2_ray.attention import CapturedHead
from effsam2_ray.benchmark.pictures import Picture
from effsam2_ray.benchmark.steps import label_picture
from effsam2_ray.benchmark.timing import Spread, interleave, ratios
from effsam2_ray.clustering import cluster_distances, cluster_tree
from effsam2_ray.distances import cosine_distances, unit_rows
from effsam2_ray.labeller import Labeller
from effsam2_ray.model.reference import grid_generator, image_predictor
from effsam2_ray.model.sam2 import Sam2Model
from effsam2_ray.prompts import grid_prompts
from effsam2_ray.rle import encode
from effsam2_ray.spanning_tree import spanning_tree

PRESETS = {"low_latency": (2, 10), "high_quality": (2, 5), "sam3d": (5, 40), "sam1": (2, 3)}
"""(min_samples, min_cluster_size) of the presets."""

GRID_PROMPTS = 32 * 32


@dataclass(frozen=True)
class Comparison:
    """One thing done several ways.

    Attributes:
        what: it is.
        seconds: of each way, for one picture or one batch of masks; the first is ours.
        ratio: how many times faster ours is than each other way.
        facts: numbers that belong to it, such as how many prompts there were.
    """

    what: str
    seconds: dict[str, Spread]
    ratio: dict[str, Spread]
    facts: dict[str, float]


def compare(
    what: str,
    functions: dict[str, Callable[[], Any]],
    rounds: int,
    limit_s: float,
    *,
    device: str = "cpu",
    **facts: float,
) -> Comparison:
    """Time functions in turns; the first is ours."""
    taken = interleave(functions, rounds, limit_s, device)
    ours, *others = taken
    return Comparison(
        what,
        {name: Spread.of(values) for name, values in taken.items()},
        {name: ratios(taken[name], taken[ours]) for name in others},
        facts,
    )


def compare_clustering(captured: CapturedHead, preset: str, rounds: int, limit_s: float) -> Comparison:
    """Time clustering from a given distance matrix to labels, on one core.

    The peers get their matrix in float64, converted beforehand.
    """
    min_samples, min_cluster_size = PRESETS[preset]
    distances = cosine_distances(unit_rows(captured.attention()))
    wide = distances.astype(np.float64)

    def ours() -> np.ndarray:
        return cluster_distances(distances, min_samples, min_cluster_size).labels

    def theirs() -> np.ndarray:
        model = hdbscan.HDBSCAN(min_samples=min_samples, min_cluster_size=min_cluster_size, metric="precomputed")
        labels: np.ndarray = model.fit(wide).labels_
        return labels

    def sklearns() -> None:
        # scikit-learn counts the point itself as a neighbour.
        sklearn.cluster.HDBSCAN(
            min_samples=min_samples + 1, min_cluster_size=min_cluster_size, metric="precomputed", copy=True
        ).fit(wide)

    labels = ours()
    equal = bool(np.array_equal(labels, theirs()))
    functions = {"effsam2_ray": ours, "hdbscan": theirs, "scikit-learn": sklearns}
    facts: dict[str, Any] = {
        "points": len(distances),
        "clusters": int(labels.max()) + 1,
        "equal_labels": float(equal),
    }
    return compare(f"clustering, {preset}", functions, rounds, limit_s, **facts)


def compare_presets_together(captured: CapturedHead, rounds: int, limit_s: float) -> Comparison:
    """Time all presets on one picture: one spanning tree for each `min_samples`, against one for each preset."""
    distances = cosine_distances(unit_rows(captured.attention()))

    def together() -> None:
        each_once = {min_samples for min_samples, _ in PRESETS.values()}
        trees = {min_samples: spanning_tree(distances, min_samples, 1e-5) for min_samples in each_once}
        for min_samples, min_cluster_size in PRESETS.values():
            cluster_tree(trees[min_samples], min_cluster_size)

    def one_by_one() -> None:
        for min_samples, min_cluster_size in PRESETS.values():
            cluster_distances(distances, min_samples, min_cluster_size)

    functions = {"trees shared": together, "one by one": one_by_one}
    return compare("four presets", functions, rounds, limit_s, points=len(distances))


def compare_distances(captured: CapturedHead, rounds: int, limit_s: float) -> Comparison:
    """Time the cosine product: the symmetric routine that is used, and torch's plain product."""
    rows = unit_rows(captured.attention())
    functions = {
        "effsam2_ray (one triangle)": lambda: cosine_distances(rows),
        "torch, plain product": lambda: rows @ rows.T,
    }
    return compare("cosine distances", functions, rounds, limit_s, points=len(rows))


def compare_rle(masks: np.ndarray, rounds: int, limit_s: float) -> Comparison:
    """Time the runs of (P, H, W) bool masks in C order, as they leave the decoder.

    pycocotools takes Fortran order only, so the copy is part of its time; the faster of two ways to make it counts.
    """

    def one_by_one() -> list[dict[str, Any]]:
        return [coco_mask.encode(np.asfortranarray(mask.view(np.uint8))) for mask in masks]

    def all_at_once() -> None:
        coco_mask.encode(np.asfortranarray(masks.view(np.uint8).transpose(1, 2, 0)))

    equal = [rle.counts for rle in encode(masks)] == [record["counts"] for record in one_by_one()]
    functions = {
        "effsam2_ray": lambda: encode(masks),
        "pycocotools": one_by_one,
        "pycocotools, stacked": all_at_once,
    }
    facts: dict[str, Any] = {
        "masks": len(masks),
        "height": masks.shape[1],
        "width": masks.shape[2],
        "equal_bytes": float(equal),
    }
    return compare("RLE", functions, rounds, limit_s, **facts)


def masks_for_rle(model: Sam2Model, picture: Picture, count: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Return `count` masks that the model makes of a picture, (count, H, W) bool in C order."""
    side = int(np.ceil(count**0.5))
    encoded = model.encode([picture.array], [])[0]
    points = grid_prompts(side, picture.size_hw).point_coords[:count]
    decoded = model.decode([(encoded, points)])[0]
    best = decoded.predicted_iou.argmax(dim=1)
    logits = decoded.low_res_logits[torch.arange(count, device=best.device), best]
    return np.stack([(model.upsample(one[None], size_hw)[0] > 0).cpu().numpy() for one in logits])


def compare_decoder(model: Sam2Model, picture: Picture, num_prompts: int, rounds: int, limit_s: float) -> Comparison:
    """Time decoding alone, points to logits at the decoder's size, against sam2's predictor on one cached embedding."""
    encoded = model.encode([picture.array], [])[0]
    points = grid_prompts(int(np.ceil(num_prompts**0.5)), picture.size_hw).point_coords[:num_prompts]
    predictor = image_predictor(model)
    predictor.set_image(picture.array)

    def stock(at_once: int) -> Callable[[], None]:
        def run() -> None:
            for start in range(0, len(points), at_once):
                part = predictor._transforms.transform_coords(
                    torch.as_tensor(points[start : start + at_once], device=model.device)[:, None],
                    normalize=True,
                    orig_hw=picture.size_hw,
                )
                _predict_low_res(predictor, part)

        return run

    functions: dict[str, Callable[[], Any]] = {
        "effsam2_ray": lambda: model.decode([(encoded, points)]),
        "sam2, 64 at once": stock(64),
        "sam2, 4 at once": stock(4),
    }
    for function in functions.values():
        function()
    return compare("prompt decode", functions, rounds, limit_s, device=str(model.device), prompts=len(points))


@torch.no_grad()
def _predict_low_res(predictor: Any, points: torch.Tensor) -> None:
    """Run the official prompt encoder and decoder, without upsampling, as `SAM2ImagePredictor._predict` does."""
    model, features = predictor.model, predictor._features
    labels = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
    sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)
    model.sam_mask_decoder(
        image_embeddings=features["image_embed"][-1][None],
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        repeat_image=True,
        high_res_features=[level[-1][None] for level in features["high_res_feats"]],
    )


def compare_end_to_end(
    labellers: dict[str, tuple[Labeller, int | None]],
    pictures: Sequence[Picture],
    points_per_batch: int,
    limit_s: float,
) -> dict[str, Comparison]:
    """Time whole pictures, bytes to final masks, against sam2's automatic generator with a 32 x 32 grid.

    One round a picture; each way is warm from a smaller run. Both sides have the same weights and score cut-offs.

    Args:
        labellers: by name a labeller and the number of prompts it is given (None: what it finds itself).
        pictures: each is done once by every side.
        points_per_batch: of the generator; 64 is its default.
        limit_s: no picture after the first begins later than this.
    """
    first = next(iter(labellers.values()))[0]
    decode, model = first.config.decode, first.model
    assert isinstance(model, Sam2Model) and decode.pred_iou_thresh is not None
    assert decode.stability_score_thresh is not None
    generator = partial(
        grid_generator,
        model,
        pred_iou_thresh=decode.pred_iou_thresh,
        stability_score_thresh=decode.stability_score_thresh,
    )
    generate = generator(points_per_batch=points_per_batch)
    generator(points_per_side=4)(pictures[0].array)
    for labeller, num_prompts in labellers.values():
        label_picture(labeller, pictures[0], num_prompts)
    peer_s: list[float] = []
    own_s: dict[str, list[float]] = {name: [] for name in labellers}
    num_prompts_found: dict[str, list[int]] = {name: [] for name in labellers}
    begin = time.perf_counter()
    for picture in pictures:
        if peer_s and time.perf_counter() - begin > limit_s:
            break
        for name, (labeller, num_prompts) in labellers.items():
            start = time.perf_counter()
            labelled = label_picture(labeller, picture, num_prompts)
            own_s[name].append(time.perf_counter() - start)
            num_prompts_found[name].append(len(labelled.prompts))
        start = time.perf_counter()
        generate(picture.array)
        peer_s.append(time.perf_counter() - start)
    peer = f"sam2, 32 x 32 grid, {points_per_batch} points a batch"
    return {
        name: Comparison(
            f"end to end, {name}",
            {"effsam2_ray": Spread.of(own_s[name]), peer: Spread.of(peer_s)},
            {peer: ratios(peer_s, own_s[name])},
            {
                "prompts": float(np.mean(num_prompts_found[name])),
                "ratio_per_prompt": float(
                    np.median(
                        [
                            (theirs / GRID_PROMPTS) / (ours / max(1, count))
                            for theirs, ours, count in zip(peer_s, own_s[name], num_prompts_found[name], strict=True)
                        ]
                    )
                ),
            },
        )
        for name in labellers
    }
