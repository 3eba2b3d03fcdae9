"""Decoder output to candidates: choose, score, upsample and encode, in the order that touches the fewest pixels.

A prompt's masks are chosen and dropped by predicted IoU while they are small; only the rest is upsampled, a few masks
at a time. On a GPU the runs are found there, so that a few kilobytes a mask leave it instead of megapixels.

The decisions are those of sam2's `SAM2AutomaticMaskGenerator`: predicted IoU above its threshold, stability score at or
above its own, a threshold of 0 is off, comparisons in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from effsam2_ray.errors import MaskError
from effsam2_ray.masks import Mask
from effsam2_ray.rle import Rle, areas, boxes, encode, encode_changes

Upsample = Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]

# Float32 logits in one chunk. On a CPU more than this takes twice as long: the memory is mapped anew for each chunk.
_CPU_CHUNK_BYTES = 16 << 20
_DEVICE_CHUNK_BYTES = 512 << 20


@torch.inference_mode()
def select_candidates(
    low_res_logits: torch.Tensor,
    predicted_iou: torch.Tensor,
    point_coords: np.ndarray | torch.Tensor,
    upsample: Upsample,
    *,
    size_hw: tuple[int, int],
    masks_per_prompt: Literal["best", "all"] = "best",
    pred_iou_thresh: float,
    stability_score_thresh: float,
    stability_score_offset: float = 1.0,
    stability_at: Literal["full", "low"] = "full",
    chunk_bytes: int | None = None,
) -> list[Mask]:
    """Return the masks of one picture that pass the score thresholds and are not empty, in (prompt, mask) order.

    Args:
        low_res_logits: (P, M, h, w) mask logits at the decoder's size, any floating dtype, any device.
        predicted_iou: (P, M).
        point_coords: (P, 2) as (x, y) in pixels of the picture.
        upsample: takes (n, h, w) float32 logits and `size_hw`; returns (n, H, W) in the picture's frame. What it makes
            on its way is its own to bound.
        size_hw: (H, W) of the picture in pixels.
        masks_per_prompt: `best` keeps the mask with the highest predicted IoU, the first of equals; `all` keeps M.
        pred_iou_thresh: a mask needs a predicted IoU above this; 0 is off.
        stability_score_thresh: a mask needs at least this stability score; 0 is off.
        stability_score_offset: shift of the logit cut-off, up and down.
        stability_at: `full` scores upsampled logits as SAM 2 does; `low` scores `low_res_logits`, padding included.
        chunk_bytes: most bytes of upsampled logits at once, but never less than one mask; other arrays take up to as
            much again. None takes 16 MiB on a CPU and 512 MiB elsewhere.

    Returns:
        Candidates; `members` of number i is (i,).

    Raises:
        MaskError: the shapes do not fit together.
    """
    if low_res_logits.ndim != 4 or predicted_iou.shape != low_res_logits.shape[:2]:
        shapes = f"{tuple(low_res_logits.shape)} and {tuple(predicted_iou.shape)}"
        raise MaskError(f"logits must be (P, M, h, w) and predicted_iou (P, M); got {shapes}")
    num_prompts, num_masks = predicted_iou.shape
    if tuple(point_coords.shape) != (num_prompts, 2):
        raise MaskError(f"point_coords must be ({num_prompts}, 2); got {tuple(point_coords.shape)}")
    index = _choose(predicted_iou, masks_per_prompt, pred_iou_thresh)
    scores = predicted_iou.float().flatten()[index]
    logits = low_res_logits.flatten(0, 1)
    low_stability = None
    if stability_at == "low":
        low_stability = stability_scores(logits[index].float(), stability_score_offset)
        keep = _passes(low_stability, stability_score_thresh)
        index, scores, low_stability = index[keep], scores[keep], low_stability[keep]

    chunk_size = masks_at_once(size_hw, logits.device, chunk_bytes)
    rles: list[Rle] = []
    kept: list[torch.Tensor] = []
    stabilities: list[torch.Tensor] = []
    for start in range(0, len(index), chunk_size):
        part = slice(start, start + chunk_size)
        full = upsample(logits[index[part]].float(), size_hw)
        if low_stability is None:
            stability = stability_scores(full, stability_score_offset)
            keep = _passes(stability, stability_score_thresh)
            full, stability = (full, stability) if bool(keep.all()) else (full[keep], stability[keep])
            kept.append(torch.arange(start, start + len(keep), device=keep.device)[keep])
        else:
            stability = low_stability[part]
            kept.append(torch.arange(start, start + len(stability), device=stability.device))
        stabilities.append(stability)
        rles += encode_logits(full)
    if not rles:
        return []
    chosen = torch.cat(kept)
    points = torch.as_tensor(point_coords).cpu()[index[chosen].cpu() // num_masks]
    return _to_masks(rles, scores[chosen].tolist(), torch.cat(stabilities).tolist(), points.tolist())


def masks_at_once(size_hw: tuple[int, int], device: torch.device, chunk_bytes: int | None = None) -> int:
    """Return how many masks of (H, W) float32 logits fit into one chunk, at least 1.

    Args:
        size_hw: (H, W).
        device: where the logits lie.
        chunk_bytes: size of a chunk; None takes 16 MiB on a CPU and 512 MiB elsewhere.
    """
    if chunk_bytes is None:
        chunk_bytes = _CPU_CHUNK_BYTES if device.type == "cpu" else _DEVICE_CHUNK_BYTES
    return max(1, chunk_bytes // (4 * size_hw[0] * size_hw[1]))


def stability_scores(mask_logits: torch.Tensor, offset: float) -> torch.Tensor:
    """Return the IoU of each mask cut at +offset with itself cut at -offset, (n,) float32 on the same device.

    Args:
        mask_logits: (n, H, W) float32.
        offset: 0 or more; the cut-offs lie this far from 0.

    Returns:
        Scores in [0, 1]; NaN, which passes no threshold but 0, where no logit is above -offset.
    """
    return _count_above(mask_logits, offset) / _count_above(mask_logits, -offset)


def encode_logits(mask_logits: torch.Tensor) -> list[Rle]:
    """Return the masks of the logits above 0.

    Args:
        mask_logits: (n, H, W) floating, any device.
    """
    if mask_logits.device.type == "cpu":
        return encode((mask_logits > 0).numpy())
    num_masks, height, width = mask_logits.shape
    changes = changes_on_device(mask_logits > 0).cpu().numpy()
    return encode_changes(changes, num_masks, (height, width))


def changes_on_device(masks: torch.Tensor) -> torch.Tensor:
    """Return where masks change in column order, as `rle.encode_changes` takes it, without leaving the device.

    Args:
        masks: (n, H, W) bool.

    Returns:
        (K,) int64, ascending.
    """
    columns = masks.transpose(1, 2).flatten(1)  # (n, W * H), a copy
    changed = columns.clone()
    changed[:, 1:] ^= columns[:, :-1]
    return changed.flatten().nonzero()[:, 0]


def _choose(predicted_iou: torch.Tensor, masks_per_prompt: str, pred_iou_thresh: float) -> torch.Tensor:
    """Return flat (prompt, mask) indices of the masks that pass, ascending."""
    scores = predicted_iou.float()
    num_prompts, num_masks = scores.shape
    if masks_per_prompt == "best" and num_prompts:
        best = scores.argmax(dim=1)
        index = torch.arange(num_prompts, device=scores.device) * num_masks + best
    else:
        index = torch.arange(num_prompts * num_masks, device=scores.device)
    if pred_iou_thresh > 0:
        index = index[scores.flatten()[index] > pred_iou_thresh]
    return index


def _passes(stability: torch.Tensor, thresh: float) -> torch.Tensor:
    return stability >= thresh if thresh > 0 else torch.ones_like(stability, dtype=torch.bool)


def _count_above(mask_logits: torch.Tensor, level: float) -> torch.Tensor:
    """Return the pixels above `level`, (n,) int32."""
    if mask_logits.device.type == "cpu":
        # Mask by mask in numpy, which counts bool without widening it: ten times as fast as torch's sum.
        counts = [np.count_nonzero(logits > level) for logits in mask_logits.numpy()]
        return torch.tensor(counts, dtype=torch.int32)
    return (mask_logits > level).sum(dim=(1, 2), dtype=torch.int32)


def _to_masks(rles: list[Rle], scores: list[float], stabilities: list[float], points: list[list[float]]) -> list[Mask]:
    masks: list[Mask] = []
    for rle, area, box, score, stability, point in zip(
        rles, areas(rles).tolist(), boxes(rles).tolist(), scores, stabilities, points, strict=True
    ):
        if area == 0:
            continue
        masks.append(
            Mask(
                segmentation=rle,
                area=area,
                bbox=(box[0], box[1], box[2], box[3]),
                predicted_iou=score,
                stability_score=stability,
                point_coords=((float(point[0]), float(point[1])),),
                members=(len(masks),),
            )
        )
    return masks
