"""SAM 1: captured heads against the blocks' own attention, padding cut off, decoding against SamPredictor."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from effsam2_ray.errors import ConfigError
from effsam2_ray.model.sam1 import Sam1Model, describe, grid_extent, picture_grid, resized_size

pytest.importorskip("segment_anything")
from segment_anything import SamPredictor
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

CPU = torch.device("cpu")
SIDE = 256


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (fine[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def model() -> Sam1Model:
    """ViT-B as segment_anything builds it, at 256 px, with relative positions that are not zero."""
    torch.manual_seed(0)
    grid = SIDE // 16
    sam = Sam(
        image_encoder=ImageEncoderViT(
            depth=12,
            embed_dim=768,
            img_size=SIDE,
            mlp_ratio=4,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=12,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=(2, 5, 8, 11),
            window_size=14,
            out_chans=256,
        ),
        prompt_encoder=PromptEncoder(256, (grid, grid), (SIDE, SIDE), 16),
        mask_decoder=MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048)),
    ).eval()
    for name, parameter in sam.image_encoder.named_parameters():
        if "pos" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return Sam1Model(sam, describe(sam, "random", None, ""), CPU, torch.float32)


def test_facts_are_read_off_the_modules(model: Sam1Model) -> None:
    info = model.info
    assert info.global_blocks == (2, 5, 8, 11)
    assert info.num_heads == (12, 12, 12, 12)
    assert (info.image_size, info.grid_size, info.head_dim) == (256, 16, 64)
    assert info.pred_iou_thresh == 0.88
    with pytest.raises(ConfigError, match="block 3 of random .*global blocks are 2, 5, 8, 11"):
        model.encode([picture(64, 64)], [(3, 0)])


def attention_and_output(model: Sam1Model, image: np.ndarray, block: int, head: int) -> tuple[torch.Tensor, ...]:
    """Captured A, and v and output of the same head inside the block, (N, N), (N, d), (N, d)."""
    attention = model._model.image_encoder.blocks[block].attn
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        attention.qkv.register_forward_hook(lambda _m, _a, out: seen.update(qkv=out)),
        attention.proj.register_forward_pre_hook(lambda _m, args: seen.update(out=args[0])),
    ]
    [encoded] = model.encode([image], [(block, head)])
    for hook in hooks:
        hook.remove()
    dim = model.info.head_dim
    v = seen["qkv"].reshape(256, 3, 12, dim)[:, 2, head]
    return encoded.captured[block, head].attention(), v, seen["out"].reshape(256, 12, dim)[:, head]


@pytest.mark.parametrize(("block", "head"), [(2, 0), (5, 7), (11, 11)])
def test_captured_attention_with_relative_positions_gives_the_blocks_output(
    model: Sam1Model, block: int, head: int
) -> None:
    attention, v, out = attention_and_output(model, picture(300, 300), block, head)
    assert attention.shape == (256, 256)
    # Rounding of float32 products in another order.
    torch.testing.assert_close(attention @ v, out, atol=1e-5, rtol=1e-4)


def test_relative_positions_matter_here(model: Sam1Model) -> None:
    # Guards the test above: with tables of zeros it would pass without them.
    [encoded] = model.encode([picture(300, 300)], [(2, 0)])
    captured = encoded.captured[2, 0]
    plain = torch.softmax(captured.q @ captured.k.T / 8, dim=-1)
    assert (captured.attention() - plain).abs().max() > 0.01


def test_padded_patches_are_cut_off_rows_and_columns(model: Sam1Model) -> None:
    image = picture(100, 160)  # 160 x 256 in the square: 10 of 16 rows
    [encoded] = model.encode([image], [(5, 7)])
    captured = encoded.captured[5, 7]
    assert captured.grid_hw == (10, 16)
    attention = model._model.image_encoder.blocks[5].attn
    seen: dict[str, torch.Tensor] = {}
    hook = attention.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    model.encode([image], [])
    hook.remove()
    # The block's own formula over all 256 patches, then cut.
    from segment_anything.modeling.image_encoder import add_decomposed_rel_pos

    q, k, _ = attention.qkv(seen["x"]).reshape(256, 3, 12, 64).unbind(1)
    q, k = q[None, :, 7], k[None, :, 7]
    logits = (q / 8) @ k.transpose(1, 2)
    logits = add_decomposed_rel_pos(logits, q, attention.rel_pos_h, attention.rel_pos_w, (16, 16), (16, 16))
    full = logits.softmax(-1)[0].detach()
    cut = full[:160, :160] / full[:160, :160].sum(1, keepdim=True)
    torch.testing.assert_close(captured.attention(), cut, atol=1e-6, rtol=1e-4)
    assert captured.q.untyped_storage().nbytes() == captured.q.numel() * 4


@pytest.mark.parametrize(
    ("length", "patches"),
    [(1, 1), (8, 1), (24, 1), (25, 2), (160, 10), (168, 10), (169, 11), (256, 16)],
)
def test_a_patch_counts_when_its_centre_is_on_the_picture(length: int, patches: int) -> None:
    assert picture_grid((length, 256), 16) == (patches, 16)


@pytest.mark.parametrize("size_hw", [(1, 5000), (5, 300), (9, 256), (100, 161), (427, 640), (1024, 1023), (640, 427)])
def test_every_patch_centre_is_on_the_picture(size_hw: tuple[int, int]) -> None:
    input_hw = resized_size(size_hw, 1024)
    rows, columns = picture_grid(input_hw, 16)
    height, width = grid_extent(size_hw, input_hw, (rows, columns), 16)
    assert 0 < (rows - 0.5) / rows * height < size_hw[0]
    assert 0 < (columns - 0.5) / columns * width < size_hw[1]


def test_patch_centres_are_where_the_encoder_has_them() -> None:
    # 100 x 161 becomes 159 x 256: patch 9 of the rows has its centre at 152 of 159, or 95.6 of 100.
    height, width = grid_extent((100, 161), (159, 256), picture_grid((159, 256), 16), 16)
    assert 9.5 / 10 * height == pytest.approx(152 * 100 / 159)
    assert 15.5 / 16 * width == pytest.approx(248 * 161 / 256)


def test_masks_and_scores_are_the_predictors(model: Sam1Model) -> None:
    images = [picture(100, 160), picture(333, 120, seed=1), picture(5, 400, seed=2)]
    rng = np.random.default_rng(0)
    points = [
        rng.uniform(0, 1, (count, 2)) * image.shape[1::-1] for count, image in zip((2, 0, 1), images, strict=True)
    ]
    decoded = model.decode(list(zip(model.encode(images, [model.info.default_head]), points, strict=True)))
    predictor = SamPredictor(model._model)
    for image, image_points, ours in zip(images, points, decoded, strict=True):
        assert ours.low_res_logits.shape == (len(image_points), 3, 64, 64)
        predictor.set_image(image)
        for index, point in enumerate(image_points):
            masks, scores, low_res = predictor.predict(point[None], np.array([1]), return_logits=True)
            # Same numbers, summed in another order.
            torch.testing.assert_close(ours.low_res_logits[index], torch.from_numpy(low_res), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours.predicted_iou[index], torch.from_numpy(scores), atol=1e-5, rtol=1e-4)
            full = model.upsample(ours.low_res_logits[index], image.shape[:2])
            torch.testing.assert_close(full, torch.from_numpy(masks), atol=1e-4, rtol=1e-4)


def test_a_picture_too_thin_for_sam1_itself_still_has_a_result(model: Sam1Model) -> None:
    [encoded] = model.encode([picture(1, 5000)], [(5, 2)])
    assert encoded.captured[5, 2].grid_hw == (1, 16)
    [decoded] = model.decode([(encoded, np.array([[2500.0, 0.5]]))])
    assert model.upsample(decoded.low_res_logits[:, 0], (1, 5000)).shape == (1, 1, 5000)


def test_masks_of_a_small_picture_pass_the_encoders_square_a_few_at_a_time(
    model: Sam1Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(150, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = model._model.postprocess_masks(logits[:, None], resized_size((20, 30), SIDE), (20, 30))[:, 0]
    own, sizes = model._model.postprocess_masks, []

    def spy(masks: torch.Tensor, *sizes_hw: tuple[int, int]) -> torch.Tensor:
        sizes.append(len(masks))
        return own(masks, *sizes_hw)

    monkeypatch.setattr(model._model, "postprocess_masks", spy)
    assert torch.equal(model.upsample(logits, (20, 30)), expected)
    assert sizes == [64, 64, 22]  # 64 squares of 256 x 256 float32 are 16 MiB
    assert model.upsample(logits[:0], (20, 30)).shape == (0, 20, 30)
