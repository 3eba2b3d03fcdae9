"""`ray job submit` against a Ray head of its own, with inputs and output on an S3 server over a real socket."""

from __future__ import annotations

import contextlib
import fnmatch
import io
import json
import os
import re
import subprocess
import tarfile
import threading
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import FaultProxy, ObjectStore, s3_endpoint  # noqa: F401  fixture
from PIL import Image
from ray_head import RAY, RayHead, ray_head

from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline import progress

ROOT = Path(__file__).resolve().parents[1]
SECRET = "hush-4711"
SETTINGS = ["--device", "cpu", "--prompts", "grid:8"]
SETTINGS += ["--set", "decode.pred_iou_thresh=0.3", "--set", "decode.stability_score_thresh=0.5"]


@pytest.fixture(scope="module")
def store(s3_endpoint: str) -> ObjectStore:  # noqa: F811
    """The same seven pictures in two tar shards, in Parquet, and as lone objects under a prefix."""
    store = ObjectStore(s3_endpoint, f"s3://bucket-{uuid.uuid4().hex[:12]}")
    store._client().create_bucket(Bucket=store.root[5:])
    encoded = []
    for seed in range(7):
        buffer = io.BytesIO()
        Image.fromarray(draw_scene(seed, (64, 96)).image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    for shard, members in enumerate([encoded[:4], encoded[4:]]):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for number, data in enumerate(members):
                member = tarfile.TarInfo(f"{number}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        store.put(f"in/shards/{shard:03d}.tar", buffer.getvalue())
    table = io.BytesIO()
    pq.write_table(pa.table({"image": encoded, "name": [f"row {n}" for n in range(7)]}), table)
    store.put("in/table.parquet", table.getvalue())
    for number, data in enumerate(encoded):
        store.put(f"in/photos/{number // 4}/{number}.png", data)
    return store


@pytest.fixture(scope="module")
def proxy(store: ObjectStore) -> Iterator[FaultProxy]:
    with FaultProxy(store.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def head(proxy: FaultProxy) -> Iterator[RayHead]:
    """Nodes find endpoint and credentials in their environment, as nodes of a real cluster find them in their role."""
    env = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": proxy.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "RAY_metrics_report_interval_ms": "500",
    }
    with ray_head("--num-cpus=2", env=env) as head:
        yield head


def submit(head: RayHead, *words: str) -> subprocess.CompletedProcess[str]:
    command = [
        *RAY,
        "job",
        "submit",
        "--address",
        head.dashboard,
        "--working-dir",
        ".",
        "--",
        "python",
        "jobs/label.py",
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.run([*command, *words], cwd=ROOT, env=env, text=True, capture_output=True, timeout=300)


class Watch(threading.Thread):
    """What can be seen of a head while jobs run: command lines of its processes, and the metrics of its node."""

    def __init__(self, head: RayHead):
        super().__init__(daemon=True)
        self.command_lines: set[str] = set()
        self.metrics: list[str] = []
        self._head, self._enough = head, threading.Event()

    def run(self) -> None:
        while not self._enough.wait(0.5):
            for process in self._head.process.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    self.command_lines.add(" ".join(process.cmdline()))
            with contextlib.suppress(OSError, StopIteration):
                self.metrics.append(self._read_metrics())

    def _read_metrics(self) -> str:
        found = json.loads(next(self._head.folder.glob("*prom_metrics_service_discovery.json")).read_text())
        text = ""
        for target in sorted({target for entry in found for target in entry["targets"]}):
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as response:
                text += response.read().decode()
        return text

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self.join()


def rows_of(store: ObjectStore, uri: str) -> list[dict]:
    folder = OutputFolder(uri, store.options)
    return [row for unit in folder.finished_units() for row in folder.read_part(unit).to_pylist()]


@pytest.fixture(scope="module")
def submitted(head: RayHead, store: ObjectStore, proxy: FaultProxy) -> tuple[str, list[tuple[str, str]], Watch]:
    """Log of a job over all kinds of input, the requests that it made, and what could be seen from outside."""
    proxy.requests.clear()
    with Watch(head) as watch:
        inputs = [f"{store.root}/in/shards/{{000..001}}.tar", f"{store.root}/in/table.parquet"]
        inputs += [f"{store.root}/in/photos/"]
        done = submit(head, *inputs, "--output", f"{store.root}/out", *SETTINGS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr, list(proxy.requests), watch


def test_every_image_of_every_kind_of_input_has_its_row(submitted, store: ObjectStore):
    rows = rows_of(store, f"{store.root}/out")
    assert len({row["image_uid"] for row in rows}) == len(rows) == 21
    assert {row["status"] for row in rows} == {"ok"}
    names = {row["image_uri"].removeprefix(f"{store.root}/in/") for row in rows}
    assert {"shards/001.tar#2.png", "table.parquet#row=6", "photos/1/6.png"} <= names
    assert sum(len(row["masks"]) for row in rows) > 21


def test_the_log_tells_settings_progress_summary_and_exit_code(submitted, store: ObjectStore):
    log, _, _ = submitted
    texts = [
        f" units -> {store.root}/out; demo, preset low_latency, block ",
        "  cluster: min_samples=2, min_cluster_size=10, noise_floor=",
        "  decode: masks_per_prompt=best, pred_iou_thresh=0.3, stability_score_thresh=0.5",
        "  each segmenter: 1.5 CPU, 0 GPU, batches of 1, ",
        "\n21/21 images, ",
        f"Parquet: {store.root}/out",
        "\n21 images, ",
        "exit code 0",
    ]
    assert [text for text in texts if text not in log] == [], log
    places = [log.index(text) for text in texts]
    assert places == sorted(places)
    assert "Job '" in log and "succeeded" in log


def test_secrets_are_on_no_command_line_and_in_no_log(submitted, store: ObjectStore):
    log, _, watch = submitted
    command_lines = watch.command_lines
    assert any("Segmenter" in line for line in command_lines) and any("jobs/label.py" in line for line in command_lines)
    assert not [line for line in command_lines if SECRET in line]
    assert SECRET not in log
    assert SECRET not in json.dumps(OutputFolder(f"{store.root}/out", store.options).read_job())


def test_the_policy_in_infra_allows_just_what_the_job_asked_for(submitted, store: ObjectStore):
    _, requests, _ = submitted
    bucket = store.root[5:]
    text = (ROOT / "infra" / "aws" / "data-policy.json").read_text()
    for placeholder, value in {
        "REPLACE_ME_INPUT_BUCKET": bucket,
        "REPLACE_ME_OUTPUT_BUCKET": bucket,
        "REPLACE_ME_INPUT_PREFIX": "in",
        "REPLACE_ME_OUTPUT_PREFIX": "out",
    }.items():
        text = text.replace(placeholder, value)
    statements = json.loads(text)["Statement"]
    needed = {action_of(method, path) for method, path in requests}
    for action, resource in needed:
        assert any(
            action in statement["Action"] and any(fnmatch.fnmatchcase(resource, name) for name in statement["Resource"])
            for statement in statements
        ), f"{action} on {resource} is not allowed"
    assert {action for statement in statements for action in statement["Action"]} == {action for action, _ in needed}


def action_of(method: str, path: str) -> tuple[str, str]:
    """Return what IAM calls a request of S3, and its resource."""
    parts = urllib.parse.urlsplit(path)
    bucket, _, key = urllib.parse.unquote(parts.path).lstrip("/").partition("/")
    resource = f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"
    if not key:
        assert method in ("GET", "HEAD"), path
        return "s3:ListBucket", resource
    actions = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}
    return actions[method], resource


def test_endpoint_and_credentials_may_be_storage_options_and_more_jobs_share_the_head(
    head: RayHead, store: ObjectStore
):
    direct = [text for name, value in store.options.items() for text in ("--storage-option", f"{name}={value}")]
    done = submit(head, f"{store.root}/in/photos/", "--output", f"{store.root}/direct", *SETTINGS, *direct)
    assert done.returncode == 0, done.stdout + done.stderr
    masks = [
        {row["image_uri"]: row["masks"] for row in rows_of(store, f"{store.root}/{out}")} for out in ("direct", "out")
    ]
    assert len(masks[0]) == 7 and all(masks[1][uri] == found for uri, found in masks[0].items())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--set", "attention.block=1"], 2, "block 1 of demo has no global attention"),
        (["--max-failures", "0"], 3, "1 images failed, more than --max-failures allows: 1 missing"),
    ],
)
def test_ray_turns_a_failure_into_1_and_the_log_tells_ours(
    head: RayHead, store: ObjectStore, words: list[str], code: int, message: str
):
    manifest = store.put("in/list.txt", f"{store.root}/in/none.png\n".encode())
    done = submit(head, manifest, "--output", f"{store.root}/failed-{code}", *SETTINGS, *words)
    log = done.stdout + done.stderr
    assert done.returncode == 1 and f"exit code {code}" in log and message in log, log


def test_metrics_of_the_job_were_on_the_nodes_endpoint(submitted):
    """The last values of a process that ends between two exports are lost, so these are lower bounds."""
    _, _, watch = submitted
    images = [re.findall(r'^ray_effsam2_images_total\{.*status="ok".*\} (\S+)$', text, re.M) for text in watch.metrics]
    assert 1 <= max(sum(map(float, values)) for values in images) <= 21
    for name in ("masks_total", "step_seconds_bucket", "images_in_flight", "segmenter_busy_share"):
        assert any(f"ray_effsam2_{name}{{" in text for text in watch.metrics), name


def test_a_line_each_interval_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.05)
    bar = progress.Progress(20, 5, lambda: "a node with 1 GPU and 5 CPU")
    with bar:
        while not (told := capsys.readouterr().out):
            pass
        assert told.startswith("5/20 images, 0.00 images/s, unknown left, waiting for a node with 1 GPU and 5 CPU\n")
        bar.add({"images": 10, "statuses": {"ok": 9, "corrupt": 1}})
    assert capsys.readouterr().out.splitlines()[-1].startswith("15/20 images, ")
    assert bar.line().endswith(", failed: 1 corrupt")
