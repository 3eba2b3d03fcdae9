"""SAM 1 (segment-anything 1.0): encode with attention capture, decode clicks.

The longest side is resized to 1024 and the rest of the square is zeros, right and bottom. A patch counts as part of the
picture when its centre lies on it; all others are cut off before anything is clustered, so none is ever prompted. The
cut is made on the captured queries and keys: a row's softmax then runs over the picture's patches only, which is the
full row without its padded columns up to a factor, and the cosine of two rows does not see a factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from effsam2_ray.attention import CapturedHead
from effsam2_ray.candidates import masks_at_once
from effsam2_ray.errors import WeightsError
from effsam2_ray.model.base import LoadedModel
from effsam2_ray.model.capture import watch_qkv
from effsam2_ray.model.interface import Decoded, EncodedImage, Head, ModelInfo
from effsam2_ray.model.point_decoder import ImageFeatures, autocast


class Sam1Model(LoadedModel):
    """A `SegmentationModel` over a `segment_anything.modeling.Sam`."""

    _prompt_encoder_name = "prompt_encoder"
    _mask_decoder_name = "mask_decoder"

    @torch.no_grad()
    def encode(self, images: Sequence[np.ndarray], heads: Sequence[Head]) -> list[EncodedImage]:
        """Encode pictures of any sizes; see `SegmentationModel.encode`.

        They pass one by one: the encoder forms the attention of all heads at once (1 GiB a picture in float32 with 16
        heads), and one picture fills a device.
        """
        for block, head in heads:
            self._info.check_head(block, head)
        return [self._encode_one(image, heads) for image in images]

    @torch.no_grad()
    def decode(self, requests: Sequence[tuple[EncodedImage, np.ndarray]]) -> list[Decoded]:
        """Decode every point on its own; see `SegmentationModel.decode`."""
        placed = []
        for image, point_coords in requests:
            (height, width), (new_height, new_width) = image.size_hw, resized_size(image.size_hw, self._info.image_size)
            # In float64 and this order the numbers are SamPredictor's.
            points = np.asarray(point_coords, dtype=np.float64).reshape(-1, 2)
            points = points * (new_width / width, new_height / height)
            placed.append((image.features, torch.as_tensor(points, dtype=torch.float32, device=self._device)))
        return self._decoder.decode(placed, autocast(self._device, self._dtype))

    @torch.no_grad()
    def upsample(self, low_res_logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Return (n, H, W) float32 logits in the picture's frame from (n, h, w), the padding cut off.

        They pass through the encoder's square, which may be far larger than the picture, a few at a time.
        """
        side = self._info.image_size
        input_hw = resized_size(size_hw, side)
        at_once = masks_at_once((side, side), low_res_logits.device)
        parts = [
            self._model.postprocess_masks(part.float()[:, None], input_hw, size_hw)[:, 0]
            for part in low_res_logits.split(at_once)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _encode_one(self, image: np.ndarray, heads: Sequence[Head]) -> EncodedImage:
        size_hw = (image.shape[0], image.shape[1])
        input_hw = resized_size(size_hw, self._info.image_size)
        # uint8 and Pillow, as ResizeLongestSide does it.
        resized = np.asarray(Image.fromarray(image).resize(input_hw[::-1], Image.Resampling.BILINEAR)).copy()
        pixels = torch.from_numpy(resized).to(self._device).permute(2, 0, 1).float()
        patch_size = self._info.image_size // self._info.grid_size
        grid_hw = picture_grid(input_hw, patch_size)
        captured: dict[Head, CapturedHead] = {}

        def see(block: int, attention: Any, qkv: Tensor) -> None:
            wanted = {head for other, head in heads if other == block}
            captured.update({(block, head): crop_head(attention, qkv, head, grid_hw) for head in wanted})

        blocks = self._model.image_encoder.blocks
        with autocast(self._device, self._dtype), watch_qkv(blocks, (block for block, _ in heads), see):
            embedding = self._model.image_encoder(self._model.preprocess(pixels)[None])[0]
        return EncodedImage(
            captured=captured,
            size_hw=size_hw,
            grid_extent_hw=grid_extent(size_hw, input_hw, grid_hw, patch_size),
            features=ImageFeatures(embedding, ()),
        )


def resized_size(size_hw: tuple[int, int], side: int) -> tuple[int, int]:
    """Return (height, width) in pixels after the longest side is resized to `side`; each at least 1.

    Reference: `ResizeLongestSide.get_preprocess_shape`, which lets a very thin picture shrink to nothing.
    """
    scale = side * 1.0 / max(size_hw)
    height, width = (max(1, int(length * scale + 0.5)) for length in size_hw)
    return height, width


def picture_grid(input_hw: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return (rows, columns) of patches whose centres lie on the picture, at least one of each.

    >>> picture_grid((1024, 776), 16)  # the centre of the 49th column is at 776, outside
    (64, 48)
    """
    rows, columns = (max(1, math.ceil(length / patch_size - 0.5)) for length in input_hw)
    return rows, columns


def grid_extent(
    size_hw: tuple[int, int], input_hw: tuple[int, int], grid_hw: tuple[int, int], patch_size: int
) -> tuple[float, float]:
    """Return (height, width), in the picture's pixels, that the kept patches cover.

    It exceeds the picture by up to half a patch, or falls short by as much, so that patch centres are where the encoder
    has them. A picture no thicker than half a patch has one row of them, with its centres in the middle.
    """
    height, width = (
        float(length) if 2 * resized <= patch_size else count * patch_size * length / resized
        for length, resized, count in zip(size_hw, input_hw, grid_hw, strict=True)
    )
    return height, width


def crop_head(attention: Any, qkv: Tensor, head: int, grid_hw: tuple[int, int]) -> CapturedHead:
    """Copy one head of one picture out of a global block's projection, without the padded patches.

    Args:
        attention: the block's `Attention`.
        qkv: (1, side, side, 3 * heads * head_dim).
        head: which to copy.
        grid_hw: (rows, columns) of patches to keep, from the top left.
    """
    kept = qkv[0, : grid_hw[0], : grid_hw[1]].reshape(*grid_hw, 3, attention.num_heads, -1)
    q, k = kept[:, :, 0, head], kept[:, :, 1, head]  # (rows, columns, head_dim)
    rel_h, rel_w = None, None
    if attention.use_rel_pos:
        with torch.autocast(qkv.device.type, enabled=False):
            rel_h, rel_w = relative_terms(attention, q.float(), qkv.shape[1])
    return CapturedHead(q.flatten(0, 1).contiguous(), k.flatten(0, 1).contiguous(), grid_hw, rel_h, rel_w)


def relative_terms(attention: Any, q: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return what SAM 1's decomposed relative positions add to the logits: (N, rows) and (N, columns).

    Args:
        attention: a block's attention module; its tables belong to a grid of `side` x `side` patches.
        q: (rows, columns, head_dim) queries of one head, *not* divided by sqrt(head_dim).
        side: patches along one side of the padded square.

    Reference: `segment_anything.modeling.image_encoder.add_decomposed_rel_pos`.
    """
    from segment_anything.modeling.image_encoder import get_rel_pos

    rows, columns, _ = q.shape
    table_h = get_rel_pos(side, side, attention.rel_pos_h)[:rows, :rows].float()  # (rows, rows, head_dim)
    table_w = get_rel_pos(side, side, attention.rel_pos_w)[:columns, :columns].float()
    rel_h = torch.einsum("hwc,hkc->hwk", q, table_h).flatten(0, 1)
    rel_w = torch.einsum("hwc,wkc->hwk", q, table_w).flatten(0, 1)
    return rel_h, rel_w


def build(size: str) -> nn.Module:
    """Build SAM 1 with random weights.

    Args:
        size: `vit_b`, `vit_l` or `vit_h`.

    Raises:
        WeightsError: segment-anything is not installed.
    """
    try:
        from segment_anything import sam_model_registry
    except ImportError as error:
        raise WeightsError(
            "these are SAM 1 weights, and the package segment-anything is not installed; "
            "run: pip install 'segment-anything==1.0'"
        ) from error
    model: nn.Module = sam_model_registry[size]()
    return model.eval()


def describe(model: nn.Module, name: str, default_head: tuple[Head, str] | None, weights_sha256: str) -> ModelInfo:
    """Read a model's facts off its modules.

    Args:
        model: `Sam`.
        name: what to call it.
        default_head: ((block, head), where it comes from); None takes head 2, or the last below it, of the first
            global block.
        weights_sha256: digest of the file.

    Raises:
        ConfigError: `default_head` names a block or head that the model does not have.
    """
    encoder: Any = model.image_encoder
    attentions = {index: block.attn for index, block in enumerate(encoder.blocks) if block.window_size == 0}
    num_heads = tuple(attention.num_heads for attention in attentions.values())
    if default_head is None:
        default_head = (min(attentions), min(2, num_heads[0] - 1)), "unverified: first global block"
    (block, head), source = default_head
    info = ModelInfo(
        name=name,
        family="sam1",
        image_size=encoder.img_size,
        grid_size=encoder.img_size // encoder.patch_embed.proj.kernel_size[0],
        global_blocks=tuple(attentions),
        num_heads=num_heads,
        head_dim=encoder.blocks[0].attn.qkv.in_features // num_heads[0],
        default_block=block,
        default_head_index=head,
        head_source=source,
        pred_iou_thresh=0.88,
        stability_score_thresh=0.95,
        weights_sha256=weights_sha256,
        is_demo=False,
    )
    info.check_head(block, head)
    return info
