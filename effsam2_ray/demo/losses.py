"""Training losses of the demo weights. P prompts, M masks each, N = h * w patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F

EPS = 1e-6
# Masks have stride 4, patches 16.
CELLS_A_PATCH = 4


def region_shares(label_maps: torch.Tensor, stride: int, num_labels: int) -> torch.Tensor:
    """Return the share of each stride x stride cell that each label covers.

    Args:
        label_maps: (B, S, S) int64, all below `num_labels`.
        stride: cell side, pixels; divides S.
        num_labels: labels counted.

    Returns:
        (B, num_labels, S / stride, S / stride) float32, summing to 1 over the labels.
    """
    batch, side, _ = label_maps.shape
    cells = side // stride
    # (B, cells, cells, stride * stride)
    pixels = label_maps.view(batch, cells, stride, cells, stride).transpose(2, 3).reshape(batch, cells, cells, -1)
    counts = torch.zeros(batch, cells, cells, num_labels)
    counts.scatter_add_(3, pixels, torch.ones(pixels.shape))
    return counts.permute(0, 3, 1, 2) / (stride * stride)


def mask_losses(logits: torch.Tensor, targets: torch.Tensor, *, balanced: bool = False) -> torch.Tensor:
    """Return 2 x binary cross-entropy + dice + binary cross-entropy along the border, of each mask, (P, M).

    The border is every patch that shows the object and something else. Without its own term hardly anything asks for
    more than whole patches, and masks stay in steps of 16 pixels.

    Args:
        logits: (P, M, h, w); h and w are multiples of `CELLS_A_PATCH`.
        targets: (P, h, w), shares in [0, 1].
        balanced: object and rest weigh the same in the cross-entropy, instead of every pixel.
    """
    soft = targets[:, None].expand_as(logits)
    entropies = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
    if balanced:
        inside = (entropies * soft).sum(dim=(2, 3)) / soft.sum(dim=(2, 3)).clamp(min=1)
        outside = (entropies * (1 - soft)).sum(dim=(2, 3)) / (1 - soft).sum(dim=(2, 3)).clamp(min=1)
        cross_entropy = 0.5 * (inside + outside)
    else:
        cross_entropy = entropies.mean(dim=(2, 3))
    patches = F.avg_pool2d(targets[:, None], CELLS_A_PATCH)
    mixed = ((patches > 0) & (patches < 1)).float()
    border = mixed.repeat_interleave(CELLS_A_PATCH, 2).repeat_interleave(CELLS_A_PATCH, 3)
    border_entropy = (entropies * border).sum(dim=(2, 3)) / border.sum(dim=(2, 3)).clamp(min=1)
    probabilities = logits.sigmoid()
    overlap = (probabilities * soft).sum(dim=(2, 3))
    total = probabilities.sum(dim=(2, 3)) + soft.sum(dim=(2, 3))
    return 2 * cross_entropy + border_entropy + 1 - (2 * overlap + 1) / (total + 1)


def mask_ious(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the IoU of each thresholded mask with its target, (P, M), no gradient. Shapes as in `mask_losses`."""
    with torch.no_grad():
        predicted, true = logits > 0, targets[:, None] > 0.5
        union = (predicted | true).sum(dim=(2, 3))
        return (predicted & true).sum(dim=(2, 3)) / union.clamp(min=1)


def point_to_image_loss(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the point token's attention over the image against uniform over the object.

    Args:
        logits: (P, heads, N) of the point token's row.
        shares: (P, N) of each patch that the object covers.
    """
    wanted = shares / shares.sum(dim=1, keepdim=True).clamp(min=EPS)
    return -(wanted[:, None] * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


def image_to_point_loss(logits: torch.Tensor, point_token: int, shares: torch.Tensor) -> torch.Tensor:
    """Balanced cross-entropy of each patch's weight on the point token, read as a mask of the object.

    Args:
        logits: (P, heads, N, tokens).
        point_token: index of the point's token.
        shares: (P, N).
    """
    weight = logits.softmax(dim=-1)[..., point_token].clamp(EPS, 1 - EPS)  # (P, heads, N)
    inside, outside = shares[:, None], 1 - shares[:, None]
    on_object = -(inside * weight.log()).sum(dim=-1) / inside.sum(dim=-1).clamp(min=EPS)
    off_object = -(outside * (1 - weight).log()).sum(dim=-1) / outside.sum(dim=-1).clamp(min=EPS)
    return 0.5 * (on_object + off_object).mean()


def same_region(shares: torch.Tensor) -> torch.Tensor:
    """Return how much two patches show the same region: (B, labels, h, w) shares -> (B, N, N) in [0, 1]."""
    flat = shares.flatten(2)
    return flat.transpose(1, 2) @ flat


def affinity_loss(embedding: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Balanced cross-entropy that makes embeddings of patches of one region point the same way.

    Args:
        embedding: (B, C, h, w).
        same: (B, N, N) from `same_region`.
    """
    directions = F.normalize(embedding.flatten(2), dim=1)
    logits = 8 * (directions.transpose(1, 2) @ directions) - 4
    together = (same * F.softplus(-logits)).sum(dim=(1, 2)) / same.sum(dim=(1, 2)).clamp(min=EPS)
    apart = ((1 - same) * F.softplus(logits)).sum(dim=(1, 2)) / (1 - same).sum(dim=(1, 2)).clamp(min=EPS)
    return 0.5 * (together + apart).mean()


def attention_rows_loss(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of encoder attention rows against uniform over the patch's own region.

    Args:
        logits: (B, heads, N, N).
        same: (B, N, N) from `same_region`.
    """
    wanted = same / same.sum(dim=2, keepdim=True).clamp(min=EPS)
    return -(wanted[:, None] * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
