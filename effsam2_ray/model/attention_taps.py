"""Training-time attention: the plain formula instead of the fused one, with its logits kept.

On CPUs the backward pass of torch's fused attention costs more than twice the plain formula's, and the logits that the
training losses look at never exist in it. Only the `forward` of instances is replaced: weights and names stay.
"""

from __future__ import annotations

from functools import partial

import torch
from sam2.modeling.backbones.hieradet import MultiScaleAttention, do_pool
from sam2.modeling.sam.transformer import Attention as Attention

Taps = dict[str, torch.Tensor]


def tap_attention(model: torch.nn.Module, names: tuple[str, ...]) -> Taps:
    """Replace the attention of a model by the plain formula and keep the logits of some layers.

    Args:
        model: a SAM 2 model; changed in place (its forward functions only).
        names: module names whose logits are wanted.

    Returns:
        A dict that each forward pass fills: name -> (B, heads, queries, keys) float logits before the softmax.

    Raises:
        KeyError: a name is no attention of the model.
    """
    taps: Taps = {}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Attention | MultiScaleAttention)}
    missing = set(names) - set(layers)
    if missing:
        raise KeyError(f"no attention of the model is named {sorted(missing)}; there are {sorted(layers)}")
    for name, layer in layers.items():
        kept = taps if name in names else None
        forward = _decoder_forward if isinstance(layer, Attention) else _trunk_forward
        layer.forward = partial(forward, layer, kept, name)  # type: ignore[method-assign]
    return taps


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: Taps | None, name: str) -> torch.Tensor:
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if kept is not None:
        kept[name] = logits
    return logits.softmax(dim=-1) @ v


def _decoder_forward(
    layer: Attention, kept: Taps | None, name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    q = layer._separate_heads(layer.q_proj(q), layer.num_heads)
    k = layer._separate_heads(layer.k_proj(k), layer.num_heads)
    v = layer._separate_heads(layer.v_proj(v), layer.num_heads)
    return layer.out_proj(layer._recombine_heads(_attend(q, k, v, kept, name)))


def _trunk_forward(layer: MultiScaleAttention, kept: Taps | None, name: str, x: torch.Tensor) -> torch.Tensor:
    batch, height, width, _ = x.shape
    qkv = layer.qkv(x).reshape(batch, height * width, 3, layer.num_heads, -1)
    q, k, v = torch.unbind(qkv, 2)
    if layer.q_pool:
        q = do_pool(q.reshape(batch, height, width, -1), layer.q_pool)
        height, width = q.shape[1:3]
        q = q.reshape(batch, height * width, layer.num_heads, -1)
    out = _attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), kept, name)
    return layer.proj(out.transpose(1, 2).reshape(batch, height, width, -1))
