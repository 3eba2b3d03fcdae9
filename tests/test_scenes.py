"""The scene generator, and the batches drawn from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label as connected_pieces

from effsam2_ray.demo.materials import noise_fields, paint, random_material
from effsam2_ray.demo.scene_pool import ScenePool, augment, choose_prompts, interior_point, num_objects
from effsam2_ray.demo.scenes import _Canvas, draw_scene, held_out_seed, training_seed
from effsam2_ray.demo.shapes import KINDS, Outline, random_outline, rasterize


def test_same_seed_gives_the_same_scene_and_another_seed_another():
    first, again, other = draw_scene(5, 96), draw_scene(5, 96), draw_scene(6, 96)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label_map, again.label_map)
    assert not np.array_equal(first.image, other.image)


def test_a_scene_has_the_size_and_types_it_promises():
    scene = draw_scene(3, (64, 112))
    assert scene.image.shape == (64, 112, 3) and scene.image.dtype == np.uint8
    assert scene.label_map.shape == (64, 112) and scene.label_map.dtype == np.int32
    assert scene.label_map.min() >= 0


def test_too_small_a_size_is_refused():
    with pytest.raises(ValueError, match=r"size must be 32 or more on both sides; got \(31, 64\)"):
        draw_scene(0, (31, 64))


def test_training_and_held_out_seeds_never_meet():
    training = {training_seed(i) for i in range(1000)}
    assert training.isdisjoint(held_out_seed(i) for i in range(1000))


def test_scenes_hold_many_objects_of_many_sizes():
    shares = []
    for index in range(20):
        label_map = draw_scene(held_out_seed(index), 128).label_map
        areas = np.bincount(label_map.ravel())[1:] / label_map.size
        shares += list(areas[areas > 0])
    assert len(shares) > 100
    assert min(shares) < 0.003 and max(shares) > 0.1


def test_hardly_any_object_is_cut_into_pieces_far_apart():
    """Only backgrounds, which are laid in pieces, and scraps are."""
    main_shares = []
    for index in range(20):
        label_map = draw_scene(held_out_seed(index), 128).label_map
        for value in np.unique(label_map)[1:]:
            pieces = np.bincount(connected_pieces(label_map == value)[0].ravel())[1:]
            if pieces.sum() >= 0.005 * label_map.size:
                main_shares.append(pieces.max() / pieces.sum())
    assert np.mean(np.array(main_shares) > 0.85) > 0.97


def test_an_object_that_would_cut_another_is_refused_and_one_that_covers_its_side_is_not():
    canvas = _Canvas.blank(np.random.default_rng(0), (32, 32))
    canvas.label_map[10:20, 2:30] = 1
    bar = np.ones((20, 4), np.float32)
    assert not canvas._leaves_others_whole(5, 14, bar)  # through the middle
    assert canvas._leaves_others_whole(5, 2, bar)  # over the left end
    assert canvas._leaves_others_whole(22, 14, bar[:8])  # over the background only
    assert not canvas._leaves_others_whole(10, 2, np.ones((10, 20), np.float32))  # leaves less than 40 %


def test_labels_follow_what_is_visible():
    """An object's own colours differ from what lies around it: label borders are where the picture changes."""
    steps_at_borders, steps_elsewhere = [], []
    for index in range(8):
        scene = draw_scene(held_out_seed(index), 128)
        step = np.abs(np.diff(scene.image.astype(float), axis=1)).mean(axis=2)
        border = np.diff(scene.label_map, axis=1) != 0
        steps_at_borders.append(step[border].mean())
        steps_elsewhere.append(step[~border].mean())
    assert np.mean(steps_at_borders) > 2 * np.mean(steps_elsewhere)


def test_rasterized_square_covers_its_pixels():
    square = Outline(solids=(np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]),))
    top, left, coverage = rasterize(square, (8.0, 6.0), 2.0, (16, 16))
    full = np.zeros((16, 16), np.float32)
    full[top : top + coverage.shape[0], left : left + coverage.shape[1]] = coverage
    expected = np.zeros((16, 16), bool)
    expected[4:8, 6:10] = True
    assert np.array_equal(full >= 0.5, expected)


@pytest.mark.parametrize("kind", sorted(set(KINDS)))
def test_every_kind_of_shape_fills_some_pixels_within_the_picture(kind):
    outline = random_outline(np.random.default_rng(1), kind)
    top, left, coverage = rasterize(outline, (20.0, 4.0), 9.0, (30, 40))
    assert (coverage >= 0.5).any()
    assert 0 <= top and top + coverage.shape[0] <= 30
    assert 0 <= left and left + coverage.shape[1] <= 40


def test_a_shape_outside_the_picture_covers_nothing():
    outline = random_outline(np.random.default_rng(1), "ellipse")
    assert rasterize(outline, (-50.0, 10.0), 5.0, (30, 40))[2].size == 0


def test_noise_falls_with_frequency_and_each_field_faster_than_the_last():
    fields = noise_fields(np.random.default_rng(0), (64, 96))
    assert fields.shape == (4, 64, 96)
    np.testing.assert_allclose(fields.mean(axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(fields.std(axis=(1, 2)), 1, atol=1e-4)
    roughness = np.abs(np.diff(fields, axis=2)).mean(axis=(1, 2))
    assert (np.diff(roughness) < 0).all()


def test_painting_a_part_gives_the_same_pixels_as_painting_all():
    rng = np.random.default_rng(2)
    fields = noise_fields(rng, (40, 50))
    for _ in range(20):
        material = random_material(rng, len(fields), (40, 50))
        if material.pattern == "gradient":  # spans the rectangle it is painted into
            continue
        whole = paint(material, fields, 0, 0, 40, 50)
        np.testing.assert_allclose(paint(material, fields, 7, 9, 20, 30), whole[7:27, 9:39], atol=1e-6)


def test_interior_point_is_the_middle_of_a_box_and_the_edge_counts_as_outside():
    mask = np.zeros((9, 12), bool)
    mask[2:7, 0:5] = True
    assert interior_point(mask) == (2, 4)
    assert interior_point(np.eye(3, dtype=bool)[:1].repeat(1, axis=0)) == (0, 0)


def test_augmentation_moves_labels_with_pixels_and_leaves_its_input_alone():
    label_map = np.random.default_rng(0).integers(0, 5, (16, 16)).astype(np.uint8)
    image = np.repeat(label_map[..., None] * 40, 3, axis=2)
    before = image.copy()
    for seed in range(10):
        moved, labels = augment(np.random.default_rng(seed), image, label_map)
        # one gray level a label, and another for each label, wherever they went
        for label in range(5):
            assert len(np.unique(moved[labels == label])) == 1
        assert len(np.unique(moved)) == 5
    assert np.array_equal(image, before)


def test_prompts_lie_on_the_label_they_are_said_to():
    label_map = draw_scene(4, 128).label_map
    points, labels = choose_prompts(np.random.default_rng(0), label_map, 24)
    columns, rows = points.astype(int).T
    assert np.array_equal(label_map[rows, columns], labels)


def test_a_picture_without_objects_gives_no_prompts():
    assert choose_prompts(np.random.default_rng(0), np.zeros((64, 64), np.int32), 4) is None


def test_a_pool_draws_each_scene_once_and_finds_it_again(tmp_path: Path):
    pool = ScenePool(tmp_path, 64, 3)
    image, label_map = (array.copy() for array in pool.scene(2))
    expected = draw_scene(training_seed(2), 64)
    assert np.array_equal(image, expected.image) and np.array_equal(label_map, expected.label_map)
    reopened = ScenePool(tmp_path, 64, 3)
    assert np.array_equal(reopened.scene(2)[0], image)


def test_a_batch_depends_on_its_random_numbers_only(tmp_path: Path):
    pool = ScenePool(tmp_path, 64, 4)
    first = pool.batch(np.random.default_rng(7), 2, 3)
    again = pool.batch(np.random.default_rng(7), 2, 3)
    assert first.images.shape == (2, 3, 64, 64) and first.point_coords.shape == (2, 3, 2)
    assert 0 <= first.images.min() and first.images.max() <= 1
    assert all((getattr(first, name) == getattr(again, name)).all() for name in vars(first))


def test_objects_that_cover_a_two_hundredth_are_counted_but_the_background():
    label_map = np.zeros((100, 100), np.int32)
    label_map[:5, :10], label_map[10:17, 10:17], label_map[50:, 50:] = 1, 2, 3  # 50, 49 and 2,500 pixels
    assert num_objects(label_map) == 2


def test_scenes_are_taken_in_proportion_to_their_objects(tmp_path: Path):
    pool = ScenePool(tmp_path, 64, 3)
    many = np.kron(np.arange(1, 9).reshape(4, 2), np.ones((16, 32), np.uint8))
    few = np.zeros((64, 64), np.uint8)
    few[:20, :20], few[40:, 40:] = 1, 2
    pool._label_maps[:] = np.stack([many, few, np.zeros_like(few)])
    pool._drawn[:] = 1
    batch = pool.batch(np.random.default_rng(0), 300, 1)
    num_labels = [len(label_map.unique()) for label_map in batch.label_maps]
    assert set(num_labels) == {8, 3}
    # 8 objects against 2: four in five; 300 draws have a standard deviation of 0.023.
    assert num_labels.count(8) / 300 == pytest.approx(0.8, abs=0.07)
