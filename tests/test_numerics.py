from __future__ import annotations

import numpy as np
import pytest
import torch

from effsam2_ray.model.weights import load_model
from effsam2_ray.numerics import NumericsCheck, best_ious, check_numerics, in_safe_dtype


def masks(*rows: str) -> np.ndarray:
    return np.array([[pixel == "x" for pixel in row] for row in rows])


def test_best_match_worked_by_hand():
    expected, found = masks("xx..", "..xx", "...."), masks("x...", "..xx", "xxxx")
    # Half of the first mask is in the first found one, and it is half of the third; the empty one does not count.
    assert best_ious(expected, found).tolist() == [0.5, 1.0]
    assert best_ious(masks("...."), found).tolist() == []


def test_the_verdict():
    assert NumericsCheck("bfloat16", 0.97, 10).passed and not NumericsCheck("bfloat16", 0.969, 10).passed
    assert not NumericsCheck("float16", float("nan"), 10).passed
    assert "float32 is used instead" in str(NumericsCheck("float16", 0.5, 10))


def test_float32_is_left_as_it_is():
    model = load_model("demo", device="cpu")
    assert in_safe_dtype(model) == (model, None)


def test_bfloat16_of_the_demo_weights_is_near_float32():
    model = load_model("demo", device="cpu", dtype="bfloat16")
    check = check_numerics(model)
    assert check.dtype == "bfloat16" and check.num_masks > 100
    assert 0.9 < check.mean_iou < 1
    safe, found = in_safe_dtype(model, min_iou=0.9)
    assert safe is model and found == NumericsCheck("bfloat16", check.mean_iou, check.num_masks, 0.9)


@pytest.mark.parametrize("broken", [float("nan"), 1e6])
def test_a_half_type_that_goes_wrong_falls_back_to_float32(broken, monkeypatch):
    model = load_model("demo", device="cpu", dtype="bfloat16")
    decoder, decode = model._decoder, model._decoder.decode

    def overflowing(requests, precision):
        found = decode(requests, precision)
        if precision._enabled:
            for each in found:
                each.low_res_logits.mul_(0).add_(broken)
        return found

    monkeypatch.setattr(decoder, "decode", overflowing)
    safe, check = in_safe_dtype(model)
    assert not check.passed and check.mean_iou < 0.5
    assert safe.dtype == torch.float32 and safe._model is model._model
