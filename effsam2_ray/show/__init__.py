"""Contact sheets of a run: the picture with its prompts, the clusters and the final masks beside each other."""

from __future__ import annotations

from pathlib import PurePath

from effsam2_ray.errors import ConfigError
from effsam2_ray.show.gallery import render_gallery
from effsam2_ray.show.run_images import open_run
from effsam2_ray.show.sheet import MAX_SHEET_IMAGES, render_sheet
from effsam2_ray.storage import StorageOptions, put_bytes


def show_run(run_uri: str, *, num_images: int, output: str, storage_options: StorageOptions = None) -> str:
    """Draw images spread evenly over a run and return where the sheet is.

    The choice depends only on the run's work list, its finished units and `num_images`, so the same call draws the
    same images. A run that is not finished shows what there is.

    Args:
        run_uri: output folder of `effsam2 label`.
        num_images: how many images to draw; all of them where the run has fewer.
        output: a `.png` (one sheet) or `.html` (one self-contained page) path or URI.
        storage_options: passed to fsspec, for the run, its pictures and the sheet.

    Raises:
        ConfigError: another ending, or more images than a PNG sheet takes.
        InputError: `run_uri` is not the folder of a run, or no unit of it is finished.
    """
    ending = PurePath(output).suffix.lower()
    if ending not in (".png", ".html"):
        raise ConfigError(f"output must end in .png or .html; got {output!r}")
    if num_images < 1:
        raise ConfigError(f"num_images must be 1 or more; got {num_images}")
    if ending == ".png" and num_images > MAX_SHEET_IMAGES:
        raise ConfigError(f"a PNG sheet takes at most {MAX_SHEET_IMAGES} images; got {num_images}; .html takes more")
    run = open_run(run_uri, storage_options)
    images = run.spread(num_images)
    num_shown = min(num_images, run.num_images)
    if ending == ".png":
        data = render_sheet(images, run.name, num_shown, run.num_images)
    else:
        data = render_gallery(images, run.name, num_shown, run.num_images)
    put_bytes(output, data, storage_options)
    return output
