"""Label pictures in one process, with no Ray: the steps of the method, in order.

The Ray pipeline runs the same steps through the same class; it only moves `find_prompts` and `finish` elsewhere, and
takes several configurations through them at once.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from effsam2_ray.attention import CapturedHead
from effsam2_ray.candidates import select_candidates
from effsam2_ray.cluster_prompts import cluster_prompts_many
from effsam2_ray.config import Config, preset_config
from effsam2_ray.errors import ConfigError, ImageError
from effsam2_ray.images import decode_image, rgb_array
from effsam2_ray.masks import Mask
from effsam2_ray.model.interface import Decoded, EncodedImage, Head, ModelInfo, SegmentationModel
from effsam2_ray.model.weights import load_model
from effsam2_ray.postprocess import finish
from effsam2_ray.prompts import Prompts, grid_prompts, random_prompts
from effsam2_ray.results import ImageCandidates, LabelledImage
from effsam2_ray.storage import read_bytes

PictureLike = str | Path | bytes | Image.Image | np.ndarray

# Prompts of one picture decoded before their masks are chosen: 256 hold about 200 MB of low-resolution logits.
PROMPTS_AT_ONCE = 256


@dataclass(frozen=True)
class FoundPrompts:
    """Prompts of one picture with what led to them.

    Attributes:
        prompts: the point prompts, in pixels.
        cluster_map: (rows, columns) int16 cluster labels, -1 for noise; None where nothing was clustered.
        step_s: seconds that each step took.
    """

    prompts: Prompts
    cluster_map: np.ndarray | None
    step_s: dict[str, float]


def resolve_config(config: Config, info: ModelInfo) -> Config:
    """Fill what a configuration leaves to the weights: block, head and score thresholds.

    Raises:
        ConfigError: the block has no global attention, or the head does not exist.
    """
    block, head = config.attention.block, config.attention.head
    if block is None:
        block = info.default_block
    if head is None:
        head = info.default_head_index
    info.check_head(block, head)
    decode = config.decode
    if decode.pred_iou_thresh is None:
        decode = dataclasses.replace(decode, pred_iou_thresh=info.pred_iou_thresh)
    if decode.stability_score_thresh is None:
        decode = dataclasses.replace(decode, stability_score_thresh=info.stability_score_thresh)
    attention = dataclasses.replace(config.attention, block=block, head=head)
    return dataclasses.replace(config, attention=attention, decode=decode)


def head_of(config: Config) -> Head | None:
    """Return the (block, head) whose attention a resolved configuration clusters; None where nothing is clustered."""
    attention = config.attention
    if config.prompts.source != "clusters" or attention.block is None or attention.head is None:
        return None
    return attention.block, attention.head


def heads_of(configs: Iterable[Config]) -> tuple[Head, ...]:
    """Return the (block, head) pairs that configurations cluster, each once."""
    return tuple(dict.fromkeys(head for config in configs if (head := head_of(config)) is not None))


def find_prompts(
    captured: Mapping[Head, CapturedHead],
    size_hw: tuple[int, int],
    extent_hw: tuple[float, float],
    configs: Sequence[Config],
) -> list[FoundPrompts]:
    """Return the point prompts of one picture for each configuration: cluster medoids, a grid, or random points.

    Configurations share one head's distances, and with one `min_samples` the spanning tree; the times of each are what
    it would have taken alone.

    Args:
        captured: the captured heads (`EncodedImage.captured`); those of `heads_of(configs)` must be there.
        size_hw: (height, width) of the picture in pixels.
        extent_hw: (height, width) in pixels that the grid of patches covers (`EncodedImage.grid_extent_hw`).
        configs: resolved configurations.
    """
    found: dict[int, FoundPrompts] = {}
    for (head, noise_floor), numbers in same_distances(configs).items():
        presets = [(configs[n].cluster.min_samples, configs[n].cluster.min_cluster_size) for n in numbers]
        for number, clustered in zip(
            numbers, cluster_prompts_many(captured[head], extent_hw, presets, noise_floor), strict=True
        ):
            found[number] = FoundPrompts(clustered.prompts, clustered.labels, dict(clustered.step_s))
    return [found.get(number) or _plain_prompts(config, size_hw) for number, config in enumerate(configs)]


def same_distances(configs: Sequence[Config]) -> dict[tuple[Head, float], list[int]]:
    """Return the positions of the configurations that cluster, by the head and noise floor that they share."""
    numbers: dict[tuple[Head, float], list[int]] = {}
    for number, config in enumerate(configs):
        if (head := head_of(config)) is not None:
            numbers.setdefault((head, config.cluster.noise_floor), []).append(number)
    return numbers


def same_candidates(configs: Sequence[Config]) -> list[int]:
    """Return for each configuration the position of the first that differs from it in merging and filters at most."""
    keys = [(config.cluster, config.attention, config.prompts, config.decode) for config in configs]
    return [keys.index(key) for key in keys]


def _plain_prompts(config: Config, size_hw: tuple[int, int]) -> FoundPrompts:
    settings = config.prompts
    if settings.source == "grid":
        return FoundPrompts(grid_prompts(settings.count, size_hw), None, {})
    if settings.source == "random":
        return FoundPrompts(random_prompts(settings.count, size_hw, settings.seed), None, {})
    raise ConfigError("prompts from clusters need a resolved configuration: attention.block and attention.head")


class Labeller:
    """A segmentation model with a configuration.

    Not thread-safe: one call at a time.

    Args:
        model: encoder and decoder.
        config: settings; what they leave open is taken from the model.
        batch_size: pictures that the encoder sees at once.

    Attributes:
        config: the resolved configuration.
    """

    def __init__(self, model: SegmentationModel, config: Config, *, batch_size: int = 1):
        if batch_size < 1:
            raise ConfigError(f"batch_size must be 1 or more; got {batch_size}")
        self.model = model
        self.config = resolve_config(config, model.info)
        self.batch_size = batch_size

    @classmethod
    def from_weights(
        cls,
        weights: str = "demo",
        *,
        preset: str = "low_latency",
        config: Config | None = None,
        model_config: str | None = None,
        heads_table: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 1,
    ) -> Labeller:
        """Load weights and return a labeller.

        Args:
            weights: a name such as `sam2.1_hiera_large`, a path, a URI, or `demo`.
            preset: name of a preset; ignored where `config` is given.
            config: full settings.
            model_config: YAML of a fine-tuned model whose shape differs from the official ones.
            heads_table: table of attention heads (`backbones.load_heads_table`); block and head in `config` win.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            dtype: `auto`, `float32`, `bfloat16` or `float16`.
            batch_size: pictures that the encoder sees at once.

        Raises:
            ConfigError: an unknown preset, block or head.
            WeightsError: weights that cannot be found, read or matched to a model.
        """
        chosen = config or preset_config(preset)
        model = load_model(weights, model_config=model_config, heads_table=heads_table, device=device, dtype=dtype)
        return cls(model, chosen, batch_size=batch_size)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The (block, head) pairs that `encode` captures: one, or none where nothing is clustered."""
        return heads_of([self.config])

    def label(self, image: PictureLike) -> LabelledImage:
        """Return the masks of one picture.

        Args:
            image: a path or URI, encoded bytes, a PIL image, or an (H, W, 3) uint8 RGB array.

        Raises:
            ImageError: the picture cannot be read; `status` says why.
        """
        return self.label_batch([image])[0]

    def label_batch(self, images: Sequence[PictureLike]) -> list[LabelledImage]:
        """Return the masks of several pictures of any sizes, in order.

        Raises:
            ImageError: a picture cannot be read; the Ray pipeline gives such a picture a row instead.
        """
        labelled: list[LabelledImage] = []
        for start in range(0, len(images), self.batch_size):
            arrays, load_s = [], []
            for image in images[start : start + self.batch_size]:
                began = time.perf_counter()
                arrays.append(load_picture(image))
                load_s.append(time.perf_counter() - began)
            encoded, encode_s = self.encode(arrays)
            items = [
                (
                    item,
                    find_prompts(item.captured, item.size_hw, item.grid_extent_hw, [self.config])[0],
                    {"load_s": seconds, "encode_s": encode_s},
                )
                for item, seconds in zip(encoded, load_s, strict=True)
            ]
            labelled += [finish(image, self.config.merge, self.config.filter) for image in self.decode(items)]
        return labelled

    def encode(
        self, arrays: Sequence[np.ndarray], heads: Sequence[Head] | None = None
    ) -> tuple[list[EncodedImage], float]:
        """Encode (H, W, 3) uint8 pictures as one batch; also return the seconds for each of them.

        Args:
            arrays: the pictures.
            heads: what to capture, `self.heads` by default.
        """
        start = time.perf_counter()
        encoded = self.model.encode(arrays, self.heads if heads is None else heads)
        self._wait()
        return encoded, (time.perf_counter() - start) / max(1, len(arrays))

    def decode(self, items: Sequence[tuple[EncodedImage, FoundPrompts, dict[str, float]]]) -> list[ImageCandidates]:
        """Decode every prompt of several pictures and keep the candidates that pass the score thresholds.

        Prompts of several pictures share the decoder's calls.

        Args:
            items: for each picture its encoding, its prompts, and the seconds of the steps before, carried along.
        """
        candidates: list[list[Mask]] = [[] for _ in items]
        step_s = [{**before, **found.step_s, "decode_s": 0.0, "select_s": 0.0} for _, found, before in items]
        for call in _pack([found.prompts.point_coords for _, found, _ in items], PROMPTS_AT_ONCE):
            began = time.perf_counter()
            decoded = self.model.decode([(items[index][0], points) for index, points in call])
            self._wait()
            prompt_s = (time.perf_counter() - began) / sum(len(points) for _, points in call)
            for (index, points), masks in zip(call, decoded, strict=True):
                began = time.perf_counter()
                candidates[index] += self._select(masks, points, items[index][0].size_hw)
                step_s[index]["decode_s"] += prompt_s * len(points)
                step_s[index]["select_s"] += time.perf_counter() - began
        return [
            ImageCandidates(
                encoded.size_hw,
                found.prompts,
                found.cluster_map,
                tuple(dataclasses.replace(mask, members=(number,)) for number, mask in enumerate(masks)),
                seconds,
            )
            for (encoded, found, _), masks, seconds in zip(items, candidates, step_s, strict=True)
        ]

    def _select(self, decoded: Decoded, points: np.ndarray, size_hw: tuple[int, int]) -> list[Mask]:
        settings = self.config.decode
        assert settings.pred_iou_thresh is not None and settings.stability_score_thresh is not None
        return select_candidates(
            decoded.low_res_logits,
            decoded.predicted_iou,
            points,
            self.model.upsample,
            size_hw=size_hw,
            masks_per_prompt=settings.masks_per_prompt,
            pred_iou_thresh=settings.pred_iou_thresh,
            stability_score_thresh=settings.stability_score_thresh,
            stability_score_offset=settings.stability_score_offset,
            stability_at=settings.stability_at,
        )

    def _wait(self) -> None:
        # CUDA calls return before the work is done; step times would otherwise fall on the wrong step.
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


def load_picture(image: PictureLike) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB from a path or URI, encoded bytes, a PIL image or such an array.

    Raises:
        ImageError: the picture cannot be read; `status` says why.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ImageError("unsupported", f"an array must be (H, W, 3) uint8; got {image.shape} {image.dtype}")
        return image
    if isinstance(image, Image.Image):
        return rgb_array(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_image(bytes(image))
    if isinstance(image, str | Path):
        return decode_image(read_bytes(str(image)))
    raise ImageError("unsupported", f"a picture must be a path, bytes, a PIL image or an array; got {type(image)}")


def _pack(point_coords: Sequence[np.ndarray], size: int) -> list[list[tuple[int, np.ndarray]]]:
    """Split pictures' points into calls of at most `size` prompts, in order: lists of (picture, its points)."""
    calls: list[list[tuple[int, np.ndarray]]] = []
    free = 0
    for index, points in enumerate(point_coords):
        while len(points):
            if not free:
                calls.append([])
                free = size
            calls[-1].append((index, points[:free]))
            points, free = points[free:], free - len(points[:free])
    return calls
