"""`torch.compile`, where its cold start pays: long runs on a GPU.

Compiled are the encoder's blocks, each on its own, and the decoder's call. Blocks with global attention stay as they
are: their queries and keys are watched by hooks, which compiled code does not run. Blocks of one shape share code, so
the cold start is a minute or so instead of many.

Inductor keeps compiled code under `TORCHINDUCTOR_CACHE_DIR`. Point it at a folder that all nodes share, and only the
first process pays.
"""

from __future__ import annotations

import os
import time

import numpy as np
import torch

from effsam2_ray.errors import ConfigError
from effsam2_ray.model.interface import SegmentationModel
from effsam2_ray.model.sam2 import Sam2Model

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def encode_as_given(model: SegmentationModel) -> None:
    """Fill up small batches no more: memory is short. A size that is new is compiled then."""
    if isinstance(model, Sam2Model):
        model.fewest_encoded = 1


def compile_model(model: SegmentationModel, batch_size: int = 1, cache_dir: str | None = None) -> float:
    """Compile a model in place, run it once for each kind of input, and return the seconds that this took.

    Args:
        model: on the device where it will be used, with its final type.
        batch_size: most pictures that the encoder will see at once; fewer are filled up to it, more compile again.
        cache_dir: where compiled code is kept; None leaves the environment's choice.

    Raises:
        ConfigError: a model of another family than SAM 2.
    """
    if not isinstance(model, Sam2Model):
        raise ConfigError(f"only SAM 2 can be compiled; {model.info.name} is of another family")
    if cache_dir is not None:
        os.environ[CACHE_VARIABLE] = cache_dir
    start = time.perf_counter()
    for index, block in enumerate(model.module.image_encoder.trunk.blocks):
        if index not in model.info.global_blocks:
            block.compile(dynamic=False)
    model.decoder.compile()
    model.fewest_encoded = batch_size
    picture = np.full((64, 64, 3), 128, np.uint8)
    point = np.array([[32.0, 32.0]], np.float32)
    encoded = model.encode([picture] * batch_size, [model.info.default_head])
    model.decode([(encoded[0], point)])
    if batch_size > 1:
        model.decode([(image, point) for image in encoded])
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start
