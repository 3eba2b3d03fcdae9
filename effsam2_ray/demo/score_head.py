"""The last step of the demo training: the head that predicts IoU, fitted to the finished masks.

While masks change, their predicted IoU runs after them. With the masks at rest the head learns from stored tokens, a
thousand passes in the time of one training step's worth of pictures.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from effsam2_ray.demo.losses import full_size_ious
from effsam2_ray.demo.objective import decode, encode
from effsam2_ray.demo.scene_pool import ScenePool
from effsam2_ray.model.small_sam2 import SmallSAM2

PROMPTS_A_SCENE = 10
NUM_PASSES = 60
TOKENS_A_STEP = 256
PEAK_RATE = 1e-3
WEIGHT_DECAY = 0.05


def fit_score_head(model: SmallSAM2, pool: ScenePool, num_scenes: int, seed: int) -> tuple[float, float]:
    """Fit `model.sam_mask_decoder.iou_prediction_head` in place; nothing else changes.

    Args:
        model: finished but for the scores.
        pool: training scenes, of the size that the model will be used at.
        num_scenes: scenes looked at.
        seed: of scenes, points and order.

    Returns:
        Mean squared error of the predicted IoU on these scenes, before and after.
    """
    tokens, ious = collect_tokens(model, pool, num_scenes, seed)
    head = model.sam_mask_decoder.iou_prediction_head
    for parameter in head.parameters():
        parameter.requires_grad_(True)
    with torch.no_grad():
        before = float(F.mse_loss(head(tokens), ious))
    optimizer = torch.optim.AdamW(head.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    num_steps = NUM_PASSES * -(-len(tokens) // TOKENS_A_STEP)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(NUM_PASSES):
        for chosen in torch.randperm(len(tokens), generator=generator).split(TOKENS_A_STEP):
            optimizer.zero_grad()
            F.mse_loss(head(tokens[chosen]), ious[chosen]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return before, float(F.mse_loss(head(tokens), ious))


def collect_tokens(model: SmallSAM2, pool: ScenePool, num_scenes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the head reads and what it should say: tokens (N, C) and true IoU (N, 4), N prompts."""
    model.set_image_size(pool.size)
    kept: list[torch.Tensor] = []
    hook = model.sam_mask_decoder.iou_prediction_head.register_forward_pre_hook(
        lambda _, inputs: kept.append(inputs[0])
    )
    ious = []
    try:
        with torch.no_grad():
            for index in range(num_scenes):
                batch = pool.batch(np.random.default_rng([seed, index]), 1, PROMPTS_A_SCENE)
                logits, _ = decode(model, *encode(model, batch.images), batch.point_coords)
                ious.append(full_size_ious(logits, batch.label_maps[0] == batch.target_labels[0][:, None, None]))
    finally:
        hook.remove()
    return torch.cat(kept), torch.cat(ious)
