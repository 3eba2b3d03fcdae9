from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from effsam2_ray import Config, Labeller, preset_config
from effsam2_ray.cluster_prompts import (
    attention_trees,
    cluster_centres,
    cluster_prompts_many,
    select_clusters,
)
from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.errors import ConfigError, ImageError
from effsam2_ray.labeller import _pack, resolve_config

CONFIG = preset_config("high_quality").with_overrides(
    ["decode.pred_iou_thresh=0.3", "decode.stability_score_thresh=0.5"]
)


@pytest.fixture(scope="module")
def labeller() -> Labeller:
    return Labeller.from_weights("demo", config=CONFIG, device="cpu")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return draw_scene(3, (120, 200)).image


def test_paths_bytes_pil_and_arrays_give_the_same_masks(labeller, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), data, Image.open(io.BytesIO(data)), picture]
    first, *others = labeller.label_batch(forms)
    assert len(first.masks) > 0 and first.size_hw == (120, 200)
    for other in others:
        assert [mask.segmentation for mask in other.masks] == [mask.segmentation for mask in first.masks]


def test_masks_scores_and_times_are_there(labeller, picture):
    labelled = labeller.label(picture)
    for mask in labelled.masks:
        array = mask.to_array()
        assert array.shape == (120, 200) and array.dtype == bool and array.sum() == mask.area
        assert mask.predicted_iou > 0.3 and mask.stability_score >= 0.5
    assert {"load_s", "encode_s", "distances_s", "decode_s", "merge_s"} <= labelled.step_s.keys()
    assert labelled.cluster_map.shape == (32, 32)
    assert len(labelled.prompts) == labelled.cluster_map.max() + 1


def test_prompts_lie_on_patch_centres_of_a_picture_that_is_not_square(labeller, picture):
    points = labeller.label(picture).prompts.point_coords
    columns, rows = points[:, 0] / 200 * 32 - 0.5, points[:, 1] / 120 * 32 - 0.5
    np.testing.assert_allclose(columns, np.round(columns), atol=1e-4)
    np.testing.assert_allclose(rows, np.round(rows), atol=1e-4)


def test_a_batch_gives_what_single_pictures_give(picture):
    alone = Labeller.from_weights("demo", config=CONFIG, device="cpu")
    batched = Labeller(alone.model, CONFIG, batch_size=2)
    pictures = [picture, draw_scene(4, (90, 90)).image, draw_scene(5, (200, 64)).image]
    for one, other in zip(map(alone.label, pictures), batched.label_batch(pictures), strict=True):
        assert one.size_hw == other.size_hw and len(one.masks) == len(other.masks)
        for a, b in zip(one.masks, other.masks, strict=True):
            # Encoding in a batch rounds differently, so a few pixels at edges may change.
            assert (a.to_array() & b.to_array()).sum() / (a.to_array() | b.to_array()).sum() > 0.97


def test_a_flat_picture_is_a_valid_result(labeller):
    labelled = labeller.label(np.full((64, 80, 3), 127, np.uint8))
    assert labelled.size_hw == (64, 80) and len(labelled.merged_into) == len(labelled.candidates)


@pytest.mark.parametrize(
    ("image", "status"),
    [
        (np.zeros((4, 4), np.uint8), "unsupported"),
        (np.zeros((4, 4, 3), np.float32), "unsupported"),
        (np.zeros((0, 4, 3), np.uint8), "unsupported"),
        (b"", "empty"),
        (b"no picture", "not_image"),
        (7, "unsupported"),
    ],
)
def test_a_bad_picture_raises_with_its_status(labeller, image, status):
    with pytest.raises(ImageError) as caught:
        labeller.label(image)
    assert caught.value.status == status


def test_grid_and_random_prompts_need_no_attention(labeller, picture):
    for text, count in (("grid:4", 16), ("random:10", 10)):
        config = Config.from_dict({**CONFIG.to_dict(), "prompts": {}})
        source, number = text.split(":")
        config = config.with_overrides([f"prompts.count={number}", f"prompts.source={source}"])
        other = Labeller(labeller.model, config)
        assert other.heads == ()
        labelled = other.label(picture)
        assert len(labelled.prompts) == count and labelled.cluster_map is None


def test_settings_left_open_come_from_the_weights(labeller):
    config = resolve_config(Config(), labeller.model.info)
    assert (config.attention.block, config.attention.head) == labeller.model.info.default_head
    assert (config.decode.pred_iou_thresh, config.decode.stability_score_thresh) == (0.8, 0.95)


def test_a_windowed_block_is_refused_with_the_valid_ones(labeller):
    with pytest.raises(ConfigError, match="block 2 of demo has no global attention.*global blocks are 5, 6, 7"):
        Labeller(labeller.model, Config().with_overrides(["attention.block=2"]))


def test_clustering_in_steps_equals_clustering_in_place(labeller, picture):
    """The pipeline's way on a GPU: trees on the device, clusters on a CPU actor, centres on the device."""
    encoded, _ = labeller.encode([picture])
    captured = encoded[0].captured[labeller.heads[0]]
    trees = attention_trees(captured, [2], on_device=True)
    clusters = select_clusters(trees.edges[2], trees.ties_at_once, 5)
    prompts = cluster_centres(trees.rows, clusters, captured.grid_hw, encoded[0].size_hw)
    expected = cluster_prompts_many(captured, encoded[0].size_hw, [(2, 5)], on_device=True)[0]
    np.testing.assert_array_equal(prompts.point_coords, expected.prompts.point_coords)
    np.testing.assert_array_equal(clusters.labels.reshape(32, 32), expected.labels)


def test_points_are_packed_into_calls_in_order():
    points = [np.full((count, 2), index) for index, count in enumerate((3, 0, 5, 1))]
    calls = _pack(points, 4)
    assert [[(index, len(part)) for index, part in call] for call in calls] == [[(0, 3), (2, 1)], [(2, 4)], [(3, 1)]]
    assert _pack([], 4) == [] and _pack([np.zeros((0, 2))], 4) == []
