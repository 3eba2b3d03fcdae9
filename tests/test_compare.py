"""Two runs compared: by hand, against the reference metric, part by part and through buckets."""

from __future__ import annotations

import argparse
import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from example_run import (
    SIZE_HW,
    cut_again,
    draw_pictures,
    failed_row,
    image_row,
    put_run,
    scene_masks,
)
from PIL import Image

from effsam2_ray import rle
from effsam2_ray.commands import compare as compare_command
from effsam2_ray.errors import InputError
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.inputs.work_list import ImageRef, Unit, WorkList, WorkListWriter, image_uid, unit_id
from effsam2_ray.metrics.iou import best_iou
from effsam2_ray.runs import joining
from effsam2_ray.runs.agreement import AREA_EDGES, best_ious
from effsam2_ray.runs.compare import Comparison, compare_runs, comparison_text, differences_sheet
from effsam2_ray.runs.reading import open_run

NAMES = [f"{number}.png" for number in range(7)]
Masks = dict[int, Sequence[np.ndarray] | None]
compare = functools.partial(compare_runs, num_processes=1)


def block(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(SIZE_HW, bool)
    mask[top : top + height, left : left + width] = True
    return mask


@pytest.fixture
def listed(tmp_path: Path) -> WorkList:
    return build_work_list([draw_pictures(tmp_path / "pictures", NAMES)])


def put_masks(folder: Path, work_list: WorkList, masks: Masks) -> str:
    """Write a run of images with these masks, failed where they are None, all others with the scene's own."""

    def make_row(number, image):
        seed = int(Path(image.image_uri).stem)
        chosen = masks.get(seed, scene_masks(seed))
        return failed_row(image) if chosen is None else image_row(image, chosen)

    return put_run(folder, work_list, make_row)


def jittered(seed: int) -> list[np.ndarray]:
    """Return a scene's objects, some moved, some left out."""
    rng = np.random.default_rng(seed)
    masks = scene_masks(seed)
    return [np.roll(mask, rng.integers(0, 3), axis=1) for mask in masks if rng.random() < 0.8]


def one_row_batches(uids: np.ndarray) -> pa.Table:
    """Return a table with a batch for each row, as buckets of large runs are."""
    tables = [pa.table({"image_uid": [uid], "masks": [[f"mask {uid}" * 50, "another"]]}) for uid in uids.tolist()]
    return pa.concat_tables(tables)


class TestFigures:
    def test_a_case_worked_by_hand(self, tmp_path: Path, listed: WorkList) -> None:
        left, right, whole = block(0, 0, 72, 48), block(0, 48, 72, 48), block(0, 0, 72, 96)
        others: Masks = {number: None for number in range(3, 7)}
        a = put_masks(tmp_path / "a", listed, {0: [left, right], 1: [], 2: [left], **others})
        b = put_masks(tmp_path / "b", listed, {0: [whole], 1: [right], 2: [left, block(0, 0, 72, 36)], **others})
        found = compare(a, b).agreement
        assert (found.rows_a, found.rows_b, found.num_both, found.num_compared) == (7, 7, 7, 3)
        assert found.statuses == {"ok / ok": 3, "corrupt / corrupt": 4}
        # A: two halves against the whole (0.5 each), one that is there again; B: 0.5, 0, 1 and 36 of 48 columns.
        assert (found.a.masks, found.a.best_iou, found.a.matched) == (3, 2.0, (3, 1, 1))
        assert (found.b.masks, found.b.best_iou, found.b.matched) == (4, 2.25, (3, 2, 1))
        assert (found.a.image_best_iou, found.a.images_with_masks) == (1.5, 2)
        assert (found.b.image_best_iou, found.b.images_with_masks) == (0.5 + 0 + 0.875, 3)
        assert (found.a.zero_mask_images, found.b.zero_mask_images) == (1, 0)
        assert (found.a.coverage, found.b.coverage) == (1 + 0 + 0.5, 1 + 0.5 + 0.5)
        assert (found.a.prompts, found.b.prompts) == (6, 8)
        assert dict(zip(AREA_EDGES, found.a.areas, strict=False))[0.5] == 3  # a half lies in the bin from 0.5 on
        assert dict(zip(AREA_EDGES, found.b.areas, strict=False)) == {
            **dict.fromkeys(AREA_EDGES[:-1], 0),
            0.5: 3,
            0.25: 1,
        }
        scores = [(item.image_uri[-5:], item.score) for item in found.differences]
        assert scores == [("1.png", 1.0), ("0.png", 0.5), ("2.png", pytest.approx(1 - (1 + 0.875) / 2))]

    def test_best_iou_is_that_of_the_metrics(self) -> None:
        for seed in range(8):
            first, second = scene_masks(seed), jittered(seed)
            if not first or not second:
                continue
            stacks = np.stack(first), np.stack(second)
            cocos = [[mask.to_coco() for mask in rle.encode(stack)] for stack in stacks]
            of_first, of_second = best_ious(*cocos)
            assert of_first.mean() == pytest.approx(best_iou(stacks[1], stacks[0]))
            assert of_second.mean() == pytest.approx(best_iou(stacks[0], stacks[1]))

    def test_figures_are_sums_over_the_images(self, tmp_path: Path, listed: WorkList) -> None:
        a = put_masks(tmp_path / "a", cut_again(listed, 2), {})
        b = put_masks(tmp_path / "b", cut_again(listed, 2), {seed: jittered(seed) for seed in range(7)})
        found = compare(a, b).agreement
        pairs = [(scene_masks(seed), jittered(seed)) for seed in range(7)]
        assert found.a.masks == sum(len(first) for first, _ in pairs)
        assert found.b.coverage == pytest.approx(sum(np.any(s, axis=0).mean() if s else 0 for _, s in pairs))
        both = [(np.stack(first), np.stack(second)) for first, second in pairs if first and second]
        assert found.a.image_best_iou == pytest.approx(sum(best_iou(second, first) for first, second in both))
        assert found.b.image_best_iou == pytest.approx(sum(best_iou(first, second) for first, second in both))
        assert sum(found.a.areas) == found.a.masks

    def test_a_run_agrees_with_itself(self, tmp_path: Path, listed: WorkList) -> None:
        run = put_masks(tmp_path / "a", listed, {})
        found = compare(run, run).agreement
        assert found.a == found.b and found.a.matched == (found.a.masks,) * 3
        assert found.a.best_iou == pytest.approx(found.a.masks) and found.differences[0].score == pytest.approx(0)

    def test_pictures_of_another_size_or_with_malformed_masks_are_not_compared(
        self, tmp_path: Path, listed: WorkList
    ) -> None:
        def make_row(number, image):
            row = image_row(image, scene_masks(number))
            if number == 1:
                row["masks"][0]["segmentation"]["counts"] = "2"
            return image_row(image, [], (SIZE_HW[1], SIZE_HW[0])) if number == 0 else row

        a, b = put_masks(tmp_path / "a", listed, {}), put_run(tmp_path / "b", listed, make_row)
        found = compare(a, b).agreement
        assert (found.num_both, found.num_compared, found.statuses) == (7, 5, {"ok / ok": 7})


class TestJoining:
    @pytest.fixture
    def masks_b(self) -> Masks:
        return {**{seed: jittered(seed) for seed in range(7)}, 3: None}

    def without_places(self, found: Comparison) -> list[tuple[float, int]]:
        return [(item.score, item.image_uid) for item in found.agreement.differences]

    @pytest.mark.parametrize("num_processes", [1, 2])
    @pytest.mark.parametrize("rows_a_bucket", [4096, 2])
    def test_other_units_give_the_same_as_the_same_units(
        self,
        tmp_path: Path,
        listed: WorkList,
        masks_b: Masks,
        rows_a_bucket: int,
        num_processes: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(joining, "ROWS_A_BUCKET", rows_a_bucket)
        a = put_masks(tmp_path / "a", cut_again(listed, 3), {})
        same = compare(a, put_masks(tmp_path / "same", cut_again(listed, 3), masks_b))
        other = compare_runs(
            a, put_masks(tmp_path / "other", cut_again(listed, 2), masks_b), num_processes=num_processes
        )
        assert other.agreement.statuses == same.agreement.statuses == {"ok / ok": 6, "ok / corrupt": 1}
        for side in ("a", "b"):
            ours, theirs = getattr(other.agreement, side), getattr(same.agreement, side)
            assert (ours.masks, ours.matched, ours.areas) == (theirs.masks, theirs.matched, theirs.areas)
            assert ours.best_iou == pytest.approx(theirs.best_iou, rel=1e-12)
        assert self.without_places(other) == self.without_places(same)

    def test_images_of_one_run_only_are_counted(self, tmp_path: Path, listed: WorkList) -> None:
        few = build_work_list([f"{tmp_path}/pictures/[2-4].png"])
        a, b = put_masks(tmp_path / "a", cut_again(listed, 2), {}), put_masks(tmp_path / "b", few, {})
        found = compare(a, b).agreement
        assert (found.rows_a, found.rows_b, found.num_both) == (7, 3, 3)

    def test_units_that_one_run_has_not_finished(self, tmp_path: Path, listed: WorkList) -> None:
        units = cut_again(listed, 2)
        a, b = put_masks(tmp_path / "a", units, {}), put_masks(tmp_path / "b", units, {})
        sorted(Path(b).glob("*.parquet"))[0].unlink()
        found = compare(a, b).agreement
        assert (found.rows_a, found.rows_b, found.num_both) == (7, 5, 5)

    def test_places_lead_back_to_the_rows(self, tmp_path: Path, listed: WorkList) -> None:
        a = put_masks(tmp_path / "a", cut_again(listed, 3), {})
        b = put_masks(tmp_path / "b", cut_again(listed, 2), {seed: jittered(seed) for seed in range(7)})
        for item in compare(a, b).agreement.differences:
            seed = int(Path(item.image_uri).stem)
            assert item.place_a == divmod(seed, 3) and item.place_b == divmod(seed, 2)

    def test_places_go_on_from_batch_to_batch(self, tmp_path: Path) -> None:
        images = tuple(ImageRef(image_uid(f"s3://b/{n}.png"), f"s3://b/{n}.png") for n in range(150))
        writer = WorkListWriter()
        writer.add(Unit(unit_id(0, [image.image_uid for image in images]), "files", images, 0))
        counts = {"num_images": 150, "num_units": 1, "kept_types": [], "inputs": []}
        run = open_run(put_run(tmp_path / "run", writer.finish(counts), lambda number, image: image_row(image, [])))
        (task,) = joining.join_tasks(run, run, ["image_uid"], str(tmp_path))
        table = joining.read_side(task, "a", run.folder, ["image_uid"])
        assert table is not None and table[joining.PLACE_COLUMN].to_pylist() == list(range(150))

    def test_rows_are_found_in_many_small_batches(self) -> None:
        rng = np.random.default_rng(3)
        table_a, table_b = one_row_batches(rng.permutation(150)), one_row_batches(rng.permutation(200) + 50)
        table_b = pa.concat_tables([table_b.slice(0, 0), table_b, table_b.slice(20, 30)])  # no rows; rows again
        pairs = list(joining.matched_batches(table_a, table_b))
        assert [first.num_rows for first, _ in pairs] == [64, 36]
        found_a, found_b = (pa.Table.from_batches(side).to_pylist() for side in zip(*pairs, strict=True))
        assert [row["image_uid"] for row in found_b] == [row["image_uid"] for row in found_a]
        assert found_a == [row for row in table_a.to_pylist() if row["image_uid"] >= 50]
        assert sorted(found_b, key=lambda row: row["image_uid"]) == sorted(
            (row for row in table_b.slice(0, 200).to_pylist() if row["image_uid"] < 150),
            key=lambda row: row["image_uid"],
        )

    def test_work_does_not_grow_with_the_square_of_the_rows(self) -> None:
        pool = pa.default_memory_pool()
        allocated = []
        for num_rows in (250, 1000):
            table = one_row_batches(np.arange(num_rows))
            before = pool.total_bytes_allocated()
            assert sum(first.num_rows for first, _ in joining.matched_batches(table, table)) == num_rows
            allocated.append(pool.total_bytes_allocated() - before)
        assert allocated[1] < 5 * allocated[0]  # 16 times with the square

    def test_columns_of_more_than_two_gib_of_text_are_joined(self) -> None:
        schema = pa.schema([("image_uid", pa.int64()), ("masks", pa.list_(pa.string()))])
        row = pa.table({"image_uid": [0], "masks": [["x" * 1_000_000]]}, schema)  # held once
        uids = pa.chunked_array([[uid] for uid in range(2200)])
        table = pa.concat_tables([row] * len(uids)).set_column(0, "image_uid", uids)
        ((first, second),) = joining.matched_batches(table, table.slice(2199))
        assert first["image_uid"].to_pylist() == second["image_uid"].to_pylist() == [2199]

    def test_no_image_in_common_is_an_input_error(self, tmp_path: Path, listed: WorkList) -> None:
        elsewhere = build_work_list([draw_pictures(tmp_path / "elsewhere", NAMES[:2])])
        a, b = put_masks(tmp_path / "a", listed, {}), put_masks(tmp_path / "b", elsewhere, {})
        with pytest.raises(InputError, match="have no image in common; images are matched by URI"):
            compare(a, b)
        with pytest.raises(InputError, match="no run"):
            compare(a, str(tmp_path))


class TestReport:
    def test_command_writes_text_json_and_a_sheet(
        self, tmp_path: Path, listed: WorkList, capsys: pytest.CaptureFixture[str]
    ) -> None:
        a = put_masks(tmp_path / "a", cut_again(listed, 3), {})
        b = put_masks(tmp_path / "b", cut_again(listed, 3), {seed: jittered(seed) for seed in range(6)})
        parser = argparse.ArgumentParser()
        compare_command.add_parser(parser.add_subparsers())
        parsed = parser.parse_args(
            ["compare", a, b, "--output", f"{tmp_path}/out", "--num", "3", "--num-processes", "1"]
        )
        assert parsed.run(parsed) == 0
        text = (tmp_path / "out" / "compare.md").read_text()
        assert text.strip() in capsys.readouterr().out
        assert "7 images in both (0 only in A, 0 only in B), 7 compared." in text
        values = json.loads((tmp_path / "out" / "compare.json").read_text())
        assert values["images_compared"] == 7 and len(values["differences"]) == 3
        assert f"| masks matched at IoU 0.5 | {values['a']['matched_0.5']:.1%} |" in text
        assert (values["settings_a"], values["run_a"]) == ("high_quality, demo", a)
        sheet = Image.open(tmp_path / "out" / "differences.png")
        assert sheet.size[0] > 1800  # two images side by side: A and B

    def test_sheet_shows_each_run_with_its_own_masks(self, tmp_path: Path, listed: WorkList) -> None:
        a = put_masks(tmp_path / "a", cut_again(listed, 3), {2: [block(0, 0, 72, 96)]})
        b = put_masks(tmp_path / "b", cut_again(listed, 2), {2: []})
        comparison = compare(a, b, num_differences=1)
        pixels = np.asarray(Image.open(io.BytesIO(differences_sheet(comparison, a, b)))).astype(int)
        # The third panel of the left half holds one mask in one colour, that of the right half is grey.
        colourful = (pixels.max(axis=2) - pixels.min(axis=2)) > 30
        middle = pixels.shape[0] * 2 // 3
        assert colourful[middle, 660:900].mean() > 0.9 and colourful[middle, 1620:1860].mean() == 0

    def test_a_picture_that_is_gone_does_not_stop_the_sheet(self, tmp_path: Path, listed: WorkList) -> None:
        a, b = put_masks(tmp_path / "a", listed, {}), put_masks(tmp_path / "b", listed, {2: []})
        comparison = compare(a, b, num_differences=2)
        for name in NAMES:
            (tmp_path / "pictures" / name).unlink()
        assert differences_sheet(comparison, a, b).startswith(b"\x89PNG")
        assert "1.000" in comparison_text(comparison)
