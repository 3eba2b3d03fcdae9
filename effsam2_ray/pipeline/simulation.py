"""Growth by simulation: the driver, the graph and what travels through it, with stubs in place of the work.

Units, messages and their sizes are those of a real job; pictures are bytes of the right number, and masks are copies.
What is left is what the job itself costs: memory of the driver, use of the object store, and the images/s that the
stages can pass on with no work in them.
"""

from __future__ import annotations

import gc
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray._private.internal_api import memory_summary

from effsam2_ray.inputs.cutting import Run, UnitCutter
from effsam2_ray.inputs.reader import ImageRecord
from effsam2_ray.inputs.work_list import ImageRef, WorkList, WorkListWriter, image_uid
from effsam2_ray.masks import Mask
from effsam2_ray.pipeline.cluster import plan_layout
from effsam2_ray.pipeline.graph import Stages, run_graph
from effsam2_ray.pipeline.options import RunOptions
from effsam2_ray.pipeline.payload import ImageOutcome, UnitCandidates, UnitImages, UnitTask, from_table, to_table
from effsam2_ray.prompts import grid_prompts
from effsam2_ray.results import ImageCandidates
from effsam2_ray.rle import Rle

LOOK_S = 0.5
"""Seconds between two looks at memory."""


@dataclass(frozen=True)
class Sizes:
    """How large the things are that travel.

    Attributes:
        image_bytes: one encoded picture.
        num_masks: candidates of one picture.
        mask_bytes: RLE text of one candidate.
        image_timeout_s, run_id: what the graph looks for in settings of segmenters.
    """

    image_bytes: int = 100_000
    num_masks: int = 40
    mask_bytes: int = 400
    image_timeout_s: float | None = None
    run_id: str = "simulation"


@dataclass(frozen=True)
class Growth:
    """What a simulated job took.

    Attributes:
        num_images, num_units: its size.
        list_bytes: of the frozen work list.
        driver_bytes: the most that the driver's memory grew by, from before the list was made.
        driver_run_bytes: the same from when the list was there.
        store_bytes: the most that lay in the object store at once.
        spilled_bytes: written to disk because the store was full.
        run_s: seconds from the first task to the last summary, actors started.
    """

    num_images: int
    num_units: int
    list_bytes: int
    driver_bytes: int
    driver_run_bytes: int
    store_bytes: int
    spilled_bytes: int
    run_s: float


def simulate(num_images: int, sizes: Sizes) -> Growth:
    """Run one simulated job of lone images on the cluster that has been joined."""
    gc.collect()
    start_bytes = _resident_bytes()
    work_list = synthetic_list(num_images)
    tasks = [UnitTask(number, unit_id) for number, unit_id in enumerate(work_list.unit_ids)]
    layout = plan_layout(RunOptions(device="cpu"))
    spilled_before = _store()[1]
    gc.collect()
    listed_bytes = _resident_bytes()
    with _peaks() as peaks:
        stages = Stages(read_stub, SegmenterStub, WriterStub)
        arguments: Any = (sizes, sizes, sizes)  # what the stubs take in place of the real stages' settings
        graph = run_graph(tasks, work_list, layout, *arguments, check_changed=False, stages=stages)
        first = next(graph)
        began = time.monotonic()
        summaries = [first, *graph]  # as the real driver does
        run_s = time.monotonic() - began
    assert sum(summary["images"] for summary in summaries) == num_images
    done = num_images - first["images"]
    return Growth(
        num_images,
        len(work_list),
        len(work_list.to_bytes()),
        max(peaks["driver"], _resident_bytes()) - start_bytes,
        max(peaks["driver"], _resident_bytes()) - listed_bytes,
        peaks["store"],
        max(peaks["spilled"], _store()[1]) - spilled_before,
        run_s * num_images / max(1, done),
    )


def table(growths: Sequence[Growth]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| images | units | work list | driver, listing too | driver, run alone | object store | spilled | images/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for growth in growths:
        sizes = (growth.list_bytes, growth.driver_bytes, growth.driver_run_bytes, growth.store_bytes)
        mebibytes = " | ".join(f"{size / 2**20:,.1f} MiB" for size in (*sizes, growth.spilled_bytes))
        rate = growth.num_images / growth.run_s
        lines.append(f"| {growth.num_images:,} | {growth.num_units:,} | {mebibytes} | {rate:,.0f} |")
    return "\n".join(lines)


def synthetic_list(num_images: int) -> WorkList:
    """Return the frozen list of lone images that exist only as names."""
    writer = WorkListWriter()
    cutter = UnitCutter(writer, num_segmenters=1)
    for first in range(0, num_images, 4096):
        uris = [f"s3://bucket/photos/{n // 1000:06d}/{n:09d}.jpg" for n in range(first, min(first + 4096, num_images))]
        cutter.add(
            Run(
                "files",
                [ImageRef(image_uid(uri), uri, size_bytes=100_000, etag=f"{n:032x}") for n, uri in enumerate(uris)],
            )
        )
    cutter.finish()
    return writer.finish(
        {
            "num_images": num_images,
            "num_units": cutter.num_units,
            "size_bytes": cutter.size_bytes,
            "inputs": [],
            "kept_types": [],
        }
    )


def read_stub(units: pa.Table, work_list: ray.ObjectRef, sizes: Sizes, _: bool) -> pa.Table:
    """Stand in for `read_units`: opens the list and gives each image bytes of the right number."""
    opened = WorkList.from_bytes(ray.get(work_list))
    data = random.Random(0).randbytes(sizes.image_bytes)
    tables = []
    for task in from_table(units, UnitTask):
        records = [
            _record(image, data[:-8] + image.image_uid.to_bytes(8, "big", signed=True))
            for image in opened.unit(task.number).images
        ]
        tables.append(to_table(UnitImages(task, records)))
    return pa.concat_tables(tables)


class SegmenterStub:
    """Stands in for `Segmenter`: every image has the same masks."""

    def __init__(self, sizes: Sizes):
        self._sizes = sizes

    async def __call__(self, images: pa.Table) -> Any:
        """Give each image its candidates."""
        for unit in from_table(images, UnitImages):
            outcomes = [ImageOutcome(_record(record, None), _candidates(self._sizes)) for record in unit.records]
            yield to_table(UnitCandidates(unit.task, {0: outcomes}))


class WriterStub:
    """Stands in for `MergeWriter`: counts, and writes nothing."""

    def __init__(self, *_: object):
        pass

    def __call__(self, candidates: pa.Table) -> Iterator[pa.Table]:
        """Tell the driver what a real writer would."""
        for unit in from_table(candidates, UnitCandidates):
            outcomes = unit.outcomes[0]
            summary = {
                "unit": unit.task.unit_id,
                "images": len(outcomes),
                "statuses": dict(Counter(outcome.status for outcome in outcomes)),
                "masks": sum(len(outcome.candidates.candidates) for outcome in outcomes if outcome.candidates),
                "prompts": 0,
                "collapsed": 0,
                "step_s": {},
                "failures": [],
                "run": 0,
            }
            yield pa.table({"summary": [json.dumps(summary)]})


def _record(image: ImageRef | ImageRecord, data: bytes | None) -> ImageRecord:
    size = image.size_bytes
    return ImageRecord(image.image_uid, image.image_uri, None, None, None, None, size, image.etag, {}, data, "ok", None)


def _candidates(sizes: Sizes) -> ImageCandidates:
    counts = random.Random(0).randbytes(sizes.mask_bytes)
    masks = []
    for number in range(sizes.num_masks):
        segmentation = Rle((768, 1024), counts[:-2] + number.to_bytes(2))
        masks.append(
            Mask(segmentation, 5000 + number, (1.0, 2.0, 3.0, 4.0), 0.9, 0.97, ((float(number), 2.0),), (number,))
        )
    step_s = {"encode_s": 0.05, "decode_s": 0.05}
    return ImageCandidates(
        (768, 1024), grid_prompts(7, (768, 1024)), np.zeros((64, 64), np.int16), tuple(masks), step_s
    )


def _resident_bytes() -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10  # type: ignore[index]


def _store() -> tuple[int, int]:
    """Return the bytes in the object store now, and those ever written to disk."""
    text = memory_summary(stats_only=True)
    used = re.search(r"Plasma memory usage (\d+) MiB", text)
    spilled = re.search(r"Spilled (\d+) MiB", text)
    return (int(used[1]) << 20 if used else 0), (int(spilled[1]) << 20 if spilled else 0)


@contextmanager
def _peaks() -> Iterator[dict[str, int]]:
    """Give the largest values that are seen while the body runs."""
    peaks = {"driver": 0, "store": 0, "spilled": 0}
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(LOOK_S):
            used, spilled = _store()
            for name, value in (("driver", _resident_bytes()), ("store", used), ("spilled", spilled)):
                peaks[name] = max(peaks[name], value)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()
