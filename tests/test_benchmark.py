from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from effsam2_ray import Labeller
from effsam2_ray.benchmark import peers
from effsam2_ray.benchmark.chart import growth_svg
from effsam2_ray.benchmark.growth import Curve, masks_curve, prompts_curve
from effsam2_ray.benchmark.limits import Limits
from effsam2_ray.benchmark.models import benchmark_config, demo_model_at, random_model
from effsam2_ray.benchmark.pictures import drawn_pictures, folder_pictures, resized
from effsam2_ray.benchmark.report import with_section
from effsam2_ray.benchmark.run import LARGE_BUDGET_BYTES, LARGE_HW, LARGE_PROMPTS
from effsam2_ray.benchmark.steps import label_picture, measure_steps, prompts_of
from effsam2_ray.benchmark.timing import Spread, interleave, peak_memory, ratios
from effsam2_ray.errors import ConfigError, InputError
from effsam2_ray.model.reference import grid_generator
from effsam2_ray.model.weights import load_model
from effsam2_ray.pipeline.benchmark import busy_share, rerun_cost
from effsam2_ray.prompts import grid_prompts

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def labeller() -> Labeller:
    model = load_model("demo", device="cpu")
    return Labeller(model, benchmark_config(model, "low_latency", False, []))


@pytest.fixture(scope="module")
def pictures():
    return drawn_pictures(2, (96, 128))


def test_spread_worked_by_hand():
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(median=3.0, low=2.0, high=4.0, count=5)


def test_functions_are_run_in_turns():
    order: list[str] = []
    taken = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * 3 and [len(values) for values in taken.values()] == [3, 3]


def test_no_round_begins_after_the_limit_but_the_first_is_whole():
    taken = interleave({"a": lambda: time.sleep(0.02), "b": lambda: None}, rounds=5, limit_s=0.0)
    assert [len(values) for values in taken.values()] == [1, 1] and taken["a"][0] >= 0.02


def test_ratios_are_taken_round_by_round():
    assert ratios([10.0, 30.0, 20.0], [1.0, 10.0, 4.0]).median == 5.0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux forgets a process's peak")
def test_peak_memory_sees_what_a_block_took_and_gave_back():
    with peak_memory(CPU) as first:
        np.ones(96 << 20, np.uint8)
    with peak_memory(CPU) as second:
        pass
    assert 90 << 20 < first[0].host_bytes < 130 << 20
    assert second[0].host_bytes < 20 << 20 and first[0].device_bytes is None


def test_busy_share_worked_by_hand():
    # The second half of four calls: three seconds of the five from 10 to 15.
    assert busy_share("0 1\n1 2\n13 15\n10 11\n") == 0.6


def test_growth_power_and_chart():
    seconds = tuple(Spread(s, s * 0.9, s * 1.1, 3) for s in (0.5, 1.0, 4.0))
    curve = Curve("prompts an image", (25.0, 50.0, 100.0), seconds, "")
    assert curve.power == pytest.approx(2.0)
    svg = ElementTree.fromstring(growth_svg([curve, curve]))
    assert len(svg.findall(".//{*}circle")) == 6 and len(svg.findall(".//{*}polyline")) == 4


def test_a_section_takes_the_place_of_the_one_of_its_title():
    page = with_section(with_section("", "## a\n\n1\n"), "## b\n\n2\n")
    assert page.startswith("# Benchmarks\n") and page.endswith("## a\n\n1\n\n## b\n\n2\n")
    replaced = with_section(page, "## a\n\n### inner\n3\n")
    assert replaced.endswith("## a\n\n### inner\n3\n\n## b\n\n2\n")


def test_prompts_are_cut_or_filled_up_to_a_number():
    found = grid_prompts(3, (40, 60))
    assert prompts_of(found, None, (40, 60)) is found
    assert np.array_equal(prompts_of(found, 4, (40, 60)).point_coords, found.point_coords[:4])
    filled = prompts_of(found, 30, (40, 60))
    assert len(filled) == 30 and np.array_equal(filled.point_coords[:9], found.point_coords)
    assert (filled.point_coords < [60, 40]).all() and len(filled.cluster_size) == len(filled.persistence) == 30


def test_folder_pictures_skips_what_is_no_picture(tmp_path, pictures):
    (tmp_path / "b.jpg").write_bytes(pictures[0].data)
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    (tmp_path / "c.txt").write_text("text")
    [found] = folder_pictures(str(tmp_path), 5)
    assert found.name == "b.jpg" and np.array_equal(found.array, pictures[0].array)
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(InputError, match="holds no picture that can be read"):
        folder_pictures(str(tmp_path), 5)
    assert resized(found, (20, 30)).array.shape == (20, 30, 3)


def test_every_step_is_timed_and_its_work_counted(labeller, pictures):
    steps = {step.name: step for step in measure_steps(labeller, pictures[:1], rounds=1, num_prompts=8)}
    assert list(steps) == [
        *("decode picture", "resize", "encode", "capture", "attention", "distances", "spanning tree", "tree + select"),
        *("medoids", "prompt decode", "select + upsample", "candidate RLE", "merge", "Parquet"),
    ]
    assert all(step.seconds.median > 0 for name, step in steps.items() if name != "capture")
    assert 1e9 < steps["encode"].flops < 1e11 and 1e8 < steps["prompt decode"].flops < 1e10
    assert Limits(2.0, None, 1.0).flops(True) == 2.0 and Limits(2.0, 5.0, 1.0).flops(True) == 5.0


def test_flops_of_a_convolution_and_an_attention_worked_by_hand():
    from effsam2_ray.benchmark.steps import _flops

    convolution = torch.nn.Conv2d(3, 8, 4, stride=4)
    q = torch.rand(1, 2, 5, 16)

    def run() -> None:
        with torch.no_grad():
            convolution(torch.rand(1, 3, 8, 8))
            torch.nn.functional.scaled_dot_product_attention(q, q, q)

    assert _flops(run) == 2 * (8 * 4) * (3 * 16) + 2 * 2 * 2 * 5 * 5 * 16


def test_peers_give_the_same_answers(labeller, pictures):
    model, head = labeller.model, labeller.heads[0]
    captured = model.encode([pictures[0].array], [head])[0].captured[head]
    clustering = peers.compare_clustering(captured, "high_quality", 1, 1)
    assert clustering.facts["equal_labels"] == 1 and clustering.facts["points"] == 1024
    masks = peers.masks_for_rle(model, pictures[0], 5, (60, 50))
    rle = peers.compare_rle(masks, 1, 1)
    assert rle.facts["equal_bytes"] == 1 and masks.shape == (5, 60, 50)
    assert peers.compare_decoder(model, pictures[0], 6, 1, 1).facts["prompts"] == 6
    assert list(peers.compare_presets_together(captured, 1, 1).ratio) == ["one by one"]
    assert list(peers.compare_distances(captured, 1, 1).ratio) == ["torch, plain product"]


def test_whole_pictures_beside_the_generator(labeller, pictures, monkeypatch):
    small = lambda model, points_per_side=3, **rest: grid_generator(model, points_per_side=3, **rest)  # noqa: E731
    monkeypatch.setattr(peers, "grid_generator", small)
    found = peers.compare_end_to_end({"own": (labeller, None), "nine": (labeller, 9)}, pictures, 64, 60)
    assert found["nine"].facts["prompts"] == 9 and found["own"].seconds["effsam2_ray"].count == 2
    ratio = next(iter(found["nine"].ratio.values())).median
    assert found["nine"].facts["ratio_per_prompt"] == pytest.approx(ratio * 9 / 1024, rel=0.3)


def test_growth_curves(labeller, pictures):
    curve = prompts_curve(labeller, pictures[0], (2, 8), 1, 10)
    assert curve.values == (2.0, 8.0) and curve.seconds[1].median > 0
    assert len(masks_curve(labeller, pictures[0], (2, 8), 1, 10).seconds) == 2


def test_demo_weights_at_another_size_have_more_patches():
    assert demo_model_at(1024, "cpu").info.grid_size == 64


def test_random_weights_are_sharp_enough_to_cluster_and_reproducible():
    model = random_model("sam2.1_hiera_tiny", "cpu")
    head = model.info.default_head
    assert model.info.image_size == 1024 and model.info.weights_sha256 == ""
    captured = model.encode([drawn_pictures(1, (96, 128))[0].array], [head])[0].captured[head]
    # Without sharpening every row is nearly uniform: its largest weight is then 1 / 4096 and a little.
    assert captured.attention().amax(dim=1).median() > 10 / 4096
    again = random_model("sam2.1_hiera_tiny", "cpu").module.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.module.state_dict().items())
    with pytest.raises(ConfigError, match="random weights are made for sam2_hiera_tiny, .*got 'sam_vit_b'"):
        random_model("sam_vit_b")


@pytest.mark.soak
def test_memory_stays_under_the_budget_with_8000_x_6000_pixels_and_1000_prompts(labeller):
    large = resized(drawn_pictures(1, (480, 640))[0], LARGE_HW)
    label_picture(labeller, drawn_pictures(1, (96, 128))[0], 8)
    with peak_memory(CPU) as memory:
        labelled = label_picture(labeller, large, LARGE_PROMPTS)
    assert len(labelled.candidates) > 100
    assert memory[0].host_bytes < LARGE_BUDGET_BYTES


@pytest.mark.soak
def test_what_runs_that_share_work_cost(labeller, pictures):
    other = Labeller(labeller.model, benchmark_config(labeller.model, "high_quality", False, []))
    cost = rerun_cost({"low_latency": labeller, "high_quality": other}, "demo", pictures, seconds=2)
    assert list(cost.alone_s) == list(cost.remerge_s) == ["low_latency", "high_quality"]
    assert cost.num_images > 8 and all(value > 0 for value in cost.bare_label_s.values())
    assert min(cost.candidates.values()) > 0 and min(cost.remerge_vs_label.values()) > 1


@pytest.mark.soak
def test_the_quick_benchmark_writes_its_ratios(tmp_path):
    json_path, markdown_path = tmp_path / "figures.json", tmp_path / "figures.md"
    command = [sys.executable, str(ROOT / "jobs" / "benchmark.py"), "--quick", "--json", str(json_path)]
    subprocess.run([*command, "--markdown", str(markdown_path)], check=True, timeout=900)
    figures = json.loads(json_path.read_text())
    for name in ("clustering_vs_hdbscan", "rle_vs_pycocotools", "ray_vs_bare"):
        assert figures["ratios"][name] > 0
    assert set(figures["ratios"]["end_to_end_vs_grid_generator"]) == {"low_latency", "high_quality"}
    assert 0 < figures["segmenter_busy_share"] <= 1
    assert "| spanning tree |" in markdown_path.read_text()
