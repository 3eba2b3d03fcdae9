"""`effsam2 evaluate` on a few drawn scenes: equal to the bare labeller, in both forms of truth, and resumable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from effsam2_ray import Labeller
from effsam2_ray.cli import main
from effsam2_ray.config import Config
from effsam2_ray.datasets import open_dataset
from effsam2_ray.demo.scene_folder import write_scenes
from effsam2_ray.evaluation.methods import parse_methods
from effsam2_ray.evaluation.summary import Bootstrap
from effsam2_ray.metrics import score_image
from effsam2_ray.postprocess import finish

SETTINGS = ["decode.pred_iou_thresh=0.3", "decode.stability_score_thresh=0.5"]
NUM = 4


@pytest.fixture(scope="module", autouse=True)
def two_cpus():
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, NUM, (96, 128))
    return folder


def run(data: Path, output: Path, *more: str) -> int:
    settings = [text for setting in SETTINGS for text in ("--set", setting)]
    return main(["evaluate", str(data), "--output", str(output), "--device", "cpu", *settings, *more])


@pytest.fixture(scope="module")
def evaluated(scenes, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("evaluated")
    methods = "low_latency,high_quality,grid:4,random:9"
    assert run(scenes, output, "--methods", methods, "--sweep", "merge.thresh=0.5,0.9", "--target-prompts", "50") == 0
    return output


def read_rows(output: Path) -> dict[tuple[str, str], dict[str, dict]]:
    rows: dict[tuple[str, str], dict[str, dict]] = {}
    for path in sorted((output / "per_image").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            rows.setdefault((row["method"], row["post"]), {})[row["image_uri"]] = row
    return rows


def test_scores_are_those_of_the_bare_labeller(scenes, evaluated):
    """Every score of every method, computed by hand from the picture and the truth."""
    truth = open_dataset(str(scenes))
    assert len(truth.records) == NUM
    rows = read_rows(evaluated)
    summary = json.loads((evaluated / "summary.json").read_text())
    model = Labeller.from_weights("demo", device="cpu").model
    for method in parse_methods(["low_latency", "grid:4", "random:9"], SETTINGS):
        labeller, post = Labeller(model, method.config), method.posts[0]
        best, prompts = [], []
        for uri in truth.image_uris:
            labelled = finish(labeller.label(uri), post.merge, method.config.filter)
            expected = score_image(
                [mask.segmentation for mask in labelled.masks],
                [mask.predicted_iou for mask in labelled.masks],
                truth.objects(uri),
            ).to_row()
            row = rows[method.name, post.name][uri]
            for name, value in expected.items():
                close = value if value is None or isinstance(value, list) else pytest.approx(value)
                assert row[name] == close, name
            assert (row["num_prompts"], row["num_candidates"]) == (len(labelled.prompts), len(labelled.candidates))
            best.append(expected["best_iou"])
            prompts.append(len(labelled.prompts))
        entry = summary["methods"][method.name]
        assert entry["best_iou"] == pytest.approx(Bootstrap().mean(np.array(best)))
        assert entry["num_prompts"]["mean"] == pytest.approx(np.mean(prompts))
        assert entry["latency_s"]["low"] <= entry["latency_s"]["mean"] <= entry["latency_s"]["high"]
    assert any(row["num_masks"] for row in rows["low_latency", "merge"].values())


def test_the_summary_says_what_was_measured_and_compares_with_the_grid(evaluated):
    summary = json.loads((evaluated / "summary.json").read_text())
    assert summary["reference"] == "grid:4" and "difference" not in summary["methods"]["grid:4"]
    own, grid = summary["methods"]["low_latency"], summary["methods"]["grid:4"]
    difference = own["difference"]["best_iou"]
    assert own["against"] == "grid:4"
    assert difference["mean"] == pytest.approx(own["best_iou"]["mean"] - grid["best_iou"]["mean"])
    assert own["prompts_saved_frac"] == pytest.approx(1 - own["num_prompts"]["mean"] / 16)
    assert summary["run"]["batch_size"] == 1 and summary["run"]["device"] == "cpu" and summary["run"]["device_name"]
    assert summary["seeds"] == {"random:9": 0} and summary["weights"]["is_demo"]
    text = (evaluated / "tables.md").read_text()
    assert "| low_latency | merge |" in text and "| grid:4 | nms |" in text and "best_iou difference" in text
    steps = summary["step_s"]
    assert steps["low_latency"]["encode_s"] > 0 and "distances_s" not in steps["grid:4"]


def test_a_latency_is_the_sum_of_the_steps_for_every_method_alike(evaluated):
    for method, slug in (("high_quality", "high_quality"), ("grid:4", "grid-4")):
        run_rows = pq.read_table(evaluated / "runs" / slug, columns=["image_uri", "step_s"]).to_pylist()
        scored = read_rows(evaluated)[method, "merge" if slug == "high_quality" else "nms"]
        assert len(run_rows) == NUM
        for row in run_rows:
            steps = {name: seconds for name, seconds in row["step_s"].items() if seconds is not None}
            before = sum(seconds for name, seconds in steps.items() if name != "merge_s")
            assert {"load_s", "encode_s", "decode_s", "select_s", "merge_s"} <= steps.keys()
            assert before < scored[row["image_uri"]]["latency_s"] < before + 10


def test_a_sweep_of_merging_needs_no_further_labelling_and_gives_a_suggestion(evaluated):
    summary = json.loads((evaluated / "summary.json").read_text())
    names = ["low_latency sweep+thresh=0.5", "low_latency sweep+thresh=0.9"]
    assert summary["groups"]["sweep"] == names
    assert summary["suggestion"]["name"] in names
    suggested = (evaluated / "suggested.yaml").read_text()
    assert suggested.startswith("# For at most 50 prompts a picture")
    config = parse_methods([str(evaluated / "suggested.yaml")])[0].config
    assert config.merge.thresh in (0.5, 0.9) and config.decode.pred_iou_thresh == 0.3
    assert Image.open(evaluated / "tradeoff.png").size == (1520, 520)


def test_the_same_command_again_makes_only_what_is_missing(scenes, evaluated):
    files = sorted(path for path in evaluated.rglob("part-*.parquet"))
    assert len(files) > 10
    before = json.loads((evaluated / "summary.json").read_text())
    lost = [files[0], next(path for path in files if "runs" in path.parts)]
    assert lost[0].parent.name == "per_image"
    stamps = {path: path.stat().st_mtime_ns for path in files}
    for path in lost:
        path.unlink()
    methods = "low_latency,high_quality,grid:4,random:9"
    assert (
        run(scenes, evaluated, "--methods", methods, "--sweep", "merge.thresh=0.5,0.9", "--target-prompts", "50") == 0
    )
    assert {path for path in files if path.stat().st_mtime_ns != stamps[path]} == set(lost)
    after = json.loads((evaluated / "summary.json").read_text())
    for name, entry in before["methods"].items():
        for measure in ("best_iou", "label_map_iou", "num_prompts", "average_recall", "cluster_purity"):
            assert after["methods"][name][measure] == entry[measure]


def test_another_post_scores_anew_without_labelling(scenes, evaluated, capsys):
    parts = {path: path.stat().st_mtime_ns for path in (evaluated / "runs").rglob("part-*.parquet")}
    assert run(scenes, evaluated, "--methods", "low_latency,grid:4", "--post", "both") == 0
    assert "scored anew: low_latency, grid-4" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (evaluated / "runs").rglob("part-*.parquet")} == parts
    summary = json.loads((evaluated / "summary.json").read_text())
    assert list(summary["methods"]) == ["low_latency+merge", "low_latency+nms", "grid:4+merge", "grid:4+nms"]
    assert {tuple(row) for row in read_rows(evaluated)} >= {("grid:4", "merge"), ("grid:4", "nms")}


def test_another_data_set_is_refused(scenes, evaluated, tmp_path, capsys):
    write_scenes(tmp_path / "others", 1, 64, first=9)
    assert run(tmp_path / "others", evaluated, "--methods", "low_latency") == 2
    message = capsys.readouterr().err
    assert "belongs to a run with other settings" in message and "data_set" in message


def test_a_set_of_binary_masks_has_the_measures_of_its_field(scenes, tmp_path):
    """The same scenes as images and masks: the union of the objects is the one object."""
    pytest.importorskip("py_sod_metrics")
    truth = open_dataset(str(scenes))
    for uri in truth.image_uris[:2]:
        name = Path(uri).stem
        union = np.any([mask.to_array() for mask in truth.objects(uri).annotators[0].masks], axis=0)
        for folder, array in (("images", np.asarray(Image.open(uri.removeprefix("file://")))), ("masks", union)):
            (tmp_path / "sod" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "sod" / folder / f"{name}.png")
    assert run(tmp_path / "sod", tmp_path / "out", "--methods", "low_latency") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["data_set"]["format"] == "masks" and summary["data_set"]["num_images"] == 2
    measures = summary["methods"]["low_latency"]["single_object"]
    assert 0 < measures["best_mask_s_measure"]["mean"] <= 1 and 0 <= measures["union_mae"]["mean"] <= 1
    assert "Measures of single-object sets" in (tmp_path / "out" / "tables.md").read_text()


def test_mistakes_are_told_before_anything_is_labelled(scenes, tmp_path, capsys):
    assert run(scenes, tmp_path / "out", "--methods", "fast") == 2
    assert run(scenes, tmp_path / "out", "--methods", "low_latency", "--reference", "grid:9") == 2
    assert run(tmp_path, tmp_path / "out", "--methods", "low_latency") == 2
    assert run(scenes, tmp_path / "out", "--methods", "grid:4", "--target-prompts", "9") == 2
    assert not (tmp_path / "out").exists()
    text = capsys.readouterr().err
    assert "a method must be" in text and "no line is called 'grid:9'; there are low_latency" in text
    assert "a suggestion needs a method whose prompts come from clusters" in text


def test_the_configuration_in_the_summary_is_the_resolved_one(evaluated):
    summary = json.loads((evaluated / "summary.json").read_text())
    entry = summary["methods"]["low_latency+nms"]
    config = Config.from_dict(entry["config"])
    assert (config.attention.block, config.attention.head) == (entry["block"], entry["head"])
    assert config.merge.method == "nms" and entry["block"] is not None
    assert summary["methods"]["grid:4+nms"]["block"] is None


def test_changed_annotations_are_scored_anew(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    write_scenes(data, 1, (96, 128))
    assert run(data, out, "--methods", "low_latency") == 0
    before = json.loads((out / "summary.json").read_text())["methods"]["low_latency"]
    annotations = json.loads((data / "annotations.json").read_text())
    largest = max(annotations["annotations"], key=lambda item: item["area"])
    annotations["annotations"] = [largest]
    (data / "annotations.json").write_text(json.dumps(annotations))
    assert run(data, out, "--methods", "low_latency") == 0
    assert "scored anew: low_latency" in capsys.readouterr().out
    after = json.loads((out / "summary.json").read_text())["methods"]["low_latency"]
    assert after["best_iou"] != before["best_iou"] and after["num_prompts"] == before["num_prompts"]
