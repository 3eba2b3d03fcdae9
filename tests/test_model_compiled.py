from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from label_process import GRID, finish, rows_of, start
from PIL import Image

from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.errors import ConfigError
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
    with torch._dynamo.config.patch(error_on_recompile=True):
        for found, wanted in zip(segment(model), expected, strict=True):
            # Other orders of addition; logits reach 20.
            assert np.allclose(found.numpy(), wanted.numpy(), atol=2e-3)
        head = model.info.default_head
        [alone] = model.encode([draw_scene(1, SIZE_HW).image], [head])
    assert np.allclose(alone.captured[head].q.numpy(), expected[0].numpy(), atol=2e-3)


@pytest.mark.soak
def test_a_job_with_compiled_code_labels_alike(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for seed in range(4):
        Image.fromarray(draw_scene(seed, SIZE_HW).image).save(folder / f"{seed}.png")
    masks = {}
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        code, output = finish(start([folder], tmp_path / name, *GRID, *more, "--batch-size", "2"))
        assert code == 0, output
        rows = sorted(rows_of(tmp_path / name).values(), key=lambda row: row["image_uri"])
        assert [row["status"] for row in rows] == ["ok"] * 4
        masks[name] = [[mask["area"] for mask in row["masks"]] for row in rows]
    assert [len(areas) for areas in masks["compiled"]] == [len(areas) for areas in masks["plain"]]
    for found, wanted in zip(masks["compiled"], masks["plain"], strict=True):
        assert np.allclose(found, wanted, rtol=0.02, atol=4)


def test_only_sam2_can_be_compiled():
    other = SimpleNamespace(info=SimpleNamespace(name="sam_vit_b"))
    with pytest.raises(ConfigError, match="only SAM 2 can be compiled; sam_vit_b is of another family"):
        compile_model(other)
