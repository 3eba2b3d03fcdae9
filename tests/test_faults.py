"""Real kills: of the segmenter, of the driver, and of whoever touches one picture. Every image still gets one row.

`make soak` runs the same with input and output on an S3 server.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from label_process import GRID, actors, finish, kill_all, start, wait_for
from object_store import FaultProxy, ObjectStore, s3, s3_endpoint  # noqa: F401  fixtures
from PIL import Image
from ray.cluster_utils import Cluster

from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.output import OutputFolder
from effsam2_ray.storage import exists, list_dir

NUM_PICTURES = 12
UNIT_IMAGES = NUM_PICTURES // 4  # one segmenter gets four units
RARER_FAULTS = ("503", "lost", "stall", "killed")
# Not 127.0.0.1: who joins that is sent to the machine's outward address.
LOOPBACK = {"node_ip_address": "127.0.0.2", "include_dashboard": False}


@dataclass
class Place:
    """Where a job under test reads and writes: a disk, or an S3 server over a real socket."""

    inputs: str
    output: str
    options: dict[str, Any] | None = None
    arguments: list[str] = field(default_factory=lambda: list(GRID))

    def start(self, *more: str, **faults: Any) -> subprocess.Popen[str]:
        options = [
            text for name, value in (self.options or {}).items() for text in ("--storage-option", f"{name}={value}")
        ]
        return start([self.inputs], self.output, *self.arguments, *options, *more, **faults)

    @property
    def folder(self) -> OutputFolder:
        return OutputFolder(self.output, self.options)

    def parts(self) -> set[str]:
        return self.folder.finished_units()

    def has(self, name: str) -> bool:
        """Return whether there is a file under `_meta/`."""
        return exists(self.folder.meta_uri(name), self.options)

    def is_at_work(self) -> bool:
        """Return whether a segmenter has begun a unit and not ended it."""
        return bool(list_dir(self.folder.meta_uri("attempts"), self.options))

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the rows by the picture's name, without what depends on the place; no image may have two."""
        rows = [row for unit in self.parts() for row in self.folder.read_part(unit).to_pylist()]
        assert len({row["image_uid"] for row in rows}) == len(rows), "an image has two rows"
        place = dict.fromkeys(("image_uid", "image_uri", "etag", "step_s"))
        return {Path(row["image_uri"]).name: {**row, **place} for row in rows}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(NUM_PICTURES):
        Image.fromarray(draw_scene(seed, (96, 128)).image).save(folder / f"{seed:02d}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory) -> dict[str, dict[str, Any]]:
    place = Place(str(pictures), str(tmp_path_factory.mktemp("undisturbed") / "out"))
    code, output = finish(place.start())
    assert code == 0, output
    rows = place.rows()
    assert len(rows) == NUM_PICTURES and sum(len(row["masks"]) for row in rows.values()) > NUM_PICTURES
    return rows


@pytest.fixture(params=["disk", pytest.param("S3", marks=pytest.mark.soak)])
def place(request, pictures, tmp_path) -> Iterator[Place]:
    if request.param == "disk":
        yield Place(str(pictures), str(tmp_path / "out"))
        return
    store: ObjectStore = request.getfixturevalue("s3")
    for path in pictures.iterdir():
        store.put(f"in/{path.name}", path.read_bytes())
    yield Place(f"{store.root}/in", f"{store.root}/out", store.options)


@pytest.mark.parametrize(("name", "times"), [("Segmenter", 3), ("MergeWriter", 2)])
def test_killed_actors_cost_no_image(place, undisturbed, name, times):
    process = place.start()
    killed: set[int] = set()
    for _ in range(times):
        wait_for(lambda: place.is_at_work() and bool({p.pid for p in actors(process, name)} - killed), process)
        for victim in actors(process, name):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                killed.add(victim.pid)
    code, output = finish(process)
    assert code == 0 and len(killed) >= times, output
    assert place.rows() == undisturbed


def test_a_writer_that_dies_around_its_put_leaves_no_half_part(pictures, undisturbed, tmp_path):
    place = Place(str(pictures), str(tmp_path / "out"))
    process = place.start(faults=tmp_path, names="parts")
    looks = 0
    while process.poll() is None:
        for unit in place.parts():
            assert place.folder.read_unit_summary(unit)["images"] == UNIT_IMAGES
            assert place.folder.read_part(unit).num_rows == UNIT_IMAGES
            looks += 1
    code, output = finish(process)
    assert code == 0 and looks, output
    assert {"built", "half written", "written aside", "put"} <= {path.name for path in tmp_path.iterdir()}
    assert place.rows() == undisturbed


@pytest.mark.soak
def test_killed_clustering_actors_cost_no_image(place, pictures, tmp_path):
    quiet = Place(str(pictures), str(tmp_path / "quiet"), arguments=[])
    code, output = finish(quiet.start())
    assert code == 0, output
    place.arguments = []
    process = place.start()
    killed: set[int] = set()
    for _ in range(2):
        wait_for(lambda: bool({p.pid for p in actors(process, "ClusterActor")} - killed), process)
        for victim in actors(process, "ClusterActor"):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                killed.add(victim.pid)
    code, output = finish(process)
    assert code == 0 and len(killed) >= 2, output
    assert place.rows() == quiet.rows()


def test_a_lost_node_costs_no_image_and_convicts_nobody(place, undisturbed):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **LOOPBACK})
    try:
        node = cluster.add_node(num_cpus=2, num_gpus=1, **LOOPBACK)
        process = place.start("--num-gpus", "1", "--device", "cpu", "--address", cluster.address)
        wait_for(lambda: len(place.parts()) >= 2, process)
        cluster.remove_node(node, allow_graceful=False)
        assert len(place.parts()) < NUM_PICTURES // UNIT_IMAGES
        cluster.add_node(num_cpus=2, num_gpus=1, **LOOPBACK)
        code, output = finish(process)
    finally:
        cluster.shutdown()
    assert code == 0, output
    assert place.rows() == undisturbed


def test_two_drivers_give_the_same_rows_and_the_second_is_warned(place, undisturbed):
    first = place.start()
    wait_for(lambda: place.has("driver.json"), first)
    psutil.Process(first.pid).suspend()  # or it might be done before the second has started
    try:
        second = place.start()
        wait_for(lambda: (place.folder.read_json("driver.json") or {}).get("pid") == second.pid, second)
    finally:
        psutil.Process(first.pid).resume()
    (code_1, output_1), (code_2, output_2) = finish(first), finish(second)
    assert (code_1, code_2) == (0, 0), output_1 + output_2
    assert "another driver" not in output_1 and "Warning: another driver is at work" in output_2
    assert place.rows() == undisturbed and not place.has("driver.json")


@pytest.mark.parametrize("kind", ["cut", *(pytest.param(kind, marks=pytest.mark.soak) for kind in RARER_FAULTS)])
def test_storage_faults_cost_no_image(pictures, undisturbed, s3: ObjectStore, kind):  # noqa: F811
    for path in pictures.iterdir():
        s3.put(f"in/{path.name}", path.read_bytes())
    with FaultProxy(s3.endpoint) as proxy:
        proxy.faults += [["GET", "03.png", kind, 2], ["GET", "07.png", kind, 1], ["PUT", "part-", kind, 3]]
        place = Place(f"{s3.root}/in", f"{s3.root}/out", {**s3.options, "endpoint_url": proxy.endpoint})
        code, output = finish(place.start())
        assert code == 0, output
        # A request that is only slow is not sent again, so there a fault may strike fewer times than it could.
        struck = [times - fault[3] for times, fault in zip([2, 1, 3], proxy.faults, strict=True)]
        assert struck == [2, 1, 3] or (kind == "stall" and min(struck) >= 1)
        assert place.rows() == undisturbed


def test_killed_driver_goes_on_where_it_was(place, undisturbed):
    process = place.start()
    wait_for(lambda: bool(place.parts()), process)
    kill_all(process)
    done = {unit: place.folder.read_part(unit) for unit in place.parts()}
    assert len(done) < NUM_PICTURES // UNIT_IMAGES
    code, output = finish(place.start())
    assert code == 0 and "Resuming" in output, output
    # Seconds are of the first writing: nothing was done again.
    assert {unit: place.folder.read_part(unit) for unit in done} == done
    assert place.rows() == undisturbed


@pytest.mark.parametrize(
    ("number", "is_time"),
    [(signal.SIGTERM, lambda place: place.has("job.json")), (signal.SIGINT, lambda place: bool(place.parts()))],
    ids=["SIGTERM before the first unit", "Ctrl-C between units"],
)
def test_a_signal_ends_with_exit_code_4_and_says_how_to_go_on(place, number, is_time):
    process = place.start()
    wait_for(lambda: is_time(place), process)
    members = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    code, output = finish(process)
    assert code == 4 and "run the same command again to go on" in output, output
    _, alive = psutil.wait_procs(members, timeout=20)
    assert not alive and len(place.parts()) < NUM_PICTURES // UNIT_IMAGES
    for unit in place.parts():
        assert place.folder.read_part(unit).num_rows == UNIT_IMAGES


def test_a_picture_that_kills_or_hangs_its_process_costs_only_itself(pictures, undisturbed, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for path in pictures.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    picture = (folder / "00.png").read_bytes()
    (folder / "killer.png").write_bytes(picture + b"KILLS ITS PROCESS")
    (folder / "sleeper.png").write_bytes(picture + b"HANGS IN A C CALL")
    place = Place(str(folder), str(tmp_path / "out"))
    options = ("--image-timeout", "20", "--num-cluster-actors", "0")
    code, output = finish(place.start(*options, faults=tmp_path, names="pictures"))
    assert code == 0, output
    rows = place.rows()
    assert len(rows) == NUM_PICTURES + 2
    assert (rows["killer.png"]["status"], rows["sleeper.png"]["status"]) == ("crashed", "timeout")
    assert {name: rows[name] for name in undisturbed} == undisturbed
    failures = pq.read_table(tmp_path / "out" / "_meta" / "failures.parquet").to_pylist()
    assert {f["status"] for f in failures} == {"crashed", "timeout"} and np.all([f["attempts"] >= 2 for f in failures])
