"""Clusters that grow and shrink under a job: it waits for nodes, uses those that join, and lets all go at the end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from label_process import GRID, start, wait_for
from PIL import Image
from ray._raylet import GcsClient
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import Cluster
from ray_head import RayHead, free_port, ray_head

from effsam2_ray.demo.scenes import draw_scene

# Not 127.0.0.1: who joins that is sent to the machine's outward address.
HOST = "127.0.0.2"
LOOPBACK = {"node_ip_address": HOST, "include_dashboard": False}
ONE_GPU = ["--num-gpus", "1", "--device", "cpu", "--num-cluster-actors", "0", "--num-segmenters", "1:32"]


def draw(folder: Path, num_pictures: int) -> Path:
    folder.mkdir()
    for number in range(num_pictures):
        Image.fromarray(draw_scene(number % 9, (96, 128)).image).save(folder / f"{number:03d}.png")
    return folder


def one_row_each(out: Path, num_pictures: int) -> bool:
    rows = pq.read_table(out, columns=["image_uri", "status"]).to_pylist()
    return len(rows) == len({row["image_uri"] for row in rows}) == num_pictures and {r["status"] for r in rows} == {
        "ok"
    }


class Output(threading.Thread):
    """What a process prints, line by line, while it runs."""

    def __init__(self, process: subprocess.Popen[str]):
        super().__init__(daemon=True)
        self.lines: list[str] = []
        self._process = process
        self.start()

    def run(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)

    @property
    def text(self) -> str:
        return "".join(self.lines)


def stages_on(node: object) -> set[str]:
    """Return which stages have a process on a node of `Cluster`."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)  # type: ignore[attr-defined]
    names = set()
    for child in raylet.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(child.cmdline())
            names |= {name for name in ("read_units", "Segmenter", "MergeWriter") if name in title}
    return names


def test_a_job_waits_for_nodes_uses_those_that_join_and_survives_those_that_leave(tmp_path: Path):
    pictures = draw(tmp_path / "in", 72)
    out = tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **LOOPBACK})
    try:
        process = start([pictures], out, *GRID, *ONE_GPU, "--address", cluster.address)
        output = Output(process)
        wait_for(lambda: "waiting for a node with 1 GPU and 1 CPU" in output.text, process)
        time.sleep(3)
        assert process.poll() is None and not list(out.glob("*.parquet"))
        helper = cluster.add_node(num_cpus=2, **LOOPBACK)
        first = cluster.add_node(num_cpus=2, num_gpus=1, **LOOPBACK)
        wait_for(lambda: len(list(out.glob("*.parquet"))) >= 2, process)
        assert "Segmenter" in stages_on(first)
        # Ray sends work without GPUs to the node without one first, and over to the others when it is full.
        wait_for(lambda: bool({"read_units", "MergeWriter"} & stages_on(helper)), process)
        second = cluster.add_node(num_cpus=2, num_gpus=1, **LOOPBACK)
        wait_for(lambda: "Segmenter" in stages_on(second), process)
        cluster.remove_node(first, allow_graceful=False)
        process.wait(timeout=300)
        output.join()
    finally:
        cluster.shutdown()
    assert process.returncode == 0, output.text
    assert one_row_each(out, 72)


def fake_cluster(port: int) -> dict:
    """Return a cluster of fake nodes: a head without work, and up to three nodes with a GPU."""
    return {
        "cluster_name": "fake",
        "max_workers": 3,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.15,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"{HOST}:{port}",
            "use_node_id_as_ip": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "auth": {},
        "docker": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {"CPU": 2, "GPU": 1, "object_store_memory": 200 << 20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 3,
            },
        },
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


@pytest.fixture
def fake_head(tmp_path: Path) -> Iterator[RayHead]:
    port = free_port(HOST)
    config = tmp_path / "cluster.json"
    config.write_text(json.dumps(fake_cluster(port)))
    env = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    options = ["--num-cpus=0", "--num-gpus=0", f"--autoscaling-config={config}"]
    with ray_head(*options, env=env, host=HOST, port=port, dashboard=False) as head:
        yield head


def num_gpu_nodes(head: RayHead) -> int:
    nodes = GcsClient(address=head.address).get_all_node_info().values()
    return sum(node.state == 0 and node.resources_total.get("GPU", 0) > 0 for node in nodes)


@pytest.mark.soak
def test_an_autoscaler_brings_nodes_and_takes_them_away(
    fake_head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Ray Data doubles what it asks for every ten seconds, which is long for a job of two minutes.
    monkeypatch.setenv("RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS", "2")
    pictures = draw(tmp_path / "in", 240)
    assert num_gpu_nodes(fake_head) == 0
    out = tmp_path / "out"
    process = start([pictures], out, *GRID, *ONE_GPU, "--address", fake_head.address)
    output = Output(process)
    most, began = 0, time.monotonic()
    while process.poll() is None and time.monotonic() < began + 400:
        most = max(most, num_gpu_nodes(fake_head))
        time.sleep(0.5)
    output.join(10)
    assert process.returncode == 0, output.text + fake_head.log()
    assert "waiting for a node with 1 GPU and 1 CPU" in output.text
    assert one_row_each(out, 240)
    assert most == 3, output.text
    deadline = time.monotonic() + 90
    while num_gpu_nodes(fake_head):
        assert time.monotonic() < deadline, "idle nodes stay"
        time.sleep(1)
