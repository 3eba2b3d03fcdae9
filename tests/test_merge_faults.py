"""An image whose merging kills or hangs its process costs only itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from label_process import GRID, finish, rows_of, start
from PIL import Image

from effsam2_ray import Config, rle
from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.errors import OutputError
from effsam2_ray.inputs.reader import ImageRecord
from effsam2_ray.masks import Mask
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline import attempts
from effsam2_ray.pipeline import writer as writer_module
from effsam2_ray.pipeline.attempts import MAX_DEATHS, Attempt, AttemptLog, attempt_log
from effsam2_ray.pipeline.payload import ImageOutcome, PartTask, UnitCandidates, UnitTask, to_table
from effsam2_ray.pipeline.writer import MergeWriter, WriterSpec
from effsam2_ray.prompts import grid_prompts
from effsam2_ray.results import ImageCandidates
from effsam2_ray.schema import run_schema


def outcome(uid: int) -> ImageOutcome:
    segmentation = rle.encode(np.ones((1, 8, 8), bool))[0]
    mask = Mask(segmentation, 64, (0.0, 0.0, 8.0, 8.0), 0.9, 0.9, ((1.0, 1.0),), (0,))
    record = ImageRecord(uid, f"file:///{uid}.png", None, None, None, None, 1, None, {}, None, "ok", None)
    return ImageOutcome(record, ImageCandidates((8, 8), grid_prompts(1, (8, 8)), None, (mask,), {}))


@pytest.fixture
def output(tmp_path) -> OutputFolder:
    return OutputFolder(str(tmp_path))


@pytest.fixture
def merge(output, monkeypatch):
    """Merge a unit of images 1, 2 and 3 as an actor would, and return the unit's summary."""
    monkeypatch.setattr(writer_module, "attempt_log", lambda output, run_id: log(output))
    spec = WriterSpec(output, run_schema({}, keep_candidates=False), Config(), "demo", False)

    def merge(only: frozenset[int] | None = None) -> dict:
        task = UnitTask(0, "u", (PartTask(0, only),))
        table = next(MergeWriter([spec], None, "run")(to_table(UnitCandidates(task, {0: [*map(outcome, (1, 2, 3))]}))))
        return json.loads(table["summary"][0].as_py())

    return merge


def log(output: OutputFolder) -> AttemptLog:
    return AttemptLog(output, {"node": "n", "job": "j"}, lambda place: False)


def noted(output: OutputFolder) -> Attempt | None:
    values = output.read_json("attempts/u.merge.json")
    return Attempt(**values) if values else None


def statuses(output: OutputFolder) -> list[tuple[int, str, int]]:
    return [(row["image_uid"], row["status"], len(row["masks"])) for row in output.read_part("u").to_pylist()]


@pytest.fixture
def seen(output, monkeypatch) -> list[tuple[int, int | None]]:
    """What is merged, with the image that the record then names."""
    merged: list[tuple[int, int | None]] = []
    plain = writer_module._checked

    def checked(spec: WriterSpec, item: ImageOutcome):
        attempt = noted(output)
        assert attempt is not None
        merged.append((item.record.image_uid, attempt.current_uid))
        return plain(spec, item)

    monkeypatch.setattr(writer_module, "_checked", checked)
    return merged


def test_a_unit_leaves_no_record(output, merge, seen):
    assert merge()["statuses"] == {"ok": 3}
    assert seen == [(1, None), (2, None), (3, None)] and noted(output) is None


def test_after_a_death_each_image_is_noted_before_it_is_touched(output, merge, seen):
    log(output).begin("u.merge")
    assert merge()["statuses"] == {"ok": 3}
    assert seen == [(1, 1), (2, 2), (3, 3)] and noted(output) is None


@pytest.mark.parametrize(("verdict", "tries"), [("crashed", 1 + MAX_DEATHS), ("timeout", 2)])
def test_a_convicted_image_is_a_row_and_costs_no_other(output, merge, verdict, tries):
    attempt = log(output).begin("u.merge")
    attempt.alone, attempt.current_uid = True, 2
    if verdict == "timeout":
        assert attempt.convict_current()
    else:
        attempt.deaths["2"] = MAX_DEATHS - 1
    log(output).store(attempt)
    summary = merge()
    assert statuses(output) == [(1, "ok", 1), (2, verdict, 0), (3, "ok", 1)]
    [failure] = summary["failures"]
    assert (failure["image_uid"], failure["step"], failure["status"]) == (2, "merge", verdict)
    assert failure["attempts"] == tries


def test_a_death_of_the_segmenter_is_no_death_of_the_writer(output, merge, seen):
    log(output).begin("u")
    merge()
    assert seen == [(1, None), (2, None), (3, None)]


def test_an_error_of_merging_shows_no_secret(output, merge, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError("cannot reach s3://me:hunter2@bucket/cache")

    monkeypatch.setattr(writer_module, "finish", fail)
    [first, *_] = merge()["failures"]
    assert (first["status"], first["error"]) == ("failed", "OSError: cannot reach s3://bucket/cache")
    assert b"hunter2" not in Path(output.part_uri("u")).read_bytes()


def test_a_death_while_the_part_is_written_is_noted(output, merge, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*args: object) -> None:
        raise Killed

    monkeypatch.setattr(type(output), "put_part", die)
    for _ in range(writer_module.MAX_IDLE_DEATHS + 1):
        with pytest.raises(Killed):
            merge()
    with pytest.raises(OutputError, match="is there enough memory for its part"):
        merge()


def test_only_what_is_taken_up_again_is_merged(output, merge, seen):
    merge()
    seen.clear()
    merge(frozenset({2}))
    assert seen == [(2, None)] and statuses(output) == [(1, "ok", 1), (2, "ok", 1), (3, "ok", 1)]


@pytest.mark.parametrize(
    ("earlier", "from_outside"),
    [
        ({"node": "here", "job": "now"}, False),
        ({"node": "there", "job": "now"}, False),
        ({"node": "gone", "job": "now"}, True),
        ({"node": "here", "job": "before"}, True),
    ],
)
def test_an_attempt_that_ended_with_its_node_or_job_was_taken_down(output, monkeypatch, earlier, from_outside):
    alive = {"here": True, "there": True, "gone": False}
    nodes = [{"NodeID": name, "Alive": is_alive} for name, is_alive in alive.items()]
    monkeypatch.setattr(attempts.ray, "nodes", lambda: nodes)
    context = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(attempts.ray, "get_runtime_context", lambda: context)
    AttemptLog(output, earlier, lambda place: False).begin("u")
    assert attempt_log(output, "now").begin("u").alone is not from_outside


@pytest.mark.soak
def test_a_picture_that_kills_or_hangs_its_merging_costs_only_itself(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    # Of twelve pictures each three are a unit: of those that die and hang a good one, of the one that raises two.
    heights = {4: 91, 5: 93, 6: 95}
    for number in range(12):
        size = (heights.get(number, 96), 128)
        Image.fromarray(draw_scene(number, size).image).save(folder / f"{number:02d}.png")
    code, output = finish(
        start([folder], out, *GRID, "--image-timeout", "20", faults=tmp_path, names="merging"),
    )
    assert code == 0, output
    by_number = {int(Path(row["image_uri"]).stem): row for row in rows_of(out).values()}
    expected = {4: "crashed", 5: "timeout", 6: "failed"}
    assert {number: row["status"] for number, row in by_number.items()} == {
        number: expected.get(number, "ok") for number in range(12)
    }
    assert all(bool(row["masks"]) == (row["status"] == "ok") for row in by_number.values())
    failures = pq.read_table(out / "_meta" / "failures.parquet").to_pylist()
    tried = {failure["status"]: failure["attempts"] for failure in failures}
    assert {failure["step"] for failure in failures} == {"merge"}
    assert tried == {"crashed": 1 + MAX_DEATHS, "timeout": 2, "failed": 1}
    assert not list((out / "_meta" / "attempts").glob("*"))
