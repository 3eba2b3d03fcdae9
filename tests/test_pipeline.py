"""The whole job on a local Ray of two CPUs: one row an image, whatever it comes from and whatever happens to it."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from object_store import ObjectStore, s3, s3_endpoint  # noqa: F401  fixtures
from PIL import Image
from pycocotools import mask as coco_mask

from effsam2_ray import Labeller, preset_config
from effsam2_ray.cli import main
from effsam2_ray.cluster_prompts import select_clusters
from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.errors import OutputError, TooManyFailuresError
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline.cluster_actor import ClusterPool
from effsam2_ray.pipeline.label import LabelJob, label
from effsam2_ray.pipeline.options import RunOptions

NAMES = ["a.png", "b.1.png", "b.2.png"]
SIZES = {"a.png": (96, 128), "b.1.png": (128, 96), "b.2.png": (100, 100)}
# So that a small model's masks of small drawings all pass, and every stage has something to do.
CONFIG = preset_config("high_quality").with_overrides(
    ["decode.pred_iou_thresh=0.3", "decode.stability_score_thresh=0.5"]
)


@pytest.fixture(scope="module")
def two_cpus():
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, bytes]:
    encoded = {}
    for seed, name in enumerate(NAMES):
        buffer = io.BytesIO()
        Image.fromarray(draw_scene(seed, SIZES[name]).image).save(buffer, "PNG")
        encoded[name] = buffer.getvalue()
    return encoded


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, pictures) -> Path:
    """The same pictures four ways, with bad ones among them."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "folder" / "deep").mkdir(parents=True)
    for name, data in pictures.items():
        (root / "folder" / "deep" / name).write_bytes(data)
    (root / "folder" / "empty.png").write_bytes(b"")
    (root / "folder" / "cut.png").write_bytes(pictures["a.png"][:-200])
    (root / "folder" / "text.jpg").write_text("no picture")
    with tarfile.open(root / "shard.tar", "w") as tar:
        for name, data in [*pictures.items(), ("cut.png", pictures["a.png"][:-200]), ("a.json", b"{}")]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    pq.write_table(
        pa.table({"image": [*pictures.values(), None], "name": [*NAMES, "none"], "score": [0.5, 1.5, 2.5, None]}),
        root / "table.parquet",
    )
    (root / "copies").mkdir()
    for name, data in pictures.items():
        (root / "copies" / name).write_bytes(data)
    lines = "".join(f"copies/{name}\n" for name in [*NAMES, "gone.png"])
    (root / "list.txt").write_text(lines)
    return root


@pytest.fixture(scope="module")
def run(two_cpus, inputs, tmp_path_factory) -> tuple[Path, dict, LabelJob]:
    out = tmp_path_factory.mktemp("run") / "out"
    names = ["folder", "shard.tar", "table.parquet", "list.txt"]
    job = LabelJob(
        inputs=tuple(str(inputs / name) for name in names),
        output=str(out),
        config=CONFIG,
        options=RunOptions(keep_candidates=True),
    )
    return out, label(job, say=lambda line: None), job


def rows_of(out: Path) -> list[dict]:
    return pq.read_table(out).to_pylist()


def test_every_image_has_one_row_with_the_right_status(run):
    out, summary, _ = run
    rows = rows_of(out)
    assert len({row["image_uid"] for row in rows}) == len(rows) == summary["images"] == 18
    statuses = {(Path(row["image_uri"]).name, row["status"]) for row in rows if row["status"] != "ok"}
    assert statuses == {
        ("empty.png", "empty"),
        ("cut.png", "truncated"),
        ("text.jpg", "not_image"),
        ("shard.tar#cut.png", "truncated"),
        ("table.parquet#row=3", "null"),
        ("gone.png", "missing"),
    }
    assert summary["statuses"]["ok"] == 12 and all(row["error"] for row in rows if row["status"] != "ok")


def test_masks_are_those_of_the_bare_labeller_from_every_kind_of_input(run, pictures):
    out, _, _ = run
    labeller = Labeller.from_weights("demo", config=CONFIG)
    rows = [row for row in rows_of(out) if row["status"] == "ok"]
    for number, name in enumerate(NAMES):
        expected = [mask.segmentation.to_coco() for mask in labeller.label(pictures[name]).masks]
        same = [r for r in rows if r["image_uri"].endswith((f"/{name}", f"#{name}", f"#row={number}"))]
        assert len(same) == 4
        for row in same:
            assert (row["height"], row["width"]) == SIZES[name]
            assert [mask["segmentation"] for mask in row["masks"]] == expected
    assert sum(len(row["masks"]) for row in rows) > 0


def test_rows_agree_with_themselves(run):
    out, summary, _ = run
    for row in rows_of(out):
        assert row["num_prompts"] == len(row["prompts"]) and row["num_candidates"] == len(row["candidates"])
        for mask in row["masks"]:
            decoded = coco_mask.decode(mask["segmentation"])
            assert decoded.shape == (row["height"], row["width"]) and decoded.sum() == mask["area"]
            assert mask["bbox"] == coco_mask.toBbox(mask["segmentation"]).tolist()
        for index, candidate in enumerate(row["candidates"]):
            assert index in row["masks"][candidate["merged_into"]]["members"]
    assert summary["masks"] == sum(len(row["masks"]) for row in rows_of(out))


def test_pandas_duckdb_and_json_read_the_folder(run):
    out, summary, _ = run
    assert len(pd.read_parquet(out)) == summary["images"]
    count = duckdb.sql(f"SELECT count(*) FROM '{out}/*.parquet' WHERE status = 'ok'").fetchall()
    assert count == [(12,)]
    json.dumps(rows_of(out))


def test_meta_tells_what_was_run(run):
    out, summary, _ = run
    job = json.loads((out / "_meta" / "job.json").read_text())
    assert job["weights"]["is_demo"] is True and len(job["weights"]["weights_sha256"]) == 64
    assert job["fingerprint"]["decode.pred_iou_thresh"] == 0.3
    assert json.loads((out / "_meta" / "summary.json").read_text())["images"] == summary["images"]
    failures = pq.read_table(out / "_meta" / "failures.parquet").to_pylist()
    assert {failure["step"] for failure in failures} == {"read", "load"} and len(failures) == 6
    assert not list((out / "_meta").glob("attempts/*"))


def test_a_finished_job_does_nothing_and_says_so(run):
    out, _, job = run
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    lines: list[str] = []
    summary = label(job, say=lines.append)
    assert any("nothing to do" in line for line in lines) and summary["images_this_time"] == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")} == before


def test_other_settings_in_the_same_output_are_refused(run):
    _, _, job = run
    other = LabelJob(job.inputs, job.output, CONFIG.with_overrides(["merge.thresh=0.7"]), options=job.options)
    with pytest.raises(OutputError, match="merge.thresh: 0.8 in the output, 0.7 now"):
        label(other)


def test_resume_does_only_what_is_missing_and_gives_the_same_rows(run, tmp_path):
    out, _, job = run
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    parts = sorted(copy.glob("*.parquet"))
    kept = {path: path.stat().st_mtime_ns for path in parts[1:]}
    parts[0].unlink()
    summary = label(LabelJob(job.inputs, str(copy), job.config, options=job.options), say=lambda line: None)
    assert summary["images"] == 18 and 0 < summary["images_this_time"] < 18
    assert {path: path.stat().st_mtime_ns for path in parts[1:]} == kept
    key = lambda row: row["image_uid"]  # noqa: E731
    for before, after in zip(sorted(rows_of(out), key=key), sorted(rows_of(copy), key=key), strict=True):
        assert {**before, "step_s": None} == {**after, "step_s": None}


def test_retry_takes_up_just_the_failed_rows(two_cpus, tmp_path, pictures):
    (tmp_path / "a.png").write_bytes(pictures["a.png"])
    (tmp_path / "list.txt").write_text("a.png\nlate.png\nnever.png\n")
    job = LabelJob((str(tmp_path / "list.txt"),), str(tmp_path / "out"), CONFIG, options=RunOptions(retry_failed=True))
    assert label(job, say=lambda line: None)["statuses"] == {"ok": 1, "missing": 2}
    (tmp_path / "late.png").write_bytes(pictures["b.1.png"])
    (tmp_path / "a.png").unlink()  # its row is there, so it is not needed again
    assert label(job, say=lambda line: None)["statuses"] == {"ok": 2, "missing": 1}
    rows = rows_of(tmp_path / "out")
    assert sorted((Path(row["image_uri"]).name, row["status"]) for row in rows) == [
        ("a.png", "ok"),
        ("late.png", "ok"),
        ("never.png", "missing"),
    ]


def test_too_many_failures_stop_the_job_with_their_reasons(two_cpus, tmp_path):
    (tmp_path / "list.txt").write_text("".join(f"{n}.png\n" for n in range(4)))
    options = RunOptions(max_failures="50%")
    with pytest.raises(TooManyFailuresError, match=r"(?s)more than --max-failures allows: \d missing.*\.png: missing"):
        label(LabelJob((str(tmp_path / "list.txt"),), str(tmp_path / "out"), CONFIG, options=options))


def test_a_clustering_actor_that_is_gone_is_replaced(two_cpus):
    edges = np.array([[row, row + 1, 0.1] for row in range(7)])

    async def calls() -> None:
        pool = ClusterPool(1, None)
        expected = select_clusters(edges, True, 3).labels
        with pytest.raises(ray.exceptions.RayTaskError):  # an error of one picture is told as it is
            await pool.select(None, True, 3)
        ray.kill(pool._actors[0])  # for good: Ray does not restart it
        with pytest.raises(ray.exceptions.RayActorError):
            await pool.select(edges, True, 3)
        assert np.array_equal((await pool.select(edges, True, 3)).labels, expected)

    asyncio.run(calls())


def test_clustering_actors_are_added_while_pictures_wait(two_cpus):
    edges = np.array([[row, row + 1, 0.1] for row in range(7)])

    async def sizes() -> list[int]:
        pool = ClusterPool(3, None)
        found = [len(pool._actors)]
        for together in (1, 2, 6):
            await asyncio.gather(*(pool.select(edges, True, 3) for _ in range(together)))
            found.append(len(pool._actors))
        await asyncio.gather(*pool._growing)
        assert pool._free.qsize() == 3
        return found

    assert asyncio.run(sizes()) == [1, 1, 2, 3]


def test_failures_of_an_earlier_call_count(two_cpus, tmp_path):
    (tmp_path / "list.txt").write_text("".join(f"{n}.png\n" for n in range(4)))
    job = LabelJob((str(tmp_path / "list.txt"),), str(tmp_path / "out"), CONFIG)
    assert label(job)["statuses"] == {"missing": 4}
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    assert len(parts) > 1
    parts[0].unlink()
    with pytest.raises(TooManyFailuresError, match="^4 images failed"):
        label(dataclasses.replace(job, options=RunOptions(max_failures="3")))


def test_a_gpu_that_no_node_can_bring_is_refused(inputs, tmp_path):
    command = [sys.executable, "-m", "effsam2_ray", "label", str(inputs / "folder"), "--output", str(tmp_path / "out")]
    done = subprocess.run([*command, "--num-gpus", "64"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "the job needs a node with 64 GPU" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_cli_refuses_a_wrong_setting_before_reading_anything(tmp_path, capsys):
    code = main(["label", str(tmp_path / "none"), "--output", str(tmp_path / "out"), "--set", "attention.block=1"])
    assert code == 2
    assert "block 1 of demo has no global attention" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_mistyped_input_leaves_the_output_free(two_cpus, tmp_path, capsys):
    code = main(["label", str(tmp_path / "none"), "--output", str(tmp_path / "out")])
    assert code == 2 and "none matches nothing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_a_message(two_cpus, inputs, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    code = main(["label", str(inputs / "copies"), "--output", str(tmp_path / "file" / "out")])
    assert code == 2 and "NotADirectoryError" in capsys.readouterr().err


def test_dry_run_prints_the_plan_and_writes_nothing(inputs, tmp_path, capsys):
    code = main(["label", str(inputs / "shard.tar"), "--output", str(tmp_path / "out"), "--dry-run", "--limit", "3"])
    assert code == 0
    out = capsys.readouterr().out
    assert "3 images, 1 shards" in out and "min_cluster_size: 10" in out
    assert not (tmp_path / "out").exists()


def test_output_folder_lists_what_the_job_wrote(run):
    out, summary, _ = run
    assert len(OutputFolder(str(out)).finished_units()) == summary["units"]
    assert np.isclose(
        summary["prompts_per_image"], np.mean([r["num_prompts"] for r in rows_of(out) if r["status"] == "ok"])
    )


def test_input_and_output_on_an_object_store(two_cpus, s3: ObjectStore, pictures):  # noqa: F811
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in pictures.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    shard = s3.put("in/shard-0.tar", buffer.getvalue())
    out = f"{s3.root}/out"
    summary = label(LabelJob((shard,), out, CONFIG, storage_options=s3.options), say=lambda line: None)
    assert summary["statuses"] == {"ok": 3}
    folder = OutputFolder(out, s3.options)
    rows = [row for unit in folder.finished_units() for row in folder.read_part(unit).to_pylist()]
    labeller = Labeller.from_weights("demo", config=CONFIG)
    for row in rows:
        expected = [mask.segmentation.to_coco() for mask in labeller.label(pictures[row["member"]]).masks]
        assert [mask["segmentation"] for mask in row["masks"]] == expected
    assert "endpoint_url" not in json.dumps(folder.read_job())


@pytest.mark.soak
def test_all_photographs_give_the_same_masks_from_every_kind_of_input(two_cpus, shared_data, tmp_path):
    photos = sorted((shared_data / "coco_val2017" / "images").glob("*.jpg"))
    assert len(photos) == 88
    encoded = {path.name: path.read_bytes() for path in photos}
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for path in photos:
            tar.add(path, path.name)
    pq.write_table(pa.table({"image": list(encoded.values()), "name": list(encoded)}), tmp_path / "table.parquet")
    (tmp_path / "copies").mkdir()
    for name, data in encoded.items():
        (tmp_path / "copies" / name).write_bytes(data)
    (tmp_path / "list.csv").write_text("uri,name\n" + "".join(f"copies/{name},{name}\n" for name in encoded))
    inputs = {
        "folder": str(photos[0].parent),
        "tar": str(tmp_path / "shard.tar"),
        "parquet": str(tmp_path / "table.parquet"),
        "manifest": str(tmp_path / "list.csv"),
    }
    masks: dict[str, dict[str, list]] = {}
    for kind, uri in inputs.items():
        id_column = "name" if kind in ("parquet", "manifest") else None
        job = LabelJob((uri,), str(tmp_path / kind), CONFIG, id_column=id_column)
        assert label(job)["statuses"] == {"ok": 88}
        name_of = {"folder": lambda r: Path(r["image_uri"]).name, "tar": lambda r: r["member"]}
        name = name_of.get(kind, lambda r: r["image_id"])
        masks[kind] = {name(row): row["masks"] for row in rows_of(tmp_path / kind)}
    assert masks["folder"].keys() == set(encoded)
    assert masks["tar"] == masks["folder"] and masks["parquet"] == masks["folder"]
    assert masks["manifest"] == masks["folder"]
    assert sum(map(len, masks["folder"].values())) > 88
