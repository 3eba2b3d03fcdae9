"""One training step of the demo weights: a batch through SAM 2's own path, and its losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from effsam2_ray.demo.losses import (
    affinity_loss,
    attention_rows_loss,
    image_to_point_loss,
    mask_ious,
    mask_losses,
    point_to_image_loss,
    region_shares,
    same_region,
)
from effsam2_ray.demo.scene_pool import Batch
from effsam2_ray.model.attention_taps import Taps, tap_attention
from effsam2_ray.model.small_sam2 import SmallSAM2

# SAM 2's normalisation of pictures in [0, 1].
IMAGE_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGE_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

# The decoder's tokens: predicted IoU, four masks, then the prompt's point and its padding.
POINT_TOKEN = 5
# Heads that the losses on attention look at; the others stay free.
SUPERVISED_HEADS = 2

SINGLE_MASK_WEIGHT = 0.2
CROSS_ATTENTION_WEIGHT = 0.3
PREDICTED_IOU_WEIGHT = 6.0
ATTENTION_ROWS_WEIGHT = 0.6


@dataclass(frozen=True)
class Taught:
    """A model together with the attention that its losses look at."""

    model: SmallSAM2
    taps: Taps
    trunk_layer: str
    decoder_layers: tuple[str, ...]

    @classmethod
    def wrap(cls, model: SmallSAM2) -> Taught:
        """Tap the last global block of the trunk and every cross-attention pair of the decoder."""
        trunk_layer = f"image_encoder.trunk.blocks.{max(model.image_encoder.trunk.global_att_blocks)}.attn"
        depth = model.sam_mask_decoder.transformer.depth
        decoder_layers = tuple(f"sam_mask_decoder.transformer.layers.{i}" for i in range(depth))
        pairs = [f"{layer}.{name}" for layer in decoder_layers for name in (_TO_IMAGE, _TO_TOKEN)]
        return cls(model, tap_attention(model, (trunk_layer, *pairs)), trunk_layer, decoder_layers)


_TO_IMAGE = "cross_attn_token_to_image"
_TO_TOKEN = "cross_attn_image_to_token"


def encode(model: SmallSAM2, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Encode pictures as SAM2ImagePredictor does.

    Args:
        model: the model, set to the pictures' size.
        images: (B, 3, S, S) float32 in [0, 1].

    Returns:
        The image embedding (B, C, S / 16, S / 16), and the high-resolution features at strides 4 and 8.
    """
    levels = model.forward_image((images - IMAGE_MEAN) / IMAGE_STD)["backbone_fpn"]
    return levels[-1] + model.no_mem_embed.view(1, -1, 1, 1), list(levels[:-1])


def decode(
    model: SmallSAM2, embedding: torch.Tensor, high_res: list[torch.Tensor], point_coords: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode one positive point a prompt, P prompts a picture.

    Args:
        model: the model.
        embedding, high_res: what `encode` returns, for B pictures.
        point_coords: (B, P, 2) float32, (x, y) in pixels of the model's input.

    Returns:
        Mask logits (B * P, 4, S / 4, S / 4) and predicted IoU (B * P, 4); mask 0 is the single-mask output,
        1 to 3 are the multimask output.
    """
    num_prompts = point_coords.shape[1]
    with torch.autocast("cpu", enabled=False):  # bf16 would move the point's sines and cosines
        points = point_coords.reshape(-1, 1, 2)
        labels = torch.ones(points.shape[:2], dtype=torch.int32)
        sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)
        position = model.sam_prompt_encoder.get_dense_pe()
    logits, predicted_iou, _, _ = model.sam_mask_decoder.predict_masks(
        image_embeddings=embedding.repeat_interleave(num_prompts, dim=0),
        image_pe=position,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=[level.repeat_interleave(num_prompts, dim=0) for level in high_res],
    )
    return logits, predicted_iou


def batch_loss(taught: Taught, batch: Batch, *, early: bool = False) -> tuple[torch.Tensor, dict[str, float]]:
    """Run a batch and return the total loss with its parts.

    Args:
        taught: the model with its taps.
        batch: pictures and prompts.
        early: pull every mask to the target, so that none is left behind, and count object and rest the same, else
            empty masks are the first thing learned, for hundreds of steps; later mostly the best mask counts.

    Returns:
        The loss, a scalar; and for the log the mean of each part, of the best mask's IoU (`best`) and of the
        best-scored one's (`scored`).
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding, high_res = encode(taught.model, batch.images)
        logits, predicted_iou = decode(taught.model, embedding, high_res, batch.point_coords)
    logits, predicted_iou = logits.float(), predicted_iou.float()

    num_images = len(batch.images)
    shares = region_shares(batch.label_maps, 4, int(batch.label_maps.max()) + 1)
    patch_shares = F.avg_pool2d(shares, 4)
    rows = torch.arange(num_images)[:, None]
    targets = shares[rows, batch.target_labels].flatten(0, 1)  # (P, S / 4, S / 4)
    patch_targets = patch_shares[rows, batch.target_labels].flatten(0, 1).flatten(1)  # (P, N)
    same = same_region(patch_shares)

    losses, true_iou = mask_losses(logits, targets, balanced=early), mask_ious(logits, targets)
    mean_mask_weight = 0.5 if early else 0.1
    best = losses[:, 1:].min(dim=1).values.mean()
    parts = {
        "mask": best + mean_mask_weight * losses[:, 1:].mean() + SINGLE_MASK_WEIGHT * losses[:, 0].mean(),
        "iou": PREDICTED_IOU_WEIGHT * F.mse_loss(predicted_iou, true_iou),
        "affinity": affinity_loss(embedding.float(), same),
        "rows": ATTENTION_ROWS_WEIGHT
        * attention_rows_loss(taught.taps[taught.trunk_layer][:, :SUPERVISED_HEADS].float(), same),
        "cross": CROSS_ATTENTION_WEIGHT * _cross_attention_loss(taught, patch_targets),
    }
    total = torch.stack(list(parts.values())).sum()
    figures = {name: float(value.detach()) for name, value in parts.items()}
    chosen = predicted_iou[:, 1:].argmax(dim=1, keepdim=True)
    figures["best"] = float(true_iou[:, 1:].max(dim=1).values.mean())
    figures["scored"] = float(true_iou[:, 1:].gather(1, chosen).mean())
    return total, figures


def _cross_attention_loss(taught: Taught, patch_targets: torch.Tensor) -> torch.Tensor:
    terms = []
    for layer in taught.decoder_layers:
        to_image = taught.taps[f"{layer}.{_TO_IMAGE}"][:, :SUPERVISED_HEADS, POINT_TOKEN].float()
        to_token = taught.taps[f"{layer}.{_TO_TOKEN}"][:, :SUPERVISED_HEADS].float()
        terms.append(point_to_image_loss(to_image, patch_targets))
        terms.append(image_to_point_loss(to_token, POINT_TOKEN, patch_targets))
    return torch.stack(terms).mean()
