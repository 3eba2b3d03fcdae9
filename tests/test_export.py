"""Exports, read back with the tools that they are for."""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from example_run import (
    SIZE_HW,
    count_reads,
    cut_again,
    draw_pictures,
    failed_row,
    image_row,
    job_fingerprint,
    mask_value,
    put_run,
    scene_masks,
    scene_run,
)
from object_store import ObjectStore, s3, s3_endpoint  # noqa: F401  fixtures
from PIL import ExifTags, Image, JpegImagePlugin, features
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from effsam2_ray import rle
from effsam2_ray.cli import main
from effsam2_ray.commands import export as export_command
from effsam2_ray.datasets import open_dataset
from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.errors import ConfigError
from effsam2_ray.images import decode_image
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.inputs.work_list import ImageRef, image_uid
from effsam2_ray.output import OutputFolder
from effsam2_ray.runs.export import export_run
from effsam2_ray.runs.export.items import ExportOptions
from effsam2_ray.runs.export.label_maps import fill_gaps
from effsam2_ray.runs.export.names import ImageNamer, input_root, run_inputs
from effsam2_ray.runs.export.polygons import join_rings, pixel_rings, simplify, trace_rings
from effsam2_ray.runs.export.turning import upright_picture
from effsam2_ray.runs.export.yolo import mask_lines, yolo_name

NAMES = ["a/0.png", "a/1.png", "b/2.jpg", "b/3.png", "b/4.png", "c.d/5.png", "6.png"]
"""The picture of each name is the drawn scene of its number."""
FAILED = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return scene_run(tmp_path_factory.mktemp("scenes"), NAMES, unit_size=3, failed=[FAILED])


def export(run: str, output: Path | str, format: str, images_per_file: int = 10_000, **settings: Any) -> dict[str, Any]:
    storage_options = settings.pop("storage_options", None)
    return export_run(
        run,
        str(output),
        ExportOptions(format, **settings),
        images_per_file=images_per_file,
        num_processes=1,
        storage_options=storage_options,
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def seed_of(name: str) -> int:
    return int(Path(name).stem)


def filled(rings: list[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    """Fill rings by the even-odd rule: a pixel is in where a ray from its middle meets them an odd number of times."""
    inside = np.zeros(size_hw, bool)
    rows, columns = np.arange(size_hw[0]) + 0.5, np.arange(size_hw[1]) + 0.5
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            crossed = (y0 > rows) != (y1 > rows)
            if crossed.any():
                at = x0 + (rows[crossed] - y0) / (y1 - y0) * (x1 - x0)
                inside[crossed] ^= at[:, None] < columns[None]
    return inside


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


class TestCoco:
    def test_pycocotools_gives_every_mask_back(self, run: str, tmp_path: Path) -> None:
        summary = export(run, tmp_path / "coco", "coco")
        assert files(tmp_path / "coco") == ["_meta/export.json", "instances.json"]
        coco = COCO(str(tmp_path / "coco" / "instances.json"))
        assert sorted(image["file_name"] for image in coco.imgs.values()) == sorted(set(NAMES) - {NAMES[FAILED]})
        assert sorted(coco.imgs) == [1, 2, 3, 4, 6, 7]  # places in the work list: 6.png, a/0.png, ..., b/3.png is fifth
        assert coco.loadCats(coco.getCatIds())[0]["name"] == "object"
        total = 0
        for image_id, image in coco.imgs.items():
            expected = scene_masks(seed_of(image["file_name"]))
            annotations = coco.loadAnns(coco.getAnnIds(image_id))
            total += len(annotations)
            assert (image["height"], image["width"]) == SIZE_HW
            assert len(annotations) == len(expected)
            for annotation, mask in zip(annotations, expected, strict=True):
                np.testing.assert_array_equal(coco.annToMask(annotation), mask)
                assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
                assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
        assert (summary["images"], summary["masks"], summary["skipped"]) == (6, total, {"corrupt": 1})
        (skipped,) = summary["skipped_images"]
        assert skipped["reason"] == "corrupt" and skipped["image_uri"].endswith(NAMES[FAILED])
        assert json.loads((tmp_path / "coco" / "_meta" / "export.json").read_text()) == summary

    def test_ids_do_not_hang_on_the_cutting_or_on_what_failed(self, run: str, tmp_path: Path) -> None:
        export(run, tmp_path / "one", "coco")
        export(run, tmp_path / "many", "coco", images_per_file=3)
        whole = json.loads((tmp_path / "one" / "instances.json").read_text())
        shards = [f"instances-{place:05d}-of-00003.json" for place in range(3)]
        assert files(tmp_path / "many") == ["_meta/export.json", *shards]
        parts = [json.loads((tmp_path / "many" / name).read_text()) for name in shards]
        for key in ("images", "annotations"):
            assert [value for part in parts for value in part[key]] == whole[key]
        assert len({annotation["id"] for annotation in whole["annotations"]}) == len(whole["annotations"])
        fixed = scene_run(tmp_path / "fixed", NAMES, unit_size=3)
        export(fixed, tmp_path / "again", "coco")
        again = json.loads((tmp_path / "again" / "instances.json").read_text())
        ids = {image["file_name"]: image["id"] for image in again["images"]}
        assert all(ids[image["file_name"]] == image["id"] for image in whole["images"])
        assert {annotation["id"] for annotation in whole["annotations"]} < {item["id"] for item in again["annotations"]}

    def test_the_same_call_writes_the_same_bytes_in_processes_too(self, run: str, tmp_path: Path) -> None:
        export(run, tmp_path / "one", "coco", images_per_file=3)
        export_run(run, str(tmp_path / "two"), ExportOptions("coco"), images_per_file=3, num_processes=2)
        for name in files(tmp_path / "one"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    def test_supervision_loads_masks_and_pictures(self, run: str, tmp_path: Path) -> None:
        supervision = pytest.importorskip("supervision")
        export(run, tmp_path / "coco", "coco", with_pictures=True)
        data = supervision.DetectionDataset.from_coco(
            str(tmp_path / "coco" / "images"), str(tmp_path / "coco" / "instances.json"), force_masks=True
        )
        assert data.classes == ["object"] and len(data) == 6
        for path, picture, detections in data:
            expected = scene_masks(seed_of(path))
            assert picture.shape == (*SIZE_HW, 3)
            assert (detections.mask is None and not expected) or np.array_equal(detections.mask, np.stack(expected))

    def test_pictures_are_copied_byte_by_byte(self, run: str, tmp_path: Path) -> None:
        export(run, tmp_path / "coco", "coco", with_pictures=True)
        for name in set(NAMES) - {NAMES[FAILED]}:
            source = Path(run).parent / "pictures" / name
            assert (tmp_path / "coco" / "images" / name).read_bytes() == source.read_bytes()


class TestSa1b:
    def test_a_file_has_the_keys_of_sa1b_and_its_masks(self, run: str, tmp_path: Path, shared_data: Path) -> None:
        export(run, tmp_path / "sa1b", "sa1b")
        genuine = json.loads(next((shared_data / "sa1b_format_only").glob("*.json")).read_text())
        found = json.loads((tmp_path / "sa1b" / "a" / "1.json").read_text())
        assert found["image"].keys() == genuine["image"].keys()
        assert len(found["annotations"]) == len(scene_masks(1))
        for annotation, mask in zip(found["annotations"], scene_masks(1), strict=True):
            assert annotation.keys() == genuine["annotations"][0].keys()
            assert annotation["segmentation"].keys() == genuine["annotations"][0]["segmentation"].keys()
            np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]), mask)
            assert annotation["crop_box"] == [0.0, 0.0, 96.0, 72.0]
        expected = [name.rsplit(".", 1)[0] + ".json" for name in NAMES if name != NAMES[FAILED]]
        assert files(tmp_path / "sa1b") == sorted([*expected, "_meta/export.json"])


class TestPolygons:
    def test_outlines_worked_by_hand(self) -> None:
        one = np.zeros((3, 3), bool)
        one[1, 1] = True
        (ring,) = trace_rings(one)
        assert ring.tolist() == [[1, 1], [2, 1], [2, 2], [1, 2]]
        outer, hole = trace_rings(~one)
        assert outer.tolist() == [[0, 0], [3, 0], [3, 3], [0, 3]]
        assert hole.tolist() == [[1, 2], [2, 2], [2, 1], [1, 1]]
        assert trace_rings(np.zeros((3, 3), bool)) == []

    def test_pixels_that_touch_at_a_corner_are_two_parts(self) -> None:
        falling = np.array([[1, 0], [0, 1]], bool)
        assert [ring.tolist() for ring in trace_rings(falling)] == [
            [[0, 0], [1, 0], [1, 1], [0, 1]],
            [[1, 1], [2, 1], [2, 2], [1, 2]],
        ]
        rising = [ring.tolist() for ring in trace_rings(falling[:, ::-1])]
        assert rising == [[[1, 0], [2, 0], [2, 1], [1, 1]], [[0, 1], [1, 1], [1, 2], [0, 2]]]

    def test_filled_outlines_are_the_mask_again_joined_or_not(self) -> None:
        rng = np.random.default_rng(11)
        for _ in range(80):
            size_hw = tuple(rng.integers(1, 14, 2))
            mask = rng.random(size_hw) < rng.random()
            rings = trace_rings(mask)
            np.testing.assert_array_equal(filled(rings, size_hw), mask)
            if rings:
                np.testing.assert_array_equal(filled([join_rings(rings)], size_hw), mask)
                np.testing.assert_array_equal(filled(simplify(rings, 0.01), size_hw), mask)

    def test_no_dropped_point_is_farther_from_the_outline_than_the_tolerance(self) -> None:
        for seed in range(6):
            rings = [ring for mask in scene_masks(seed) for ring in trace_rings(mask)]
            for tolerance in (0.5, 1.0, 3.0):
                simple = simplify(rings, tolerance)
                assert sum(map(len, simple)) < sum(map(len, rings))
                for ring, short in zip(rings, simple, strict=True):
                    assert len(short) >= 3
                    assert max(distance_to(point, short) for point in ring) <= tolerance + 1e-9

    def test_outlines_through_pixels_stay_on_the_mask(self) -> None:
        mask = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]], bool)
        outer, hole = pixel_rings(trace_rings(mask))
        assert outer.tolist() == [[0, 0], [3, 0], [3, 2], [0, 2]]
        assert hole.tolist() == [[0, 2], [3, 2], [3, 0], [0, 0]]
        rng = np.random.default_rng(12)
        for _ in range(50):
            mask = rng.random((9, 12)) < 0.6
            for ring in pixel_rings(trace_rings(mask)):
                assert mask[ring[:, 1], ring[:, 0]].all()
                assert (np.diff(ring, axis=0) == 0).any(axis=1).all()

    def test_a_line_is_a_polygon_of_the_whole_mask(self) -> None:
        mask = np.zeros((40, 60), bool)
        mask[5:30, 5:40] = True
        mask[10:20, 10:20] = False  # a hole
        mask[32:38, 44:58] = True  # a part of its own
        (line,) = mask_lines(rle.encode(np.stack([mask, np.zeros_like(mask)])), 0.0)  # none for the empty mask
        assert line.split()[0] == "0" and line.endswith("\n")
        ring = pixels_of(line, mask.shape)
        corners = [[5, 5], [39, 5], [39, 29], [5, 29], [9, 9], [20, 9], [20, 20], [9, 20]]
        corners += [[44, 32], [57, 32], [57, 37], [44, 37]]
        assert {tuple(point) for point in ring.tolist()} == {tuple(corner) for corner in corners}
        np.testing.assert_array_equal(drawn(ring, mask.shape) | bridges(ring, mask), mask | bridges(ring, mask))

    def test_cutting_off_and_rounding_come_to_the_same_pixel(self) -> None:
        for width in (96, 641, 4000):
            mask = np.zeros((7, width), bool)
            mask[1:6, 3 : width - 2] = True
            (line,) = mask_lines(rle.encode(mask[None]), 0.0)
            values = np.array(line.split()[1:], float).reshape(-1, 2) * (width, 7)
            np.testing.assert_array_equal(values.astype(int), np.round(values).astype(int))
            np.testing.assert_array_equal(values.astype(int), pixels_of(line, mask.shape))


def pixels_of(line: str, size_hw: tuple[int, int]) -> np.ndarray:
    return np.floor(np.array(line.split()[1:], float).reshape(-1, 2) * (size_hw[1], size_hw[0])).astype(int)


def drawn(ring: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Fill a ring of pixels and draw its line, as OpenCV does."""
    inside = filled([ring + 0.5], size_hw)
    for start, end in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        for share in np.linspace(0, 1, int(abs(end - start).max()) + 1):
            x, y = np.rint(start + share * (end - start)).astype(int)
            inside[y, x] = True
    return inside


def bridges(ring: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the pixels off the mask of lines that are there and back, which tie parts together."""
    lines = np.zeros_like(mask)
    steps = [tuple(map(tuple, step)) for step in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True)]
    for start, end in steps:
        if (end, start) in steps:
            for share in np.linspace(0, 1, 200):
                x, y = np.rint(np.array(start) + share * (np.array(end) - np.array(start))).astype(int)
                lines[y, x] = True
    return lines & ~mask


def distance_to(point: np.ndarray, ring: np.ndarray) -> float:
    best = np.inf
    for start, end in zip(ring.astype(float), np.roll(ring, -1, axis=0).astype(float), strict=True):
        along = end - start
        share = np.clip(((point - start) @ along) / max(along @ along, 1e-12), 0, 1)
        best = min(best, float(np.linalg.norm(point - start - share * along)))
    return best


class TestYolo:
    def test_folder_is_laid_out_as_yolo_wants_it(self, run: str, tmp_path: Path) -> None:
        export(run, tmp_path / "yolo", "yolo", with_pictures=True)
        data = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
        # Without `path`, Ultralytics takes the folder of the file itself.
        assert data == {"names": {0: "object"}, "train": "images", "val": "images"}
        kept = [name for name in NAMES if name != NAMES[FAILED]]
        labels = [f"labels/{name.rsplit('.', 1)[0]}.txt" for name in kept]
        assert files(tmp_path / "yolo") == sorted(
            [*labels, *(f"images/{n}" for n in kept), "data.yaml", "_meta/export.json"]
        )
        for name in kept:
            lines = (tmp_path / "yolo" / "labels" / name).with_suffix(".txt").read_text().splitlines()
            assert len(lines) == len(scene_masks(seed_of(name)))

    def test_ultralytics_finds_the_labels_of_every_picture(self, tmp_path: Path) -> None:
        names = ["train/images/0.png", "train/images_/0.png", "images/images/images.png", "val/labels/images__/3.png"]
        run = scene_run(tmp_path, names)
        folder = tmp_path / "images" / "yolo"
        export(run, folder, "yolo", with_pictures=True)
        found = [str(path) for path in (folder / "images").rglob("*.png")]
        labels = {"/labels/".join(path.rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt": path for path in found}
        assert sorted(labels) == sorted(str(folder / name) for name in files(folder) if name.endswith(".txt"))
        seeds = {(tmp_path / "pictures" / name).read_bytes(): seed for seed, name in enumerate(names)}
        assert len(labels) == len(seeds) == 4
        for label, picture in labels.items():
            expected = scene_masks(seeds[Path(picture).read_bytes()])
            assert len(Path(label).read_text().splitlines()) == len(expected)

    def test_folders_called_images_get_another_name(self) -> None:
        names = ["a/images/1", "images/images_/images", "images__/Images/my images", "images"]
        assert [yolo_name(name) for name in names] == [
            "a/images_/1",
            "images_/images__/images",
            "images___/Images/my images",
            "images",
        ]

    def test_exact_polygons_give_the_masks_back_but_for_the_ties(self, run: str, tmp_path: Path) -> None:
        export(run, tmp_path / "yolo", "yolo", polygon_tolerance=0.0)
        for name in NAMES:
            if name == NAMES[FAILED]:
                continue
            lines = (tmp_path / "yolo" / "labels" / name).with_suffix(".txt").read_text().splitlines()
            for line, mask in zip(lines, scene_masks(seed_of(name)), strict=True):
                ring = pixels_of(line, SIZE_HW)
                ties = bridges(ring, mask)
                np.testing.assert_array_equal(drawn(ring, SIZE_HW) & ~ties, mask)

    def test_supervision_loads_the_masks(self, tmp_path: Path) -> None:
        supervision = pytest.importorskip("supervision")
        run = scene_run(tmp_path, ["0.png", "1.png", "2.png"])
        export(run, tmp_path / "yolo", "yolo", with_pictures=True, polygon_tolerance=0.0)
        folder = tmp_path / "yolo"
        data = supervision.DetectionDataset.from_yolo(
            str(folder / "images"), str(folder / "labels"), str(folder / "data.yaml"), force_masks=True
        )
        assert len(data) == 3 and data.classes == ["object"]
        scores = []
        for path, _, detections in data:
            expected = scene_masks(seed_of(path))
            assert len(detections) == len(expected)
            scores += [iou(found, mask) for found, mask in zip(detections.mask, expected, strict=True)]
        # Not 1 for masks of several parts, whose ties are drawn, and for holes.
        assert np.mean(scores) > 0.97 and np.median(scores) == 1


class TestLabelMaps:
    def test_smaller_masks_lie_on_top_and_numbers_are_places_in_the_row(self, tmp_path: Path) -> None:
        small, large = np.zeros(SIZE_HW, bool), np.zeros(SIZE_HW, bool)
        small[5:9, 5:9] = True
        large[2:40, 2:50] = True
        work_list = build_work_list([draw_pictures(tmp_path / "frames", ["00000.png"])])
        run = put_run(tmp_path / "run", work_list, lambda number, image: image_row(image, [small, large]))
        export(run, tmp_path / "maps", "label-png")
        image = Image.open(tmp_path / "maps" / "00000.png")
        assert image.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(image), np.where(small, 1, np.where(large, 2, 0)))

    def test_numbers_above_255_survive(self, tmp_path: Path) -> None:
        masks = []
        for number in range(300):
            mask = np.zeros(SIZE_HW, bool)
            mask[number // 30 * 7, number % 30 * 3] = True
            masks.append(mask)
        work_list = build_work_list([draw_pictures(tmp_path / "frames", ["0.png"])])
        run = put_run(tmp_path / "run", work_list, lambda number, image: image_row(image, masks))
        export(run, tmp_path / "maps", "label-png")
        found = np.asarray(Image.open(tmp_path / "maps" / "0.png"))
        assert [found[mask].tolist() for mask in masks] == [[number] for number in range(1, 301)]

    def test_full_coverage_gives_every_pixel_the_nearest_number(self) -> None:
        label_map = np.zeros((5, 9), np.int32)
        label_map[2, 1], label_map[2, 7] = 4, 9
        filled_map = fill_gaps(label_map)
        columns = np.arange(9)
        np.testing.assert_array_equal(filled_map[:, columns < 4], 4)
        np.testing.assert_array_equal(filled_map[:, columns > 4], 9)
        np.testing.assert_array_equal(fill_gaps(np.zeros((3, 3), np.int32)), 0)

    def test_full_coverage_leaves_no_gap_in_an_export(self, run: str, tmp_path: Path) -> None:
        export(run, tmp_path / "gaps", "label-png")
        export(run, tmp_path / "full", "label-png", full_coverage=True)
        gaps, full = (np.asarray(Image.open(tmp_path / kind / "a" / "1.png")) for kind in ("gaps", "full"))
        assert (gaps == 0).any() and (full > 0).all() and (full[gaps > 0] == gaps[gaps > 0]).all()

    def test_panoptic_pictures_and_json_agree(self, run: str, tmp_path: Path) -> None:
        export(run, tmp_path / "panoptic", "panoptic")
        export(run, tmp_path / "maps", "label-png")
        found = json.loads((tmp_path / "panoptic" / "panoptic.json").read_text())
        assert found["categories"][0]["isthing"] == 1
        assert [item["image_id"] for item in found["annotations"]] == [image["id"] for image in found["images"]]
        for item in found["annotations"]:
            rgb = np.asarray(Image.open(tmp_path / "panoptic" / "panoptic" / item["file_name"])).astype(int)
            ids = rgb @ [1, 256, 256**2]  # panopticapi's rgb2id
            np.testing.assert_array_equal(ids, np.asarray(Image.open(tmp_path / "maps" / item["file_name"])))
            assert {segment["id"] for segment in item["segments_info"]} == set(np.unique(ids)) - {0}
            for segment in item["segments_info"]:
                visible = ids == segment["id"]
                assert segment["area"] == visible.sum()
                assert segment["bbox"] == list(rle.encode(visible[None])[0].bbox)

    def test_panoptic_colours_hold_numbers_above_255(self, tmp_path: Path) -> None:
        masks = [np.arange(72 * 96).reshape(SIZE_HW) == 7 * number for number in range(300)]
        work_list = build_work_list([draw_pictures(tmp_path / "frames", ["0.png"])])
        run = put_run(tmp_path / "run", work_list, lambda number, image: image_row(image, masks))
        export(run, tmp_path / "panoptic", "panoptic")
        rgb = np.asarray(Image.open(tmp_path / "panoptic" / "panoptic" / "0.png")).astype(int)
        assert [(rgb @ [1, 256, 256**2])[mask].tolist() for mask in masks] == [[n] for n in range(1, 301)]

    def test_a_wholly_hidden_mask_is_no_segment(self, tmp_path: Path) -> None:
        mask = np.ones(SIZE_HW, bool)
        work_list = build_work_list([draw_pictures(tmp_path / "frames", ["0.png"])])
        run = put_run(tmp_path / "run", work_list, lambda number, image: image_row(image, [mask, mask]))
        export(run, tmp_path / "panoptic", "panoptic")
        found = json.loads((tmp_path / "panoptic" / "panoptic.json").read_text())
        assert [segment["id"] for segment in found["annotations"][0]["segments_info"]] == [2]


class TestHuggingFace:
    def test_datasets_decodes_pictures_and_masks(self, run: str, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        export(run, tmp_path / "hf", "hf")
        assert [name for name in files(tmp_path / "hf") if name.startswith("data/")] == [
            f"data/train-{number:05d}-of-00003.parquet" for number in range(3)
        ]
        loaded = datasets.load_dataset(
            "parquet", data_files=str(tmp_path / "hf/data/*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
        )
        assert len(loaded) == 6 and isinstance(loaded.features["image"], datasets.Image)
        for row in loaded:
            expected = scene_masks(seed_of(row["file_name"]))
            assert row["image"].size == (SIZE_HW[1], SIZE_HW[0])
            assert row["image_uid"] == image_uid(f"file://{Path(run).parent}/pictures/{row['file_name']}")
            assert len(row["masks"]) == len(expected)
            for mask, pixels in zip(row["masks"], expected, strict=True):
                np.testing.assert_array_equal(coco_mask.decode(mask["segmentation"]), pixels)
        folder = datasets.load_dataset(str(tmp_path / "hf"), split="train", cache_dir=str(tmp_path / "cache2"))
        assert len(folder) == 6 and folder.features == loaded.features

    def test_pictures_are_the_files_and_kept_columns_go_along(self, tmp_path: Path) -> None:
        buffers = []
        for seed in range(3):
            buffer = io.BytesIO()
            Image.new("RGB", (SIZE_HW[1], SIZE_HW[0]), (seed, 0, 0)).save(buffer, "JPEG")
            buffers.append(buffer.getvalue())
        shard = tmp_path / "shard.parquet"
        pq.write_table(pa.table({"image": buffers, "split": ["a", "b", "c"], "name": ["x", "y", "z"]}), shard)
        work_list = build_work_list([str(shard)], keep_columns=["split"], id_column="name")

        def make_row(number, image):
            row = failed_row(image) if number == 1 else image_row(image, scene_masks(number))
            return {**row, "split": "abc"[number], "image_id": "xyz"[number]}

        run = put_run(tmp_path / "run", work_list, make_row)
        export(run, tmp_path / "hf", "hf")
        rows = pq.read_table(tmp_path / "hf" / "data").to_pylist()
        assert [row["image"]["bytes"] for row in rows] == [buffers[0], buffers[2]]
        assert [row["split"] for row in rows] == ["a", "c"] and [row["image_id"] for row in rows] == ["x", "z"]
        assert [row["file_name"] for row in rows] == ["shard/00000000.jpg", "shard/00000002.jpg"]

    def test_pictures_that_changed_or_are_gone_are_skipped(self, tmp_path: Path) -> None:
        run = scene_run(tmp_path, NAMES[:3])
        (tmp_path / "pictures" / NAMES[0]).unlink()
        (tmp_path / "pictures" / NAMES[1]).write_bytes(b"another picture")
        summary = export(run, tmp_path / "hf", "hf")
        assert summary["skipped"] == {"no_picture": 2} and summary["images"] == 1


class TestNames:
    def namer(self, *inputs: str) -> ImageNamer:
        return ImageNamer(input_root(inputs))

    def lone(self, uri: str) -> ImageRef:
        return ImageRef(image_uid(uri), uri)

    @pytest.mark.parametrize(
        ("inputs", "root"),
        [
            ([], ""),
            (["s3://b/photos/"], "s3://b/photos/"),
            (["s3://b/photos/*/x-{0..9}.jpg"], "s3://b/photos/"),
            (["s3://b/shards/a.tar"], "s3://b/shards/"),
            (["s3://b/one", "s3://b/two/c.jpg"], "s3://b/"),
            (["s3://b/one", "s3://c/two"], ""),
            (["s3://b/one", "file:///b/one"], ""),
            (["file:///data/a", "file:///data/b"], "file:///data/"),
        ],
    )
    def test_root_is_the_folder_of_the_inputs(self, inputs: list[str], root: str) -> None:
        assert input_root(inputs) == root

    def test_names_are_paths_below_the_root(self) -> None:
        namer = self.namer("s3://b/photos")
        assert namer.name(self.lone("s3://b/photos/cats/1.2.jpg")) == ("cats/1.2", ".jpg")
        assert namer.name(self.lone("s3://b/photos/no suffix.v1")) == ("no suffix.v1", "")
        assert namer.name(self.lone("https://host/x/1.png")) == ("host/x/1", ".png")

    def test_names_in_shards_hold_the_shard(self) -> None:
        namer = self.namer("s3://b/shards/*.tar.gz")
        tar, table = "s3://b/shards/0.tar.gz", "s3://b/shards/t.parquet"
        assert namer.name(ImageRef(1, f"{tar}#x/1.jpg", tar, "x/1.jpg", 0)) == ("0/x/1", ".jpg")
        assert namer.name(ImageRef(2, f"{tar}#x/1.jpg", tar, "x/1.jpg", 1)) == ("0/x/1-1", ".jpg")
        assert namer.name(ImageRef(3, f"{table}#row=12", table, None, 12)) == ("t/00000012", "")

    def test_no_two_images_have_one_name(self) -> None:
        namer = self.namer("s3://b/p")
        uris = ["a.jpg", "a.png", "a-png.gif", "a.jpeg", "A.jpg"]
        names = [namer.name(self.lone(f"s3://b/p/{uri}"))[0] for uri in uris]
        assert names[:2] == ["a", "a-png"] and len(set(names)) == len(names)

    @pytest.mark.parametrize(
        "member", ["../../etc/passwd.png", "/etc/passwd.png", "x/../../../y.png", "a\0b.png", "..", "ü" * 300 + ".png"]
    )
    def test_no_name_leaves_the_folder_or_is_too_long(self, member: str) -> None:
        tar = "s3://b/shards/0.tar"
        name, _ = self.namer("s3://b/shards/0.tar").name(ImageRef(9, f"{tar}#{member}", tar, member, 0))
        parts = name.split("/")
        assert parts[0] == "0" and "" not in parts and ".." not in parts and "\0" not in name
        assert all(len(part.encode()) < 220 for part in parts)

    @pytest.mark.parametrize("from_list", [False, True])
    def test_names_do_not_hang_on_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_list: bool
    ) -> None:
        draw_pictures(tmp_path / "here" / "frames", ["0.png", "a/1.png"])
        monkeypatch.chdir(tmp_path / "here")
        work_list = build_work_list(["frames/"])
        run = put_run(tmp_path / "run", work_list, lambda number, image: image_row(image, scene_masks(number)))
        if from_list:  # a run made with --work-list
            job = {"fingerprint": job_fingerprint({"work_list": work_list.digest})}
            OutputFolder(run).put_json("job.json", job)
        monkeypatch.chdir(tmp_path)
        export(run, tmp_path / "maps", "label-png")
        assert files(tmp_path / "maps") == ["0.png", "_meta/export.json", "a/1.png"]

    def test_inputs_are_where_the_job_writes_them(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        from effsam2_ray.pipeline.label import LabelJob, _describe_inputs

        monkeypatch.chdir(tmp_path)
        job = {"fingerprint": job_fingerprint(_describe_inputs(LabelJob(("photos", "s3://b/x.tar"), "out")))}
        assert run_inputs(job, ["photos"]) == [f"file://{tmp_path}/photos", "s3://b/x.tar"]
        assert run_inputs({"fingerprint": job_fingerprint({"work_list": "abc"})}, ["s3://b/x"]) == ["s3://b/x"]
        assert run_inputs(None, ["s3://b/x"]) == ["s3://b/x"]


STORED_HW = (40, 60)


def stored_picture(kind: str, orientation: int, mode: str = "RGB") -> bytes:
    """Return a picture of a bright block on black, at the top left of what is stored."""
    pixels = np.zeros((*STORED_HW, 3), np.uint8)
    pixels[2:11, 3:21] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    settings = {"JPEG": {"quality": 90, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, exif=exif, icc_profile=b"a profile", **settings)
    return buffer.getvalue()


def bright(path: Path) -> np.ndarray:
    """Return where a picture is bright, for loaders that leave EXIF alone."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L")) > 127


class TestTurnedPictures:
    KINDS = (("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"), ("WEBP", "RGB"))
    KINDS += (("TIFF", "RGB"), ("TIFF", "1"), ("AVIF", "RGB"))

    def turned_run(self, folder: Path, kind: str, mode: str) -> str:
        (folder / "pictures").mkdir()
        for orientation in range(1, 9):
            (folder / "pictures" / f"{orientation}.{kind.lower()}").write_bytes(stored_picture(kind, orientation, mode))

        def make_row(number: int, image: ImageRef) -> dict[str, Any]:
            shown = decode_image(Path(image.image_uri.removeprefix("file://")).read_bytes())[..., 0] > 127
            return image_row(image, [shown], shown.shape)

        return put_run(folder / "run", build_work_list([str(folder / "pictures")]), make_row)

    @pytest.mark.parametrize(("kind", "mode"), KINDS)
    def test_every_loader_sees_what_the_masks_are_of(self, tmp_path: Path, kind: str, mode: str) -> None:
        if kind == "AVIF" and not features.check("avif"):
            pytest.skip("this Pillow writes no AVIF")
        run = self.turned_run(tmp_path, kind, mode)
        export(run, tmp_path / "coco", "coco", with_pictures=True)
        export(run, tmp_path / "sa1b", "sa1b", with_pictures=True)
        (tmp_path / "coco" / "instances.json").rename(tmp_path / "coco" / "annotations.json")
        for name, below in (("coco", "images"), ("sa1b", "")):
            records = open_dataset(str(tmp_path / name)).records
            assert len(records) == 8
            for record in records:
                path = Path(record.image_uri.removeprefix("file://"))
                source = (tmp_path / "pictures" / path.name).read_bytes()
                assert path.parent == tmp_path / name / below
                shown = decode_image(source)[..., 0] > 127
                (found,) = record.load().annotators[0].masks
                assert iou(found.to_array(), shown) == 1
                np.testing.assert_array_equal(bright(path), shown)
                np.testing.assert_array_equal(decode_image(path.read_bytes())[..., 0] > 127, shown)
                assert (path.read_bytes() == source) == (path.stem == "1")
                with Image.open(path) as image:
                    assert image.format == kind and image.mode == Image.open(io.BytesIO(source)).mode
                    assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
                    assert image.info["icc_profile"] == b"a profile"

    @pytest.mark.parametrize("format", ["yolo", "hf"])
    def test_other_formats_turn_them_too(self, tmp_path: Path, format: str) -> None:
        run = self.turned_run(tmp_path, "JPEG", "RGB")
        export(run, tmp_path / "out", format, with_pictures=format == "yolo")
        for orientation in range(1, 9):
            name = f"{orientation}.jpeg"
            shown = decode_image((tmp_path / "pictures" / name).read_bytes())[..., 0] > 127
            if format == "yolo":
                path = tmp_path / "out" / "images" / name
            else:
                rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
                path = tmp_path / name
                path.write_bytes(next(row["image"]["bytes"] for row in rows if row["file_name"] == name))
            np.testing.assert_array_equal(bright(path), shown)

    def test_colours_stay_as_fine_as_they_are(self) -> None:
        for subsampling in (0, 1, 2):
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = 6
            buffer = io.BytesIO()
            Image.fromarray(draw_scene(1, SIZE_HW).image).save(buffer, "JPEG", exif=exif, subsampling=subsampling)
            turned = upright_picture(buffer.getvalue())
            assert turned is not None
            with Image.open(io.BytesIO(turned)) as image:
                assert JpegImagePlugin.get_sampling(image) == subsampling
            error = decode_image(turned).astype(int) - decode_image(buffer.getvalue())
            assert np.abs(error).mean() < 3  # a second compression

    def test_what_is_no_picture_is_not_handed_over(self) -> None:
        assert upright_picture(b"no picture") is None


class TestSources:
    @pytest.mark.parametrize("format", ["coco", "yolo", "hf"])
    def test_each_part_is_fetched_once(
        self, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
    ) -> None:
        fetched = count_reads(monkeypatch)
        export(run, tmp_path / "out", format, with_pictures=format != "hf")
        assert fetched == Counter(path.name for path in Path(run).glob("*.parquet")) and len(fetched) == 3

    def test_members_of_a_tar_are_exported_with_their_pictures(self, tmp_path: Path) -> None:
        draw_pictures(tmp_path / "p", ["0.png", "1.png"])
        with tarfile.open(tmp_path / "shard.tar", "w") as tar:
            for name in ("0.png", "1.png"):
                tar.add(tmp_path / "p" / name, f"deep/{name}")
        work_list = build_work_list([str(tmp_path / "shard.tar")])
        run = put_run(tmp_path / "run", work_list, lambda number, image: image_row(image, scene_masks(number)))
        export(run, tmp_path / "yolo", "yolo", with_pictures=True)
        found = (tmp_path / "yolo" / "images" / "shard" / "deep" / "1.png").read_bytes()
        assert found == (tmp_path / "p" / "1.png").read_bytes()
        assert (tmp_path / "yolo" / "labels" / "shard" / "deep" / "1.txt").read_text().count("\n") == len(
            scene_masks(1)
        )

    def test_unfinished_units_are_left_out_and_names_stay(self, tmp_path: Path) -> None:
        run = scene_run(tmp_path, NAMES, unit_size=3)
        export(run, tmp_path / "whole", "coco", images_per_file=3)
        sorted(Path(run).glob("*.parquet"))[1].unlink()
        summary = export(run, tmp_path / "part", "coco", images_per_file=3)
        assert summary["unfinished_units"] == 1 and summary["images"] == 4
        assert files(tmp_path / "part") == [name for name in files(tmp_path / "whole") if "00001-of" not in name]
        for name in files(tmp_path / "part"):
            if name != "_meta/export.json":
                assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    def test_images_with_malformed_masks_are_skipped(self, tmp_path: Path) -> None:
        work_list = cut_again(build_work_list([draw_pictures(tmp_path / "p", ["0.png", "1.png"])]), 2)

        def make_row(number, image):
            row = image_row(image, scene_masks(number))
            if number == 0:
                row["masks"].append(
                    {**mask_value(np.ones(SIZE_HW, bool)), "segmentation": {"size": [72, 96], "counts": "1"}}
                )
            return row

        run = put_run(tmp_path / "run", work_list, make_row)
        for kind in ("coco", "sa1b", "yolo", "label-png", "panoptic", "hf"):
            assert export(run, tmp_path / kind, kind)["skipped"] == {"bad_mask": 1}

    def test_runs_and_exports_in_an_object_store(self, tmp_path: Path, s3: ObjectStore) -> None:  # noqa: F811
        for seed, name in enumerate(["0.png", "1.png"]):
            draw_pictures(tmp_path / "p", ["0.png", "1.png"])
            s3.put(f"p/{seed}.png", (tmp_path / "p" / name).read_bytes())
        work_list = build_work_list([f"{s3.root}/p"], storage_options=s3.options)
        put_run(
            f"{s3.root}/run",
            work_list,
            lambda number, image: image_row(image, scene_masks(number)),
            storage_options=s3.options,
        )
        export(f"{s3.root}/run", f"{s3.root}/yolo", "yolo", with_pictures=True, storage_options=s3.options)
        assert s3.get("yolo/images/1.png") == (tmp_path / "p" / "1.png").read_bytes()
        assert s3.get("yolo/labels/1.txt").count(b"\n") == len(scene_masks(1))
        assert json.loads(s3.get("yolo/_meta/export.json"))["images"] == 2


class TestCommand:
    def command(self, *arguments: str) -> int:
        parser = argparse.ArgumentParser()
        export_command.add_parser(parser.add_subparsers())
        parsed = parser.parse_args(["export", *arguments, "--num-processes", "1"])
        code: int = parsed.run(parsed)
        return code

    def test_it_says_what_was_skipped(self, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.command(run, "--format", "sa1b", "--output", str(tmp_path / "out")) == 0
        assert "1 images skipped: 1 corrupt; see _meta/export.json" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"format": "voc"}, "format must be one of coco, sa1b, yolo, label-png, panoptic, hf; got 'voc'"),
            ({"format": "hf", "with_pictures": True}, "pictures are copied with coco, sa1b, yolo; not with hf"),
            ({"format": "coco", "full_coverage": True}, "full coverage is for label-png and panoptic; not for coco"),
            ({"format": "yolo", "polygon_tolerance": -1.0}, "polygon_tolerance must be .* 0 or more; got -1.0"),
            ({"format": "yolo", "polygon_tolerance": float("nan")}, "polygon_tolerance must be .* 0 or more; got nan"),
            ({"format": "yolo", "polygon_tolerance": float("inf")}, "polygon_tolerance must be .* 0 or more; got inf"),
            ({"format": "coco", "images_per_file": 0}, "images_per_file must be 1 or more; got 0"),
        ],
    )
    def test_settings_that_do_not_fit(self, run: str, tmp_path: Path, settings: dict[str, Any], text: str) -> None:
        with pytest.raises(ConfigError, match=text):
            export(run, tmp_path / "out", **settings)

    @pytest.mark.parametrize("tolerance", ["nan", "inf", "-1"])
    def test_a_tolerance_that_is_no_length_is_exit_code_2(
        self, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], tolerance: str
    ) -> None:
        arguments = [run, "--format", "yolo", "--output", str(tmp_path / "out"), "--polygon-tolerance", tolerance]
        assert main(["export", *arguments]) == 2
        assert f"got {float(tolerance)}" in capsys.readouterr().err and not (tmp_path / "out").exists()

    @pytest.mark.parametrize("below", ["", "/", "/coco", "/_meta/x"])
    def test_an_export_into_the_run_itself_is_refused(self, run: str, below: str) -> None:
        with pytest.raises(ConfigError, match="cannot lie within its run"):
            export(run, f"{run}{below}", "coco")
