from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask

from effsam2_ray import rle
from effsam2_ray.masks import Mask
from effsam2_ray.prompts import Prompts
from effsam2_ray.results import LabelledImage
from effsam2_ray.schema import STEPS, build_table, result_columns, run_schema


def labelled_image() -> LabelledImage:
    pixels = np.zeros((4, 6), bool)
    pixels[1:3, 2:5] = True
    mask = Mask(rle.encode(pixels[None])[0], 6, (2.0, 1.0, 3.0, 2.0), 0.875, 0.5, ((2.5, 1.5),), (0,))
    prompts = Prompts(np.array([[2.5, 1.5]], np.float32), np.array([3], np.int32), np.array([0.25], np.float32))
    labels = np.array([[0, -1], [0, 0]], np.int16)
    return LabelledImage((4, 6), prompts, labels, (mask,), (0,), (mask,), 1.0, {"encode_s": 0.5})


def test_row_holds_literal_values_and_json_takes_it():
    table = build_table(
        [{"image_uid": -5, "status": "ok", **result_columns(labelled_image(), keep_candidates=True)}],
        run_schema({}, keep_candidates=True),
    )
    row = json.loads(json.dumps(table.to_pylist()))[0]
    assert (row["image_uid"], row["width"], row["height"]) == (-5, 6, 4)
    assert row["prompts"] == [{"x": 2.5, "y": 1.5, "cluster_size": 3, "persistence": 0.25}]
    assert row["cluster_map"] == {"size": [2, 2], "labels": [0, -1, 0, 0]}
    mask = row["masks"][0]
    assert mask["segmentation"]["size"] == [4, 6] and isinstance(mask["segmentation"]["counts"], str)
    assert (mask["area"], mask["bbox"], mask["predicted_iou"]) == (6, [2.0, 1.0, 3.0, 2.0], 0.875)
    assert (mask["stability_score"], mask["point_coords"], mask["members"]) == (0.5, [[2.5, 1.5]], [0])
    assert row["candidates"] == [{**mask, "merged_into": 0}]
    assert row["step_s"] == {step: (0.5 if step == "encode_s" else None) for step in STEPS}


def test_pycocotools_decodes_a_segmentation_as_it_stands():
    columns = result_columns(labelled_image(), keep_candidates=False)
    table = build_table([columns], run_schema({}, keep_candidates=False))
    decoded = coco_mask.decode(table["masks"][0].as_py()[0]["segmentation"])
    expected = np.zeros((4, 6), np.uint8)
    expected[1:3, 2:5] = 1
    np.testing.assert_array_equal(decoded, expected)


def test_parts_with_and_without_masks_share_one_schema(tmp_path):
    schema = run_schema({"split": pa.string()}, keep_candidates=True)
    empty = [{"status": "corrupt", "split": "a", **result_columns(None, keep_candidates=True)}]
    full = [{"status": "ok", "split": "b", **result_columns(labelled_image(), keep_candidates=True)}]
    for name, rows in (("0", empty), ("1", full), ("2", [])):
        pq.write_table(build_table(rows, schema), tmp_path / f"{name}.parquet")
    table = pq.read_table(tmp_path)
    assert table.schema.equals(schema) and table["masks"].to_pylist()[0] == []
    assert [len(masks) for masks in table["masks"].to_pylist()] == [0, 1]
    assert pq.read_schema(tmp_path / "2.parquet").metadata[b"effsam2_ray.schema_version"] == b"1"


def test_failed_image_has_empty_lists_and_no_size():
    row = build_table([result_columns(None, keep_candidates=False)], run_schema({}, keep_candidates=False)).to_pylist()[
        0
    ]
    assert row["masks"] == [] and row["prompts"] == [] and row["num_prompts"] == 0
    assert row["width"] is None and row["cluster_map"] is None


@pytest.mark.parametrize("keep", [False, True])
def test_candidates_column_is_there_only_when_kept(keep: bool):
    assert ("candidates" in run_schema({}, keep_candidates=keep).names) is keep
