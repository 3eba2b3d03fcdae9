"""Each step of labelling one picture, timed apart, with the work it does."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from effsam2_ray.attention import CapturedHead
from effsam2_ray.benchmark.pictures import Picture
from effsam2_ray.benchmark.timing import PeakMemory, Spread, clock, interleave, peak_memory
from effsam2_ray.candidates import encode_logits
from effsam2_ray.cluster_prompts import attention_trees, cluster_centres, select_clusters
from effsam2_ray.images import decode_image
from effsam2_ray.labeller import FoundPrompts, Labeller
from effsam2_ray.model.interface import EncodedImage
from effsam2_ray.model.sam2 import square
from effsam2_ray.postprocess import finish
from effsam2_ray.prompts import Prompts, random_prompts
from effsam2_ray.results import ImageCandidates, LabelledImage
from effsam2_ray.schema import build_table, result_columns, run_schema


@dataclass(frozen=True)
class Step:
    """One step on one or more pictures.

    Attributes:
        name: what is done.
        seconds: for one picture.
        memory: most in use at once, above what was there before, on the largest picture.
        flops: FLOP of one picture, products only (a multiplication with its addition counts two); None where there
            are none to speak of.
        traffic_bytes: least bytes that one picture makes the step read and write; None where it is bound otherwise.
        in_half: the products are in the model's half type, where it has one.
        note: what the number means, where that is not plain.
    """

    name: str
    seconds: Spread
    memory: PeakMemory | None = None
    flops: float | None = None
    traffic_bytes: float | None = None
    in_half: bool = False
    note: str = ""


@dataclass
class _Timed:
    name: str
    run: Callable[[Any], Any]
    work: Callable[[Any], tuple[float | None, float | None]] = lambda _: (None, None)
    in_half: bool = False
    note: str = ""
    seconds: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    traffic: list[float] = field(default_factory=list)
    memory: PeakMemory | None = None


@dataclass
class _State:
    """One picture on its way; each step leaves its result for the next."""

    picture: Picture
    array: np.ndarray = field(default_factory=lambda: np.empty(0))
    encoded: EncodedImage | None = None
    captured: CapturedHead | None = None
    trees: Any = None
    clusters: Any = None
    prompts: Prompts | None = None
    decoded: Any = None
    candidates: ImageCandidates | None = None
    chosen: torch.Tensor | None = None
    labelled: LabelledImage | None = None


def prompts_of(found: Prompts, count: int | None, size_hw: tuple[int, int]) -> Prompts:
    """Return the prompts as they are, or exactly `count`: the first of them, filled up with random ones.

    What a picture costs depends on its prompts' number alone, so this is how pictures are compared at one number.
    """
    if count is None:
        return found
    extra = random_prompts(max(0, count - len(found)), size_hw, seed=0)
    return Prompts(
        *(
            np.concatenate([getattr(found, name)[:count], getattr(extra, name)])
            for name in ("point_coords", "cluster_size", "persistence")
        )
    )


def measure_steps(
    labeller: Labeller, pictures: Sequence[Picture], rounds: int, num_prompts: int | None = None
) -> list[Step]:
    """Time every step on every picture.

    Args:
        labeller: model and preset; a preset of clusters.
        pictures: at least one; all are gone through once, untimed, first.
        rounds: how often each picture is gone through.
        num_prompts: see `prompts_of`.
    """
    steps = _steps(labeller, num_prompts)
    device = labeller.model.device
    for number in range(rounds + 1):
        for picture in pictures:
            state = _State(picture)
            for step in steps:
                if number == 0:
                    with peak_memory(device) as peak:
                        step.run(state)
                    _count(step, state, peak[0])
                    continue
                start = clock(device)
                own = step.run(state)
                step.seconds.append(own if isinstance(own, float) else clock(device) - start)
    encode, capture = _encoding(labeller, pictures, rounds)
    found = [
        Step(
            step.name,
            Spread.of(step.seconds),
            step.memory,
            float(np.mean(step.flops)) if step.flops else None,
            float(np.mean(step.traffic)) if step.traffic else None,
            step.in_half,
            step.note,
        )
        for step in steps
    ]
    at = next(index for index, step in enumerate(found) if step.name == "encode")
    with_capture = found[at]
    encode_step = Step(
        "encode", encode, with_capture.memory, with_capture.flops, None, True, "without the resizing, timed above"
    )
    capture_step = Step("capture", capture, note="encoding with the head copied out, less encoding without")
    return [*found[:at], encode_step, capture_step, *found[at + 1 :], _parquet(labeller, pictures, rounds, num_prompts)]


def _steps(labeller: Labeller, num_prompts: int | None) -> list[_Timed]:
    model, config = labeller.model, labeller.config
    side, head = model.info.image_size, labeller.heads[0]
    num_points = model.info.grid_size**2
    matrix_bytes = 4.0 * num_points**2
    on_device = model.device.type != "cpu"

    def load(state: _State) -> None:
        state.array = decode_image(state.picture.data)

    def resize(state: _State) -> None:
        square(state.array, side, model.device)

    def encode(state: _State) -> None:
        state.encoded = model.encode([state.array], [head])[0]
        state.captured = state.encoded.captured[head]

    def trees(state: _State) -> float:
        assert state.captured is not None
        state.trees = attention_trees(state.captured, [config.cluster.min_samples], config.cluster.noise_floor)
        return float(state.trees.attention_s)

    def select(state: _State) -> None:
        edges = state.trees.edges[config.cluster.min_samples]
        state.clusters = select_clusters(edges, state.trees.ties_at_once, config.cluster.min_cluster_size)

    def medoids(state: _State) -> None:
        assert state.encoded is not None and state.captured is not None
        extent = state.encoded.grid_extent_hw
        found = cluster_centres(state.trees.rows, state.clusters, state.captured.grid_hw, extent)
        state.prompts = prompts_of(found, num_prompts, state.encoded.size_hw)

    def decode(state: _State) -> None:
        assert state.encoded is not None and state.prompts is not None
        state.decoded = None  # the memory of the result before is not this one's
        state.decoded = model.decode([(state.encoded, state.prompts.point_coords)])[0]

    def choose(state: _State) -> float:
        assert state.encoded is not None and state.prompts is not None
        found = FoundPrompts(state.prompts, None, {})
        state.candidates = labeller.decode([(state.encoded, found, {})])[0]
        state.chosen = _chosen_logits(labeller, state.decoded, len(state.candidates.candidates))
        return float(state.candidates.step_s["select_s"])

    def rle(state: _State) -> float:
        """Encode the masks again, a few at a time, and time that alone."""
        assert state.chosen is not None and state.encoded is not None
        height, width = state.encoded.size_hw
        at_once = max(1, (16 << 20) // (4 * height * width))
        seconds = 0.0
        for start in range(0, len(state.chosen), at_once):
            full = model.upsample(state.chosen[start : start + at_once].float(), (height, width))
            began = clock(model.device)
            encode_logits(full)
            seconds += clock(model.device) - began
        return seconds

    def merge(state: _State) -> None:
        assert state.candidates is not None
        state.labelled = finish(state.candidates, config.merge, config.filter)

    def masks_work(bytes_a_pixel: float) -> Callable[[_State], tuple[None, float]]:
        def work(state: _State) -> tuple[None, float]:
            assert state.chosen is not None
            height, width = state.picture.size_hw
            return None, bytes_a_pixel * len(state.chosen) * height * width

        return work

    head_dim = model.info.head_dim
    # On a CPU one triangle is computed and mirrored.
    distance_flops = (2.0 if on_device else 1.0) * num_points**3
    return [
        _Timed("decode picture", load),
        _Timed("resize", resize, lambda s: (None, 3.0 * s.array.shape[0] * s.array.shape[1] + 12.0 * side**2)),
        _Timed("encode", encode, lambda s: (_flops(lambda: encode(s)), None), in_half=True),
        _Timed("attention", trees, lambda _: (2.0 * num_points**2 * head_dim, 2 * matrix_bytes)),
        _Timed("distances", lambda s: float(s.trees.distances_s), lambda _: (distance_flops, None)),
        _Timed(
            "spanning tree",
            lambda s: float(sum(s.trees.tree_s.values())),
            lambda _: (None, 2 * matrix_bytes),
            note="core distances included",
        ),
        _Timed("tree + select", select, note="on one CPU core"),
        _Timed("medoids", medoids, lambda _: (None, matrix_bytes)),
        _Timed("prompt decode", decode, lambda s: (_flops(lambda: decode(s)), None), in_half=True),
        _Timed("select + upsample", choose, masks_work(12.0), note="with the runs of the masks, which come next"),
        _Timed("candidate RLE", rle, masks_work(5.0), note="part of the step above"),
        _Timed("merge", merge, note="and filter"),
    ]


def _chosen_logits(labeller: Labeller, decoded: Any, count: int) -> torch.Tensor:
    """Return `count` masks at the decoder's size: those of the highest predicted IoU."""
    best = decoded.predicted_iou.max(dim=1)
    order = best.values.argsort(descending=True)[:count]
    chosen: torch.Tensor = decoded.low_res_logits[order, best.indices[order]]
    return chosen


def _encoding(labeller: Labeller, pictures: Sequence[Picture], rounds: int) -> tuple[Spread, Spread]:
    """Return seconds of encoding alone, resizing taken off, and of the capture on top."""
    model, head = labeller.model, labeller.heads[0]
    encode_s, capture_s = [], []
    for picture in pictures:
        functions: dict[str, Callable[[], Any]] = {
            "resize": partial(square, picture.array, model.info.image_size, model.device),
            "plain": partial(model.encode, [picture.array], []),
            "capture": partial(model.encode, [picture.array], [head]),
        }
        taken = interleave(functions, rounds, device=str(model.device))
        encode_s += [plain - resize for plain, resize in zip(taken["plain"], taken["resize"], strict=True)]
        capture_s += [with_head - plain for with_head, plain in zip(taken["capture"], taken["plain"], strict=True)]
    return Spread.of(encode_s), Spread.of(capture_s)


def _parquet(labeller: Labeller, pictures: Sequence[Picture], rounds: int, num_prompts: int | None) -> Step:
    """Time rows and file of one unit that holds all the pictures, for one of them."""
    labelled = [label_picture(labeller, picture, num_prompts) for picture in pictures]
    schema = run_schema({}, keep_candidates=False)

    def write() -> None:
        table = build_table([result_columns(image, keep_candidates=False) for image in labelled], schema)
        pq.write_table(table, io.BytesIO(), compression="zstd")

    write()
    taken = interleave({"": write}, rounds)[""]
    return Step("Parquet", Spread.of([seconds / len(labelled) for seconds in taken]), note="rows and file, no network")


def label_picture(labeller: Labeller, picture: Picture, num_prompts: int | None = None) -> LabelledImage:
    """Return the masks of one picture from its bytes, with its own prompts or with exactly `num_prompts`."""
    if num_prompts is None:
        return labeller.label(picture.data)
    encoded = labeller.encode([decode_image(picture.data)])[0][0]
    captured, cluster = encoded.captured[labeller.heads[0]], labeller.config.cluster
    trees = attention_trees(captured, [cluster.min_samples], cluster.noise_floor)
    clusters = select_clusters(trees.edges[cluster.min_samples], trees.ties_at_once, cluster.min_cluster_size)
    found = cluster_centres(trees.rows, clusters, captured.grid_hw, encoded.grid_extent_hw)
    prompts = prompts_of(found, num_prompts, encoded.size_hw)
    candidates = labeller.decode([(encoded, FoundPrompts(prompts, None, {}), {})])[0]
    return finish(candidates, labeller.config.merge, labeller.config.filter)


def _count(step: _Timed, state: _State, memory: PeakMemory) -> None:
    flops, traffic = step.work(state)
    if flops is not None:
        step.flops.append(flops)
    if traffic is not None:
        step.traffic.append(traffic)
    if step.memory is None or memory.host_bytes > step.memory.host_bytes:
        step.memory = memory


class _Products(TorchDispatchMode):
    """Counts the FLOP of the products that run inside; torch's own counter wants modules that train."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:  # not in torch's table
            (batch, heads, queries, dim), keys, values = args[0].shape, args[1].shape[-2], args[2].shape[-1]
            self.flops += 2.0 * batch * heads * queries * keys * (dim + values)
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        return out


def _flops(run: Callable[[], None]) -> float:
    """Return the FLOP of the products in `run`."""
    with _Products() as products:
        run()
    return products.flops
