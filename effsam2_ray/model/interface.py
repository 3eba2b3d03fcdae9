"""What a segmentation model offers: encode with attention capture, decode points, upsample masks.

`sam2.py` and `sam1.py` implement it; nothing above this layer knows which of the two it has. A model is got with
`effsam2_ray.model.weights.load_model`::

    model = load_model("demo")
    images = model.encode([picture], [model.info.default_head])
    decoded = model.decode([(images[0], point_coords)])
    mask_logits = model.upsample(decoded[0].low_res_logits[:, 0], images[0].size_hw)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from effsam2_ray.attention import CapturedHead
from effsam2_ray.errors import ConfigError

Head = tuple[int, int]
"""(encoder block, head), both 0-based."""


@dataclass(frozen=True)
class ModelInfo:
    """Facts about loaded weights; small, picklable, the same on every machine.

    Attributes:
        name: `sam2.1_hiera_large`, `sam_vit_l`, `demo`, or a custom model's name.
        family: which implementation.
        image_size: side of the square that the encoder sees, in pixels.
        grid_size: patches along one side of that square at the global blocks.
        global_blocks: blocks whose attention spans the whole picture, ascending.
        num_heads: heads of each of `global_blocks`, in the same order.
        head_dim: channels of one head, the same in all global blocks.
        default_block: block captured unless asked otherwise; one of `global_blocks`.
        default_head_index: head captured in that block.
        head_source: where that default comes from, for `job.json` and the README.
        pred_iou_thresh: the family's own default cut-off for the predicted IoU.
        stability_score_thresh: the same for the stability score.
        weights_sha256: hex digest of the weights file, "" for a model that was built without a file.
        is_demo: True for the small demonstration weights, which say nothing about SAM 2.
    """

    name: str
    family: Literal["sam2", "sam1"]
    image_size: int
    grid_size: int
    global_blocks: tuple[int, ...]
    num_heads: tuple[int, ...]
    head_dim: int
    default_block: int
    default_head_index: int
    head_source: str
    pred_iou_thresh: float
    stability_score_thresh: float
    weights_sha256: str
    is_demo: bool

    @property
    def default_head(self) -> Head:
        """(block, head) captured unless asked otherwise."""
        return self.default_block, self.default_head_index

    @property
    def all_heads(self) -> tuple[Head, ...]:
        """Every (block, head) that can be captured, ascending."""
        return tuple((b, h) for b, n in zip(self.global_blocks, self.num_heads, strict=True) for h in range(n))

    def check_head(self, block: int, head: int) -> None:
        """Raise ConfigError, naming the valid ones, unless `head` of `block` has an N x N attention matrix."""
        if block not in self.global_blocks:
            valid = ", ".join(map(str, self.global_blocks))
            raise ConfigError(
                f"block {block} of {self.name} has no global attention, so no attention between all patches; "
                f"global blocks are {valid}"
            )
        count = self.num_heads[self.global_blocks.index(block)]
        if not 0 <= head < count:
            raise ConfigError(f"head must be 0 to {count - 1} in block {block} of {self.name}; got {head}")


@dataclass(frozen=True)
class EncodedImage:
    """One picture after the encoder, its tensors on the model's device.

    Attributes:
        captured: one `CapturedHead` for each (block, head) that was asked for.
        size_hw: (height, width) of the picture as it was given, in pixels.
        grid_extent_hw: (height, width), in the picture's pixels, that the grid of patches covers from the top left:
            patch (row, column) has its centre at ``x = (column + 0.5) / columns * width``, and y likewise. Equal to
            `size_hw` for SAM 2; SAM 1's last patches may reach past the picture, but their centres never do.
        features: what `decode` of the same model needs; opaque to everyone else.
    """

    captured: Mapping[Head, CapturedHead]
    size_hw: tuple[int, int]
    grid_extent_hw: tuple[float, float]
    features: Any


@dataclass(frozen=True)
class Decoded:
    """Three masks for each of P point prompts of one picture, on the model's device.

    Attributes:
        low_res_logits: (P, 3, h, w) float32 mask logits at the decoder's size (256 x 256 at 1024 px); 0 is the
            boundary. They cover the encoder's square, padding included: only `upsample` maps them to the picture.
        predicted_iou: (P, 3) float32, the model's estimate of each mask's IoU. May leave [0, 1] slightly.
    """

    low_res_logits: torch.Tensor
    predicted_iou: torch.Tensor


class SegmentationModel(Protocol):
    """A promptable segmentation model with attention capture. Not thread-safe: one call at a time."""

    @property
    def info(self) -> ModelInfo:
        """Facts about the weights."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are and where results lie."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of the encoder's and decoder's products; float16 and bfloat16 run under autocast."""
        ...

    def in_dtype(self, dtype: torch.dtype) -> SegmentationModel:
        """Return the same weights, shared, with products of another type."""
        ...

    def encode(self, images: Sequence[np.ndarray], heads: Sequence[Head]) -> list[EncodedImage]:
        """Encode pictures of any sizes as one batch and capture the given heads in that one pass.

        Args:
            images: (H, W, 3) uint8 RGB each. The batch is the memory: the caller chooses how many.
            heads: (block, head) pairs, may be empty.

        Raises:
            ConfigError: a block without global attention, or a head that it does not have.
        """
        ...

    def decode(self, requests: Sequence[tuple[EncodedImage, np.ndarray]]) -> list[Decoded]:
        """Decode every point on its own, as one positive click; prompts of all pictures share the decoder's calls.

        Calls have a fixed size, padded at the end, so a prompt's result does not depend on what it is batched with
        (on one device, dtype and size of call).

        Args:
            requests: (picture, point_coords) each; point_coords (P, 2) is (x, y) in the picture's pixels, P may be 0.

        Returns:
            One `Decoded` a request, in order. It holds P x 3 x h x w float32 (0.8 MB a prompt at 1024 px): the caller
            bounds P.
        """
        ...

    def upsample(self, low_res_logits: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
        """Return (n, H, W) float32 logits in the picture's own frame from (n, h, w) at the decoder's size.

        The caller bounds n by the size of the result; whatever larger arrays a model needs on its way it bounds itself.
        """
        ...
