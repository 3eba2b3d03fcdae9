"""Training of the demo weights: its losses by hand, and a whole small training that stops and goes on."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F

from effsam2_ray.demo.losses import (
    attention_rows_loss,
    image_to_point_loss,
    mask_ious,
    mask_losses,
    point_to_image_loss,
    region_shares,
    same_region,
)
from effsam2_ray.demo.measure import majority_labels
from effsam2_ray.demo.objective import IMAGE_MEAN, IMAGE_STD, decode, encode
from effsam2_ray.demo.optimization import initialize, learning_rate, trainable_parameters
from effsam2_ray.demo.train import (
    DEMO_CONFIG,
    MASK_LOGIT_SCALE,
    Phase,
    Plan,
    export,
    make_plan,
    scale_mask_logits,
    steps_for,
    train,
)
from effsam2_ray.errors import ConfigError
from effsam2_ray.model.attention_taps import tap_attention
from effsam2_ray.model.build import build_model, load_config


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    built = build_model(load_config(str(DEMO_CONFIG)))
    initialize(built)
    return built


def test_region_shares_count_pixels_of_each_cell():
    label_maps = torch.tensor([[[0, 0, 2, 2], [0, 1, 2, 2], [1, 1, 0, 2], [1, 1, 0, 0]]])
    shares = region_shares(label_maps, 2, 3)
    assert shares[0, :, 0, 0].tolist() == [0.75, 0.25, 0.0]
    assert shares[0, :, 1, 1].tolist() == [0.75, 0.0, 0.25]
    assert torch.equal(shares.sum(dim=1), torch.ones(1, 2, 2))


def test_a_sure_and_right_mask_costs_nothing_and_a_wrong_one_much():
    target = torch.zeros(1, 4, 4)
    target[0, 1, 2] = 1.0
    right = (target * 40 - 20)[:, None]
    losses = mask_losses(torch.cat([right, -right], dim=1), target)
    assert losses[0, 0] < 1e-6
    # cross-entropy 20 in every cell, once more in the one patch, which is mixed; dice 1 - (0 + 1) / (15 + 1 + 1)
    assert losses[0, 1].item() == pytest.approx(2 * 20 + 20 + 16 / 17, rel=1e-4)


def test_the_border_term_counts_mixed_patches_only():
    target = torch.zeros(1, 4, 8)  # two patches
    target[0, 1, 2] = 1.0
    empty = torch.full((1, 1, 4, 8), -20.0)
    # one of 32 cells costs 20, which is one of the 16 of the mixed patch; dice 1 - 1 / 2
    assert mask_losses(empty, target).item() == pytest.approx(2 * 20 / 32 + 20 / 16 + 0.5, rel=1e-4)
    pure = torch.zeros(1, 4, 8)
    pure[0, :, :4] = 1.0
    # no mixed patch: half the cells cost 20; dice 1 - 1 / 17
    assert mask_losses(empty, pure).item() == pytest.approx(2 * 10 + 16 / 17, rel=1e-4)


def test_balanced_cross_entropy_weighs_a_small_object_like_the_rest():
    target = torch.zeros(1, 4, 4)
    target[0, 1, 2] = 1.0
    empty = torch.full((1, 1, 4, 4), -20.0)
    # the object's one cell costs 20, the others nothing; in the mixed patch every cell weighs the same; dice 1 - 1 / 2
    assert mask_losses(empty, target, balanced=True).item() == pytest.approx(2 * 0.5 * 20 + 20 / 16 + 0.5, rel=1e-4)


def test_mask_iou_is_counted_on_thresholded_masks():
    target = torch.tensor([[[1.0, 0.6], [0.4, 0.0]]])
    logits = torch.tensor([[[[3.0, -1.0], [2.0, -5.0]]]])
    assert mask_ious(logits, target).item() == pytest.approx(1 / 3)


def test_point_attention_spread_evenly_over_the_object_reaches_its_entropy():
    shares = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    even = torch.tensor([[[0.0, 0.0, -50.0, -50.0]]])
    assert point_to_image_loss(even, shares).item() == pytest.approx(np.log(2))
    assert point_to_image_loss(torch.zeros(1, 1, 4), shares).item() == pytest.approx(np.log(4))


def test_image_attention_to_the_point_is_balanced_between_object_and_rest():
    shares = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    half = torch.zeros(1, 1, 4, 2)  # every patch gives half its weight to the point
    assert image_to_point_loss(half, 1, shares).item() == pytest.approx(np.log(2))
    right = torch.zeros(1, 1, 4, 2)
    right[0, 0, :, 1] = torch.tensor([20.0, -20.0, -20.0, -20.0])
    assert image_to_point_loss(right, 1, shares) < 1e-4


def test_same_region_multiplies_shares():
    shares = torch.tensor([[[[1.0, 0.25]], [[0.0, 0.75]]]])  # two patches, two labels
    assert same_region(shares).tolist() == [[[1.0, 0.25], [0.25, 0.25**2 + 0.75**2]]]


def test_attention_rows_within_the_region_reach_its_entropy():
    same = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    logits = (same - 1)[:, None] * 50
    assert attention_rows_loss(logits, same).item() == pytest.approx(2 / 3 * np.log(2), rel=1e-5)


def test_learning_rate_rises_stays_and_falls():
    rates = [learning_rate(step, 100, 10, 0.5) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0
    assert rates[10:50] == [1.0] * 40
    assert all(a > b for a, b in zip(rates[50:], rates[51:], strict=False))
    assert rates[75] == pytest.approx(0.5) and rates[99] < 0.01
    assert learning_rate(75, 100, 10, 0.5, end=0.4) == pytest.approx(0.7)
    assert learning_rate(100, 100, 10, 0.5, end=0.4) == pytest.approx(0.4)


def test_minutes_become_steps_at_both_sizes():
    assert steps_for(40) == (1026, 660)
    phases = make_plan(*steps_for(40)).phases
    assert [(phase.image_size, phase.num_steps) for phase in phases] == [(256, 1026), (512, 660)]


@pytest.mark.parametrize("initial_weights", [None, Path("weights.pt")])
def test_the_second_phase_rises_to_the_first_ones_last_rate(initial_weights: Path | None):
    first, second = make_plan(1000, 500, initial_weights=initial_weights).phases
    last = first.peak * learning_rate(999, 1000, first.warmup_steps, first.flat_share, first.end)
    start = second.peak * learning_rate(10, 500, second.warmup_steps, second.flat_share, second.end)
    assert last == pytest.approx(start, rel=0.02)
    alone = make_plan(1000, 0, initial_weights=initial_weights).phases[0]
    assert learning_rate(999, 1000, 100, alone.flat_share, alone.end) < 0.01


def test_majority_labels_of_cells_and_ties_to_the_lowest():
    label_map = np.array([[3, 3, 1, 2], [3, 0, 2, 1]])
    assert majority_labels(label_map, (1, 2)).tolist() == [[3, 1]]
    with pytest.raises(ValueError, match="a 1 x 3 grid does not divide a 2 x 4 label map"):
        majority_labels(label_map, (1, 3))


def test_the_plain_attention_of_training_gives_the_numbers_of_the_fused_one():
    torch.manual_seed(1)
    plain, fused = (build_model(load_config(str(DEMO_CONFIG))) for _ in range(2))
    plain.load_state_dict(fused.state_dict())
    block = "image_encoder.trunk.blocks.7.attn"
    taps = tap_attention(plain, (block,))
    images, points = torch.rand(1, 3, 128, 128), torch.tensor([[[30.0, 40.0], [90.0, 5.0]]])
    outputs = []
    for each in (plain, fused):
        each.set_image_size(128)
        with torch.no_grad():
            outputs.append(decode(each, *encode(each, images), points))
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)  # another order of the same float32 sums
    assert taps[block].shape == (1, 4, 64, 64)
    assert set(plain.state_dict()) == set(fused.state_dict())


def test_scaled_mask_logits_leave_masks_and_predicted_iou_as_they_are():
    torch.manual_seed(3)
    trained, scaled = (build_model(load_config(str(DEMO_CONFIG))) for _ in range(2))
    scaled.load_state_dict(scale_mask_logits(trained.state_dict(), 3.0))
    images, points = torch.rand(1, 3, 128, 128), torch.tensor([[[30.0, 40.0], [90.0, 5.0]]])
    outputs = []
    for each in (trained, scaled):
        each.set_image_size(128)
        with torch.no_grad():
            outputs.append(decode(each, *encode(each, images), points))
    (logits, iou), (scaled_logits, scaled_iou) = outputs
    assert logits.abs().max() > 1e-3
    torch.testing.assert_close(scaled_logits, 3 * logits, atol=1e-5, rtol=1e-4)
    assert torch.equal(scaled_iou, iou)


def test_an_export_has_the_scaled_logits(tmp_path: Path):
    plan = dataclasses.replace(small_plan(0), phases=())
    train(plan, tmp_path)
    export(tmp_path, tmp_path / "weights.pt")
    averaged = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["averaged"]
    state = torch.load(tmp_path / "weights.pt", weights_only=True)["model"]
    changed = {name for name in state if not torch.equal(state[name], averaged[name].half())}
    layer = "sam_mask_decoder.output_hypernetworks_mlps.{}.layers.2.{}"
    assert changed == {layer.format(mask, part) for mask in range(4) for part in ("weight", "bias")}
    name = layer.format(1, "bias")
    assert torch.equal(state[name], (averaged[name] * MASK_LOGIT_SCALE).half())


def test_tapping_a_layer_that_is_not_there_is_refused(model):
    with pytest.raises(KeyError, match="blocks.99"):
        tap_attention(model, ("image_encoder.trunk.blocks.99.attn",))


def test_training_sees_the_numbers_of_sam2s_own_predictor():
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    torch.manual_seed(2)
    net = build_model(load_config(str(DEMO_CONFIG)))
    with torch.no_grad():
        net.no_mem_embed.normal_()
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    predictor = SAM2ImagePredictor(net)
    # The predictor's own sizes are those of 1024 px.
    predictor._bb_feat_sizes = [(128, 128), (64, 64), (32, 32)]
    predictor.set_image(image)
    point = np.array([[100.0, 301.0]])
    _, predicted_iou, low_res = predictor.predict(point, np.array([1]), multimask_output=True)

    pictures = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        logits, ours = decode(net, *encode(net, pictures), torch.from_numpy(point).float()[None])
    np.testing.assert_allclose(ours[0, 1:].numpy(), predicted_iou, atol=1e-5)
    # The predictor clamps its low-resolution logits to +-32.
    np.testing.assert_allclose(logits[0, 1:].clamp(-32, 32).numpy(), low_res, atol=1e-3)


def test_cross_attentions_start_as_similarity_kernels(model):
    attention = model.sam_mask_decoder.transformer.layers[1].cross_attn_token_to_image
    assert torch.equal(attention.q_proj.weight, attention.k_proj.weight)
    torch.testing.assert_close(
        attention.q_proj.weight @ attention.q_proj.weight.T, 4 * torch.eye(64), atol=1e-4, rtol=0
    )
    assert torch.equal(attention.out_proj.weight, attention.v_proj.weight.T)


def test_unused_parts_are_frozen(model):
    names = trainable_parameters(model)
    assert "maskmem_tpos_enc" not in names and "sam_prompt_encoder.point_embeddings.2.weight" not in names
    assert "sam_prompt_encoder.point_embeddings.1.weight" in names and "no_mem_embed" in names


def test_pictures_are_normalised_as_sam2_does():
    from sam2.utils.transforms import SAM2Transforms

    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    ours = (torch.from_numpy(image).permute(2, 0, 1).float() / 255 - IMAGE_MEAN) / IMAGE_STD
    torch.testing.assert_close(ours, SAM2Transforms(64, 0.0)(image), atol=1e-6, rtol=0)


def small_plan(steps: int, num_processes: int = 1) -> Plan:
    phases = (Phase(64, steps, 1, 2, 4, 1.0, 2, 0.5), Phase(128, 1, 1, 2, 2, 0.3, 0, 0.0))
    return Plan(phases, num_processes=num_processes)


def test_training_goes_on_after_a_stop_as_if_there_had_been_none(tmp_path: Path):
    whole_plan = Plan(small_plan(4).phases[:1], num_processes=1)
    train(whole_plan, tmp_path / "whole")
    # The same learning rates in two runs: the first is cut short by a plan whose rate is flat so far.
    first = Plan((Phase(64, 2, 1, 2, 4, 1.0, 2, 1.0),), num_processes=1)
    train(first, tmp_path / "parts")
    train(whole_plan, tmp_path / "parts")
    whole, parts = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["phase_step"] == parts["phase_step"] == 4
    assert all(torch.equal(whole["model"][name], parts["model"][name]) for name in whole["model"])


def test_two_processes_train_both_phases_and_export_half_precision(tmp_path: Path):
    plan = small_plan(2, num_processes=2)
    train(plan, tmp_path)
    export(tmp_path, tmp_path / "weights.pt")
    state = torch.load(tmp_path / "weights.pt", weights_only=True)["model"]
    built = build_model(load_config(str(DEMO_CONFIG)))
    assert set(state) == set(built.state_dict())
    assert all(value.dtype == torch.float16 for value in state.values())
    built.load_state_dict(state)
    start = build_model(load_config(str(DEMO_CONFIG)))
    trained = built.image_encoder.trunk.blocks[7].attn.qkv.weight
    assert trained.isfinite().all() and not torch.equal(trained, start.image_encoder.trunk.blocks[7].attn.qkv.weight)


def test_training_may_start_from_exported_weights(tmp_path: Path):
    torch.manual_seed(5)
    state = {name: value.half() for name, value in build_model(load_config(str(DEMO_CONFIG))).state_dict().items()}
    torch.save({"model": state}, tmp_path / "weights.pt")
    plan = dataclasses.replace(small_plan(0), phases=(), initial_weights=tmp_path / "weights.pt")
    train(plan, tmp_path / "work")
    export(tmp_path / "work", tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)["model"]
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_workers_end_with_their_parent(tmp_path: Path):
    """However the parent ends: workers left behind would go on writing the checkpoint."""
    script = (
        "from pathlib import Path; from effsam2_ray.demo.train import *\n"
        "if __name__ == '__main__':\n"
        "    train(Plan((Phase(64, 10**6, 1, 2, 4, 1.0, 2, 0.5),), num_processes=2), Path('work'))\n"
    )
    (tmp_path / "run.py").write_text(script)
    # torch interrupts workers whose parent died; what a shell starts in the background ignores interrupts.
    command = ["sh", "-c", 'trap "" INT; exec "$0" run.py', sys.executable]
    parent = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None and "step 20/" in parent.stdout.readline()
        workers = psutil.Process(parent.pid).children()
        assert len(workers) >= 2
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for process in alive:
        process.kill()
    assert not alive


def test_a_configuration_may_only_name_model_classes(tmp_path: Path):
    path = tmp_path / "evil.yaml"
    path.write_text("model:\n  _target_: os.system\n  command: 'true'\n")
    with pytest.raises(ConfigError, match=r"must start with one of sam2.modeling., .*; got 'os.system'"):
        build_model(load_config(path))
    path.write_text("model:\n  _target_: torch.nn.Linear\n  in_features: 2\n")
    with pytest.raises(ConfigError, match="model: cannot build torch.nn.Linear: .*out_features"):
        build_model(load_config(path))
    path.write_text("model:\n  _target_: torch.nn.functional.relu\n")
    with pytest.raises(ConfigError, match="model._target_ must name a torch module class"):
        build_model(load_config(path))
    path.write_text("just: text\n")
    with pytest.raises(ConfigError, match="is no model configuration"):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot read the model configuration"):
        load_config(tmp_path / "missing.yaml")


def test_an_official_configuration_builds_without_hydras_global_state():
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    config = load_config("sam2:configs/sam2.1/sam2.1_hiera_t.yaml")
    config["model"]["image_encoder"]["trunk"]["embed_dim"] = 96
    built = build_model(config)
    assert built.image_encoder.trunk.global_att_blocks == [5, 7, 9]
    assert not GlobalHydra.instance().is_initialized()


def test_bilinear_targets_agree_with_average_pooling():
    label_maps = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (2, 16, 16)))
    shares = region_shares(label_maps, 4, 3)
    pooled = F.avg_pool2d(F.one_hot(label_maps, 3).permute(0, 3, 1, 2).float(), 4)
    torch.testing.assert_close(shares, pooled)
