"""`effsam2 label` as a process of its own, with a Ray of its own, that may be killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
INJECTED = Path(__file__).resolve().parent / "injected"
# So that a small model's masks of small drawings all pass, and every stage has something to do.
SETTINGS = ["--set", "decode.pred_iou_thresh=0.3", "--set", "decode.stability_score_thresh=0.5"]
GRID = ["--prompts", "grid:12"]
# On a machine of many cores there would be more, with units of fewer images.
ONE_SEGMENTER = ["--num-segmenters", "1"]


def start(
    inputs: Sequence[Path | str], out: Path | str, *options: str, faults: Path | None = None, names: str = ""
) -> subprocess.Popen[str]:
    """Start the job; `names` are those of `injected/sitecustomize.py`, and `faults` is the folder for their notes."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    if names:
        env |= {
            "PYTHONPATH": os.pathsep.join([str(INJECTED), str(ROOT)]),
            "EFFSAM2_TEST_FAULTS": names,
            "EFFSAM2_TEST_FOLDER": str(faults),
        }
    command = [sys.executable, "-m", "effsam2_ray", "label", *map(str, inputs), "--output", str(out)]
    return subprocess.Popen(
        [*command, *SETTINGS, *ONE_SEGMENTER, *options],
        env=env,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end; returns exit code and all that was printed."""
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], pause_s: float = 0.1) -> None:
    """Wait until `condition` holds; it is an error if the job ends before."""
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, f"the job ended too early:\n{process.stdout.read()}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(pause_s)


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill the driver and the Ray that it started, all at once."""
    for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.communicate()


def actors(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """Return the job's processes whose title holds `name`."""
    found = []
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for child in children:
        try:
            if name in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def rows_of(out: Path) -> dict[int, dict[str, Any]]:
    """Return the rows by image_uid, without step times; it is an error if an image has two."""
    rows = pq.read_table(out).to_pylist()
    by_uid = {row["image_uid"]: {**row, "step_s": None} for row in rows}
    assert len(by_uid) == len(rows), "an image has two rows"
    return by_uid
