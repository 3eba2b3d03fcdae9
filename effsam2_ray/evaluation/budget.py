"""Equal prompts: methods compared as if each had asked the decoder the same number of questions about a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from effsam2_ray.prompts import Prompts
from effsam2_ray.results import ImageCandidates

QUANTILE = 0.25
"""The lowest quarter of the methods does not pull the others down: one without clusters would void all comparisons."""


def prompt_budget(num_prompts: Sequence[int]) -> int:
    """Return how many prompts of one picture every method may use: the lower quartile over the methods, at least 1.

    With up to four methods it is the smallest number. Of more, three quarters have as many or more and are cut to it;
    the rest keep what they have, which is less.

    Args:
        num_prompts: each method's prompts of the picture.
    """
    return max(1, int(np.quantile(np.asarray(num_prompts), QUANTILE, method="lower")))


def cut_prompts(image: ImageCandidates, budget: int) -> ImageCandidates:
    """Return a picture with only its `budget` largest clusters' prompts and the candidates that came from them.

    Of clusters of one size the more persistent goes first, then the one with the lower label: what stays is near what
    a larger `min_cluster_size` would have left. Prompts of a grid are cut from the end.
    """
    prompts = image.prompts
    if len(prompts) <= budget:
        return image
    order = np.lexsort((np.arange(len(prompts)), -prompts.persistence, -prompts.cluster_size))
    kept = np.sort(order[:budget])
    points = {tuple(point) for point in prompts.point_coords[kept].tolist()}
    candidates = [mask for mask in image.candidates if mask.point_coords[0] in points]
    return dataclasses.replace(
        image,
        prompts=Prompts(prompts.point_coords[kept], prompts.cluster_size[kept], prompts.persistence[kept]),
        candidates=tuple(dataclasses.replace(mask, members=(number,)) for number, mask in enumerate(candidates)),
    )
