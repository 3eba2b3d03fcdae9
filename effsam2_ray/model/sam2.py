"""SAM 2: encode with attention capture, decode clicks.

Pictures are squashed to a square, so the grid of patches covers all of the picture. The fused attention inside the
blocks is left alone: the queries and keys of the heads asked for are copied out of each block's `qkv` projection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from effsam2_ray.attention import CapturedHead
from effsam2_ray.errors import WeightsError
from effsam2_ray.model.base import LoadedModel
from effsam2_ray.model.capture import watch_qkv
from effsam2_ray.model.interface import Decoded, EncodedImage, Head, ModelInfo
from effsam2_ray.model.point_decoder import ImageFeatures, autocast

# ImageNet's, as in sam2.utils.transforms.SAM2Transforms
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_GLOBAL_STAGE = 2
"""Hiera's third stage: its patches are 16 x 16 pixels, the grid that the mask decoder works on."""


class Sam2Model(LoadedModel):
    """A `SegmentationModel` over a `sam2.modeling.sam2_base.SAM2Base`."""

    _prompt_encoder_name = "sam_prompt_encoder"
    _mask_decoder_name = "sam_mask_decoder"
    fewest_encoded: int = 1
    """Smaller batches are filled up to it before they are encoded: compiled code has a fixed shape."""

    @torch.no_grad()
    def encode(self, images: Sequence[np.ndarray], heads: Sequence[Head]) -> list[EncodedImage]:
        """Encode pictures of any sizes as one batch; see `SegmentationModel.encode`."""
        for block, head in heads:
            self._info.check_head(block, head)
        if not images:
            return []
        batch = torch.stack([square(image, self._info.image_size, self._device) for image in images])
        if missing := max(0, self.fewest_encoded - len(images)):
            batch = torch.cat([batch, batch[-1:].expand(missing, -1, -1, -1)])
        captured: dict[Head, list[CapturedHead]] = {}

        def see(block: int, attention: Any, qkv: Tensor) -> None:
            wanted = {head for other, head in heads if other == block}
            captured.update({(block, head): each for head, each in split_heads(attention, qkv, wanted).items()})

        blocks = self._model.image_encoder.trunk.blocks
        with autocast(self._device, self._dtype), watch_qkv(blocks, (block for block, _ in heads), see):
            backbone = self._model.forward_image(batch)
        *high_res, top = backbone["backbone_fpn"][-self._model.num_feature_levels :]
        if self._model.directly_add_no_mem_embed:
            top = top + self._model.no_mem_embed.view(1, -1, 1, 1)
        return [
            EncodedImage(
                captured={head: captured[head][index] for head in heads},
                size_hw=(image.shape[0], image.shape[1]),
                grid_extent_hw=(float(image.shape[0]), float(image.shape[1])),
                # Copies, so that one picture does not keep its whole batch in memory.
                features=ImageFeatures(top[index].clone(), tuple(level[index].clone() for level in high_res)),
            )
            for index, image in enumerate(images)
        ]

    @torch.no_grad()
    def decode(self, requests: Sequence[tuple[EncodedImage, np.ndarray]]) -> list[Decoded]:
        """Decode every point on its own; see `SegmentationModel.decode`."""
        placed = []
        for image, point_coords in requests:
            points = torch.as_tensor(point_coords, dtype=torch.float32, device=self._device).reshape(-1, 2)
            height, width = image.size_hw
            # In this order and precision the numbers are SAM2ImagePredictor's.
            points = points / points.new_tensor([width, height]) * self._info.image_size
            placed.append((image.features, points))
        return self._decoder.decode(placed, autocast(self._device, self._dtype))

    @torch.no_grad()
    def upsample(self, low_res_logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Return (n, H, W) float32 logits in the picture's frame from (n, h, w)."""
        logits = low_res_logits.float()[:, None]
        return functional.interpolate(logits, size_hw, mode="bilinear", align_corners=False)[:, 0]


def square(image: np.ndarray, side: int, device: torch.device) -> Tensor:
    """Return (3, side, side) float32: the picture squashed and normalised as `SAM2Transforms` does it.

    Args:
        image: (H, W, 3) uint8 RGB. Resizing works in float on the original: rounding to uint8 first would move the
            embedding by 0.02.
        side: pixels.
        device: where the work is done.
    """
    pixels = torch.from_numpy(image if image.flags.writeable else image.copy()).to(device)
    # Channel by channel: a float copy of the whole picture would be the most memory that labelling it takes.
    planes = [
        functional.interpolate(
            pixels[None, None, :, :, channel].float().div_(255),
            (side, side),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )[0, 0]
        for channel in range(3)
    ]
    resized = torch.stack(planes)
    mean, std = (resized.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
    return (resized - mean) / std


def split_heads(attention: Any, qkv: Tensor, heads: Iterable[int]) -> dict[int, list[CapturedHead]]:
    """Copy heads out of a global block's projection.

    Args:
        attention: the block's `MultiScaleAttention`, one that does not pool its queries.
        qkv: (B, rows, columns, 3 * heads * head_dim).
        heads: which to copy.

    Returns:
        For each head, one `CapturedHead` a picture.
    """
    batch, rows, columns, _ = qkv.shape
    split = qkv.view(batch, rows * columns, 3, attention.num_heads, -1)
    return {
        head: [CapturedHead(one[:, 0, head].clone(), one[:, 1, head].clone(), (rows, columns)) for one in split]
        for head in heads
    }


def describe(
    model: nn.Module, name: str, default_head: tuple[Head, str] | None, weights_sha256: str, is_demo: bool
) -> ModelInfo:
    """Read a model's facts off its modules.

    Args:
        model: `SAM2Base`.
        name: what to call it.
        default_head: ((block, head), where it comes from); None takes head 2, or the last below it, of the first
            global block.
        weights_sha256: digest of the file.
        is_demo: whether these are the demonstration weights.

    Raises:
        WeightsError: the trunk has no global attention on the mask decoder's grid, or the image size does not suit it.
        ConfigError: `default_head` names a block or head that the model does not have.
    """
    sam2: Any = model
    trunk = sam2.image_encoder.trunk
    first, last = trunk.stage_ends[_GLOBAL_STAGE - 1] + 1, trunk.stage_ends[_GLOBAL_STAGE]
    global_blocks = tuple(
        index
        for index in range(first, last + 1)
        if trunk.blocks[index].window_size == 0 and trunk.blocks[index].q_stride is None
    )
    if not global_blocks:
        raise WeightsError(f"{name} has no block with global attention in its third stage (blocks {first} to {last})")
    unit = 4 * trunk.window_spec[0]
    if sam2.image_size % unit:
        raise WeightsError(f"image_size of {name} must be a multiple of {unit}; got {sam2.image_size}")
    attentions = [trunk.blocks[index].attn for index in global_blocks]
    num_heads = tuple(attention.num_heads for attention in attentions)
    if default_head is None:
        default_head = (global_blocks[0], min(2, num_heads[0] - 1)), "unverified: first global block"
    (block, head), source = default_head
    info = ModelInfo(
        name=name,
        family="sam2",
        image_size=sam2.image_size,
        grid_size=sam2.sam_image_embedding_size,
        global_blocks=global_blocks,
        num_heads=num_heads,
        head_dim=attentions[0].dim_out // num_heads[0],
        default_block=block,
        default_head_index=head,
        head_source=source,
        pred_iou_thresh=0.8,
        stability_score_thresh=0.95,
        weights_sha256=weights_sha256,
        is_demo=is_demo,
    )
    info.check_head(block, head)
    return info
