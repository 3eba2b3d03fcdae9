from __future__ import annotations

import json

import pytest

from effsam2_ray.errors import OutputError
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline import attempts
from effsam2_ray.pipeline.attempts import MAX_DEATHS, AttemptLog

HERE = {"node": "n1", "job": "j1"}


def log(tmp_path, *, node_died: bool = False) -> AttemptLog:
    return AttemptLog(OutputFolder(str(tmp_path)), HERE, lambda place: node_died)


def test_first_attempt_takes_the_unit_whole_and_ends_without_a_trace(tmp_path):
    attempt = log(tmp_path).begin("u")
    assert not attempt.alone and attempt.deaths == {} and attempt.verdict(1) is None
    assert (tmp_path / "_meta" / "attempts" / "u.json").exists()
    log(tmp_path).end(attempt)
    assert not (tmp_path / "_meta" / "attempts" / "u.json").exists()


def test_a_unit_that_died_is_redone_image_by_image_and_blames_nobody_yet(tmp_path):
    log(tmp_path).begin("u")
    again = log(tmp_path).begin("u")
    assert again.alone and again.deaths == {}


def test_an_image_alone_at_enough_deaths_is_crashed(tmp_path):
    log(tmp_path).begin("u")
    for death in range(MAX_DEATHS):
        attempt = log(tmp_path).begin("u")
        assert attempt.deaths.get("7", 0) == death and attempt.verdict(7) is None
        attempt.current_uid = 7
        log(tmp_path).store(attempt)
    attempt = log(tmp_path).begin("u")
    assert attempt.verdict(7) == "crashed" and attempt.verdict(8) is None


def test_deaths_of_different_images_are_counted_apart(tmp_path):
    log(tmp_path).begin("u")
    for uid in (7, 8, 9):
        attempt = log(tmp_path).begin("u")
        attempt.current_uid = uid
        log(tmp_path).store(attempt)
    assert log(tmp_path).begin("u").deaths == {"7": 1, "8": 1, "9": 1}


def test_a_lost_node_convicts_nobody(tmp_path):
    for _ in range(2 * MAX_DEATHS):
        attempt = log(tmp_path, node_died=True).begin("u")
        assert not attempt.alone
        attempt.current_uid = 7
        log(tmp_path).store(attempt)
    assert log(tmp_path, node_died=True).begin("u").deaths == {}


def test_a_verdict_of_the_watchdog_stays(tmp_path):
    log(tmp_path).begin("u")
    attempt = log(tmp_path).begin("u")
    attempt.current_uid = 7
    attempt.verdicts["7"] = "timeout"
    log(tmp_path).store(attempt)
    assert log(tmp_path).begin("u").verdict(7) == "timeout"


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"unknown": 1})])
def test_a_record_that_cannot_be_understood_is_ignored(tmp_path, text: str):
    folder = tmp_path / "_meta" / "attempts"
    folder.mkdir(parents=True)
    (folder / "u.json").write_text(text)
    assert not log(tmp_path).begin("u").alone


def test_a_record_that_may_not_be_removed_costs_nothing(tmp_path, monkeypatch):
    def deny(uri: str, storage_options: object) -> None:
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(attempts, "delete", deny)
    attempt = log(tmp_path).begin("u")
    log(tmp_path).end(attempt)
    assert (tmp_path / "_meta" / "attempts" / "u.json").exists()


def test_deaths_with_no_image_at_work_end_the_job_after_some(tmp_path):
    log(tmp_path).begin("u", 3)
    for _ in range(3):  # the first only takes the unit apart
        assert log(tmp_path).begin("u", 3).deaths == {}
    with pytest.raises(OutputError, match="died 3 times while no image was at work"):
        log(tmp_path).begin("u", 3)
    assert log(tmp_path).begin("u").alone  # a segmenter works on several units, and blames none
