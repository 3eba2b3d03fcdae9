"""Metrics: the arithmetic by hand, and what a node's metrics endpoint shows."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator

import pytest
import ray

from effsam2_ray.pipeline import observability
from effsam2_ray.pipeline.observability import BusyShare, SegmenterMetrics, WriterMetrics


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [50.0]
    monkeypatch.setattr(observability.time, "monotonic", lambda: now[0])
    yield now


def test_the_share_of_busy_time(clock: list[float]):
    busy = BusyShare()
    clock[0] += 6
    with busy:
        clock[0] += 2
    assert busy.share() == pytest.approx(2 / 8)
    with busy:
        clock[0] += 3
        assert busy.share() == pytest.approx(1.0)  # work that goes on counts up to now
        clock[0] += 1
    clock[0] += 3
    assert busy.share() == pytest.approx(1 / 4)
    clock[0] += 5
    assert busy.share() == 0.0


def test_an_error_ends_the_work(clock: list[float]):
    busy = BusyShare()
    with pytest.raises(ValueError), busy:
        clock[0] += 1
        raise ValueError
    clock[0] += 3
    assert busy.share() == pytest.approx(1 / 4)


def worker_class() -> type:
    """Return a class of this function, which travels to its actor whole."""

    class Worker:
        """Does what a segmenter and a writer do to their metrics."""

        def __init__(self) -> None:
            self._segmenter = SegmenterMetrics(interval_s=0.2)
            self._writer = WriterMetrics("low_latency")

        def work(self) -> None:
            with self._segmenter.in_flight(7):
                with self._segmenter.busy:
                    time.sleep(300)  # until the node goes

        def write(self) -> None:
            step_s = {"encode_s": 0.02, "merge_s": None}
            rows = [
                {"status": "ok", "masks": [{}] * 4, "step_s": step_s},
                {"status": "ok", "masks": [{}] * 5, "step_s": {"encode_s": 0.2}},
                {"status": "corrupt", "masks": []},
            ]
            self._writer.count(rows)
            self._writer.count([{"status": "ok", "masks": [], "step_s": None}])
            other = WriterMetrics("high_quality")  # a run of the same job
            other.count(rows[:1])

    return Worker


@pytest.fixture(scope="module")
def one_node() -> Iterator[str]:
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    ray.shutdown()


def read_metrics(endpoint: str) -> dict[str, float]:
    """Return the values of our metrics by name and tags of ours, `name{a="b"}`."""
    with urllib.request.urlopen(endpoint, timeout=10) as response:
        lines = response.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        match = re.fullmatch(r"(ray_effsam2_\w+)\{(.*)\} (\S+)", line)
        if match:
            tags = re.findall(r'\b(?:preset|status|step|le)="[^"]*"', match[2])
            name = match[1] + "{" + ",".join(sorted(tags)) + "}"
            found[name] = found.get(name, 0.0) + float(match[3])
    return found


def wait_for(endpoint: str, wanted: dict[str, float]) -> dict[str, float]:
    """Read until the values are these: an export may come in the middle of a count."""
    deadline = time.monotonic() + 60
    while True:
        found = read_metrics(endpoint)
        if all(found.get(name) == value for name, value in wanted.items()):
            return found
        assert time.monotonic() < deadline, f"{found} without {wanted}"
        time.sleep(0.5)


def test_a_nodes_endpoint_shows_them(one_node: str):
    worker = ray.remote(worker_class()).options(max_concurrency=2).remote()
    ray.get(worker.write.remote())
    work = worker.work.remote()
    wanted = {
        'ray_effsam2_images_total{preset="low_latency",status="ok"}': 3,
        'ray_effsam2_images_total{preset="low_latency",status="corrupt"}': 1,
        'ray_effsam2_masks_total{preset="low_latency"}': 9,
        'ray_effsam2_step_seconds_count{preset="low_latency",step="encode_s"}': 2,
        'ray_effsam2_masks_total{preset="high_quality"}': 4,
    }
    found = wait_for(one_node, wanted)
    assert found['ray_effsam2_step_seconds_sum{preset="low_latency",step="encode_s"}'] == pytest.approx(0.22)
    assert found['ray_effsam2_step_seconds_bucket{le="0.03",preset="low_latency",step="encode_s"}'] == 1
    assert not [name for name in found if "merge_s" in name]
    busy = pytest.approx(1, abs=0.1)
    wait_for(one_node, {"ray_effsam2_images_in_flight{}": 7, "ray_effsam2_segmenter_busy_share{}": busy})
    ray.cancel(work, force=False)
