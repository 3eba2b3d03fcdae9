"""`effsam2 calibrate`: every head in one pass, ranked with equal prompts, and the table fed back in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from effsam2_ray import Labeller
from effsam2_ray.cli import main
from effsam2_ray.cluster_prompts import cluster_prompts
from effsam2_ray.commands.calibrate import numbers, place
from effsam2_ray.config import preset_config
from effsam2_ray.datasets import open_dataset
from effsam2_ray.demo.scene_folder import write_scenes
from effsam2_ray.errors import ConfigError
from effsam2_ray.evaluation.budget import cut_prompts, prompt_budget
from effsam2_ray.metrics import adjusted_rand_index, score_image, truth_label_map
from effsam2_ray.model.weights import check_weights, load_model
from effsam2_ray.pipeline.calibrate import choose_heads
from effsam2_ray.postprocess import finish

SETTINGS = ["decode.pred_iou_thresh=0.3", "decode.stability_score_thresh=0.5"]
CONFIG = preset_config("sam1").with_overrides(SETTINGS)
NUM = 3


@pytest.fixture(scope="module", autouse=True)
def two_cpus():
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, NUM, (128, 96), first=20)
    return folder


def run(scenes: Path, output: Path, *more: str) -> int:
    settings = [text for setting in SETTINGS for text in ("--set", setting)]
    fixed = ["--preset", "sam1", "--device", "cpu", "--show", "2"]
    return main(["calibrate", str(scenes), "--output", str(output), *fixed, *settings, *more])


@pytest.fixture(scope="module")
def info():
    return check_weights("demo")


@pytest.fixture(scope="module")
def searched(info) -> list[tuple[int, int]]:
    """Two heads of the last block and one of the first."""
    return choose_heads(info, [info.global_blocks[-1]], [0, 1])


@pytest.fixture(scope="module")
def calibrated(scenes, searched, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("calibrated") / "table.json"
    assert run(scenes, output, "--blocks", str(searched[0][0]), "--heads", "0,1") == 0
    return output


def test_every_head_is_scored_as_the_bare_labeller_scores_it_with_equal_prompts(scenes, searched, calibrated):
    truth = open_dataset(str(scenes))
    model = load_model("demo", device="cpu")
    labelled: dict[tuple[int, int], list] = {}
    for block, head in searched:
        config = CONFIG.with_overrides([f"attention.block={block}", f"attention.head={head}"])
        labelled[block, head] = [Labeller(model, config).label(uri) for uri in truth.image_uris]
    budgets = [prompt_budget([len(images[n].prompts) for images in labelled.values()]) for n in range(NUM)]
    table = json.loads(calibrated.read_text())
    (entry,) = table.values()
    ranking = {(line["block"], line["head"]): line for line in entry["evidence"]["ranking"]}
    assert set(ranking) == set(searched)
    for head, images in labelled.items():
        bests, maps, rands = [], [], []
        for uri, image, budget in zip(truth.image_uris, images, budgets, strict=True):
            known = truth.objects(uri)
            final = finish(cut_prompts(image, budget), CONFIG.merge, CONFIG.filter)
            assert len(final.prompts) == budget
            scores = score_image(
                [mask.segmentation for mask in final.masks], [mask.predicted_iou for mask in final.masks], known
            )
            bests.append(scores.best_iou)
            maps.append(scores.label_map_iou)
            rands.append(adjusted_rand_index(image.cluster_map, truth_label_map(known)))
        line = ranking[head]
        assert line["equal_prompts"]["best_iou"]["mean"] == pytest.approx(np.mean(bests))
        assert line["equal_prompts"]["num_prompts"]["mean"] == pytest.approx(np.mean(budgets))
        assert line["score"]["mean"] == pytest.approx((np.mean(bests) + np.mean(maps)) / 2)
        assert line["adjusted_rand_index"]["mean"] == pytest.approx(np.mean(rands))
        own = np.mean([len(image.prompts) for image in images])
        assert line["own_prompts"]["num_prompts"]["mean"] == pytest.approx(own)
    scores = [line["score"]["mean"] for line in entry["evidence"]["ranking"]]
    assert scores == sorted(scores, reverse=True)


def test_the_table_feeds_back_in(calibrated, info):
    (key,) = json.loads(calibrated.read_text())
    table = json.loads(calibrated.read_text())[key]
    assert key == info.weights_sha256
    again = check_weights("demo", heads_table=str(calibrated))
    assert again.default_head == (table["block"], table["head"]) and again.head_source == table["source"]
    assert "effsam2 calibrate on 3 pictures of scenes" in table["source"]


def test_report_chart_and_attention_are_drawn(calibrated, searched):
    text = calibrated.with_suffix(".md").read_text()
    for block, head in searched:
        assert f"| {block} | {head} |" in text
    assert "lower quartile" in text
    chart = Image.open(calibrated.with_suffix(".png"))
    attention = Image.open(calibrated.with_name("table-attention.png"))
    assert chart.width == 900 and attention.height > 4 * 300  # two pictures for each of two heads


def test_all_heads_come_from_one_encoding_and_a_second_call_labels_nothing(scenes, searched, calibrated, capsys):
    work = calibrated.with_suffix(".work")
    parts = {path: path.stat().st_mtime_ns for path in work.rglob("part-*.parquet")}
    folders = {path.parent.name for path in parts if path.parent.parent.name == "runs"}
    assert folders == {f"block-{block}-head-{head}" for block, head in searched}
    encode_s = [
        pq.read_table(work / "runs" / folder, columns=["step_s"]).to_pylist()[0]["step_s"]["encode_s"]
        for folder in sorted(folders)
    ]
    assert len(set(encode_s)) == 1  # one encoding, its time in the row of each head
    before = json.loads(calibrated.read_text())
    assert run(scenes, calibrated, "--blocks", str(searched[0][0]), "--heads", "0,1", "--show", "0") == 0
    assert {path: path.stat().st_mtime_ns for path in work.rglob("part-*.parquet")} == parts
    after = json.loads(calibrated.read_text())
    for key in before:
        assert after[key]["evidence"]["ranking"] == before[key]["evidence"]["ranking"]
    assert "nothing to do" in capsys.readouterr().out


def test_the_clusters_of_a_head_are_those_of_its_own_rows(scenes, searched, calibrated):
    """The head in the folder's name is the head that was clustered."""
    model = load_model("demo", device="cpu")
    truth = open_dataset(str(scenes))
    uri = truth.image_uris[0]
    encoded = model.encode([np.asarray(Image.open(uri.removeprefix("file://")))], searched)[0]
    for block, head in searched:
        run_folder = calibrated.with_suffix(".work") / "runs" / f"block-{block}-head-{head}"
        rows = pq.read_table(run_folder, columns=["image_uri", "cluster_map"]).to_pylist()
        (row,) = [row for row in rows if row["image_uri"] == uri]
        found = cluster_prompts(encoded.captured[block, head], encoded.grid_extent_hw, 2, 3)
        assert row["cluster_map"]["labels"] == found.labels.ravel().tolist()


def test_heads_to_search_are_checked(info):
    assert choose_heads(info, None, None) == list(info.all_heads)
    last = info.global_blocks[-1]
    assert choose_heads(info, [last, last], [1]) == [(last, 1)]
    with pytest.raises(ConfigError, match="block 0 of demo has no global attention"):
        choose_heads(info, [0], None)
    with pytest.raises(ConfigError, match="head must be 0 to"):
        choose_heads(info, None, [99])


def test_mistakes_are_told_before_anything_is_labelled(scenes, tmp_path, capsys):
    assert run(scenes, tmp_path / "table.txt") == 2
    assert run(scenes, tmp_path / "table.json", "--blocks", "0") == 2
    assert run(scenes, tmp_path / "table.json", "--set", "prompts.source=grid", "--set", "prompts.count=4") == 2
    assert not list(tmp_path.iterdir())
    text = capsys.readouterr().err
    assert "output must end in .json" in text and "global blocks are" in text and "heads differ only where" in text
    assert numbers("1,2") == (1, 2) and place("0.5,1") == (0.5, 1.0)
    with pytest.raises(SystemExit):
        run(scenes, tmp_path / "table.json", "--show-patch", "2,0")


def test_no_head_is_chosen_where_nothing_could_be_scored(scenes, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    for path in (data / "images").iterdir():
        path.write_bytes(b"no picture")
    assert run(data, tmp_path / "table.json", "--blocks", "7", "--heads", "0") == 2
    assert "no picture of data could be scored with any head" in capsys.readouterr().err
    assert not (tmp_path / "table.json").exists()
