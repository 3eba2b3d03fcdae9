"""`effsam2 plan`: the arithmetic by hand, the probe on actual images, and the lines that are printed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from effsam2_ray import Labeller, preset_config
from effsam2_ray.cli import main
from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.errors import InputError
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.planning import Rates, estimate, rates_from_steps, wall_hours
from effsam2_ray.probe import probe, sample

TEN = Rates(images_per_s=10.0, output_bytes=20_000.0, num_cluster_actors=2, segmenter_cpus=4)


def test_a_million_images_at_ten_a_second():
    found = estimate(1_000_000, TEN, gpu_hour_price=0.36, wished_hours=7.0, numbers=(1, 2))
    assert found.gpu_hours == pytest.approx(100_000 / 3600)  # 27.8
    assert found.cost == found.cost_per_million == pytest.approx(10.0)
    assert found.output_bytes == 20e9
    assert found.num_segmenters == 4  # 27.8 h in 7 h
    # Units of 512 images: 1,954 of them; 1, 2 and 4 segmenters do 1,954, 977 and 489 each.
    assert found.wall_hours == (
        (1, pytest.approx(1_000_000 / 10 / 3600)),
        (2, pytest.approx(977 * 512 / 10 / 3600)),
        (4, pytest.approx(489 * 512 / 10 / 3600)),
    )


def test_half_a_gpu_costs_half():
    found = estimate(36_000, TEN, gpu_hour_price=2.0, gpus_per_segmenter=0.5)
    assert (found.gpu_hours, found.cost) == (0.5, 1.0)


def test_more_segmenters_than_the_images_keep_busy_are_not_advised():
    # 12,000 images are 20 minutes of work; 4 units of 30 s for each segmenter make 10 segmenters at most.
    assert estimate(12_000, TEN, gpu_hour_price=1, wished_hours=0.01).num_segmenters == 10
    assert estimate(3, TEN, gpu_hour_price=1, wished_hours=0.01).num_segmenters == 1
    assert estimate(0, TEN, gpu_hour_price=1).wall_hours[0] == (1, 0.0)


@pytest.mark.parametrize(
    ("num_images", "num_segmenters", "units_each", "unit_images"),
    [(800, 2, 4, 100), (801, 2, 5, 100), (7, 4, 2, 1), (3, 8, 1, 1), (100_000, 2, 98, 512)],
)
def test_wall_time_counts_whole_units(num_images, num_segmenters, units_each, unit_images):
    assert wall_hours(num_images, num_segmenters, TEN) == pytest.approx(units_each * unit_images / 10 / 3600)


STEPS = [
    {"load_s": 0.02, "encode_s": 0.03, "attention_s": 0.004, "distances_s": 0.004, "spanning_tree_s": 0.002,
     "tree_select_s": 0.1, "medoids_s": 0.0, "decode_s": 0.05, "select_s": 0.01, "merge_s": 0.03},
    {"load_s": 0.02, "encode_s": 0.03, "attention_s": 0.004, "distances_s": 0.004, "spanning_tree_s": 0.002,
     "tree_select_s": 0.2, "medoids_s": 0.0, "decode_s": 0.05, "select_s": 0.01, "merge_s": 0.03},
]  # fmt: skip


def test_rates_on_a_gpu():
    rates = rates_from_steps(STEPS, 1.0, on_gpu=True)
    # The device is busy for 0.1 s; an actor for 0.15 s; loading and merging for 0.05 s.
    assert rates.images_per_s == pytest.approx(10)
    assert (rates.num_cluster_actors, rates.segmenter_cpus) == (2, 1 + 2 + 1)


def test_rates_without_a_gpu():
    rates = rates_from_steps(STEPS, 1.0, on_gpu=False)
    # 0.09 s in the segmenter, 0.16 s in the actors, which cluster as a whole.
    assert rates.images_per_s == pytest.approx(1 / 0.09)
    assert rates.num_cluster_actors == 2


def test_nothing_clustered_needs_no_actors():
    steps = [{"load_s": None, "encode_s": 0.5, "decode_s": 0.5, "select_s": 0.0, "tree_select_s": None, "merge_s": 0.1}]
    rates = rates_from_steps(steps, 1.0, on_gpu=True)
    assert (rates.images_per_s, rates.num_cluster_actors, rates.segmenter_cpus) == (pytest.approx(1), 0, 2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    encoded = []
    for seed in range(6):
        buffer = io.BytesIO()
        Image.fromarray(draw_scene(seed, (96, 128)).image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    (root / "lone").mkdir()
    for number, data in enumerate(encoded[:4]):
        (root / "lone" / f"{number}.png").write_bytes(data)
    (root / "lone" / "bad.png").write_bytes(b"no picture")
    with tarfile.open(root / "shard.tar", "w") as tar:
        for number, data in enumerate(encoded[4:]):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return root


CONFIG = preset_config("high_quality").with_overrides(
    ["decode.pred_iou_thresh=0.3", "decode.stability_score_thresh=0.5"]
)


def test_the_sample_is_spread_over_the_list(inputs: Path):
    work_list = build_work_list([f"{inputs}/lone", f"{inputs}/shard.tar"], num_segmenters=2)
    names = [record.image_uri.rpartition("/")[2] for record in sample(work_list, 3, None)]
    assert names == ["0.png", "2.png", "bad.png"]
    every = [record.image_uri.rpartition("/")[2] for record in sample(work_list, 99, None)]
    assert every == ["0.png", "1.png", "2.png", "3.png", "bad.png", "shard.tar#0.png", "shard.tar#1.png"]


def test_a_probe_labels_actual_images(inputs: Path):
    work_list = build_work_list([f"{inputs}/lone", f"{inputs}/shard.tar"])
    labeller = Labeller.from_weights("demo", config=CONFIG, device="cpu")
    found = probe(work_list, labeller, 7)
    assert (found.num_labelled, found.num_failed) == (6, 1)
    labelled = [labeller.label(record.data) for record in sample(work_list, 7, None) if "bad" not in record.image_uri]
    assert found.masks_per_image == sum(len(image.masks) for image in labelled) / 6 > 0
    assert found.prompts_per_image == sum(len(image.prompts.point_coords) for image in labelled) / 6
    assert 0.1 < found.rates.images_per_s < 1000 and 500 < found.rates.output_bytes < 100_000


def test_a_probe_of_nothing_but_bad_images_says_so(inputs: Path):
    work_list = build_work_list([f"{inputs}/lone/bad.png"])
    with pytest.raises(InputError, match="none of 1 images that were tried can be labelled"):
        probe(work_list, Labeller.from_weights("demo", config=CONFIG, device="cpu"), 4)


def test_a_plan_at_a_given_rate(inputs: Path, capsys):
    command = ["plan", str(inputs / "shard.tar"), "--gpu-hour-price", "0.9", "--rate", "25", "--gpus", "2,8"]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 images, 1 shards, 0.00 GB to read",
        "0.0 GPU hours at 25.00 images/s a segmenter (given, 1 GPU each)",
        "Cost: 0.00 for all, 10.00 per million images",
        "Output: 0.000 GB (40.0 KB per image, assumed)",
        "       1 GPUs: 0 s",
        "       2 GPUs: 0 s",
        "       8 GPUs: 0 s",
        "Advised: --num-segmenters 1:1 --num-cluster-actors 4, 8 CPUs for each segmenter",
    ]


def test_a_plan_from_a_probe(inputs: Path, capsys):
    command = ["plan", str(inputs / "lone"), "--gpu-hour-price", "1", "--device", "cpu", "--probe", "2"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert told.startswith("Probe: 2 images on this machine's cpu, ") and "Note: these are a CPU's rates" in told
    assert "5 images, 0 shards" in told and "(probed, 1 GPU each)" in told and "KB per image, probed)" in told


@pytest.mark.parametrize("option", [["--gpu-hour-price", "0"], ["--gpu-hour-price", "1", "--rate", "nan"]])
def test_prices_and_rates_are_more_than_nothing(option: list[str], capsys):
    with pytest.raises(SystemExit):
        main(["plan", "x", *option])
    assert "must be more than 0" in capsys.readouterr().err


def test_a_plan_takes_work_lists_and_preset_files(inputs: Path, tmp_path: Path, capsys):
    listed = str(tmp_path / "list.parquet")
    assert main(["manifest", str(inputs / "lone"), "--output", listed]) == 0
    (tmp_path / "my.yaml").write_text("cluster: {min_cluster_size: 7}")
    plan = ["plan", "--gpu-hour-price", "1", "--rate", "5"]
    capsys.readouterr()
    assert main([*plan, "--work-list", listed, "--preset", str(tmp_path / "my.yaml")]) == 0
    assert capsys.readouterr().out.startswith("5 images, ")
    for wrong, message in (
        (["--set", "a.b=3", str(inputs / "lone")], "unknown section 'a'"),
        (["--preset", "fast", str(inputs / "lone")], "unknown preset 'fast'"),
        (["--work-list", listed, str(inputs / "lone")], "give --work-list alone"),
        ([], "nothing to plan"),
    ):
        assert main([*plan, *wrong]) == 2
        assert message in capsys.readouterr().err
