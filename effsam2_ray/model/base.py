"""What both families of models share: weights on a device, and a decoder of clicks over them."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

import torch
from torch import nn

from effsam2_ray.model.interface import ModelInfo
from effsam2_ray.model.point_decoder import PointDecoder, prompts_per_call_for


class LoadedModel:
    """The part of a `SegmentationModel` that does not depend on its family."""

    _prompt_encoder_name: ClassVar[str]
    _mask_decoder_name: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        info: ModelInfo,
        device: torch.device,
        dtype: torch.dtype,
        prompts_per_call: int | None = None,
    ):
        """Move the model to `device` and keep it.

        Args:
            model: the family's own module, in evaluation mode.
            info: what the family's `describe` says of it.
            device: where to run.
            dtype: float32, or a half type to run under autocast.
            prompts_per_call: size of the decoder's calls; None takes what is fast on the device.
        """
        self._model: Any = model.to(device).eval()
        self._info = info
        self._device = device
        self._dtype = dtype
        self._decoder = PointDecoder(
            getattr(self._model, self._prompt_encoder_name),
            getattr(self._model, self._mask_decoder_name),
            prompts_per_call or prompts_per_call_for(device, info.grid_size),
        )

    @property
    def module(self) -> Any:
        """The family's own module, weights in float32."""
        return self._model

    @property
    def decoder(self) -> PointDecoder:
        """What decodes the clicks."""
        return self._decoder

    def in_dtype(self, dtype: torch.dtype) -> Self:
        """Return the same weights, shared, with products of another type."""
        other = copy.copy(self)
        other._dtype = dtype
        return other

    @property
    def info(self) -> ModelInfo:
        """Facts about the weights."""
        return self._info

    @property
    def device(self) -> torch.device:
        """Where the weights are and where results lie."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the encoder's and decoder's products."""
        return self._dtype
