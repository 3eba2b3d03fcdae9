"""Contact sheets: which images, which colours, and what stands in the PNG and the HTML."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from effsam2_ray import rle
from effsam2_ray.errors import ConfigError, InputError
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.inputs.work_list import ImageRef, Unit, WorkList, WorkListWriter, image_uid, unit_id
from effsam2_ray.output import OutputFolder
from effsam2_ray.schema import build_table, run_schema
from effsam2_ray.show import show_run
from effsam2_ray.show.coloring import PALETTE, assign_colors, color, touching
from effsam2_ray.show.drawing import draw_panels, paint_masks, panel_size
from effsam2_ray.show.lettering import fit_text, plain_font, spell, wrap_text
from effsam2_ray.show.run_images import ShownImage, open_run, spread_positions
from effsam2_ray.show.sheet import MAX_SHEET_IMAGES, render_sheet
from effsam2_ray.storage import put_bytes

SIZE_HW = (48, 64)
ALARM = (190, 52, 16)
META = ("meta", "content")
EVIL_NAME = '<script>alert(1)<b>&quot;" onclick="x.png'
EVIL_ERROR = "cannot read <img src=x onerror=alert(1)>"


def block_mask(top: int, left: int, height: int, width: int, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    mask = np.zeros(size_hw, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def mask_value(mask: np.ndarray) -> dict[str, Any]:
    encoded = rle.encode(mask[None])[0]
    return {"segmentation": encoded.to_coco(), "area": int(mask.sum()), "bbox": list(encoded.bbox), "members": [0]}


def ok_row(image: ImageRef, num_masks: int) -> dict[str, Any]:
    """Return a row with that many masks, side by side, and two clusters with their prompts."""
    labels = np.full((3, 4), -1)
    labels[0, :2], labels[2, 2:] = 0, 1
    return {
        "image_uid": image.image_uid,
        "image_uri": image.image_uri,
        "shard_uri": image.shard_uri,
        "member": image.member,
        "width": SIZE_HW[1],
        "height": SIZE_HW[0],
        "status": "ok",
        "preset": "high_quality",
        "weights": "demo",
        "num_prompts": 2,
        "prompts": [{"x": 8.0, "y": 8.0, "cluster_size": 2}, {"x": 56.0, "y": 40.0, "cluster_size": 2}],
        "cluster_map": {"size": [3, 4], "labels": labels.ravel().tolist()},
        "num_candidates": num_masks,
        "masks": [mask_value(block_mask(0, 6 * place, 20, 6)) for place in range(num_masks)],
    }


def failed_row(image: ImageRef, status: str, error: str) -> dict[str, Any]:
    row = {"image_uid": image.image_uid, "image_uri": image.image_uri, "status": status, "error": error}
    return {**row, "preset": "high_quality", "weights": "demo", "num_prompts": 0, "prompts": [], "masks": []}


def write_picture(path: Path, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    coarse.resize((SIZE_HW[1], SIZE_HW[0]), Image.Resampling.BICUBIC).save(path)


def put_run(folder: Path, work_list: WorkList, rows: dict[int, dict[str, Any]]) -> str:
    output = OutputFolder(str(folder))
    put_bytes(output.meta_uri("work_list.parquet"), work_list.to_bytes())
    schema = run_schema({}, keep_candidates=True)
    for unit in work_list.units():
        output.put_part(unit.unit_id, build_table([rows[image.image_uid] for image in unit.images], schema), {})
    return str(folder)


def in_one_unit(work_list: WorkList) -> WorkList:
    images = tuple(image for unit in work_list.units() for image in unit.images)
    writer = WorkListWriter()
    writer.add(Unit(unit_id(0, [image.image_uid for image in images]), "files", images, 0))
    return writer.finish({"num_images": len(images), "num_shards": 0, "num_units": 1, "kept_types": [], "inputs": []})


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Return a run of six pictures: 0 to 3 masks, then two that failed."""
    names = ["a.png", "b.png", "c.png", EVIL_NAME, "x.png", "y.png"]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed, name in enumerate(names):
        write_picture(pictures / name, seed)
    work_list = in_one_unit(build_work_list([str(pictures)]))
    by_name = {image.image_uri.rsplit("/", 1)[-1]: image for unit in work_list.units() for image in unit.images}
    rows = [ok_row(by_name[name], number) for number, name in enumerate(names[:4])]
    rows += [
        failed_row(by_name["x.png"], "truncated", "ends early"),
        failed_row(by_name["y.png"], "failed", EVIL_ERROR),
    ]
    return put_run(tmp_path / "my <i>run", work_list, {row["image_uid"]: row for row in rows})


def plain_image(masks: list[np.ndarray], cluster_map: np.ndarray | None = None, size_hw: Any = SIZE_HW) -> ShownImage:
    """Return a labelled image of one grey, so that each colour of a panel is that of one region."""
    masks = sorted(masks, key=lambda mask: -mask.sum())
    return ShownImage(
        name="plain.png",
        uri="plain.png",
        status="ok",
        error="",
        preset="",
        weights="",
        size_hw=size_hw,
        point_coords=np.zeros((0, 2), np.float32),
        cluster_map=cluster_map,
        masks=tuple(rle.encode(np.stack(masks))) if masks else (),
        picture=np.full((*size_hw, 3), 128, np.uint8),
        note="",
    )


class TestSpread:
    def test_images_lie_in_the_middle_of_equal_shares(self) -> None:
        assert spread_positions(10, 3) == [1, 5, 8]

    def test_all_images_are_shown_where_there_are_fewer(self) -> None:
        assert spread_positions(4, 16) == [0, 1, 2, 3]

    def test_positions_are_distinct_and_in_range(self) -> None:
        for total, num in itertools.product(range(1, 30), range(1, 30)):
            positions = spread_positions(total, num)
            assert len(set(positions)) == min(total, num)
            assert positions == sorted(positions) and positions[-1] < total

    def test_images_of_a_run_are_chosen_over_all_units(self, tmp_path: Path) -> None:
        writer = WorkListWriter()
        images = [ImageRef(image_uid(f"file:///gone/{n}.png"), f"file:///gone/{n}.png") for n in range(10)]
        for number, cut in enumerate((slice(0, 3), slice(3, 4), slice(4, 10))):
            unit = images[cut]
            writer.add(Unit(unit_id(number, [image.image_uid for image in unit]), "files", tuple(unit), 0))
        counts = {"num_images": 10, "num_shards": 0, "num_units": 3, "kept_types": [], "inputs": []}
        run = put_run(tmp_path / "run", writer.finish(counts), {image.image_uid: ok_row(image, 1) for image in images})
        assert [image.name for image in open_run(run).spread(3)] == ["1.png", "5.png", "8.png"]
        assert [image.name for image in open_run(run).spread(99)] == [f"{n}.png" for n in range(10)]

    def test_only_row_groups_that_hold_chosen_rows_are_read(self, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
        part = next(Path(run).glob("*.parquet"))
        table = pq.read_table(part)
        assert table.num_rows == 6
        pq.write_table(table, part, row_group_size=2)
        read: list[int] = []
        original = pq.ParquetFile.read_row_group

        def spy(file: pq.ParquetFile, group: int, **options: Any) -> pa.Table:
            if "masks" in (options.get("columns") or ()):
                assert "candidates" not in options["columns"]
                read.append(group)
            return original(file, group, **options)

        monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
        expected = table.column("image_uri").to_pylist()
        assert [image.uri for image in open_run(run).spread(1)] == [expected[3]]
        assert read == [1]

    def test_chosen_rows_of_a_parquet_shard_keep_their_own_pictures(self, tmp_path: Path) -> None:
        pictures = []
        for value in range(5):
            buffer = io.BytesIO()
            Image.new("RGB", (SIZE_HW[1], SIZE_HW[0]), (50 * value,) * 3).save(buffer, "PNG")
            pictures.append(buffer.getvalue())
        pq.write_table(pa.table({"image": pictures}), tmp_path / "shard.parquet")
        work_list = build_work_list([str(tmp_path / "shard.parquet")])
        images = [image for unit in work_list.units() for image in unit.images]
        rows = {image.image_uid: ok_row(image, 1) for image in images}
        rows[images[2].image_uid] = failed_row(images[2], "corrupt", "bad")
        run = put_run(tmp_path / "run", work_list, rows)
        shown = list(open_run(run).spread(5))
        greys = [None if image.picture is None else int(image.picture[0, 0, 0]) for image in shown]
        assert greys == [0, 50, None, 150, 200]


class TestColoring:
    def test_regions_touch_along_rows_columns_and_diagonals(self) -> None:
        label_map = np.array([[0, 0, 1], [2, -1, 3], [4, -1, 5]])
        assert touching(label_map, 1) == {(0, 1), (0, 2), (0, 3), (1, 3), (2, 4), (3, 5)}
        assert (4, 5) in touching(label_map, 2)

    def test_one_region_touches_nothing(self) -> None:
        assert touching(np.zeros((4, 4), int), 2) == set()
        assert touching(np.full((4, 4), -1), 2) == set()

    @pytest.mark.parametrize("reach", [1, 2])
    def test_touching_agrees_with_a_look_at_every_pixel(self, reach: int) -> None:
        label_map = np.random.default_rng(reach).integers(-1, 40, (9, 13))
        expected = set()
        for (row, column), label in np.ndenumerate(label_map):
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                for distance in range(1, reach + 1):
                    y, x = row + distance * down, column + distance * right
                    if 0 <= y < 9 and 0 <= x < 13 and min(label, label_map[y, x]) >= 0 and label != label_map[y, x]:
                        expected.add((min(label, label_map[y, x]), max(label, label_map[y, x])))
        assert touching(label_map, reach) == expected

    def test_neighbours_never_share_a_color(self) -> None:
        rng = np.random.default_rng(0)
        for num_regions in (2, 9, 40, 120):
            for density in (0.05, 0.3, 1.0):
                pairs = [pair for pair in itertools.combinations(range(num_regions), 2) if rng.random() < density]
                chosen = assign_colors(num_regions, pairs)
                assert all(chosen[first] != chosen[second] for first, second in pairs)

    def test_regions_apart_still_show_all_colors_of_the_palette(self) -> None:
        assert sorted(assign_colors(len(PALETTE), [])) == list(range(len(PALETTE)))

    def test_colors_stay_distinct_beyond_the_palette(self) -> None:
        assert len({color(index) for index in range(120)}) == 120

    def test_the_palette_is_enough_for_a_chessboard_of_regions(self) -> None:
        label_map = np.repeat(np.repeat(np.arange(64).reshape(8, 8), 4, axis=0), 4, axis=1)
        assert max(assign_colors(64, touching(label_map, 2))) < len(PALETTE)


class TestPanels:
    def test_longer_side_fills_the_panel(self) -> None:
        assert panel_size((480, 640), 320) == (320, 240)
        assert panel_size((640, 480), 320) == (240, 320)
        assert panel_size((2, 2000), 320) == (320, 16)

    def test_masks_inside_others_stay_visible(self) -> None:
        masks = rle.encode(np.stack([block_mask(0, 0, 40, 40), block_mask(10, 10, 8, 8)]))
        label_map = paint_masks(masks, (64, 48))
        expected = np.where(block_mask(10, 10, 8, 8), 1, np.where(block_mask(0, 0, 40, 40), 0, -1))
        assert (label_map == expected).all()

    def test_a_mask_smaller_than_a_pixel_does_not_vanish(self) -> None:
        mask = block_mask(500, 700, 2, 2, (800, 1000))
        label_map = paint_masks(rle.encode(mask[None]), (100, 80))
        assert np.argwhere(label_map == 0).tolist() == [[50, 70]]

    def test_neighbouring_masks_have_other_pixels(self) -> None:
        # A 6 x 8 board of 8 px squares, and a smaller square inside each.
        squares = [block_mask(8 * row, 8 * column, 8, 8) for row in range(6) for column in range(8)]
        inner = [block_mask(8 * row + 2, 8 * column + 2, 4, 4) for row in range(6) for column in range(8)]
        panel = np.asarray(draw_panels(plain_image(squares + inner), 640).masks)
        assert panel.shape == (480, 640, 3)
        # At ten times the size: centres of inner squares, and the left part of outer ones.
        centers, rims = panel[40::80, 40::80].astype(int), panel[40::80, 10::80].astype(int)
        assert (abs(centers - rims).max(axis=-1) > 20).all()
        assert (abs(rims[1:] - rims[:-1]).max(axis=-1) > 20).all()
        assert (abs(rims[:, 1:] - rims[:, :-1]).max(axis=-1) > 20).all()
        assert (abs(rims[1:, 1:] - rims[:-1, :-1]).max(axis=-1) > 20).all()

    def test_noise_and_ground_stay_grey_and_clusters_do_not(self) -> None:
        cluster_map = np.array([[0, -1, 1, 1], [0, -1, 1, 1], [-1, -1, -1, 2]], np.int16)
        panels = draw_panels(plain_image([block_mask(0, 0, 24, 32)], cluster_map), 256)
        assert panels.clusters is not None
        for panel, is_grey in (
            (np.asarray(panels.clusters)[32::64, 32::64], cluster_map < 0),
            (np.asarray(panels.masks)[48::96, 64::128], np.array([[False, True], [True, True]])),
        ):
            spread = panel.max(axis=-1).astype(int) - panel.min(axis=-1)
            assert ((spread == 0) == is_grey).all()

    def test_a_prompt_wears_the_color_of_its_cluster(self) -> None:
        cluster_map = np.array([[0, 1], [2, 3]], np.int16)
        image = plain_image([], cluster_map, (100, 100))
        image = ShownImage(**{**image.__dict__, "point_coords": np.array([[25, 25], [75, 25], [25, 75], [75, 75]])})
        panels = draw_panels(image, 400)
        assert panels.clusters is not None
        dots = np.asarray(panels.prompts)[100::200, 100::200].astype(float)
        clusters = np.asarray(panels.clusters)[100::200, 100::200].astype(float)
        # A cluster's colour is a dot's, mixed with the grey of the ground; ordering of channels survives.
        assert (np.argsort(dots, axis=-1, kind="stable") == np.argsort(clusters, axis=-1, kind="stable")).all()
        assert len({tuple(dot) for dot in dots.reshape(-1, 3)}) == 4

    def test_no_cluster_map_gives_no_cluster_panel(self) -> None:
        assert draw_panels(plain_image([]), 100).clusters is None


class TestLettering:
    def test_text_that_fits_stays(self) -> None:
        assert fit_text("short", plain_font(14), 500) == "short"

    def test_the_middle_is_cut_out(self) -> None:
        font = plain_font(14)
        text = fit_text("a" * 200 + ".png", font, 120)
        assert text.startswith("aaa") and "..." in text and text.endswith(".png")
        assert font.getlength(text) <= 120

    def test_lines_break_at_spaces_and_never_run_over(self) -> None:
        font = plain_font(14)
        lines = wrap_text("one two three " + "x" * 300, font, 100, 3)
        assert len(lines) == 3 and lines[0] == "one two three"
        assert all(font.getlength(line) <= 100 for line in lines)

    def test_control_characters_are_made_visible(self) -> None:
        assert spell("a\nb\x00c", 14)[0] == "a b?c"


class TestErrors:
    def test_a_folder_that_is_no_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="is not a run: it has no _meta/work_list.parquet"):
            show_run(str(tmp_path), num_images=1, output=str(tmp_path / "sheet.png"))

    def test_a_run_without_a_finished_unit_is_refused(self, run: str, tmp_path: Path) -> None:
        for part in Path(run).glob("*.parquet"):
            part.unlink()
        with pytest.raises(InputError, match="none of its 1 units is finished"):
            show_run(run, num_images=1, output=str(tmp_path / "sheet.png"))

    def test_another_ending_is_refused(self, run: str) -> None:
        with pytest.raises(ConfigError, match=r"must end in .png or .html; got 'sheet.pdf'"):
            show_run(run, num_images=1, output="sheet.pdf")

    def test_too_many_images_for_a_png_are_refused(self, run: str) -> None:
        with pytest.raises(ConfigError, match="at most 400 images; got 401"):
            show_run(run, num_images=MAX_SHEET_IMAGES + 1, output="sheet.png")

    def test_a_part_of_another_run_is_refused(self, run: str, tmp_path: Path) -> None:
        part = next(Path(run).glob("*.parquet"))
        pq.write_table(pq.read_table(part).slice(0, 2), part)
        with pytest.raises(InputError, match="has 2 rows for the unit's 6 images"):
            show_run(run, num_images=1, output=str(tmp_path / "sheet.png"))


class TestSheet:
    def test_the_same_call_draws_the_same_bytes(self, run: str, tmp_path: Path) -> None:
        paths = [show_run(run, num_images=6, output=str(tmp_path / name)) for name in ("one.png", "two.PNG")]
        first, second = (Path(path).read_bytes() for path in paths)
        assert first == second
        with Image.open(io.BytesIO(first)) as sheet:
            assert sheet.width == 1928 and sheet.format == "PNG"

    def test_masks_wear_their_colors_where_they_lie_on_the_sheet(self, run: str, tmp_path: Path) -> None:
        assert [image.name for image in open_run(run).spread(1)] == ["c.png"]
        sheet = np.asarray(Image.open(show_run(run, num_images=1, output=str(tmp_path / "sheet.png"))))
        panel = sheet[132 : 132 + 225, 644 : 644 + 300].astype(int)  # the third of three panels of 300 x 225
        in_color = np.ptp(panel, axis=-1) > 20
        # Two masks of 20 x 6 of the picture's 48 x 64 pixels, side by side, with light lines around them.
        assert in_color[4:89, 4:24].all() and in_color[4:89, 33:52].all()
        assert (abs(panel[47, 14] - panel[47, 42]) > 20).any()
        assert not np.ptp(panel[98:], axis=-1).any() and not np.ptp(panel[:, 61:], axis=-1).any()

    def test_a_failed_tile_tells_its_error(self) -> None:
        failed = {**plain_image([]).__dict__, "status": "corrupt", "size_hw": None, "picture": None}
        images = [ShownImage(**{**failed, "error": error}) for error in ("bad header", "bad checksum")]
        first, second = (np.asarray(Image.open(io.BytesIO(render_sheet([image], "run", 1, 1)))) for image in images)
        changed = np.flatnonzero((first != second).any(axis=(1, 2)))
        assert len(changed) and changed[0] >= 132  # below the caption

    def test_failed_images_get_a_tile_and_good_ones_do_not(self, run: str, tmp_path: Path) -> None:
        sheet = np.asarray(Image.open(show_run(run, num_images=6, output=str(tmp_path / "sheet.png"))))
        bar = (sheet == ALARM).all(axis=-1)
        rows = np.flatnonzero(bar.sum(axis=1) >= 10)  # two failed tiles side by side, each with a bar of 6 pixels
        assert len(rows) >= 100 and rows[0] > 2 * sheet.shape[0] // 3
        failed = [image.name for image in open_run(run).spread(6) if image.status != "ok"]
        assert failed == ["x.png", "y.png"]

    def test_one_image_makes_a_narrow_sheet(self, run: str, tmp_path: Path) -> None:
        with Image.open(show_run(run, num_images=1, output=str(tmp_path / "new" / "sheet.png"))) as sheet:
            assert sheet.width == 976

    def test_a_picture_that_is_gone_leaves_its_masks_on_grey(self, run: str, tmp_path: Path) -> None:
        for picture in (tmp_path / "pictures").iterdir():
            picture.unlink()
        images = list(open_run(run).spread(6))
        assert [image.picture for image in images] == [None] * 6
        gone = next(image for image in images if image.name == "c.png")
        assert gone.note == "no picture any more (missing): there is no such file, object or shard"
        masks = np.asarray(draw_panels(gone, 64).masks).astype(int)
        assert np.ptp(masks[6, 3]) > 20 and np.ptp(masks[40, 50]) == 0
        assert Path(show_run(run, num_images=6, output=str(tmp_path / "sheet.png"))).exists()

    def test_a_picture_of_another_size_is_not_drawn_under_the_masks(self, run: str, tmp_path: Path) -> None:
        Image.new("RGB", (10, 10)).save(tmp_path / "pictures" / "a.png")
        image = next(image for image in open_run(run).spread(6) if image.name == "a.png")
        assert image.picture is None and "10 x 10" in image.note


class Page(HTMLParser):
    """What a browser makes of a page: elements, attributes and the text of each card."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.cards: list[dict[str, str | None]] = []
        self.card_texts: list[str] = []
        self.count = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "li":
            self.cards.append(dict(attrs))
            self.card_texts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["output"]:
            self.count += data
        if self.card_texts and self.tags[-1] not in ("script", "style"):
            self.card_texts[-1] += data


@pytest.fixture
def gallery(run: str, tmp_path: Path) -> Path:
    return Path(show_run(run, num_images=6, output=str(tmp_path / "gallery.html")))


class TestGallery:
    def test_the_page_refers_to_nothing_outside_itself(self, gallery: Path) -> None:
        text = gallery.read_text("utf-8")
        page = Page(text)
        links = [v for _, name, v in page.attributes if name in ("src", "href", "srcset", "action", "data", "poster")]
        assert links and all(link.startswith("data:image/webp;base64,") for link in links)
        assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
        assert "url(" not in text and "@import" not in text and "http" not in text.replace('http-equiv="', "")

    def test_the_page_forbids_itself_to_load_anything(self, gallery: Path) -> None:
        metas = [value for tag, name, value in Page(gallery.read_text("utf-8")).attributes if (tag, name) == META]
        assert any(value.startswith("default-src 'none'; img-src data:;") for value in metas)

    def test_names_and_errors_are_text_and_never_markup(self, gallery: Path) -> None:
        page = Page(gallery.read_text("utf-8"))
        assert page.tags.count("script") == 1 and not {"b", "i"} & set(page.tags)
        assert any(EVIL_NAME in text for text in page.card_texts)
        assert any(EVIL_ERROR in text for text in page.card_texts)
        assert not any(name.startswith("on") for _, name, _ in page.attributes)
        assert ("img", "alt", f"{EVIL_NAME}: 3 masks") in page.attributes

    def test_failed_images_show_status_and_error(self, gallery: Path) -> None:
        page = Page(gallery.read_text("utf-8"))
        statuses = {card["data-status"]: text for card, text in zip(page.cards, page.card_texts, strict=True)}
        assert "ends early" in statuses["truncated"] and "the picture or the shard ends early" in statuses["truncated"]
        assert "labelling raised an error" in statuses["failed"] and EVIL_ERROR in statuses["failed"]

    def test_captions_tell_prompts_masks_and_size(self, gallery: Path) -> None:
        text = next(text for text in Page(gallery.read_text("utf-8")).card_texts if "b.png" in text)
        assert "ok · 2 prompts · 1 mask · 64 x 48" in text

    def test_every_control_has_a_label(self, gallery: Path) -> None:
        text = gallery.read_text("utf-8")
        for name in ("status", "min", "max", "sort"):
            before = text[: text.index(f'name="{name}"')]
            assert before.rindex("<label>") > before.rfind("</label>")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Return the start of a command line that runs a page in Chromium."""
    binary = shutil.which("chromium")
    if binary is None:
        if os.environ.get("EFFSAM2_REQUIRE_CHROMIUM"):
            pytest.fail("EFFSAM2_REQUIRE_CHROMIUM is set, but there is no chromium on PATH")
        pytest.skip("needs chromium on PATH")
    profile = tmp_path_factory.mktemp("chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--virtual-time-budget=2000"]
    yield [binary, *flags, f"--user-data-dir={profile}"]


def dump(chromium: list[str], gallery: Path, address_hash: str) -> Page:
    """Return the page as it stands after its script ran."""
    uri = gallery.as_uri() + address_hash
    done = subprocess.run([*chromium, "--dump-dom", uri], capture_output=True, text=True, timeout=120, check=True)
    return Page(done.stdout)


def visible(page: Page) -> list[tuple[str | None, str | None]]:
    return [(card["data-status"], card["data-masks"]) for card in page.cards if "hidden" not in card]


class TestInChromium:
    def test_filters_and_sorting_follow_the_address(self, gallery: Path, chromium: list[str]) -> None:
        page = dump(chromium, gallery, "#status=ok&min=1&max=2&sort=most")
        assert visible(page) == [("ok", "2"), ("ok", "1")]
        assert page.count.strip() == "2 of 6 shown"

    def test_fewest_masks_come_first_where_asked(self, gallery: Path, chromium: list[str]) -> None:
        shown = visible(dump(chromium, gallery, "#sort=fewest&max=2"))
        assert [masks for _, masks in shown] == ["0", "0", "0", "1", "2"]

    def test_status_alone_keeps_the_order_of_the_run(self, gallery: Path, chromium: list[str]) -> None:
        assert visible(dump(chromium, gallery, "#status=truncated")) == [("truncated", "0")]

    def test_without_a_filter_everything_shows_and_no_file_name_runs(self, gallery: Path, chromium: list[str]) -> None:
        page = dump(chromium, gallery, "#status=nonsense&sort=nonsense")
        assert len(visible(page)) == 6 and page.tags.count("script") == 1
