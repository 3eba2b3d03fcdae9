"""Candidates to final masks: join or suppress, then filter. Needs no model and no picture."""

from __future__ import annotations

import time

from effsam2_ray.config import FilterSettings, MergeSettings
from effsam2_ray.filters import filter_masks
from effsam2_ray.merging import MergeResult, keep_all, merge_masks
from effsam2_ray.nms import box_nms
from effsam2_ray.results import ImageCandidates, LabelledImage


def finish(image: ImageCandidates | LabelledImage, merge: MergeSettings, limits: FilterSettings) -> LabelledImage:
    """Merge the candidates of one picture and filter what comes out.

    The filters act on the final masks, so no mask outside the limits is ever written; candidates stay as they were.
    What was merged before can be merged anew, with other settings.
    """
    start = time.perf_counter()
    merged = _combine(image, merge)
    kept = filter_masks(
        list(merged.masks),
        min_area=limits.min_area,
        max_area=limits.max_area,
        min_area_frac=limits.min_area_frac,
        max_area_frac=limits.max_area_frac,
        fill_holes_area=limits.fill_holes_area,
        remove_specks_area=limits.remove_specks_area,
        drop_border=limits.drop_border,
    )
    position = {mask.members: index for index, mask in enumerate(kept)}
    merged_into = tuple(
        -1 if target < 0 else position.get(merged.masks[target].members, -1) for target in merged.merged_into
    )
    step_s = {**image.step_s, "merge_s": time.perf_counter() - start}
    return LabelledImage(
        size_hw=image.size_hw,
        prompts=image.prompts,
        cluster_map=image.cluster_map,
        candidates=image.candidates,
        merged_into=merged_into,
        masks=tuple(kept),
        largest_share=merged.largest_share,
        step_s=step_s,
    )


def _combine(image: ImageCandidates | LabelledImage, merge: MergeSettings) -> MergeResult:
    candidates = list(image.candidates)
    if merge.method == "merge":
        return merge_masks(candidates, thresh=merge.thresh, max_area_frac=merge.max_area_frac)
    if merge.method == "nms":
        return box_nms(candidates, iou_thresh=merge.nms_iou_thresh)
    return keep_all(candidates)
