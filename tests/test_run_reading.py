"""Rows of a run, part by part; and the measures that are taken of many masks at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from example_run import cut_again, draw_pictures, failed_row, image_row, put_run, scene_masks, scene_run

from effsam2_ray import rle
from effsam2_ray.errors import InputError, OutputError
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.runs.packed_masks import measure_masks, sound_rows, union_areas, unpack_runs
from effsam2_ray.runs.processes import map_tasks
from effsam2_ray.runs.reading import open_part, open_run, part_batches

SEGMENTATION = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
NAMES = [f"{number}.png" for number in range(7)]


def packed(masks: list[rle.Rle]) -> pa.StructArray:
    return pa.array([mask.to_coco() for mask in masks], SEGMENTATION)


def halve(number: int) -> float:
    return number / 2


def die(_: int) -> None:
    import os

    os._exit(9)


class TestReading:
    def test_rows_come_in_the_order_of_the_work_list(self, tmp_path: Path) -> None:
        run = open_run(scene_run(tmp_path, NAMES, unit_size=3, failed=[4]))
        rows = list(run.rows(["image_uri", "status"]))
        assert [row["image_uri"].rsplit("/", 1)[-1] for row in rows] == NAMES
        assert [row["status"] for row in rows] == ["ok"] * 4 + ["corrupt"] + ["ok"] * 2
        assert run.first_image_numbers() == [0, 3, 6] and run.name == "run"

    def test_units_without_a_part_are_passed_over(self, tmp_path: Path) -> None:
        run = open_run(scene_run(tmp_path, NAMES, unit_size=3))
        Path(run.folder.part_uri(run.work_list.unit_ids[1])).unlink()
        run = open_run(run.folder.uri)
        assert run.finished_numbers() == [0, 2]
        assert [row["image_uri"][-5:] for row in run.rows(["image_uri"])] == ["0.png", "1.png", "2.png", "6.png"]

    def test_batches_are_as_small_as_asked_for(self, tmp_path: Path) -> None:
        run = open_run(scene_run(tmp_path, NAMES, unit_size=7))
        batches = list(part_batches(run.folder, run.work_list.unit_ids[0], ["image_uid"], rows_at_once=3))
        assert [batch.num_rows for batch in batches] == [3, 3, 1]

    def test_a_part_that_is_open_is_not_fetched_again(self, tmp_path: Path) -> None:
        run = open_run(scene_run(tmp_path, NAMES, unit_size=7))
        part = open_part(run.folder, run.work_list.unit_ids[0])
        Path(run.folder.part_uri(run.work_list.unit_ids[0])).unlink()
        for _ in range(2):
            batches = list(part_batches(run.folder, run.work_list.unit_ids[0], ["image_uid"], part=part))
            assert [batch.num_rows for batch in batches] == [7]

    def test_a_folder_that_is_no_run_is_an_input_error(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no run with a frozen work list"):
            open_run(str(tmp_path))

    def test_damaged_parts_and_other_columns_are_input_errors(self, tmp_path: Path) -> None:
        run = open_run(scene_run(tmp_path, NAMES[:1]))
        unit = run.work_list.unit_ids[0]
        with pytest.raises(InputError, match="is not a part of a run: no column colour, mood"):
            list(part_batches(run.folder, unit, ["mood", "image_uid", "colour"]))
        Path(run.folder.part_uri(unit)).write_bytes(b"PAR1 and then nothing")
        with pytest.raises(InputError, match="is not a part of a run"):
            list(run.rows())


class TestMeasures:
    def test_a_mask_worked_by_hand(self) -> None:
        mask = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], bool)  # columns: 000 110 100 001
        measures = measure_masks(packed(rle.encode(mask[None])))
        assert measures.starts.tolist() == [3, 6, 11] and measures.ends.tolist() == [5, 7, 12]
        assert measures.areas.tolist() == [4] and measures.boxes.tolist() == [[1, 0, 3, 3]]
        assert measures.size_hw.tolist() == [[3, 4]] and measures.sound.tolist() == [True]

    def test_a_run_over_the_end_of_a_column_reaches_top_and_bottom(self) -> None:
        mask = np.zeros((5, 3), bool)
        mask[4, 0] = mask[0, 1] = True
        assert measure_masks(packed(rle.encode(mask[None]))).boxes.tolist() == [[0, 0, 2, 5]]

    def test_measures_agree_with_the_pixels(self) -> None:
        rng = np.random.default_rng(5)
        for _ in range(100):
            height, width, number = rng.integers(1, 30), rng.integers(1, 30), rng.integers(0, 9)
            masks = rng.random((number, height, width)) < rng.random()
            if number:
                masks[0] = rng.random() < 0.5  # all or nothing
            rles = rle.encode(masks) if number else []
            measures = measure_masks(packed(rles))
            assert measures.sound.all()
            assert measures.areas.tolist() == masks.sum((1, 2)).tolist()
            assert measures.boxes.tolist() == rle.boxes(rles).tolist()
            cut = int(rng.integers(0, number + 1))
            covered = union_areas(measures, np.array([0, 0, cut, number]))
            assert covered.tolist() == [0, masks[:cut].any(0).sum(), masks[cut:].any(0).sum()]

    def test_runs_agree_with_the_reference_for_long_ones_too(self) -> None:
        rng = np.random.default_rng(6)
        rles = []
        for _ in range(50):
            mask = np.zeros((3000, 700), bool)
            for _ in range(rng.integers(1, 5)):
                y, x = rng.integers(0, 3000), rng.integers(0, 700)
                mask[y : y + rng.integers(1, 3000), x : x + rng.integers(1, 600)] ^= True
            rles += rle.encode(mask[None])
        measures = measure_masks(packed(rles))
        assert measures.areas.tolist() == [mask.area for mask in rles]
        text = b"".join(mask.counts for mask in rles)
        bounds = np.cumsum([0] + [len(mask.counts) for mask in rles])
        runs = unpack_runs(np.frombuffer(text, np.uint8), bounds)
        for place, mask in enumerate(rles):
            assert runs.lengths[runs.bounds[place] : runs.bounds[place + 1]].tolist() == mask.runs().tolist()

    @pytest.mark.parametrize(
        "counts", ["", None, "5O", "Q", "!!", "0\x7f", "zz", "ooooooooo0", "p6", "01O", "4", "é1"], ids=repr
    )
    def test_malformed_masks_are_told_from_their_neighbours(self, counts: str | None) -> None:
        good = rle.encode(np.ones((1, 2, 3), bool))[0].to_coco()
        array = pa.array([good, {"size": [2, 3], "counts": counts}, good], SEGMENTATION)
        measures = measure_masks(array)
        assert measures.sound.tolist() == [True, False, True]
        assert measures.areas.tolist() == [6, 0, 6]

    def test_random_characters_are_judged_as_by_the_reference(self) -> None:
        rng = np.random.default_rng(7)
        texts = ["".join(map(chr, rng.integers(46, 114, rng.integers(1, 6)))) for _ in range(3000)]
        texts += ["".join(map(chr, rng.integers(48, 56, rng.integers(1, 5)))) for _ in range(3000)]
        sound = measure_masks(pa.array([{"size": [2, 4], "counts": text} for text in texts], SEGMENTATION)).sound
        for text, verdict in zip(texts, sound.tolist(), strict=True):
            try:
                rle.Rle.from_coco({"size": [2, 4], "counts": text})
                expected = True
            except Exception:
                expected = False
            assert verdict == expected, text
        assert 5 < sound.sum() < 3000

    @pytest.mark.parametrize("size", [None, [], [2], [2, 3, 1], [-2, -3], [0, 6], [2, None]], ids=repr)
    def test_sizes_that_are_none_are_not_sound(self, size: list[int] | None) -> None:
        good = rle.encode(np.ones((1, 2, 3), bool))[0].to_coco()
        array = pa.array([good, {"size": size, "counts": good["counts"]}, None, good], SEGMENTATION)
        assert measure_masks(array).sound.tolist() == [True, False, False, True]

    def test_rows_are_sound_when_their_masks_are_and_fit(self, tmp_path: Path) -> None:
        work_list = cut_again(build_work_list([draw_pictures(tmp_path / "p", NAMES[:4])]), 4)

        def make_row(number, image):
            row = image_row(image, scene_masks(number))
            if number == 1:
                row["masks"][-1]["segmentation"]["counts"] = "11"
            elif number == 2:
                row["width"], row["height"] = row["height"], row["width"]
            return failed_row(image) if number == 3 else row

        run = open_run(put_run(tmp_path / "run", work_list, make_row))
        (batch,) = part_batches(run.folder, work_list.unit_ids[0])
        assert sound_rows(batch).tolist() == [True, False, False, False]
        assert (
            sound_rows(batch.slice(0, 1)).tolist() == [True] and sound_rows(batch.slice(1, 2)).tolist() == [False] * 2
        )


class TestProcesses:
    @pytest.mark.parametrize("num_processes", [None, 1, 2])
    def test_results_come_in_order(self, num_processes: int | None) -> None:
        assert list(map_tasks(halve, range(5), 5, num_processes)) == [0, 0.5, 1, 1.5, 2]

    def test_a_process_that_dies_is_an_error_and_no_hang(self) -> None:
        with pytest.raises(OutputError, match="one of 2 processes died"):
            list(map_tasks(die, range(5), 5, 2))
