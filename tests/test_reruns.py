"""Several presets in one pass, the work list of an earlier run, and merging anew from stored candidates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from effsam2_ray import preset_config
from effsam2_ray.cli import main
from effsam2_ray.config import Config
from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.errors import ConfigError, InputError, OutputError
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.pipeline.label import LabelJob, label, label_together
from effsam2_ray.pipeline.options import RunOptions
from effsam2_ray.pipeline.remerge import remerge

LOOSE = ["decode.pred_iou_thresh=0.3", "decode.stability_score_thresh=0.5"]
CONFIGS = {
    "low_latency": preset_config("low_latency").with_overrides(LOOSE),
    "high_quality": preset_config("high_quality").with_overrides(LOOSE),
    "other_head": preset_config("high_quality").with_overrides([*LOOSE, "attention.block=7", "attention.head=1"]),
    "other_samples": preset_config("high_quality").with_overrides([*LOOSE, "cluster.min_samples=4"]),
    "grid": preset_config("high_quality").with_overrides([*LOOSE, "prompts.source=grid", "prompts.count=5"]),
    "unmerged": preset_config("high_quality").with_overrides([*LOOSE, "merge.method=none"]),
}
OTHER_MERGE = ["merge.thresh=0.4", "merge.max_area_frac=0.9", "filter.min_area=60"]


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def two_cpus():
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed, size in enumerate([(96, 128), (128, 96), (100, 100), (64, 160)]):
        Image.fromarray(draw_scene(seed, size).image).save(folder / f"{seed}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def job(pictures: Path, output: Path, config: Config, **more) -> LabelJob:
    return LabelJob((str(pictures),), str(output), config, options=RunOptions(keep_candidates=True), **more)


def rows_of(folder: Path, *, drop: tuple[str, ...] = ("step_s",)) -> dict[str, list[dict]]:
    """Rows by part, without what differs between equal runs."""
    parts = {path.name: pq.read_table(path).to_pylist() for path in sorted(folder.glob("*.parquet"))}
    return {name: [{k: v for k, v in row.items() if k not in drop} for row in rows] for name, rows in parts.items()}


@pytest.fixture(scope="module")
def together(two_cpus, pictures, tmp_path_factory) -> tuple[Path, list[dict]]:
    root = tmp_path_factory.mktemp("together")
    return root, label_together([job(pictures, root / name, config) for name, config in CONFIGS.items()], quiet)


@pytest.mark.parametrize("name", ["other_head", "grid"])
def test_each_output_of_one_pass_is_that_of_its_own_run(together, pictures, tmp_path, name):
    root, summaries = together
    alone = label(job(pictures, tmp_path / "alone", CONFIGS[name]), quiet)
    assert rows_of(root / name) == rows_of(tmp_path / "alone") and len(rows_of(root / name)) > 1
    summary = summaries[list(CONFIGS).index(name)]
    for key in ("images", "statuses", "masks", "prompts_per_image"):
        assert summary[key] == alone[key]
    assert summary["statuses"] == {"ok": 4, "not_image": 1} and summary["masks"] > 0
    fingerprints = [json.loads((folder / "_meta/job.json").read_text()) for folder in (root / name, tmp_path / "alone")]
    assert fingerprints[0]["fingerprint"] == fingerprints[1]["fingerprint"]


def test_the_runs_of_one_pass_differ_as_their_settings_do(together):
    root, _ = together
    prompts = {name: [r["prompts"] for rows in rows_of(root / name).values() for r in rows] for name in CONFIGS}
    assert prompts["high_quality"] == prompts["unmerged"]
    different = [prompts[name] for name in ("high_quality", "low_latency", "other_head", "other_samples", "grid")]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])
    masks = {name: [r["masks"] for rows in rows_of(root / name).values() for r in rows] for name in CONFIGS}
    assert masks["high_quality"] != masks["unmerged"]


def test_only_the_parts_that_a_run_lacks_are_written(together, pictures, tmp_path):
    root, _ = together
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    expected = {name: rows_of(copy / name) for name in CONFIGS}
    missing = sorted((copy / "grid").glob("*.parquet"))[0]
    missing.unlink()
    before = {path: path.stat().st_mtime_ns for path in copy.glob("*/*.parquet")}
    summaries = label_together([job(pictures, copy / name, config) for name, config in CONFIGS.items()], quiet)
    assert {path: path.stat().st_mtime_ns for path in copy.glob("*/*.parquet") if path != missing} == before
    assert {name: rows_of(copy / name) for name in CONFIGS} == expected
    assert [summary["images_this_time"] for summary in summaries].count(0) == len(CONFIGS) - 1


def test_jobs_of_one_pass_must_agree(pictures, tmp_path):
    first = job(pictures, tmp_path / "a", Config())
    with pytest.raises(ConfigError, match="different outputs"):
        label_together([first, job(pictures, tmp_path / "a/", Config())])
    with pytest.raises(ConfigError, match="differ in their settings and outputs only"):
        label_together([first, job(pictures, tmp_path / "b", Config(), limit=3)])


def test_outputs_with_other_work_lists_do_not_go_together(two_cpus, together, pictures, tmp_path):
    root, _ = together
    shutil.copytree(root / "grid", tmp_path / "grid")
    other = tmp_path / "pictures"
    shutil.copytree(pictures, other)
    (tmp_path / "grid/_meta/work_list.parquet").write_bytes(build_work_list([str(other)]).to_bytes())
    jobs = [
        job(pictures, tmp_path / "grid", CONFIGS["grid"]),
        job(pictures, root / "high_quality", CONFIGS["high_quality"]),
    ]
    with pytest.raises(OutputError, match="hold different work lists"):
        label_together(jobs, quiet)


def test_the_work_list_of_an_earlier_run_gives_the_same_units(together, pictures, tmp_path):
    root, _ = together
    new, changed, kept = pictures / "new.png", pictures / "2.png", tmp_path / "2.png"
    shutil.copy2(changed, kept)
    try:
        shutil.copy(pictures / "0.png", new)  # was not there, so it is not labelled
        Image.fromarray(draw_scene(77, (50, 60)).image).save(changed)
        again = LabelJob((), str(tmp_path / "b"), CONFIGS["low_latency"], work_list=str(root / "high_quality"))
        summary = label(again, quiet)
        assert label(again, quiet)["images_this_time"] == 0
    finally:
        new.unlink()
        shutil.copy2(kept, changed)  # with its time, which is its version
    assert summary["statuses"] == {"ok": 3, "changed": 1, "not_image": 1}
    old, rerun = rows_of(root / "low_latency", drop=("step_s", "candidates")), rows_of(tmp_path / "b")
    assert old.keys() == rerun.keys()
    for name, rows in rerun.items():
        for row, before in zip(rows, old[name], strict=True):
            assert row["image_uid"] == before["image_uid"]
            if row["status"] == "changed":
                assert row["image_uri"].endswith("/2.png") and "when listed; now" in row["error"] and not row["masks"]
            else:
                assert row == before


def test_inputs_and_a_work_list_exclude_each_other(together, pictures, tmp_path, capsys):
    root, _ = together
    command = ["label", str(pictures), "--work-list", str(root / "grid"), "--output", str(tmp_path / "out")]
    assert main(command) == 2 and "not both" in capsys.readouterr().err
    assert main(["label", "--output", str(tmp_path / "out")]) == 2 and "nothing to label" in capsys.readouterr().err
    command = ["label", "--work-list", str(pictures), "--output", str(tmp_path / "out")]
    assert main(command) == 2 and "no run with a frozen work list" in capsys.readouterr().err
    command = ["label", "--work-list", str(root / "grid"), "--limit", "2", "--output", str(tmp_path / "out")]
    assert main(command) == 2 and "settled in a work list" in capsys.readouterr().err


def test_merging_anew_equals_a_fresh_run_with_those_settings(together, pictures, tmp_path):
    root, _ = together
    words = [word for text in OTHER_MERGE for word in ("--set", text)]
    assert main(["remerge", str(root / "high_quality"), "--output", str(tmp_path / "new"), *words]) == 0
    summary = json.loads((tmp_path / "new/_meta/summary.json").read_text())
    fresh = job(pictures, tmp_path / "fresh", CONFIGS["high_quality"].with_overrides(OTHER_MERGE))
    expected = label(fresh, quiet)
    assert rows_of(tmp_path / "new") == rows_of(tmp_path / "fresh") != rows_of(root / "high_quality")
    for key in ("images", "statuses", "masks", "prompts_per_image", "collapsed"):
        assert summary[key] == expected[key]
    failures = [pq.read_table(tmp_path / name / "_meta/failures.parquet").to_pylist() for name in ("new", "fresh")]
    assert failures[0] == failures[1] and len(failures[0]) == 1
    lines: list[str] = []
    taken = job(pictures, tmp_path / "new", CONFIGS["high_quality"].with_overrides(OTHER_MERGE))
    label(taken, lines.append)
    assert any("nothing to do" in line for line in lines)


def test_merging_anew_goes_on_where_it_stopped(together, tmp_path):
    root, _ = together
    remerge(str(root / "high_quality"), str(tmp_path / "new"), OTHER_MERGE, say=quiet)
    expected = rows_of(tmp_path / "new")
    parts = sorted((tmp_path / "new").glob("*.parquet"))
    parts[0].unlink()
    before = parts[1].stat().st_mtime_ns
    summary = remerge(str(root / "high_quality"), str(tmp_path / "new"), OTHER_MERGE, say=quiet)
    assert rows_of(tmp_path / "new") == expected and parts[1].stat().st_mtime_ns == before
    assert 0 < summary["images_this_time"] < summary["images"]
    with pytest.raises(OutputError, match="merge.thresh: 0.4 in the output, 0.5 now"):
        remerge(str(root / "high_quality"), str(tmp_path / "new"), ["merge.thresh=0.5", *OTHER_MERGE[1:]], say=quiet)


def test_what_merging_anew_cannot_do_is_said(together, pictures, tmp_path):
    root, _ = together
    with pytest.raises(ConfigError, match="only merge.. and filter.. can be changed"):
        remerge(str(root / "grid"), str(tmp_path / "new"), ["decode.pred_iou_thresh=0.9"], say=quiet)
    with pytest.raises(InputError, match="is no run"):
        remerge(str(pictures), str(tmp_path / "new"), [], say=quiet)
    shutil.copytree(root / "grid", tmp_path / "half")
    next((tmp_path / "half").glob("*.parquet")).unlink()
    with pytest.raises(InputError, match="1 of . parts are missing"):
        remerge(str(tmp_path / "half"), str(tmp_path / "new"), [], say=quiet)
    meta = json.loads((tmp_path / "half/_meta/job.json").read_text())
    meta["fingerprint"]["keep_candidates"] = False
    (tmp_path / "half/_meta/job.json").write_text(json.dumps(meta))
    with pytest.raises(ConfigError, match="label with --keep-candidates"):
        remerge(str(tmp_path / "half"), str(tmp_path / "new"), [], say=quiet)
    assert not (tmp_path / "new").exists()


def test_several_presets_write_a_folder_each(two_cpus, pictures, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("cluster: {min_cluster_size: 7}\n")
    presets = f"low_latency,{tmp_path / 'mine.yaml'}"
    assert main(["label", str(pictures), "--preset", presets, "--limit", "2", "--output", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["low_latency", "mine"]
    said = capsys.readouterr().out
    assert f"Parquet: {tmp_path / 'out' / 'low_latency'}" in said and f"Parquet: {tmp_path / 'out' / 'mine'}" in said
    assert {r["preset"] for rows in rows_of(tmp_path / "out/mine").values() for r in rows} == {"mine"}
    command = ["label", str(pictures), "--output", str(tmp_path / "other"), "--preset"]
    assert main([*command, "sam3d,sam3d"]) == 2 and "given twice" in capsys.readouterr().err
    assert main([*command, "sam3d,fast"]) == 2 and "unknown preset 'fast'" in capsys.readouterr().err
