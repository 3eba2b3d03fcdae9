"""How the cost of a picture grows with prompts, size, batch and masks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from effsam2_ray.benchmark.pictures import Picture, resized
from effsam2_ray.benchmark.steps import label_picture
from effsam2_ray.benchmark.timing import Spread, interleave
from effsam2_ray.config import Config
from effsam2_ray.labeller import FoundPrompts, Labeller
from effsam2_ray.postprocess import finish
from effsam2_ray.prompts import random_prompts
from effsam2_ray.results import ImageCandidates
from effsam2_ray.schema import build_table, result_columns, run_schema

SOURCE_PROMPTS = 107
"""Prompts an image that the method's source reports for `low_latency`."""

SUPER_LINEAR = 1.15
"""A power above this is called super-linear; what noise there is stays below."""


@dataclass(frozen=True)
class Curve:
    """Seconds a picture against one quantity.

    Attributes:
        quantity: what grows.
        values: its values, ascending.
        seconds: for one picture at each value.
        note: what else is to be known.
    """

    quantity: str
    values: tuple[float, ...]
    seconds: tuple[Spread, ...]
    note: str

    @property
    def power(self) -> float:
        """Exponent p of ``seconds ~ value ** p`` between the middle value and the last; 1 is linear."""
        middle = len(self.values) // 2
        rise = math.log(self.seconds[-1].median / self.seconds[middle].median)
        return rise / math.log(self.values[-1] / self.values[middle])


def prompts_curve(labeller: Labeller, picture: Picture, counts: Sequence[int], rounds: int, limit_s: float) -> Curve:
    """Label one picture with ever more prompts."""
    functions = {str(count): _once(partial(label_picture, labeller, picture, count)) for count in counts}
    taken = interleave(functions, rounds, limit_s)
    return _curve("prompts an image", counts, taken, "whole picture; encoding and clustering are the constant part")


def size_curve(
    labeller: Labeller, picture: Picture, sizes_hw: Sequence[tuple[int, int]], rounds: int, limit_s: float
) -> Curve:
    """Label one picture at ever larger sizes, with a fixed number of prompts."""
    pictures = {height * width / 1e6: resized(picture, (height, width)) for height, width in sizes_hw}
    functions = {
        str(megapixels): _once(partial(label_picture, labeller, each, SOURCE_PROMPTS))
        for megapixels, each in pictures.items()
    }
    note = f"whole picture with {SOURCE_PROMPTS} prompts; the model itself always sees one size"
    return _curve("megapixels", list(pictures), interleave(functions, rounds, limit_s), note)


def batch_curve(
    labeller: Labeller, pictures: Sequence[Picture], sizes: Sequence[int], rounds: int, limit_s: float
) -> Curve:
    """Label pictures in ever larger batches; seconds are those of one picture."""

    def label(size: int) -> Callable[[], None]:
        batch = [pictures[index % len(pictures)].data for index in range(size)]
        batched = Labeller(labeller.model, labeller.config, batch_size=size)

        def run() -> None:
            batched.label_batch(batch)

        return run

    functions = {str(size): label(size) for size in sizes}
    taken = interleave(functions, rounds, limit_s)
    each = {name: [seconds / int(name) for seconds in values] for name, values in taken.items()}
    return _curve("pictures a batch", sizes, each, "seconds of one picture; on one CPU core there is nothing to gain")


def masks_curve(labeller: Labeller, picture: Picture, counts: Sequence[int], rounds: int, limit_s: float) -> Curve:
    """Select, upsample, encode, merge and store ever more masks of one picture."""
    decode = dataclasses.replace(labeller.config.decode, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    everything = Labeller(labeller.model, dataclasses.replace(labeller.config, decode=decode))
    encoded = everything.encode([picture.array])[0][0]
    taken: dict[str, list[float]] = {str(count): [] for count in counts}
    for number in range(rounds):
        for count in counts:
            found = FoundPrompts(random_prompts(count, picture.size_hw, seed=1), None, {})
            image = everything.decode([(encoded, found, {})])[0]

            seconds = interleave({"": partial(_store, image, labeller.config)}, 1)[""][0]
            taken[str(count)].append(image.step_s["select_s"] + seconds)
        if number and sum(map(sum, taken.values())) > limit_s:
            break
    note = "from logits to a row, all masks kept, nothing encoded; merging compares pairs, whose number is squared"
    return _curve("masks an image", counts, taken, note)


def _store(image: ImageCandidates, config: Config) -> None:
    labelled = finish(image, config.merge, config.filter)
    build_table([result_columns(labelled, keep_candidates=False)], run_schema({}, keep_candidates=False))


def _curve(quantity: str, values: Sequence[float], taken: dict[str, list[float]], note: str) -> Curve:
    spreads = tuple(Spread.of(seconds) for seconds in taken.values())
    return Curve(quantity, tuple(float(value) for value in np.asarray(values)), spreads, note)


def _once(function: Callable[[], object]) -> Callable[[], object]:
    """Warm a function up, so that the first round is like the others."""
    function()
    return function
