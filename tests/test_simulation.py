"""The simulated job: its list, its stubs, and that the whole of it runs on two CPUs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pyarrow as pa
import pytest
import ray

from effsam2_ray.pipeline.payload import UnitCandidates, UnitImages, UnitTask, from_table, to_table
from effsam2_ray.pipeline.simulation import (
    Growth,
    SegmenterStub,
    Sizes,
    WriterStub,
    read_stub,
    simulate,
    synthetic_list,
    table,
)

SMALL = Sizes(image_bytes=1000, num_masks=3, mask_bytes=100)


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield
    ray.shutdown()


def test_the_list_has_units_as_a_real_one():
    work_list = synthetic_list(5000)
    assert work_list.unit_num_images == (512,) * 9 + (392,)
    assert len({image.image_uid for unit in work_list.units() for image in unit.images}) == 5000


def test_stubs_pass_on_messages_of_the_right_size(two_cpus):
    work_list = synthetic_list(1000)
    task = UnitTask(1, work_list.unit_ids[1])
    read = read_stub(to_table(task), ray.put(work_list.to_bytes()), SMALL, False)
    (images,) = from_table(read, UnitImages)
    assert images.task == task and [len(record.data) for record in images.records] == [1000] * 250
    assert read.nbytes > 250 * 1000

    async def segment() -> list[pa.Table]:
        return [out async for out in SegmenterStub(SMALL)(read)]

    (segmented,) = asyncio.run(segment())
    (candidates,) = from_table(segmented, UnitCandidates)
    cluster_map_bytes = 64 * 64 * 2
    assert len(candidates.outcomes[0]) == 250
    assert 250 * (cluster_map_bytes + 3 * 100) < segmented.nbytes < 250 * (cluster_map_bytes + 3 * 400 + 1000)
    (written,) = WriterStub()(segmented)
    assert '"images": 250' in written["summary"][0].as_py() and '"masks": 750' in written["summary"][0].as_py()


def test_a_small_job_runs_to_its_end(two_cpus):
    growth = simulate(3000, SMALL)
    assert (growth.num_images, growth.num_units) == (3000, 6)
    assert growth.run_s > 0 and growth.spilled_bytes == 0
    assert max(growth.driver_run_bytes, growth.driver_bytes) < 500 << 20


def test_the_table():
    growth = Growth(10_000, 20, 2 << 20, 30 << 20, 20 << 20, 100 << 20, 0, 4.0)
    assert table([growth]).splitlines()[-1] == (
        "| 10,000 | 20 | 2.0 MiB | 30.0 MiB | 20.0 MiB | 100.0 MiB | 0.0 MiB | 2,500 |"
    )
