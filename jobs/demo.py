"""`make demo`: label two photographs and a few drawn scenes with the demo weights, and draw a contact sheet."""

import shutil
import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

from effsam2_ray.cli import main
from effsam2_ray.demo.scenes import draw_scene, held_out_seed

NUM_SCENES = 6
SCENE_SIZE = (384, 512)
# The demo weights trust their masks of photographs less than SAM 2 does: its cut-offs would leave few to look at there.
SETTINGS = ("decode.pred_iou_thresh=0.5", "decode.stability_score_thresh=0.8")


def write_pictures(folder: Path) -> None:
    """Write scikit-learn's two sample photographs and `NUM_SCENES` procedural scenes as files."""
    folder.mkdir(parents=True)
    samples = load_sample_images()
    for name, image in zip(samples.filenames, samples.images, strict=True):
        Image.fromarray(image).save(folder / Path(name).name)
    for index in range(NUM_SCENES):
        Image.fromarray(draw_scene(held_out_seed(index), SCENE_SIZE).image).save(folder / f"scene-{index}.png")


def run(folder: Path) -> int:
    """Label the pictures into `folder` and return the exit code."""
    shutil.rmtree(folder, ignore_errors=True)
    write_pictures(folder / "pictures")
    label = ["label", str(folder / "pictures"), "--output", str(folder / "run"), "--preset", "high_quality"]
    code = main([*label, *(part for setting in SETTINGS for part in ("--set", setting))])
    return code or main(["show", str(folder / "run"), "--output", str(folder / "sheet.png")])


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
