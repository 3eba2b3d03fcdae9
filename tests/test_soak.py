"""Long tests, run by `make soak`: kills at random moments, and memory over thousands of images.

`EFFSAM2_SOAK_ROUNDS` sets the number of rounds, and `EFFSAM2_SOAK_SEED` repeats those of an earlier run.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import statistics
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from label_process import actors, finish, rows_of, start
from PIL import Image

from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.demo.train import DEMO_CONFIG

pytestmark = pytest.mark.soak

ROUNDS = int(os.environ.get("EFFSAM2_SOAK_ROUNDS", 12))
SEED = int(os.environ.get("EFFSAM2_SOAK_SEED", 0)) or secrets.randbelow(1 << 32)
NUM_PICTURES = 40
# How often each may be killed in a round. A segmenter that dies a fourth time may have convicted the image it was at.
VICTIMS = {"driver": 3, "Segmenter": 3, "ClusterActor": 3, "MergeWriter": 3, "read_units": 3}
MEAN_PAUSE_S = 4.0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(NUM_PICTURES):
        Image.fromarray(draw_scene(seed, (96, 128)).image).save(folder / f"{seed:02d}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory) -> dict[int, dict]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    code, output = finish(start([pictures], out))
    assert code == 0, output
    rows = rows_of(out)
    assert len(rows) == NUM_PICTURES and sum(len(row["masks"]) for row in rows.values()) > NUM_PICTURES
    return rows


def present(process: subprocess.Popen[str]) -> dict[str, list[psutil.Process]]:
    """Return who can be killed now, by name."""
    return {"driver": [psutil.Process(process.pid)]} | {
        name: found for name in VICTIMS if name != "driver" and (found := actors(process, name))
    }


@pytest.mark.parametrize("number", range(ROUNDS))
def test_kills_at_random_moments_cost_no_image(pictures, undisturbed, tmp_path, capsys, number):
    seed = SEED + number
    rng = random.Random(seed)
    out = tmp_path / "out"
    killed: Counter[str] = Counter()
    process = start([pictures], out)
    while True:
        try:
            process.wait(rng.expovariate(1 / MEAN_PAUSE_S))
            break
        except subprocess.TimeoutExpired:
            for part in out.glob("*.parquet"):
                pq.read_table(part)  # whole, or not there
        found = present(process)
        names = sorted(name for name in found if killed[name] < VICTIMS[name])
        if not names:
            continue
        name = rng.choice(names)
        with contextlib.suppress(psutil.NoSuchProcess):  # a clustering actor ends with its segmenter
            rng.choice(found[name]).kill()
        killed[name] += 1
        if name == "driver":  # the Ray that it started ends on its own, a little later
            process.communicate()
            process = start([pictures], out)
    code, output = finish(process)
    with capsys.disabled():
        kills = ", ".join(f"{count} x {name}" for name, count in sorted(killed.items())) or "none"
        print(f"\nround {number}, seed {seed}: killed {kills}; exit code {code}")
    assert code == 0, f"seed {seed}: {output}"
    assert rows_of(out) == undisturbed, f"seed {seed}"


NUM_SMALL = 3_000
EARLY = 1_000
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory) -> list[str]:
    """The demo model at 128 pixels: a sixteenth of the work."""
    folder = tmp_path_factory.mktemp("weights")
    tree = yaml.safe_load(DEMO_CONFIG.read_text())
    tree["model"]["image_size"] = 128
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    return ["--weights", str(DEMO_CONFIG.with_suffix(".pt")), "--model-config", str(folder / "small.yaml")]


class MemoryLog:
    """Notes the resident memory of a job's processes twice a second, with the number of images that are done."""

    def __init__(self, process: subprocess.Popen[str], out: Path):
        self._process, self._out = process, out
        self._rows: dict[Path, int] = {}
        self.samples: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def done(self) -> int:
        for part in self._out.glob("*.parquet"):
            if part not in self._rows:
                self._rows[part] = pq.read_metadata(part).num_rows
        return sum(self._rows.values())

    def _members(self) -> Iterator[tuple[str, psutil.Process]]:
        yield "driver", psutil.Process(self._process.pid)
        for name in ("Segmenter", "ClusterActor", "MergeWriter"):
            for actor in actors(self._process, name):
                yield f"{name} {actor.pid}", actor

    def _run(self) -> None:
        while self._process.poll() is None:
            done = self.done()
            try:
                for name, member in self._members():
                    self.samples[name].append((done, member.memory_info().rss / 2**20))
            except psutil.Error:
                continue
            time.sleep(0.5)

    def median_mb(self, name: str, low: int, high: int) -> float | None:
        """Return the median of one process while at least `low` and fewer than `high` images were done."""
        found = [rss for done, rss in self.samples[name] if low <= done < high]
        return statistics.median(found) if found else None


def test_memory_is_flat_over_three_thousand_images(small_weights, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(NUM_SMALL):
        if number < 50:
            Image.fromarray(draw_scene(number, (48, 64)).image).save(folder / f"{number:04d}.png")
        else:
            os.link(folder / f"{number % 50:04d}.png", folder / f"{number:04d}.png")
    process = start([folder], out, *small_weights, "--num-segmenters", "1", "--preset", "high_quality")
    log = MemoryLog(process, out)
    code, output = finish(process)
    assert code == 0, output
    assert log.done() == NUM_SMALL
    steps = sorted({done for done, _ in log.samples["driver"]})
    early = next(done for done in steps if done >= EARLY)
    after_early = steps[steps.index(early) + 1]
    last = steps[-1] if steps[-1] < NUM_SMALL else steps[-2]
    with capsys.disabled():
        print(f"\nresident MB while {early} to {after_early}, and while {last} to {NUM_SMALL} images were done:")
        grown, compared = [], []
        for name in sorted(log.samples):
            before, after = log.median_mb(name, early, after_early), log.median_mb(name, last, NUM_SMALL)
            if before is None or after is None:  # clustering actors come and go with need
                continue
            print(f"  {name}: {before:.0f}, {after:.0f} ({after / before - 1:+.1%})")
            compared.append(name.split()[0])
            if after > before * (1 + TOLERANCE):
                grown.append(name)
    assert {"driver", "Segmenter", "ClusterActor", "MergeWriter"} <= set(compared)
    assert not grown
