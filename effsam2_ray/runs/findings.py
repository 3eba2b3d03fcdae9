"""What a check finds in some rows: counts that add up over parts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

PROBLEMS: dict[str, str] = {
    "missing": "images of the work list without a row",
    "twice": "rows of an image that has one already",
    "foreign": "rows of images that the work list does not have there",
    "damaged": "parts that cannot be read",
    "schema": "parts with other columns than the run's",
    "status": "rows whose status, size and masks do not fit together",
    "rle": "masks whose counts are malformed or do not fill their size",
    "size": "masks of another size than their picture",
    "empty": "masks without a pixel",
    "area": "masks with another area than stated",
    "bbox": "masks with another box than stated",
}
"""Every kind of fault, and what its number counts. One of them and the run is not sound."""

MAX_EXAMPLES = 5
"""Examples that are kept of each kind of fault."""


@dataclass(frozen=True)
class Findings:
    """Counts over some rows.

    Attributes:
        num_expected: images of the work list.
        num_rows: rows there are.
        statuses: rows by status.
        problems: number of each kind of fault (`PROBLEMS`).
        examples: of each kind of fault the first few, for people.
        masks_an_image: images with status `ok` by their number of masks.
        num_masks: masks of all images.
        coverage: sum over the images with status `ok` of the share of their pixels that any mask covers.
        num_whole_picture: masks that cover nearly the whole picture.
        num_near_duplicates: masks that nearly equal an earlier mask of their picture.
    """

    num_expected: int = 0
    num_rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    masks_an_image: Counter[int] = field(default_factory=Counter)
    num_masks: int = 0
    coverage: float = 0.0
    num_whole_picture: int = 0
    num_near_duplicates: int = 0

    @property
    def num_ok(self) -> int:
        """Images with status `ok`."""
        return self.statuses["ok"]

    @property
    def num_problems(self) -> int:
        """Faults of all kinds."""
        return sum(self.problems.values())

    def rates(self) -> dict[str, float]:
        """Return what thresholds are about, shares in [0, 1]: of the images, of the labelled ones, of the masks."""
        images, labelled, masks = max(self.num_rows, 1), max(self.num_ok, 1), max(self.num_masks, 1)
        return {
            "failed_rate": (self.num_rows - self.num_ok) / images,
            "zero_mask_rate": self.masks_an_image[0] / labelled,
            "coverage": self.coverage / labelled,
            "whole_picture_rate": self.num_whole_picture / masks,
            "near_duplicate_rate": self.num_near_duplicates / masks,
        }

    def masks_quantile(self, share: float) -> int:
        """Return the number of masks that this share of the labelled images does not exceed."""
        seen = 0
        for number in sorted(self.masks_an_image):
            seen += self.masks_an_image[number]
            if seen >= share * self.num_ok:
                return number
        return 0


def add_findings(parts: Iterable[Findings]) -> Findings:
    """Return the sum of findings."""
    total: dict[str, Any] = {item.name: getattr(Findings(), item.name) for item in dataclasses.fields(Findings)}
    for part in parts:
        for kind, examples in part.examples.items():
            total["examples"][kind] = (*total["examples"].get(kind, ()), *examples)[:MAX_EXAMPLES]
        for name in total:
            if name != "examples":
                total[name] += getattr(part, name)
    return Findings(**total)
