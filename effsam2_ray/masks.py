"""One mask of a picture with its scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from effsam2_ray.rle import Rle


@dataclass(frozen=True)
class Mask:
    """A mask, before merging (a candidate) or after.

    Attributes:
        segmentation: the pixels, in the picture's own frame.
        area: pixels on the object.
        bbox: box around the object as (x, y, width, height) in pixels.
        predicted_iou: the model's own estimate of the mask's IoU. May leave [0, 1] slightly.
        stability_score: IoU of the mask with itself when the logit cut-off is moved up and down, in [0, 1].
        point_coords: (x, y) in pixels of every prompt that the mask comes from.
        members: indices into the picture's list of candidates; its own index for a candidate.
    """

    segmentation: Rle
    area: int
    bbox: tuple[float, float, float, float]
    predicted_iou: float
    stability_score: float
    point_coords: tuple[tuple[float, float], ...]
    members: tuple[int, ...]

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) of the picture in pixels."""
        return self.segmentation.size

    def to_array(self) -> np.ndarray:
        """Return the mask as (height, width) bool."""
        return self.segmentation.to_array()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes; `segmentation` is COCO's dictionary."""
        return {
            "segmentation": self.segmentation.to_coco(),
            "area": self.area,
            "bbox": list(self.bbox),
            "predicted_iou": self.predicted_iou,
            "stability_score": self.stability_score,
            "point_coords": [list(point) for point in self.point_coords],
            "members": list(self.members),
        }
