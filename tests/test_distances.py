from __future__ import annotations

import numpy as np
import pytest
import torch
from attention_maps import blob_head

from effsam2_ray.distances import cosine_distances, device_cosine_distances, full_float32_products, unit_rows


def host(rows: torch.Tensor) -> np.ndarray:
    return cosine_distances(rows)


def device(rows: torch.Tensor) -> np.ndarray:
    return device_cosine_distances(rows).numpy()


both_paths = pytest.mark.parametrize("distances_of", [host, device])


@both_paths
def test_three_rows_worked_by_hand(distances_of):
    rows = unit_rows(torch.tensor([[2.0, 0.0], [0.0, 5.0], [3.0, 4.0]]))
    assert np.allclose(rows, [[1, 0], [0, 1], [0.6, 0.8]])
    assert np.allclose(distances_of(rows), [[0, 1, 0.4], [1, 0, 0.2], [0.4, 0.2, 0]], atol=1e-7)


@both_paths
@pytest.mark.parametrize("grid_hw", [(1, 1), (3, 7), (24, 32)])
def test_distances_are_float32_symmetric_not_negative_and_zero_on_the_diagonal(distances_of, grid_hw):
    distances = distances_of(unit_rows(blob_head(grid_hw, 5, seed=1).attention()))
    assert distances.dtype == np.float32 and distances.flags.c_contiguous
    assert np.array_equal(distances, distances.T)
    assert distances.min() == 0 and not distances.diagonal().any()


@both_paths
def test_distances_equal_float64_to_float32_rounding(distances_of):
    attention = blob_head((24, 24), 9, seed=2).attention()
    x = attention.double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    # Two roundings of unit rows and one of a sum near 1: a few units of 6e-8. TF32 is off by 1e-3.
    assert np.abs(distances_of(unit_rows(attention)) - (1 - x @ x.T)).max() < 1e-6


@both_paths
def test_equal_rows_are_no_further_apart_than_rounding_and_never_less_than_zero(distances_of):
    rows = unit_rows(blob_head((8, 8), 4, seed=3).attention())
    assert (rows.double().square().sum(dim=1) > 1 + 1e-8).any()  # 1 - x . x is below 0 for some of them
    distances = distances_of(rows.repeat(2, 1))
    assert distances.min() == 0 and np.diagonal(distances, offset=64).max() < 3e-7


@both_paths
def test_reduced_precision_settings_change_nothing(distances_of):
    rows = unit_rows(blob_head((8, 8), 4, seed=4).attention())
    expected = distances_of(rows)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert np.array_equal(distances_of(rows), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_products_are_full_inside_the_block_and_as_before_after_an_error():
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(5))
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(KeyError):
            with full_float32_products(torch.device("cpu")):
                assert (x @ x).dtype == torch.float32
                assert getattr(torch.backends.cuda.matmul, "fp32_precision", "ieee") == "ieee"
                raise KeyError
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
