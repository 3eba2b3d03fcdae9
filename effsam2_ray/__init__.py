"""Label image data sets with SAM 2, with no human prompts, on a Ray cluster.

One picture in one process::

    from effsam2_ray import Labeller
    labelled = Labeller.from_weights("demo", preset="low_latency").label("photo.jpg")
    masks = [mask.to_array() for mask in labelled.masks]

Millions of them on a Ray cluster: `effsam2 label INPUT --output URI`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effsam2_ray.config import Config as Config
    from effsam2_ray.config import load_preset_file as load_preset_file
    from effsam2_ray.config import preset_config as preset_config
    from effsam2_ray.errors import EffSam2Error as EffSam2Error
    from effsam2_ray.errors import ImageError as ImageError
    from effsam2_ray.labeller import Labeller as Labeller
    from effsam2_ray.masks import Mask as Mask
    from effsam2_ray.prompts import Prompts as Prompts
    from effsam2_ray.results import LabelledImage as LabelledImage
    from effsam2_ray.rle import Rle as Rle

# Loaded on first use: torch takes seconds to import, and `effsam2 --help` needs none of it.
_HOMES = {
    "Config": "config",
    "EffSam2Error": "errors",
    "ImageError": "errors",
    "LabelledImage": "results",
    "Labeller": "labeller",
    "Mask": "masks",
    "Prompts": "prompts",
    "Rle": "rle",
    "load_preset_file": "config",
    "preset_config": "config",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'effsam2_ray' has no attribute {name!r}")
    return getattr(importlib.import_module(f"effsam2_ray.{_HOMES[name]}"), name)
