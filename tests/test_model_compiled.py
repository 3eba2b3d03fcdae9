from __future__ import annotations

import numpy as np
import pytest
import torch

from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.model.compiled import compile_model
from effsam2_ray.model.sam2 import Sam2Model
from effsam2_ray.model.weights import load_model
from effsam2_ray.prompts import grid_prompts

SIZE_HW = (96, 128)


def segment(model: Sam2Model) -> list[torch.Tensor]:
    head = model.info.default_head
    encoded = model.encode([draw_scene(seed, SIZE_HW).image for seed in (1, 3)], [head])
    points = grid_prompts(3, SIZE_HW).point_coords
    decoded = model.decode([(encoded[0], points), (encoded[1], points[:4])])
    captured = [image.captured[head].q for image in encoded]
    return [*captured, *(each.low_res_logits for each in decoded), *(each.predicted_iou for each in decoded)]


@pytest.mark.soak
def test_compiled_code_gives_the_same_masks_and_captures(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    model = load_model("demo", device="cpu")
    assert isinstance(model, Sam2Model)
    expected = segment(model)
    seconds = compile_model(model, batch_size=2, cache_dir=str(tmp_path))
    assert seconds > 0 and any(tmp_path.iterdir())
    for found, wanted in zip(segment(model), expected, strict=True):
        # Other orders of addition; logits reach 20.
        assert np.allclose(found.numpy(), wanted.numpy(), atol=2e-3)
