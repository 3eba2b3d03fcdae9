from __future__ import annotations

import math

import pytest
import torch

from effsam2_ray.attention import CapturedHead


def random_head(grid_hw: tuple[int, int], head_dim: int, relative: bool) -> CapturedHead:
    generator = torch.Generator().manual_seed(3)
    rows, columns = grid_hw
    num_patches = rows * columns
    q, k = (torch.randn(num_patches, head_dim, generator=generator) for _ in range(2))
    rel_h = torch.randn(num_patches, rows, generator=generator) if relative else None
    rel_w = torch.randn(num_patches, columns, generator=generator) if relative else None
    return CapturedHead(q, k, grid_hw, rel_h, rel_w)


def test_two_patches_worked_by_hand():
    head = CapturedHead(q=torch.tensor([[0.0], [math.log(3.0)]]), k=torch.tensor([[0.0], [1.0]]), grid_hw=(1, 2))
    assert torch.allclose(head.attention(), torch.tensor([[0.5, 0.5], [0.25, 0.75]]))


def test_attention_is_softmax_of_scaled_products():
    head = random_head((3, 5), head_dim=8, relative=False)
    expected = torch.softmax(head.q.double() @ head.k.double().T / math.sqrt(8), dim=1)
    assert torch.allclose(head.attention().double(), expected, atol=1e-6)  # float32 against float64


def test_attention_times_values_is_fused_attention():
    head = random_head((4, 4), head_dim=8, relative=False)
    v = torch.randn(16, 8, generator=torch.Generator().manual_seed(4))
    fused = torch.nn.functional.scaled_dot_product_attention(head.q[None], head.k[None], v[None])[0]
    assert torch.allclose(head.attention() @ v, fused, atol=1e-5)


def test_relative_terms_go_to_the_key_row_and_key_column():
    head = random_head((2, 3), head_dim=4, relative=True)
    assert head.rel_h is not None and head.rel_w is not None
    logits = torch.zeros(6, 6)
    for query in range(6):
        for key_row in range(2):
            for key_column in range(3):
                key = key_row * 3 + key_column
                logits[query, key] = head.q[query] @ head.k[key] / 2 + head.rel_h[query, key_row]
                logits[query, key] += head.rel_w[query, key_column]
    assert torch.allclose(head.attention(), logits.softmax(dim=1), atol=1e-6)


@pytest.mark.parametrize("relative", [False, True])
def test_attention_is_float32_with_rows_summing_to_one_from_half_precision_too(relative: bool):
    attention = random_head((4, 6), head_dim=8, relative=relative).to("cpu", torch.float16).attention()
    assert attention.dtype == torch.float32 and attention.shape == (24, 24)
    assert torch.allclose(attention.sum(dim=1), torch.ones(24), atol=1e-6)


def test_moving_casts_every_part_and_keeps_the_grid():
    moved = random_head((2, 3), head_dim=4, relative=True).to("cpu", torch.bfloat16)
    assert {part.dtype for part in (moved.q, moved.k, moved.rel_h, moved.rel_w)} == {torch.bfloat16}
    assert moved.grid_hw == (2, 3)
    assert random_head((2, 3), head_dim=4, relative=False).to("cpu").rel_h is None
