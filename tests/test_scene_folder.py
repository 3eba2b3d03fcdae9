from __future__ import annotations

import numpy as np
from PIL import Image

from effsam2_ray.datasets import open_dataset
from effsam2_ray.demo.scene_folder import write_scenes
from effsam2_ray.demo.scenes import draw_scene, held_out_seed
from effsam2_ray.metrics import object_masks


def test_a_folder_of_scenes_reads_back_as_the_scenes_that_were_drawn(tmp_path):
    write_scenes(tmp_path, 2, (64, 96), first=7, min_area_frac=0.02)
    truth = open_dataset(str(tmp_path))
    assert [uri.rsplit("/", 1)[-1] for uri in truth.image_uris] == ["scene-00007.png", "scene-00008.png"]
    for number, uri in zip((7, 8), truth.image_uris, strict=True):
        scene = draw_scene(held_out_seed(number), (64, 96))
        np.testing.assert_array_equal(np.asarray(Image.open(uri.removeprefix("file://"))), scene.image)
        known = truth.objects(uri)
        expected = object_masks(scene.label_map, 0.02)
        assert known.size_hw == (64, 96) and len(expected) > 0
        np.testing.assert_array_equal([mask.to_array() for mask in known.annotators[0].masks], expected)


def test_the_same_arguments_write_the_same_files(tmp_path):
    for name in ("a", "b"):
        write_scenes(tmp_path / name, 1, 48)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert [str(path) for path in files] == ["annotations.json", "images/scene-00000.png"]
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
