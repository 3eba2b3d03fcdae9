"""Decode single clicks with SAM's mask decoder, prompts of several pictures in one call.

The official decoder copies the picture's embedding once for each prompt and projects every copy to keys, queries and
values. With T tokens a prompt (8 or so) against N image tokens (4096 at 1024 px) most of that work can be left out
without changing the result, and SAM 1 and SAM 2 share the decoder's shape, so this module serves both:

- in the first layer the image tokens are the same for every prompt: their projections are made once a picture;
- later, a projection of the image tokens is folded into the other side, which is shorter by a factor of N / T:
  ``q · (W k + b) = (Wᵀ q) · k + q · b``, where ``q · b`` is the same for all keys and drops out of the softmax; and
  ``Σ a (W v + b) = W (Σ a v) + b`` because the attention weights sum to 1.

Half the products remain, and the result differs from the official decoder's by rounding only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from effsam2_ray.model.interface import Decoded


@dataclass(frozen=True)
class ImageFeatures:
    """What the decoder needs of one picture.

    Attributes:
        embedding: (C, g, g) image embedding, C channels on the grid of patches.
        high_res: (C / 8, 4 g, 4 g) and (C / 4, 2 g, 2 g) features of SAM 2's decoder; empty for SAM 1.
    """

    embedding: Tensor
    high_res: tuple[Tensor, ...]


@dataclass(frozen=True)
class _SharedSide:
    """The first layer's view of one picture, the same for each of its prompts; stacked, one row a prompt."""

    tokens: Tensor  # (N, C)
    keys: Tensor  # (heads, N, d) of token-to-image attention
    values: Tensor  # (heads, N, d) of token-to-image attention
    queries: Tensor  # (heads, N, d) of image-to-token attention


_SHARED_FIELDS = ("tokens", "keys", "values", "queries")


def autocast(device: torch.device, dtype: torch.dtype) -> Any:
    """Return the context in which a model runs: automatic half precision, or nothing for float32."""
    half = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if half else None, enabled=half)


def prompts_per_call_for(device: torch.device, grid_size: int) -> int:
    """Return the size of a decoder call that is fast on `device` for a grid of `grid_size` x `grid_size` patches.

    A processor is fastest while one call's image tokens stay in its cache: 4 prompts of a 32 x 32 grid, 1 of 64 x 64.
    """
    if device.type != "cpu":
        return 64
    return 4 if grid_size <= 32 else 1


class PointDecoder:
    """A prompt encoder and mask decoder of SAM 1 or SAM 2, used for one positive click a prompt."""

    def __init__(self, prompt_encoder: Any, mask_decoder: Any, prompts_per_call: int):
        """Use the modules' weights where they are.

        Args:
            prompt_encoder: `PromptEncoder` of either package.
            mask_decoder: `MaskDecoder` of either package.
            prompts_per_call: prompts in each call; the last call is padded to it.
        """
        self._prompt_encoder = prompt_encoder
        self._mask_decoder = mask_decoder
        self._prompts_per_call = prompts_per_call
        self._run = self._run_eagerly
        # (N, C) positions of the image tokens
        self._positions: Tensor = self._prompt_encoder.get_dense_pe()[0].flatten(1).T.contiguous()

    def decode(self, requests: Sequence[tuple[ImageFeatures, Tensor]], precision: Any) -> list[Decoded]:
        """Decode points, each on its own.

        Args:
            requests: (picture, points) each; points (P, 2) float32 is (x, y) in pixels of the encoder's square.
            precision: what `autocast` returns; the transformer runs under it.

        Returns:
            One `Decoded` a request, in order.
        """
        size = self._prompts_per_call
        counts = [len(points) for _, points in requests]
        owners = [index for index, count in enumerate(counts) for _ in range(count)]
        if not owners:
            return [self._none() for _ in requests]
        points = torch.cat([points for _, points in requests])
        padding = -len(owners) % size
        points = functional.pad(points, (0, 0, 0, padding))
        owners += owners[-1:] * padding
        logits, scores = [], []
        shared: dict[int, _SharedSide] = {}
        for start in range(0, len(owners), size):
            call_owners = owners[start : start + size]
            # Owners ascend: pictures before this call's first are done with.
            shared = {index: side for index, side in shared.items() if index >= call_owners[0]}
            # Outside autocast: half precision cannot tell neighbouring pixels apart.
            sparse = self._embed_points(points[start : start + size])
            with precision:
                for index in sorted(set(call_owners) - set(shared)):
                    shared[index] = self._share(requests[index][0])
                keep = min(size, len(owners) - padding - start)
                call_logits, call_scores = self._decode_call(sparse, call_owners, shared, [f for f, _ in requests])
            logits.append(call_logits[:keep].float())
            scores.append(call_scores[:keep].float())
        return [
            Decoded(low_res_logits, predicted_iou)
            for low_res_logits, predicted_iou in zip(
                torch.split(torch.cat(logits), counts), torch.split(torch.cat(scores), counts), strict=True
            )
        ]

    def _none(self) -> Decoded:
        """Return the result of a request with no points."""
        height, width = (4 * side for side in self._prompt_encoder.image_embedding_size)
        empty = self._positions.new_empty
        masks = self._mask_decoder.num_multimask_outputs
        return Decoded(empty((0, masks, height, width)), empty((0, masks)))

    def _embed_points(self, points: Tensor) -> Tensor:
        """Return (P, 2, C): each click and the padding point that SAM adds where there is no box."""
        labels = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
        sparse: Tensor
        sparse, _ = self._prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
        return sparse

    def _share(self, features: ImageFeatures) -> _SharedSide:
        layer = self._mask_decoder.transformer.layers[0]
        tokens = features.embedding.flatten(1).T.contiguous() + self._prompt_encoder.no_mask_embed.weight
        placed = tokens + self._positions
        to_image, to_tokens = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token

        def split(x: Tensor, attention: Any) -> Tensor:
            return x.view(len(x), attention.num_heads, -1).transpose(0, 1).contiguous()

        return _SharedSide(
            tokens=tokens,
            keys=split(to_image.k_proj(placed), to_image),
            values=split(to_image.v_proj(tokens), to_image),
            queries=split(to_tokens.q_proj(placed), to_tokens),
        )

    def _decode_call(
        self, sparse: Tensor, owners: list[int], shared: dict[int, _SharedSide], features: list[ImageFeatures]
    ) -> tuple[Tensor, Tensor]:
        """Return (P, 3, h, w) logits and (P, 3) scores of one call's prompts."""
        sides = [shared[index] for index in owners]
        side = _SharedSide(*(_gather([getattr(each, name) for each in sides]) for name in _SHARED_FIELDS))
        maps = [features[index].high_res for index in owners]
        high_res = tuple(_gather(list(level)) for level in zip(*maps, strict=True))
        return self._run(sparse, side.tokens, side.keys, side.values, side.queries, high_res)

    def compile(self) -> None:
        """Compile the transformer and the upscaling with `torch.compile`, at the first call with each kind of input.

        There are two kinds: all of a call's prompts are of one picture, or of several.
        """
        self._run = torch.compile(self._run_eagerly, dynamic=False)

    def _run_eagerly(
        self, sparse: Tensor, image: Tensor, keys: Tensor, values: Tensor, queries: Tensor, high_res: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return (P, 3, h, w) logits and (P, 3) scores from what `_share` makes, one row a prompt."""
        decoder = self._mask_decoder
        heads = [decoder.iou_token.weight, decoder.mask_tokens.weight]
        if getattr(decoder, "pred_obj_scores", False):
            heads.insert(0, decoder.obj_score_token.weight)
        learned = torch.cat(heads)
        tokens = torch.cat((learned.expand(len(sparse), -1, -1), sparse), dim=1)  # (P, T, C)
        found, image = self._transform(tokens, _SharedSide(image, keys, values, queries))
        first_mask = len(learned) - decoder.num_mask_tokens
        scores = decoder.iou_prediction_head(found[:, first_mask - 1])[:, 1:]
        # Mask token 0 is the single-mask output, which is never used here.
        mask_tokens = found[:, first_mask + 1 : len(learned)]
        weights = torch.stack(
            [mlp(mask_tokens[:, i]) for i, mlp in enumerate(list(decoder.output_hypernetworks_mlps)[1:])], dim=1
        )
        return torch.einsum("pmc,pchw->pmhw", weights, self._upscale(image, high_res)), scores

    def _transform(self, tokens: Tensor, side: _SharedSide) -> tuple[Tensor, Tensor]:
        """Run the two-way transformer: (P, T, C) tokens to (P, T, C) tokens and (P, N, C) image tokens."""
        transformer = self._mask_decoder.transformer
        queries, image = tokens, side.tokens
        for number, layer in enumerate(transformer.layers):
            if layer.skip_first_layer_pe:
                queries = layer.self_attn(q=queries, k=queries, v=queries)
            else:
                placed_queries = queries + tokens
                queries = queries + layer.self_attn(q=placed_queries, k=placed_queries, v=queries)
            queries = layer.norm1(queries)
            placed = None if number == 0 else image + self._positions

            attention = layer.cross_attn_token_to_image
            if placed is None:
                update = _attend_shared(attention, queries + tokens, side)
            else:
                update = _attend_to_image(attention, queries + tokens, placed, image)
            queries = layer.norm2(queries + update)
            queries = layer.norm3(queries + layer.mlp(queries))

            attention = layer.cross_attn_image_to_token
            keys = _split(attention.k_proj(queries + tokens), attention.num_heads)  # (P, heads, T, d)
            if placed is None:
                scores = keys @ side.queries.transpose(-1, -2)
            else:
                scores = _scores_to_image(attention.q_proj, keys, placed)
                scores = scores + torch.einsum("phtd,hd->pht", keys, _bias(attention.q_proj, keys))[..., None]
            update = _attend_to_tokens(attention, scores, queries, keys.shape[-1])
            image = layer.norm4(image + update)
        update = _attend_to_image(
            transformer.final_attn_token_to_image, queries + tokens, image + self._positions, image
        )
        return transformer.norm_final_attn(queries + update), image

    def _upscale(self, image: Tensor, high_res: tuple[Tensor, ...]) -> Tensor:
        """Return (P, C / 8, 4 g, 4 g) from (P, N, C) image tokens."""
        decoder = self._mask_decoder
        size = self._prompt_encoder.image_embedding_size
        image = image.transpose(1, 2).reshape(len(image), -1, *size)
        up_1, norm, activation_1, up_2, activation_2 = decoder.output_upscaling
        halfway = up_1(image)
        if getattr(decoder, "use_high_res_features", False):
            halfway = activation_1(norm(halfway + high_res[1]))
            upscaled: Tensor = activation_2(up_2(halfway) + high_res[0])
        else:
            upscaled = activation_2(up_2(activation_1(norm(halfway))))
        return upscaled


def _gather(tensors: list[Tensor]) -> Tensor:
    """Stack one tensor a prompt; a view where all prompts share one picture."""
    first = tensors[0]
    if all(tensor is first for tensor in tensors):
        return first.expand(len(tensors), *first.shape)
    return torch.stack(tensors)


def _split(x: Tensor, num_heads: int) -> Tensor:
    """Return (P, heads, T, d) from (P, T, heads * d)."""
    return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)


def _bias(projection: nn.Linear, like: Tensor) -> Tensor:
    """Return a projection's bias as (heads, d)."""
    return projection.bias.view(like.shape[1], like.shape[3])


def _attend_shared(attention: Any, queries: Tensor, side: _SharedSide) -> Tensor:
    """Attend from tokens to image tokens whose keys and values are made already; (P, T, C)."""
    split = _split(attention.q_proj(queries), attention.num_heads)
    out = functional.scaled_dot_product_attention(split, side.keys, side.values)
    update: Tensor = attention.out_proj(out.transpose(1, 2).flatten(2))
    return update


def _scores_to_image(projection: nn.Linear, split: Tensor, image: Tensor) -> Tensor:
    """Return (P, heads, T, N) products of `split` (P, heads, T, d) with `projection` of the image, without its bias."""
    weight = projection.weight.view(split.shape[1], split.shape[3], -1)
    folded = torch.einsum("phtd,hdc->phtc", split, weight)  # (P, heads, T, C)
    return (folded.flatten(1, 2) @ image.transpose(1, 2)).view(*split.shape[:3], -1)


def _attend_to_image(attention: Any, queries: Tensor, placed: Tensor, image: Tensor) -> Tensor:
    """Attend from tokens to image tokens: keys from `placed`, values from `image` (P, N, C); returns (P, T, C)."""
    split = _split(attention.q_proj(queries), attention.num_heads)
    weights = (_scores_to_image(attention.k_proj, split, placed) * split.shape[-1] ** -0.5).softmax(-1)
    context = (weights.flatten(1, 2) @ image).view(*split.shape[:3], -1)  # (P, heads, T, C)
    weight = attention.v_proj.weight.view(split.shape[1], split.shape[3], -1)
    out = torch.einsum("phtc,hdc->phtd", context, weight) + _bias(attention.v_proj, split)[:, None]
    update: Tensor = attention.out_proj(out.transpose(1, 2).flatten(2))
    return update


def _attend_to_tokens(attention: Any, scores: Tensor, tokens: Tensor, dim: int) -> Tensor:
    """Attend from image tokens to tokens, given (P, heads, T, N) scores; returns (P, N, C)."""
    values = _split(attention.v_proj(tokens), attention.num_heads)
    weight = attention.out_proj.weight.view(-1, values.shape[1], values.shape[3])  # (C, heads, d)
    folded = torch.einsum("phtd,chd->phtc", values, weight).flatten(1, 2)  # (P, heads * T, C)
    weights = (scores * dim**-0.5).softmax(2).flatten(1, 2)
    return torch.baddbmm(attention.out_proj.bias, weights.transpose(1, 2), folded)
