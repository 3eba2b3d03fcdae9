"""Models to measure: weights as they are, the demo weights at a larger size, or official sizes with random weights.

Random weights say nothing about masks. They cost what trained ones cost, once two things that a trained model has are
put in: attention that tells patches apart, and score cut-offs that some masks pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from effsam2_ray.config import Config, preset_config
from effsam2_ray.errors import ConfigError
from effsam2_ray.model import sam2
from effsam2_ray.model.backbones import BACKBONES
from effsam2_ray.model.build import build_model, load_config
from effsam2_ray.model.fetch import demo_file
from effsam2_ray.model.interface import SegmentationModel
from effsam2_ray.model.weights import DEMO_CONFIG, load_model, read_state_dict, resolve_device, resolve_dtype

# Spread of attention logits in trained heads: near 0, a patch looks everywhere alike; far above, at itself alone.
ATTENTION_LOGIT_STD = 2.5
# SAM 2's own cut-offs leave next to nothing of the demo weights' masks; these leave about as many as theirs of SAM 2's.
DEMO_THRESHOLDS = ("decode.pred_iou_thresh=0.5", "decode.stability_score_thresh=0.8")


def random_model(name: str, device: str = "auto", dtype: str = "auto", seed: int = 0) -> sam2.Sam2Model:
    """Return an official size of SAM 2 with random weights.

    Args:
        name: such as `sam2.1_hiera_large`.
        device, dtype: as in `load_model`.
        seed: of the weights.

    Raises:
        ConfigError: no such size of SAM 2.
    """
    if name not in BACKBONES or BACKBONES[name].family != "sam2":
        names = ", ".join(each.name for each in BACKBONES.values() if each.family == "sam2")
        raise ConfigError(f"random weights are made for {names}; got {name!r}")
    backbone = BACKBONES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_model(load_config(backbone.config))
    info = sam2.describe(module, name, (backbone.default_head, backbone.head_source), "", False)
    place = resolve_device(device)
    model = sam2.Sam2Model(module, info, place, resolve_dtype(dtype, place))
    _sharpen(module, model)
    return model


def demo_model_at(side: int, device: str = "auto", dtype: str = "auto") -> sam2.Sam2Model:
    """Return the demo weights with an encoder that sees `side` x `side` pixels; at 1024 it has 64 x 64 patches."""
    config = load_config(DEMO_CONFIG)
    config["model"]["image_size"] = side
    module = build_model(config)
    module.load_state_dict(read_state_dict(demo_file("sam2_demo.pt")))
    head = load_model("demo", device="cpu").info.default_head
    info = sam2.describe(module, f"demo at {side} px", (head, "the demo weights' own"), "", True)
    place = resolve_device(device)
    return sam2.Sam2Model(module, info, place, resolve_dtype(dtype, place))


def benchmark_config(model: SegmentationModel, preset: str, random_weights: bool, pictures: list[np.ndarray]) -> Config:
    """Return a preset with score cut-offs that leave a realistic share of these weights' masks.

    Random weights get a predicted-IoU cut-off that half of the prompts of the first picture pass, and no other.
    """
    config = preset_config(preset)
    if model.info.is_demo:
        return config.with_overrides(DEMO_THRESHOLDS)
    if not random_weights:
        return config
    encoded = model.encode(pictures[:1], [])[0]
    height, width = encoded.size_hw
    points = np.random.default_rng(0).random((32, 2), np.float32) * np.array([width, height], np.float32)
    best = model.decode([(encoded, points)])[0].predicted_iou.amax(dim=1)
    return config.with_overrides(
        [f"decode.pred_iou_thresh={float(best.median()):.6f}", "decode.stability_score_thresh=0"]
    )


def _sharpen(module: Any, model: sam2.Sam2Model) -> None:
    """Scale queries and keys of the global blocks until their logits spread as a trained model's do."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    picture = np.kron(noise, np.ones((16, 16, 1), np.uint8))
    head = model.info.default_head
    captured = model.encode([picture], [head])[0].captured[head]
    q, k = captured.q.float(), captured.k.float()
    logits = (q * q.shape[-1] ** -0.5) @ (k - k.mean(dim=0)).T
    gain = float((ATTENTION_LOGIT_STD / logits.std()) ** 0.5)
    for block in model.info.global_blocks:
        qkv = module.image_encoder.trunk.blocks[block].attn.qkv
        with torch.no_grad():
            for parameter in (qkv.weight, qkv.bias):
                parameter[: 2 * len(parameter) // 3] *= gain
