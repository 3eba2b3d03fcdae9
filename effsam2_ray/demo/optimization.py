"""Initial values, parameter groups, optimizers and the learning rate of the demo training."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

from effsam2_ray.model.attention_taps import Attention
from effsam2_ray.model.small_sam2 import SmallSAM2

MUON_RATE = 3e-3
ADAMW_RATE = 1e-3
WEIGHT_DECAY = 0.02
MAX_GRADIENT_NORM = 1.0
# Muon's orthogonal updates pay for matrices at least this wide on both sides.
MUON_MIN_SIDE = 64

# What single images with one positive point never use.
UNUSED = (
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "sam_prompt_encoder.mask_downscaling",
    "sam_prompt_encoder.point_embeddings.0",
    "sam_prompt_encoder.point_embeddings.2",
    "sam_prompt_encoder.point_embeddings.3",
)


def initialize(model: SmallSAM2) -> None:
    """Set the values that let the decoder find its object within minutes.

    Each cross-attention starts as a similarity kernel (keys projected like queries, output projection the transpose
    of the value projection); prompt labels start small beside the point's position, whose frequencies are doubled.
    """
    with torch.no_grad():
        for name, module in model.sam_mask_decoder.named_modules():
            if isinstance(module, Attention) and "self_attn" not in name:
                torch.nn.init.orthogonal_(module.q_proj.weight, gain=2.0)
                module.k_proj.weight.copy_(module.q_proj.weight)
                torch.nn.init.orthogonal_(module.v_proj.weight)
                module.out_proj.weight.copy_(module.v_proj.weight.T)
                for projection in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
                    projection.bias.zero_()
        prompt_encoder = model.sam_prompt_encoder
        for embedding in (*prompt_encoder.point_embeddings, prompt_encoder.not_a_point_embed):
            embedding.weight.mul_(0.1)
        prompt_encoder.no_mask_embed.weight.mul_(0.1)
        prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(2.0)
        model.no_mem_embed.zero_()


def trainable_parameters(model: SmallSAM2) -> dict[str, torch.nn.Parameter]:
    """Freeze what the training never touches and return the rest by name."""
    trainable = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(UNUSED))
        if parameter.requires_grad:
            trainable[name] = parameter
    return trainable


def learning_rate(step: int, num_steps: int, warmup_steps: int, flat_share: float, end: float = 0.0) -> float:
    """Return the factor in (0, 1] for a step: linear rise, flat, then a cosine down to `end` at `num_steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    fall_from = max(warmup_steps, flat_share * num_steps)
    if step < fall_from:
        return 1.0
    progress = min(1.0, (step - fall_from) / max(1.0, num_steps - fall_from))
    return max(1e-3, end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress)))


class Optimizers:
    """Muon for the wide matrices and AdamW for the rest, on gradients averaged over the processes."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        wide = {n: p for n, p in parameters.items() if _is_wide_matrix(n, p)}
        rest = [p for n, p in parameters.items() if n not in wide]
        self._parameters = list(parameters.values())
        self._muon = torch.optim.Muon(
            wide.values(), lr=MUON_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(rest, lr=ADAMW_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)

    def step(self, rate: float) -> None:
        """Average the gradients over the processes, clip them, update, and clear them.

        Args:
            rate: factor on the base learning rates.
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if dist.is_initialized() and dist.get_world_size() > 1:
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)
        for optimizer, base in ((self._muon, MUON_RATE), (self._adamw, ADAMW_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = base * rate
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both optimizers."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state from `state_dict`."""
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])


def _is_wide_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    is_table = "embed" in name or "token.weight" in name or "tokens.weight" in name
    return parameter.ndim == 2 and min(parameter.shape) >= MUON_MIN_SIDE and not is_table
