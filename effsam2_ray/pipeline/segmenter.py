"""The segmenter: an async actor that holds the weights and takes units from encoded bytes to candidates.

All device work runs in one thread; pictures are decoded in others; the event loop only waits. A few batches are in
flight at once, so that the device encodes and decodes some pictures while others are being clustered.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import torch

from effsam2_ray.attention import CapturedHead
from effsam2_ray.cluster_prompts import AttentionTrees, attention_trees, cluster_centres
from effsam2_ray.clustering import Clusters
from effsam2_ray.config import Config
from effsam2_ray.errors import EffSam2Error, ImageError, WeightsError
from effsam2_ray.images import decode_image
from effsam2_ray.inputs.reader import ImageRecord
from effsam2_ray.labeller import FoundPrompts, Labeller, find_prompts, heads_of, same_candidates, same_distances
from effsam2_ray.model.compiled import compile_model, encode_as_given
from effsam2_ray.model.interface import EncodedImage
from effsam2_ray.model.weights import load_model
from effsam2_ray.numerics import in_safe_dtype
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline.attempts import VERDICTS, Attempt, attempt_log
from effsam2_ray.pipeline.cluster_actor import ClusterPool
from effsam2_ray.pipeline.observability import SegmenterMetrics
from effsam2_ray.pipeline.payload import ImageOutcome, UnitCandidates, UnitImages, from_table, to_table
from effsam2_ray.pipeline.watchdog import Watchdog
from effsam2_ray.prompts import grid_prompts
from effsam2_ray.results import ImageCandidates
from effsam2_ray.uris import redact_text

OOM_TRIES = 3
"""How often one picture alone is tried when the device is out of memory."""

T = TypeVar("T")


@dataclass(frozen=True)
class SegmenterSpec:
    """What a segmenter needs to start; small and picklable.

    Attributes:
        weights: name, path or URI of the weights.
        model_config: YAML of a fine-tuned model, or None.
        configs: the resolved configuration of each run.
        device: `cpu` or `cuda`.
        dtype: `float32`, `bfloat16` or `float16`.
        batch_size: pictures that the encoder sees at once.
        compiled: whether compiled code runs.
        num_cluster_actors: clustering actors of this segmenter; 0 clusters in its own process.
        image_timeout_s: seconds that one step of one image may take, or None.
        output: where attempt records go; the first run's folder.
        weights_sha256: digest of the file that the job was started with.
        run_id: names this call of the job among all that ever wrote to the output.
    """

    weights: str
    model_config: str | None
    configs: tuple[Config, ...]
    device: str
    dtype: str
    batch_size: int
    compiled: bool
    num_cluster_actors: int
    image_timeout_s: float | None
    output: OutputFolder
    weights_sha256: str
    run_id: str


@dataclass(frozen=True)
class _Picture:
    array: np.ndarray
    load_s: float


class Segmenter:
    """Callable for Ray Data: a row with a unit's images in, a row with its candidates out."""

    def __init__(self, spec: SegmenterSpec):
        if spec.device == "cpu":
            torch.set_num_threads(1)
        self._spec = spec
        model = load_model(spec.weights, model_config=spec.model_config, device=spec.device, dtype=spec.dtype)
        model, check = in_safe_dtype(model)
        if spec.compiled:
            compile_model(model, spec.batch_size)
        self._warning = "" if check is None or check.passed else str(check)
        self._labellers = [Labeller(model, config, batch_size=spec.batch_size) for config in spec.configs]
        self._leads = same_candidates(spec.configs)
        info = model.info
        if info.weights_sha256 != spec.weights_sha256:
            raise WeightsError(
                f"the weights {redact_text(spec.weights)} on this node are another file (sha256 "
                f"{info.weights_sha256[:12]}) than where the job was started ({spec.weights_sha256[:12]})"
            )
        self._warm_up()
        clusters = spec.num_cluster_actors if heads_of(spec.configs) else 0
        self._clusters = ClusterPool(clusters, spec.image_timeout_s) if clusters else None
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._loaders = ThreadPoolExecutor(1 if spec.device == "cpu" else 4, thread_name_prefix="load")
        # One batch on the device, one being loaded, and enough pictures with the clustering actors.
        self._batches = 2 + math.ceil(clusters / spec.batch_size)
        self._window = asyncio.Semaphore(self._batches)
        self._alone = asyncio.Lock()
        self._current: Attempt | None = None
        self._log = attempt_log(spec.output, spec.run_id)
        self._watchdog = Watchdog(self._convict)
        self._metrics = SegmenterMetrics()

    async def __call__(self, table: pa.Table) -> AsyncIterator[pa.Table]:
        """Label the units in a table's rows."""
        for images in from_table(table, UnitImages):
            yield to_table(await self._label_unit(images))

    async def _label_unit(self, images: UnitImages) -> UnitCandidates:
        attempt = await self._run(self._loaders, self._log.begin, images.task.unit_id)
        known = [_known(record, attempt) for record in images.records]
        todo = [index for index, outcome in enumerate(known) if outcome is None]
        runs = [part.run for part in images.task.parts]
        leads = list(dict.fromkeys(self._leads[run] for run in runs))
        outcomes = {lead: list(known) for lead in leads}

        async def label(indices: Sequence[int]) -> None:
            labelled = await self._label_batch([images.records[index] for index in indices], leads)
            for lead in leads:
                for index, outcome in zip(indices, labelled[lead], strict=True):
                    outcomes[lead][index] = outcome

        with self._metrics.in_flight(len(todo)):
            if attempt.alone:
                await self._label_alone(attempt, images.records, todo, label)
            else:
                size = self._spec.batch_size
                async with asyncio.TaskGroup() as group:
                    for start in range(0, len(todo), size):
                        await self._window.acquire()
                        task = group.create_task(label(todo[start : start + size]))
                        task.add_done_callback(lambda _: self._window.release())
                # Beside others an image may have taken their time: it is tried once more, alone.
                if slow := sorted({i for found in outcomes.values() for i in todo if _may_be_innocent(found[i])}):
                    await self._label_alone(attempt, images.records, slow, label)
                    for found in outcomes.values():
                        for index in slow:
                            found[index] = dataclasses.replace(cast(ImageOutcome, found[index]), attempts=2)
        await self._run(self._loaders, self._log.end, attempt)
        complete = {lead: [outcome for outcome in outcomes[lead] if outcome is not None] for lead in leads}
        return UnitCandidates(images.task, {run: complete[self._leads[run]] for run in runs}, self._warning)

    async def _label_alone(
        self,
        attempt: Attempt,
        records: Sequence[ImageRecord],
        todo: Sequence[int],
        label: Callable[[Sequence[int]], Any],
    ) -> None:
        async with self._alone:
            for _ in range(self._batches):  # nothing else of this process is at work
                await self._window.acquire()
            try:
                self._current = attempt
                for index in todo:
                    attempt.current_uid = records[index].image_uid
                    await self._run(self._loaders, self._log.store, attempt)
                    await label([index])
                attempt.current_uid = None
                await self._run(self._loaders, self._log.store, attempt)
            finally:
                self._current = None
                for _ in range(self._batches):
                    self._window.release()

    async def _label_batch(self, records: Sequence[ImageRecord], leads: Sequence[int]) -> dict[int, list[ImageOutcome]]:
        loaded = await asyncio.gather(*(self._load(record) for record in records))
        pictures = {index: item for index, item in enumerate(loaded) if isinstance(item, _Picture)}
        failed = {index: item for index, item in enumerate(loaded) if isinstance(item, ImageOutcome)}
        segmented = await self._segment([records[index] for index in pictures], list(pictures.values()), leads)
        labelled = {}
        for lead in leads:
            outcomes = failed | dict(zip(pictures, segmented[lead], strict=True))
            labelled[lead] = [outcomes[index] for index in range(len(records))]
        return labelled

    async def _load(self, record: ImageRecord) -> _Picture | ImageOutcome:
        assert record.data is not None
        try:
            return await self._run(self._loaders, self._watched, 1, _decode, record.data)
        except ImageError as error:
            return _failed(record, error.status, str(error), "load")
        except Exception as error:  # the one place where anything becomes a row with a status
            return _failed(record, "failed", f"{type(error).__name__}: {error}", "load")

    async def _segment(
        self,
        records: Sequence[ImageRecord],
        pictures: Sequence[_Picture],
        leads: Sequence[int],
        tries: int = OOM_TRIES,
    ) -> dict[int, list[ImageOutcome]]:
        """Return an outcome for each picture and run; after a failure, run by run, then picture by picture."""
        if not pictures:
            return {lead: [] for lead in leads}
        try:
            found = await self._find_candidates(pictures, leads)
            return {
                lead: [ImageOutcome(_without_data(r), image) for r, image in zip(records, found[lead], strict=True)]
                for lead in leads
            }
        except torch.cuda.OutOfMemoryError as error:
            failure = ("oom", str(error), "segment")
        except TimeoutError as error:
            failure = ("timeout", str(error), "cluster")
        except Exception as error:  # the one place where anything becomes a row with a status
            if is_device_lost(error):
                _end_process(error)
            name = "" if isinstance(error, EffSam2Error) else f"{type(error).__name__}: "
            failure = ("failed", f"{name}{error}", "segment")
        if failure[0] == "oom":  # here, where the error and the tensors of its frames are gone
            encode_as_given(self._labellers[0].model)
            await self._run(self._device_thread, torch.cuda.empty_cache)
        outcomes: dict[int, list[ImageOutcome]] = {}
        if len(leads) > 1:  # what fails with one run's settings must not cost another its row
            for lead in leads:
                outcomes |= await self._segment(records, pictures, [lead])
            return outcomes
        if len(pictures) == 1:
            if failure[0] == "oom" and tries > 1:  # the other batches in flight may have held the memory
                return await self._segment(records, pictures, leads, tries - 1)
            return {lead: [_failed(records[0], *failure)] for lead in leads}
        middle = len(pictures) // 2
        first = await self._segment(records[:middle], pictures[:middle], leads)
        second = await self._segment(records[middle:], pictures[middle:], leads)
        return {lead: first[lead] + second[lead] for lead in leads}

    async def _find_candidates(
        self, pictures: Sequence[_Picture], leads: Sequence[int]
    ) -> dict[int, list[ImageCandidates]]:
        num, arrays = len(pictures), [picture.array for picture in pictures]
        labellers = [self._labellers[lead] for lead in leads]
        configs = [labeller.config for labeller in labellers]
        encoded, encode_s = await self._on_device(num, labellers[0].encode, arrays, heads_of(configs))
        found = await asyncio.gather(*(self._find(item, configs) for item in encoded))
        candidates = {}
        for position, (lead, labeller) in enumerate(zip(leads, labellers, strict=True)):
            items = [
                (item, prompts[position], {"load_s": picture.load_s, "encode_s": encode_s})
                for item, prompts, picture in zip(encoded, found, pictures, strict=True)
            ]
            candidates[lead] = await self._on_device(num, labeller.decode, items)
        return candidates

    async def _find(self, encoded: EncodedImage, configs: Sequence[Config]) -> list[FoundPrompts]:
        captured, size_hw, extent_hw = encoded.captured, encoded.size_hw, encoded.grid_extent_hw
        if self._clusters is None or not captured:
            return await self._on_device(len(configs), find_prompts, captured, size_hw, extent_hw, configs)
        if self._spec.device == "cpu":
            return await self._clusters.find(captured, size_hw, extent_hw, configs)
        # Only tree edges leave the device, and labels come back.
        by_number: dict[int, FoundPrompts] = {}
        for (head, noise_floor), numbers in same_distances(configs).items():
            min_samples = [configs[number].cluster.min_samples for number in numbers]
            trees = await self._on_device(len(numbers), attention_trees, captured[head], min_samples, noise_floor)
            for number in numbers:
                cluster = configs[number].cluster
                start = time.perf_counter()
                clusters = await self._clusters.select(
                    trees.edges[cluster.min_samples], trees.ties_at_once, cluster.min_cluster_size
                )
                tree_select_s = time.perf_counter() - start
                by_number[number] = await self._on_device(
                    1, _prompts_from, trees, clusters, captured[head], encoded, tree_select_s, configs[number]
                )
        rest = [number for number in range(len(configs)) if number not in by_number]
        plain = find_prompts(captured, size_hw, extent_hw, [configs[number] for number in rest])
        by_number |= dict(zip(rest, plain, strict=True))
        return [by_number[number] for number in range(len(configs))]

    def _warm_up(self) -> None:
        """Encode and decode one small picture: what a device does only once must not count as an image's time."""
        labeller = self._labellers[0]
        encoded, _ = labeller.encode([np.full((64, 64, 3), 128, np.uint8)])
        prompts = grid_prompts(1, (64, 64))
        labeller.decode([(encoded[0], FoundPrompts(prompts, None, {}), {})])

    async def _on_device(self, num_images: int, function: Callable[..., T], *args: Any) -> T:
        def work() -> T:
            with self._metrics.busy:
                return self._watched(num_images, function, *args)

        return await self._run(self._device_thread, work)

    def _watched(self, num_images: int, function: Callable[..., T], *args: Any) -> T:
        limit_s = self._spec.image_timeout_s
        with self._watchdog.watch(None if limit_s is None else limit_s * num_images):
            return function(*args)

    @staticmethod
    async def _run(executor: Executor, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, function, *args)

    def _convict(self) -> None:
        if self._current is not None and self._current.convict_current():
            self._log.store(self._current)


def _prompts_from(
    trees: AttentionTrees,
    clusters: Clusters,
    captured: CapturedHead,
    encoded: EncodedImage,
    tree_select_s: float,
    config: Config,
) -> FoundPrompts:
    start = time.perf_counter()
    prompts = cluster_centres(trees.rows, clusters, captured.grid_hw, encoded.grid_extent_hw)
    step_s = {
        "attention_s": trees.attention_s,
        "distances_s": trees.distances_s,
        "spanning_tree_s": trees.tree_s[config.cluster.min_samples],
        "tree_select_s": tree_select_s,
        "medoids_s": time.perf_counter() - start,
    }
    return FoundPrompts(prompts, clusters.labels.reshape(captured.grid_hw).astype(np.int16), step_s)


def is_device_lost(error: BaseException) -> bool:
    """Return whether a device error leaves every later call of this process to fail, whatever image it is for."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return False
    lost = getattr(torch, "AcceleratorError", ())
    return isinstance(error, lost) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def _end_process(error: BaseException) -> None:
    """End this actor's process: its units are redone by another, and only what kills again and again is blamed."""
    print(f"segmenter ends, its device is lost: {redact_text(str(error))}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def _may_be_innocent(outcome: ImageOutcome | None) -> bool:
    """Return whether an image timed out beside others, which may have taken its time."""
    return outcome is not None and (outcome.status, outcome.step) == ("timeout", "cluster")


def _decode(data: bytes) -> _Picture:
    start = time.perf_counter()
    return _Picture(decode_image(data), time.perf_counter() - start)


def _known(record: ImageRecord, attempt: Attempt) -> ImageOutcome | None:
    """Return the outcome of an image that could not be read or was convicted before, else None."""
    if record.status != "ok":
        return _failed(record, record.status, record.error or "", "read")
    verdict = attempt.verdict(record.image_uid)
    if verdict is None:
        return None
    outcome = _failed(record, verdict, VERDICTS[verdict], "segment")
    return dataclasses.replace(outcome, attempts=attempt.tries(record.image_uid))


def _failed(record: ImageRecord, status: str, error: str, step: str) -> ImageOutcome:
    return ImageOutcome(_without_data(record), None, status, redact_text(error), step)


def _without_data(record: ImageRecord) -> ImageRecord:
    return dataclasses.replace(record, data=None)
