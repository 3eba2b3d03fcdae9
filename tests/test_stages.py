"""Parts of the pipeline that need no cluster: the division of CPUs, options, failures of a stage, the writer's rows."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image
from ray.data.exceptions import SystemException

from effsam2_ray import Config, rle
from effsam2_ray.commands.arguments import storage_options
from effsam2_ray.demo.train import DEMO_CONFIG
from effsam2_ray.errors import ConfigError, OutputError, StoppedError, TooManyFailuresError, WeightsError
from effsam2_ray.inputs.reader import ImageRecord
from effsam2_ray.masks import Mask
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline import segmenter as segmenter_module
from effsam2_ray.pipeline.attempts import Attempt, AttemptLog
from effsam2_ray.pipeline.cluster import divide
from effsam2_ray.pipeline.graph import stage_error
from effsam2_ray.pipeline.options import RunOptions
from effsam2_ray.pipeline.payload import ImageOutcome, PartTask, UnitCandidates, UnitImages, UnitTask, to_table
from effsam2_ray.pipeline.runs import FailureCount, config_sha256
from effsam2_ray.pipeline.segmenter import OOM_TRIES, Segmenter, SegmenterSpec, is_device_lost
from effsam2_ray.pipeline.writer import MergeWriter, WriterSpec
from effsam2_ray.prompts import grid_prompts
from effsam2_ray.results import ImageCandidates
from effsam2_ray.schema import run_schema


@pytest.mark.parametrize("cpus", [1, 2, 4, 16])
@pytest.mark.parametrize("num_segmenters", [None, (1, 1), (2, 2), (1, 8)])
def test_segmenters_leave_cpus_for_reading_and_writing(cpus, num_segmenters):
    if num_segmenters == (2, 2) and cpus == 1:
        layout = divide(RunOptions(num_segmenters=num_segmenters), [{"CPU": 1.0}])
        assert layout.segmenter_cpus == 0.25
    layout = divide(RunOptions(num_segmenters=num_segmenters), [{"CPU": float(cpus)}])
    assert layout.segmenters[0] * layout.segmenter_cpus + 0.5 <= cpus


def test_two_cpus_hold_one_segmenter():
    layout = divide(RunOptions(), [{"CPU": 2.0}])
    assert (layout.device, layout.segmenters, layout.segmenter_cpus) == ("cpu", (1, 1), 1.5)


def test_a_segmenter_fits_on_one_of_many_small_gpu_nodes():
    layout = divide(RunOptions(), [{"CPU": 4.0, "GPU": 1.0}] * 10 + [{"CPU": 64.0}])
    assert (layout.device, layout.segmenters) == ("cuda", (1, 10))
    assert layout.segmenter_cpus == 3.5


def test_nodes_that_have_yet_to_join_bring_their_own_cpus():
    layout = divide(RunOptions(num_gpus=1, num_segmenters=(8, 32)), [{"CPU": 4.0}])
    assert layout.segmenter_cpus == 5.0 and layout.device == "cuda"


def test_more_segmenters_than_cpus_are_refused():
    with pytest.raises(ConfigError, match="16 segmenters at least.*more than the 2 CPUs.*lower --num-segmenters"):
        divide(RunOptions(num_segmenters=(16, 16)), [{"CPU": 2.0}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N; got 'gpu'"),
        ({"num_gpus": 1.5}, "num_gpus above 1 must be a whole number; got 1.5"),
        ({"num_gpus": float("nan")}, "num_gpus must be 0 or more; got nan"),
        ({"image_timeout_s": float("nan")}, "image_timeout must be more than 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more; got 0"),
        ({"num_segmenters": (3, 2)}, "1 <= LOW <= HIGH; got 3:2"),
        ({"max_failures": "some"}, "a number of images or a percentage"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        RunOptions(**options)


def test_storage_options_keep_keys_of_digits_as_text():
    assert storage_options(["key=0123456", "secret=!x", "anon=true", 'client_kwargs={"region_name": "r"}']) == {
        "key": "0123456",
        "secret": "!x",
        "anon": True,
        "client_kwargs": {"region_name": "r"},
    }
    with pytest.raises(ConfigError, match="must be JSON"):
        storage_options(["client_kwargs={"])


def test_the_reason_of_a_dead_actor_is_told():
    error = ray.exceptions.RaySystemError("the actor died of a full disk")
    error.__cause__ = SystemException()
    told = stage_error(error)
    assert isinstance(told, StoppedError) and "died of a full disk" in str(told)


def test_a_worker_without_weights_is_no_reason_to_try_again():
    outer = ray.exceptions.RayError("outer")
    outer.__cause__ = WeightsError("no such file: large.pt")
    told = stage_error(outer)
    assert isinstance(told, WeightsError) and "no such file: large.pt" in str(told)


def outcome(uid: int, *sizes: tuple[int, int]) -> ImageOutcome:
    masks = []
    for index, size in enumerate(sizes):
        segmentation = rle.encode(np.ones((1, *size), bool))[0]
        masks.append(Mask(segmentation, size[0] * size[1], (0.0, 0.0, 8.0, 8.0), 0.9, 0.9, ((1.0, 1.0),), (index,)))
    record = ImageRecord(uid, f"file:///{uid}.png", None, None, None, None, 1, None, {}, None, "ok", None)
    return ImageOutcome(record, ImageCandidates((8, 8), grid_prompts(1, (8, 8)), None, tuple(masks), {}))


def test_an_image_that_cannot_be_merged_costs_no_other(tmp_path, monkeypatch):
    log = AttemptLog(OutputFolder(str(tmp_path)), {"node": "n", "job": "j"}, lambda place: False)
    monkeypatch.setattr("effsam2_ray.pipeline.writer.attempt_log", lambda output, run_id: log)
    output = OutputFolder(str(tmp_path))
    schema = run_schema({}, keep_candidates=False)
    writer = MergeWriter([WriterSpec(output, schema, Config(), "demo", False)], None, "j")
    # Masks of two sizes in one picture break the contract of merging.
    outcomes = [outcome(1, (8, 8)), outcome(2, (8, 8), (4, 16)), outcome(3, (8, 8))]
    table = next(writer(to_table(UnitCandidates(UnitTask(0, "u"), {0: outcomes}, "bfloat16 is not used"))))
    summary = json.loads(table["summary"][0].as_py())
    rows = output.read_part("u").to_pylist()
    assert [(row["image_uid"], row["status"], len(row["masks"])) for row in rows] == [
        (1, "ok", 1),
        (2, "failed", 0),
        (3, "ok", 1),
    ]
    assert summary["statuses"] == {"ok": 2, "failed": 1} and summary["warning"] == "bfloat16 is not used"
    assert [(f["image_uid"], f["step"]) for f in summary["failures"]] == [(2, "merge")] and rows[1]["error"]


def _summary(*statuses: str) -> dict:
    return {"failures": [{"image_uri": f"{n}.jpg", "status": s, "error": "why"} for n, s in enumerate(statuses)]}


def test_failures_are_counted_over_units_with_the_first_shown():
    count = FailureCount(limit=6)
    count.add(_summary("corrupt", "missing"))
    count.add(_summary("corrupt", "corrupt", "oom", "oom"))
    with pytest.raises(TooManyFailuresError) as caught:
        count.add(_summary("timeout"))
    text = str(caught.value)
    assert text.startswith("7 images failed, more than --max-failures allows: 3 corrupt, 2 oom, 1 missing, 1 timeout")
    assert text.count(".jpg") == 5 and "timeout (why)" not in text


def test_a_damaged_part_is_named(tmp_path):
    output = OutputFolder(str(tmp_path))
    (tmp_path / "part-a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(OutputError, match="part-a.parquet is damaged.*remove it and run the job again"):
        output.read_unit_summary("a")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "part-b.parquet")
    with pytest.raises(OutputError, match="part-b.parquet is damaged, or no part of this tool's"):
        output.read_unit_summary("b")


def test_a_model_configuration_counts_by_its_content(tmp_path):
    text = DEMO_CONFIG.read_text()
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text("# a remark\n" + text)
    (tmp_path / "c.yaml").write_text(text.replace("decoder_num_heads: 4", "decoder_num_heads: 8"))
    a, b, c = (config_sha256(str(tmp_path / f"{name}.yaml")) for name in "abc")
    assert a == b != c and config_sha256(None) == ""


HANG = """
import ctypes, sys, time
from effsam2_ray.pipeline import watchdog
watchdog.GRACE_S = 5.0
dog = watchdog.Watchdog(lambda: print("convicted", flush=True))
with dog.watch(5.0):
    time.sleep(2.0)
with dog.watch(3.0):
    {call}
print("survived")
"""


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        ("time.sleep(60)", -9, "convicted\n"),  # lets go of Python's lock
        ("ctypes.PyDLL(None).sleep(60)", 1, ""),  # holds it: no Python thread runs any more
        ("time.sleep(0.1)", 0, "survived\n"),
    ],
)
def test_the_watchdog_ends_every_kind_of_hang(call, code, said):
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HANG.format(call=call)], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (code, said), done.stderr
    assert time.monotonic() - start < 30


def test_another_weights_file_on_a_node_is_refused(tmp_path):
    spec = SegmenterSpec(
        weights="demo",
        model_config=None,
        configs=(Config(),),
        device="cpu",
        dtype="float32",
        compiled=False,
        batch_size=1,
        num_cluster_actors=0,
        image_timeout_s=None,
        output=OutputFolder(str(tmp_path)),
        weights_sha256="0" * 64,
        run_id="run",
    )
    with pytest.raises(WeightsError, match="demo on this node are another file.*job was started .000000000000"):
        Segmenter(spec)


def bare_segmenter(labeller: object, **changes: object) -> Segmenter:
    """Return a segmenter with another labeller, no model and no Ray."""
    segmenter = Segmenter.__new__(Segmenter)
    segmenter._spec = SimpleNamespace(image_timeout_s=None, batch_size=1, device="cpu")
    segmenter._labellers, segmenter._leads, segmenter._clusters = [labeller], [0], None
    segmenter._device_thread, segmenter._loaders = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    segmenter._metrics = SimpleNamespace(busy=nullcontext(), in_flight=lambda _: nullcontext())
    segmenter._watchdog = SimpleNamespace(watch=lambda _: nullcontext())
    segmenter._log = SimpleNamespace(begin=lambda u: Attempt(u, {}), end=lambda _: None, store=lambda _: None)
    segmenter._warning = ""
    for name, value in changes.items():
        setattr(segmenter, name, value)
    return segmenter


def label_six(segmenter: Segmenter) -> list[ImageOutcome]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    records = [dataclasses.replace(outcome(uid, (8, 8)).record, data=buffer.getvalue()) for uid in range(6)]

    async def label() -> list[ImageOutcome]:
        segmenter._window, segmenter._alone, segmenter._batches = asyncio.Semaphore(3), asyncio.Lock(), 3
        found = await segmenter._label_unit(UnitImages(UnitTask(0, "u", (PartTask(0),)), records))
        return found.outcomes[0]

    return asyncio.run(label())


class FakeLabeller:
    """Encodes nothing and decodes to no candidates."""

    config = Config()
    model = None

    def encode(self, arrays, heads):
        encoded = SimpleNamespace(captured={(0, 0): None}, size_hw=(8, 8), grid_extent_hw=(8, 8))
        return [encoded for _ in arrays], 0.0

    def decode(self, items):
        return [outcome(0, (8, 8)).candidates for _ in items]


@pytest.mark.parametrize(("slow_calls", "status", "attempts"), [({3}, "ok", 2), ({3, 7}, "timeout", 2)])
def test_who_is_slow_in_clustering_beside_others_is_tried_once_more_alone(slow_calls, status, attempts):
    class Pool:
        calls = 0

        async def find(self, *args):
            self.calls += 1
            if self.calls in slow_calls:
                raise TimeoutError("clustering took more than 5 s")
            return [None]

    found = label_six(bare_segmenter(FakeLabeller(), _clusters=Pool()))
    expected = [("ok", 1)] * 6
    expected[2] = (status, attempts)
    assert [(each.status, each.attempts) for each in found] == expected


def test_a_lost_device_ends_the_process_and_blames_no_image(monkeypatch):
    class LostDevice(FakeLabeller):
        def encode(self, arrays, heads):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    class Ended(BaseException):
        pass

    def end(error: BaseException) -> None:
        raise Ended

    monkeypatch.setattr(segmenter_module, "_end_process", end)
    with pytest.raises(BaseException) as raised:
        label_six(bare_segmenter(LostDevice()))
    assert raised.group_contains(Ended) if isinstance(raised.value, BaseExceptionGroup) else raised.type is Ended


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("shape mismatch"), False),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), False),
        (ValueError("CUDA error"), False),
    ],
)
def test_which_errors_are_a_lost_device(error: Exception, lost: bool):
    assert is_device_lost(error) == lost


def test_out_of_memory_halves_the_batch_and_gives_up_one_image_alone():
    """Image 2 never fits; the others fit alone or in pairs."""
    segmenter = bare_segmenter(SimpleNamespace(model=None))
    calls: list[list[int]] = []

    async def find(uids: list[int], leads: list[int]) -> dict[int, list[ImageCandidates]]:
        calls.append(uids)
        if len(uids) > 2 or 2 in uids:
            raise torch.cuda.OutOfMemoryError("the device is full, see s3://user:secret@bucket/x")
        return {0: [outcome(uid, (8, 8)).candidates for uid in uids]}

    segmenter._find_candidates = find
    records = [outcome(uid, (8, 8)).record for uid in range(4)]
    found = asyncio.run(segmenter._segment(records, list(range(4)), [0]))[0]
    assert [(o.record.image_uid, o.status, o.candidates is None) for o in found] == [
        (0, "ok", False),
        (1, "ok", False),
        (2, "oom", True),
        (3, "ok", False),
    ]
    assert calls == [[0, 1, 2, 3], [0, 1], [2, 3], *[[2]] * OOM_TRIES, [3]]
    assert "the device is full" in found[2].error and "secret" not in found[2].error
