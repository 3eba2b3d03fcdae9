"""SAM 2: captured heads against the blocks' own attention, decoding against SAM2ImagePredictor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.utils.transforms import SAM2Transforms

from effsam2_ray.errors import ConfigError, WeightsError
from effsam2_ray.model.backbones import BACKBONES
from effsam2_ray.model.build import build_model, load_config
from effsam2_ray.model.sam2 import Sam2Model, describe, square
from effsam2_ray.model.weights import DEMO_CONFIG

CPU = torch.device("cpu")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 of soft blobs: more like a photograph than noise, which resizing would flatten."""
    coarse = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (fine[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def random_model(config: str, image_size: int, prompts_per_call: int | None = None, **changes: Any) -> Sam2Model:
    torch.manual_seed(0)
    tree = load_config(config)
    tree["model"] |= {"image_size": image_size, **changes}
    module = build_model(tree)
    for parameter in module.image_encoder.trunk.pos_embed, module.image_encoder.trunk.pos_embed_window:
        torch.nn.init.normal_(parameter, std=0.5)  # zeros as built
    return Sam2Model(module, describe(module, "random", None, "", False), CPU, torch.float32, prompts_per_call)


def predictor_for(model: Sam2Model) -> SAM2ImagePredictor:
    predictor = SAM2ImagePredictor(model._model)
    side = model.info.image_size
    predictor._bb_feat_sizes = [(side // stride, side // stride) for stride in (4, 8, 16)]  # 1024 px is built in
    return predictor


def stock(model: Sam2Model, image: np.ndarray, points: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Full-size logits (P, 3, H, W), scores (P, 3) and low-resolution logits of SAM2ImagePredictor, point by point."""
    predictor = predictor_for(model)
    predictor.set_image(image)
    results = [
        predictor.predict(point[None], np.array([1]), multimask_output=True, return_logits=True) for point in points
    ]
    masks, scores, low_res = (torch.from_numpy(np.stack(part)) for part in zip(*results, strict=True))
    return masks, scores, low_res


@pytest.fixture(scope="module")
def tiny() -> Sam2Model:
    return random_model(BACKBONES["sam2.1_hiera_tiny"].config, 256, prompts_per_call=3)


@pytest.mark.parametrize(
    "name", ["sam2.1_hiera_tiny", "sam2_hiera_small", "sam2.1_hiera_base_plus", "sam2_hiera_large"]
)
def test_captured_attention_is_the_blocks_own(name: str) -> None:
    backbone = BACKBONES[name]
    model = random_model(backbone.config, 256)
    info = model.info
    assert info.global_blocks == backbone.global_blocks
    assert info.num_heads == (backbone.num_heads,) * 3
    assert info.head_dim == backbone.head_dim
    assert info.default_head == backbone.default_head
    assert info.grid_size == 16

    heads = [(info.global_blocks[0], 2), (info.global_blocks[0], 0), (info.global_blocks[2], 3)]
    seen: dict[int, dict[str, torch.Tensor]] = {block: {} for block, _ in heads}
    for block in seen:
        attention = model._model.image_encoder.trunk.blocks[block].attn
        attention.register_forward_pre_hook(lambda _m, args, block=block: seen[block].update(x=args[0]))
        attention.proj.register_forward_pre_hook(lambda _m, args, block=block: seen[block].update(out=args[0]))
    encoded = model.encode([picture(90, 200), picture(300, 120, seed=1)], heads)

    for block, head in heads:
        attention = model._model.image_encoder.trunk.blocks[block].attn
        dim = info.head_dim
        width = backbone.num_heads * dim
        for index, image in enumerate(encoded):
            captured = image.captured[block, head]
            assert captured.grid_hw == (16, 16)
            x = seen[block]["x"][index].reshape(256, width)
            q, k, v = (
                x @ attention.qkv.weight[start : start + dim].T + attention.qkv.bias[start : start + dim]
                for start in (part * width + head * dim for part in range(3))
            )
            by_hand = torch.softmax(q @ k.T / dim**0.5, dim=-1)
            # Rounding of float32 products in another order.
            torch.testing.assert_close(captured.attention(), by_hand, atol=1e-6, rtol=1e-4)
            fused = seen[block]["out"][index].reshape(256, width)[:, head * dim : (head + 1) * dim]
            torch.testing.assert_close(captured.attention() @ v, fused, atol=1e-5, rtol=1e-4)


def test_captured_tensors_do_not_hold_on_to_the_batch(tiny: Sam2Model) -> None:
    [image, _] = tiny.encode([picture(60, 80), picture(60, 80)], [(5, 0)])
    captured = image.captured[5, 0]
    for tensor in (captured.q, captured.k, image.features.embedding, *image.features.high_res):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_no_hook_is_left_behind(tiny: Sam2Model) -> None:
    tiny.encode([picture(60, 80)], tiny.info.all_heads)
    assert not any(block.attn.qkv._forward_hooks for block in tiny._model.image_encoder.trunk.blocks)


def test_a_block_that_is_not_global_is_refused_with_the_valid_ones(tiny: Sam2Model) -> None:
    with pytest.raises(ConfigError, match="block 4 of random .*global blocks are 5, 7, 9"):
        tiny.encode([picture(60, 80)], [(4, 0)])
    with pytest.raises(ConfigError, match="head must be 0 to 3 in block 5 of random; got 4"):
        tiny.encode([picture(60, 80)], [(5, 4)])


def test_no_pictures_and_no_heads(tiny: Sam2Model) -> None:
    assert tiny.encode([], [(5, 0)]) == []
    [image] = tiny.encode([picture(60, 80)], [])
    assert image.captured == {}
    assert image.grid_extent_hw == (60.0, 80.0)


@pytest.mark.parametrize("size_hw", [(60, 80), (777, 333), (256, 256)])
def test_resizing_is_the_predictors_to_the_bit(size_hw: tuple[int, int]) -> None:
    image = picture(*size_hw)
    expected = SAM2Transforms(256, 0.0)(image)
    image.setflags(write=False)
    assert torch.equal(square(image, 256, CPU), expected)


def test_masks_and_scores_are_the_predictors_at_1024() -> None:
    model = random_model(BACKBONES["sam2.1_hiera_tiny"].config, 1024)
    assert SAM2ImagePredictor(model._model)._bb_feat_sizes == predictor_for(model)._bb_feat_sizes
    image, points = picture(300, 420), np.array([[300.0, 290.25]])
    [encoded] = model.encode([image], [model.info.default_head])
    assert encoded.captured[5, 2].grid_hw == (64, 64)
    [decoded] = model.decode([(encoded, points)])
    masks, scores, low_res = stock(model, image, points)
    assert decoded.low_res_logits.shape == (1, 3, 256, 256)
    # Same numbers, summed in another order.
    torch.testing.assert_close(decoded.low_res_logits.clamp(-32, 32), low_res, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(decoded.predicted_iou, scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        model.upsample(decoded.low_res_logits[:, 1], (300, 420)), masks[:, 1], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    "config", [BACKBONES["sam2.1_hiera_tiny"].config, BACKBONES["sam2_hiera_tiny"].config, DEMO_CONFIG]
)
def test_pictures_of_different_sizes_share_calls_and_stay_the_predictors(config: str) -> None:
    model = random_model(config, 256, prompts_per_call=4)
    images = [picture(100, 180), picture(256, 90, seed=1), picture(70, 70, seed=2)]
    rng = np.random.default_rng(0)
    points = [
        rng.uniform(0, 1, (count, 2)) * image.shape[1::-1] for count, image in zip((5, 0, 2), images, strict=True)
    ]
    decoded = model.decode(list(zip(model.encode(images, []), points, strict=True)))
    assert decoded[1].low_res_logits.shape == (0, 3, 64, 64)
    assert decoded[1].predicted_iou.shape == (0, 3)
    for index in (0, 2):
        masks, scores, _ = stock(model, images[index], points[index])
        for mask in range(3):
            ours = model.upsample(decoded[index].low_res_logits[:, mask], images[index].shape[:2])
            torch.testing.assert_close(ours, masks[:, mask], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(decoded[index].predicted_iou, scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prompts_per_call", [1, 4, 16])
def test_a_prompts_result_does_not_depend_on_its_neighbours(prompts_per_call: int) -> None:
    model = random_model(DEMO_CONFIG, 256, prompts_per_call)
    first, second = model.encode([picture(100, 180), picture(256, 90, seed=1)], [])
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 90, (7, 2))
    [alone] = model.decode([(first, points[3:4])])
    together = model.decode([(second, points[:5]), (first, points), (second, points[:2])])[1]
    assert torch.equal(together.low_res_logits[3], alone.low_res_logits[0])
    assert torch.equal(together.predicted_iou[3], alone.predicted_iou[0])


def test_only_empty_requests(tiny: Sam2Model) -> None:
    [image] = tiny.encode([picture(60, 80)], [])
    assert tiny.decode([]) == []
    [decoded] = tiny.decode([(image, np.zeros((0, 2)))])
    assert decoded.low_res_logits.shape == (0, 3, 64, 64)
    assert tiny.upsample(decoded.low_res_logits[:, 0], (60, 80)).shape == (0, 60, 80)


def test_bfloat16_stays_close() -> None:
    model = random_model(BACKBONES["sam2.1_hiera_tiny"].config, 256)
    half = Sam2Model(model._model, model.info, CPU, torch.bfloat16)
    image, points = picture(100, 180), np.array([[50.0, 60.0]])
    encoded, half_encoded = (each.encode([image], [(5, 2)])[0] for each in (model, half))
    assert half_encoded.captured[5, 2].q.dtype == torch.bfloat16
    [full], [halved] = model.decode([(encoded, points)]), half.decode([(half_encoded, points)])
    assert halved.low_res_logits.dtype == halved.predicted_iou.dtype == torch.float32
    # bfloat16 keeps 8 bits; logits here are around 1.
    assert (halved.low_res_logits - full.low_res_logits).abs().max() < 0.1 * full.low_res_logits.abs().max()


def test_image_size_must_suit_the_trunk() -> None:
    with pytest.raises(WeightsError, match="image_size of random must be a multiple of 32; got 240"):
        random_model(BACKBONES["sam2.1_hiera_tiny"].config, 240)
