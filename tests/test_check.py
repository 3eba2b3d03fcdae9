"""Every fault that `effsam2 check` is for is found, counted and named; a sound run passes."""

from __future__ import annotations

import argparse
import functools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from example_run import (
    SIZE_HW,
    count_reads,
    cut_again,
    draw_pictures,
    failed_row,
    image_row,
    mask_value,
    put_run,
    scene_masks,
    scene_run,
)
from pycocotools import mask as coco_mask

from effsam2_ray import rle
from effsam2_ray.commands import check as check_command
from effsam2_ray.errors import ConfigError, InputError
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.runs.check import Report, check_run, report_text
from effsam2_ray.runs.findings import MAX_EXAMPLES, PROBLEMS
from effsam2_ray.runs.part_check import near_duplicates

NAMES = [f"{number}.png" for number in range(6)]
check = functools.partial(check_run, num_processes=1)


def block(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(SIZE_HW, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def run_with(folder: Path, change: Callable[[int, dict[str, Any]], Any], num: int = 6) -> str:
    """Return a run of drawn scenes in units of 3, its rows changed in place (or for others) by `change`."""
    work_list = cut_again(build_work_list([draw_pictures(folder / "pictures", NAMES[:num])]), 3)

    def make_row(number, image):
        row = image_row(image, scene_masks(number))
        return change(number, row) or row

    return put_run(folder / "run", work_list, make_row)


def problems(report: Report) -> dict[str, int]:
    return {kind: count for kind, count in report.findings.problems.items() if count}


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    check_command.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["check", *arguments, "--num-processes", "1"])
    code: int = parsed.run(parsed)
    return code


class TestSoundRun:
    def test_figures_are_those_of_the_pixels(self, tmp_path: Path) -> None:
        report = check(scene_run(tmp_path, NAMES, failed=[2]))
        found = report.findings
        masks = [scene_masks(number) for number in range(6) if number != 2]
        assert report.passed and problems(report) == {}
        assert (found.num_expected, found.num_rows, found.statuses) == (6, 6, {"ok": 5, "corrupt": 1})
        assert found.num_masks == sum(map(len, masks))
        assert found.masks_an_image == Counter(map(len, masks))
        covered = [np.any(of_image, axis=0).mean() for of_image in masks]
        assert found.rates()["coverage"] == pytest.approx(np.mean(covered), abs=1e-12)
        assert found.rates()["failed_rate"] == pytest.approx(1 / 6)
        assert sorted(map(len, masks))[2] == found.masks_quantile(0.5)

    def test_each_part_is_fetched_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = scene_run(tmp_path, NAMES)
        fetched = count_reads(monkeypatch)
        check(run)
        assert fetched == Counter(path.name for path in Path(run).glob("*.parquet")) and len(fetched) == 2

    def test_processes_find_the_same(self, tmp_path: Path) -> None:
        run = scene_run(tmp_path, NAMES, unit_size=1, failed=[2])
        assert check_run(run, num_processes=2).findings == check(run).findings

    def test_rates_of_masks_worked_by_hand(self, tmp_path: Path) -> None:
        masks = {
            0: [],
            1: [np.ones(SIZE_HW, bool), block(0, 0, 36, 96)],
            # 10 x 20 beside 10 x 19: IoU 0.95; and twice the same, of which one is a duplicate.
            2: [block(0, 0, 10, 20), block(0, 0, 10, 19), block(30, 30, 5, 5), block(30, 30, 5, 5)],
        }

        def change(number, row):
            if number == 3:
                return failed_row_of(row)
            row["masks"] = [mask_value(mask) for mask in masks[number]]

        found = check(run_with(tmp_path, change, num=4)).findings
        assert found.masks_an_image == {0: 1, 2: 1, 4: 1}
        assert (found.num_whole_picture, found.num_near_duplicates) == (1, 2)
        assert found.rates() == pytest.approx(
            {
                "failed_rate": 1 / 4,
                "zero_mask_rate": 1 / 3,  # of the labelled images
                "coverage": (0 + 1 + 225 / 6912) / 3,
                "whole_picture_rate": 1 / 6,
                "near_duplicate_rate": 2 / 6,
            }
        )


class TestFaults:
    def test_missing_and_doubled_rows(self, tmp_path: Path) -> None:
        run = run_with(tmp_path, lambda number, row: None)
        part = sorted(Path(run).glob("*.parquet"))[0]
        table = pq.read_table(part)
        pq.write_table(table.take([0, 0, 0, 2]), part)
        report = check(run)
        assert problems(report) == {"missing": 1, "twice": 2} and not report.passed
        uid = table["image_uid"][1].as_py()
        assert report.findings.examples["missing"] == (f"image_uid {uid} in {part.name}",)

    def test_one_row_twice(self, tmp_path: Path) -> None:
        run = run_with(tmp_path, lambda number, row: None)
        part = sorted(Path(run).glob("*.parquet"))[0]
        pq.write_table(pq.read_table(part).take([0, 1, 2, 1]), part)
        assert problems(check(run)) == {"twice": 1}

    def test_a_unit_without_a_part_is_all_missing(self, tmp_path: Path) -> None:
        run = run_with(tmp_path, lambda number, row: None)
        sorted(Path(run).glob("*.parquet"))[1].unlink()
        report = check(run)
        assert problems(report) == {"missing": 3} and report.num_finished == 1

    def test_rows_and_parts_that_belong_elsewhere(self, tmp_path: Path) -> None:
        run = run_with(tmp_path, lambda number, row: None)
        first, second = sorted(Path(run).glob("*.parquet"))
        (Path(run) / "part-0000009-abcd.parquet").write_bytes(first.read_bytes())
        second.write_bytes(first.read_bytes())
        report = check(run)
        assert problems(report) == {"foreign": 3, "missing": 3}
        assert report.strays == ("0000009-abcd",) and "0000009-abcd" in report_text(report)

    def test_a_damaged_part_is_told_and_its_rows_are_missing(self, tmp_path: Path) -> None:
        run = run_with(tmp_path, lambda number, row: None)
        part = sorted(Path(run).glob("*.parquet"))[0]
        part.write_bytes(part.read_bytes()[:-40])
        assert problems(check(run)) == {"damaged": 1, "missing": 3}

    def test_flipped_bytes_never_stop_the_check(self, tmp_path: Path) -> None:
        run = run_with(tmp_path, lambda number, row: None, num=3)
        part = next(Path(run).glob("*.parquet"))
        data = part.read_bytes()
        rng = np.random.default_rng(1)
        for place in rng.integers(4, len(data), 30):
            part.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
            check(run)  # must not raise or crash; many flips hit statistics or columns that are not read

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            (lambda table: table.drop_columns(["step_s"]), "no column step_s"),
            (lambda table: table.append_column("extra", pa.array([1, 2, 3])), "column extra is not the run's"),
            (lambda table: table.set_column(8, "width", table["width"].cast(pa.int64())), "width is int64, not int32"),
            (lambda table: table.replace_schema_metadata({}), "schema version none, not 1"),
        ],
    )
    def test_other_columns(self, tmp_path: Path, change: Callable[[pa.Table], pa.Table], text: str) -> None:
        run = run_with(tmp_path, lambda number, row: None)
        part = sorted(Path(run).glob("*.parquet"))[0]
        pq.write_table(change(pq.read_table(part)), part)
        report = check(run)
        assert problems(report) == {"schema": 1}
        assert report.findings.examples["schema"] == (f"{part.name}: {text}",)

    @pytest.mark.parametrize(
        ("kind", "change", "text"),
        [
            ("rle", lambda mask: mask["segmentation"].update(counts="11"), "masks[0]"),
            ("rle", lambda mask: mask["segmentation"].update(size=[SIZE_HW[0], SIZE_HW[1] + 1]), "masks[0]"),
            ("size", lambda mask: mask["segmentation"].update(size=[96, 72]), "[96, 72], the picture [72, 96]"),
            ("area", lambda mask: mask.update(area=7), "7 stated, 200 counted"),
            (
                "bbox",
                lambda mask: mask.update(bbox=[1.0, 2.0, 20.0, 10.5]),
                "[1.0, 2.0, 20.0, 10.5] stated, [1, 2, 20, 10]",
            ),
            ("bbox", lambda mask: mask.update(bbox=[1.0, 2.0, 20.0]), "[1.0, 2.0, 20.0] stated"),
            ("bbox", lambda mask: mask.update(bbox=None), "None stated"),
            ("empty", lambda mask: mask.update(mask_value(np.zeros(SIZE_HW, bool))), "masks[0]"),
        ],
    )
    def test_masks_that_are_not_what_they_say(
        self, tmp_path: Path, kind: str, change: Callable[[dict[str, Any]], Any], text: str
    ) -> None:
        def change_row(number, row):
            row["masks"] = [mask_value(block(2, 1, 10, 20)), mask_value(block(20, 5, 3, 4))]
            if number == 4:
                change(row["masks"][0])

        report = check(run_with(tmp_path, change_row))
        found = problems(report)
        if kind == "size":  # read in the wrong frame, the mask has another box too
            found.pop("bbox")
        assert found == {kind: 1} and not report.passed
        (example,) = report.findings.examples[kind]
        assert "4.png" in example and text in example
        assert example in report_text(report) and PROBLEMS[kind] in report_text(report)

    def test_status_size_and_masks_must_fit_together(self, tmp_path: Path) -> None:
        def change(number, row):
            if number == 0:
                row["status"] = "fine"
            elif number == 1:
                row["status"] = "corrupt"
            elif number == 2:
                row.update(width=None, height=None, masks=[])

        report = check(run_with(tmp_path, change))
        assert problems(report) == {"status": 3}
        texts = " ".join(report.findings.examples["status"])
        assert (
            "status 'fine' is not known" in texts and "ok, but of size 0 x 0" in texts and "corrupt, but has" in texts
        )

    def test_only_a_few_examples_are_kept_of_many(self, tmp_path: Path) -> None:
        def change(number, row):
            for mask in row["masks"]:
                mask["area"] += 1

        findings = check(run_with(tmp_path, change)).findings
        assert findings.problems["area"] == findings.num_masks > MAX_EXAMPLES
        assert len(findings.examples["area"]) == MAX_EXAMPLES

    def test_a_run_where_every_image_failed_is_judged_too(self, tmp_path: Path) -> None:
        report = check(scene_run(tmp_path, NAMES, failed=range(6)), {"max_failed_rate": 0.5})
        assert problems(report) == {} and report.exceeded == ("failed rate is 100.00%; at most 50.00%",)


class TestNearDuplicates:
    def test_they_are_the_pairs_of_high_iou(self) -> None:
        rng = np.random.default_rng(3)
        for _ in range(60):
            masks = []
            for _ in range(rng.integers(0, 9)):
                top, left = rng.integers(0, 6, 2)
                masks.append(block(top, left, rng.integers(8, 14), rng.integers(8, 14)))
            rles = rle.encode(np.stack(masks)) if masks else []
            thresh = float(rng.uniform(0.5, 1.0))
            cocos = [mask.to_coco() for mask in rles]
            ious = coco_mask.iou(cocos, cocos, [0] * len(cocos)) if cocos else np.zeros((0, 0))
            expected = [k for k in range(len(cocos)) if any(ious[j, k] >= thresh for j in range(k))]
            found = near_duplicates(rle.areas(rles), rle.boxes(rles).astype(np.int64), cocos, thresh)
            assert found == expected


class TestThresholdsAndCommand:
    def test_thresholds_have_their_exit_code(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run = run_with(tmp_path, lambda number, row: failed_row_of(row) if number == 5 else None)
        assert command(run) == 0
        assert command(run, "--max-failed-rate", "20%", "--min-coverage", "0.1") == 0
        assert command(run, "--max-failed-rate", "10%", "--json", str(tmp_path / "check.json")) == 3
        assert "failed rate is 16.67%; at most 10.00%" in capsys.readouterr().out
        written = json.loads((tmp_path / "check.json").read_text())
        assert written["passed"] is False and written["statuses"] == {"ok": 5, "corrupt": 1}
        assert written["failed_rate"] == pytest.approx(1 / 6) and written["problems"]["missing"] == 0

    def test_each_threshold_is_about_its_rate(self, tmp_path: Path) -> None:
        def change(number, row):
            row["masks"] = [] if number else [mask_value(np.ones(SIZE_HW, bool))] * 2

        limits = {
            "max_zero_mask_rate": 0.5,
            "max_whole_picture_rate": 0,
            "max_near_duplicate_rate": 0.4,
            "min_coverage": 1,
        }
        report = check(run_with(tmp_path, change), limits)
        assert check(run_with(tmp_path / "fine", change, 1), {"max_failed_rate": 0, "min_coverage": 1}).exceeded == ()
        assert report.exceeded == (
            "zero mask rate is 83.33%; at most 50.00%",
            "whole picture rate is 100.00%; at most 0.00%",
            "near duplicate rate is 50.00%; at most 40.00%",
            "coverage is 16.67%; at least 100.00%",
        )

    def test_mistakes_are_errors_of_the_user(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="one of max_failed_rate, .* got max_speed=0.5"):
            check(str(tmp_path), {"max_speed": 0.5})
        with pytest.raises(ConfigError, match="min_coverage=2"):
            check(str(tmp_path), {"min_coverage": 2})
        with pytest.raises(InputError, match="no run"):
            check(str(tmp_path))
        with pytest.raises(SystemExit) as stopped:
            command("run", "--max-failed-rate", "120%")
        assert stopped.value.code == 2


def failed_row_of(row: dict[str, Any]) -> dict[str, Any]:
    from effsam2_ray.inputs.work_list import ImageRef

    return failed_row(ImageRef(row["image_uid"], row["image_uri"]))
