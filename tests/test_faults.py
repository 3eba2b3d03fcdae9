"""Real kills: of the segmenter, of the driver, and of whoever touches one picture. Every image still gets one row."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from object_store import FaultProxy, ObjectStore, s3, s3_endpoint  # noqa: F401  fixtures
from PIL import Image
from ray.cluster_utils import Cluster

from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.output import OutputFolder

ROOT = Path(__file__).resolve().parents[1]
NUM_PICTURES = 12
# Not 127.0.0.1: who joins that is sent to the machine's outward address.
LOOPBACK = {"node_ip_address": "127.0.0.2", "include_dashboard": False}
SETTINGS = ["--prompts", "grid:12", "--set", "decode.pred_iou_thresh=0.3", "--set", "decode.stability_score_thresh=0.5"]

# Read by every Python process of the job: one picture kills whoever decodes it, another never ends, inside a C call.
POISON = """
import os, signal, sys
import PIL.Image
_open = PIL.Image.open
def open_poisoned(file, *args, **kwargs):
    data = file.getvalue() if hasattr(file, "getvalue") else b""
    if b"KILLS ITS PROCESS" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"HANGS IN A C CALL" in data:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        signal.sigwait([signal.SIGUSR1])
    return _open(file, *args, **kwargs)
PIL.Image.open = open_poisoned
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(NUM_PICTURES):
        Image.fromarray(draw_scene(seed, (96, 128)).image).save(folder / f"{seed:02d}.png")
    return folder


def start(pictures: Path | str, out: Path | str, *options: str, poison: Path | None = None) -> subprocess.Popen[str]:
    path = [str(ROOT), *([str(poison)] if poison else [])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "effsam2_ray", "label", str(pictures), "--output", str(out), *SETTINGS, *options]
    return subprocess.Popen(
        command, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, f"the job ended too early:\n{process.stdout.read()}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def actors(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if name in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def rows_of(out: Path) -> dict[int, dict]:
    rows = pq.read_table(out).to_pylist()
    by_uid = {row["image_uid"]: {**row, "step_s": None} for row in rows}
    assert len(by_uid) == len(rows), "an image has two rows"
    return by_uid


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory) -> dict[int, dict]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    code, output = finish(start(pictures, out))
    assert code == 0, output
    rows = rows_of(out)
    assert len(rows) == NUM_PICTURES and sum(len(row["masks"]) for row in rows.values()) > NUM_PICTURES
    return rows


@pytest.mark.parametrize(("name", "times"), [("Segmenter", 3), ("MergeWriter", 2)])
def test_killed_actors_cost_no_image(pictures, undisturbed, tmp_path, name, times):
    process = start(pictures, tmp_path / "out")
    killed: set[int] = set()
    attempts = tmp_path / "out" / "_meta" / "attempts"
    for _ in range(times):
        wait_for(
            lambda: any(attempts.glob("*.json")) and bool({p.pid for p in actors(process, name)} - killed), process
        )
        for victim in actors(process, name):
            victim.kill()
            killed.add(victim.pid)
    code, output = finish(process)
    assert code == 0 and len(killed) >= times, output
    assert rows_of(tmp_path / "out") == undisturbed


@pytest.mark.soak
def test_killed_clustering_actors_cost_no_image(pictures, tmp_path):
    outs = tmp_path / "quiet", tmp_path / "disturbed"
    code, output = finish(start(pictures, outs[0], "--prompts", "clusters"))
    assert code == 0, output
    process = start(pictures, outs[1], "--prompts", "clusters")
    killed: set[int] = set()
    for _ in range(2):
        wait_for(lambda: bool({p.pid for p in actors(process, "ClusterActor")} - killed), process)
        for victim in actors(process, "ClusterActor"):
            victim.kill()
            killed.add(victim.pid)
    code, output = finish(process)
    assert code == 0 and len(killed) >= 2, output
    assert rows_of(outs[1]) == rows_of(outs[0])


def test_a_lost_node_costs_no_image_and_convicts_nobody(pictures, undisturbed, tmp_path):
    out = tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **LOOPBACK})
    try:
        node = cluster.add_node(num_cpus=2, num_gpus=1, **LOOPBACK)
        process = start(pictures, out, "--num-gpus", "1", "--device", "cpu", "--address", cluster.address)
        wait_for(lambda: len(list(out.glob("*.parquet"))) >= 2, process)
        cluster.remove_node(node, allow_graceful=False)
        done = len(list(out.glob("*.parquet")))
        assert done < NUM_PICTURES
        cluster.add_node(num_cpus=2, num_gpus=1, **LOOPBACK)
        code, output = finish(process)
    finally:
        cluster.shutdown()
    assert code == 0, output
    assert rows_of(out) == undisturbed


def test_two_drivers_give_the_same_rows_and_the_second_is_warned(pictures, undisturbed, tmp_path):
    out = tmp_path / "out"
    first = start(pictures, out)
    wait_for(lambda: (out / "_meta" / "driver.json").exists(), first)
    second = start(pictures, out)
    (code_1, output_1), (code_2, output_2) = finish(first), finish(second)
    assert (code_1, code_2) == (0, 0), output_1 + output_2
    assert "another driver" not in output_1 and "Warning: another driver is at work" in output_2
    assert rows_of(out) == undisturbed and not (out / "_meta" / "driver.json").exists()


@pytest.mark.parametrize("kind", ["cut", *(pytest.param(k, marks=pytest.mark.soak) for k in ("503", "lost", "stall"))])
def test_storage_faults_cost_no_image(pictures, undisturbed, s3: ObjectStore, tmp_path, kind):  # noqa: F811
    for path in pictures.iterdir():
        s3.put(f"in/{path.name}", path.read_bytes())
    with FaultProxy(s3.endpoint) as proxy:
        proxy.faults += [["GET", "03.png", kind, 2], ["GET", "07.png", kind, 1], ["PUT", "part-", kind, 3]]
        options = {**s3.options, "endpoint_url": proxy.endpoint}
        arguments = [text for name, value in options.items() for text in ("--storage-option", f"{name}={value}")]
        code, output = finish(start(f"{s3.root}/in", f"{s3.root}/out", *arguments))
        assert code == 0, output
        # A request that is only slow is not sent again, so there a fault may strike fewer times than it could.
        struck = [times - fault[3] for times, fault in zip([2, 1, 3], proxy.faults, strict=True)]
        assert struck == [2, 1, 3] or (kind == "stall" and min(struck) >= 1)
    folder = OutputFolder(f"{s3.root}/out", s3.options)
    rows = [row for unit in folder.finished_units() for row in folder.read_part(unit).to_pylist()]
    masks = {Path(row["image_uri"]).name: row["masks"] for row in rows}
    assert len(rows) == len(masks) == NUM_PICTURES
    assert masks == {Path(row["image_uri"]).name: row["masks"] for row in undisturbed.values()}


def test_killed_driver_goes_on_where_it_was(pictures, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = start(pictures, out)
    wait_for(lambda: len(list(out.glob("*.parquet"))) >= 1, process)
    members = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in members:  # the driver and the Ray that it started, all at once
        if member.is_running():
            member.kill()
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(done) < NUM_PICTURES
    code, output = finish(start(pictures, out))
    assert code == 0 and "Resuming" in output, output
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done
    assert rows_of(out) == undisturbed


@pytest.mark.parametrize("sign", ["_meta/job.json", "*.parquet"], ids=["before the first unit", "between units"])
def test_sigterm_ends_with_exit_code_4_and_says_how_to_go_on(pictures, tmp_path, sign):
    out = tmp_path / "out"
    process = start(pictures, out)
    wait_for(lambda: any(out.glob(sign)), process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 4 and "run the same command again to go on" in output, output


def test_a_picture_that_kills_or_hangs_its_process_costs_only_itself(pictures, undisturbed, tmp_path):
    folder, poison = tmp_path / "in", tmp_path / "poison"
    folder.mkdir()
    poison.mkdir()
    (poison / "sitecustomize.py").write_text(POISON)
    for path in pictures.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    picture = (folder / "00.png").read_bytes()
    (folder / "killer.png").write_bytes(picture + b"KILLS ITS PROCESS")
    (folder / "sleeper.png").write_bytes(picture + b"HANGS IN A C CALL")
    process = start(folder, tmp_path / "out", "--image-timeout", "20", "--num-cluster-actors", "0", poison=poison)
    code, output = finish(process)
    assert code == 0, output
    rows = {Path(row["image_uri"]).name: row for row in rows_of(tmp_path / "out").values()}
    assert len(rows) == NUM_PICTURES + 2
    assert (rows["killer.png"]["status"], rows["sleeper.png"]["status"]) == ("crashed", "timeout")
    expected = {Path(row["image_uri"]).name: row["masks"] for row in undisturbed.values()}
    for name, masks in expected.items():
        assert rows[name]["masks"] == masks
    failures = pq.read_table(tmp_path / "out" / "_meta" / "failures.parquet").to_pylist()
    assert {f["status"] for f in failures} == {"crashed", "timeout"} and np.all([f["attempts"] >= 2 for f in failures])
