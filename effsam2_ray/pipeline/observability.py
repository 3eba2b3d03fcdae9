"""Counters, gauges and histograms that Ray exports on every node's metrics endpoint, for Prometheus and Grafana.

=================================  =========  =================  =====================================================
`effsam2_images`                   counter    `preset, status`   rows written
`effsam2_masks`                    counter    `preset`           final masks written
`effsam2_step_seconds`             histogram  `preset, step`     seconds of each step of one image
`effsam2_images_in_flight`         gauge                         images of the units that a segmenter has begun
`effsam2_segmenter_busy_share`     gauge                         share of the last seconds that its device thread worked
=================================  =========  =================  =====================================================

Ray puts `ray_` before the names, `_total` after those of counters, and tags of its own (node, worker, session) beside
ours.
"""

from __future__ import annotations

import threading
import time
from collections import Counter as Counts
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

INTERVAL_S = 5.0
"""Seconds between two values of a gauge; Ray itself exports every ten."""
STEP_BOUNDARIES_S = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]


class WriterMetrics:
    """What a writer counts.

    Args:
        preset: name of the run's preset.
    """

    def __init__(self, preset: str):
        self._preset = preset
        self._images = Counter("effsam2_images", "Rows written", tag_keys=("preset", "status"))
        self._masks = Counter("effsam2_masks", "Final masks written", tag_keys=("preset",))
        self._steps = Histogram(
            "effsam2_step_seconds",
            "Seconds of each step of one image",
            boundaries=STEP_BOUNDARIES_S,
            tag_keys=("preset", "step"),
        )

    def count(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count rows that were written; their `status`, `masks` and `step_s` are looked at."""
        statuses: Counts[str] = Counts()
        num_masks = 0
        tags = {"preset": self._preset}
        for row in rows:
            statuses[row["status"]] += 1
            num_masks += len(row["masks"])
            for step, seconds in (row.get("step_s") or {}).items():
                if seconds is not None:
                    self._steps.observe(seconds, {**tags, "step": step})
        for status, number in statuses.items():
            self._images.inc(number, {**tags, "status": status})
        if num_masks:  # Ray refuses to count nothing
            self._masks.inc(num_masks, tags)


class SegmenterMetrics:
    """What a segmenter measures of itself; a thread sets the gauges every `interval_s` seconds, also while it idles."""

    def __init__(self, interval_s: float = INTERVAL_S):
        self.busy = BusyShare()
        self._num_in_flight = 0
        self._interval_s = interval_s
        self._images = Gauge("effsam2_images_in_flight", "Images of the units that a segmenter has begun")
        self._share = Gauge("effsam2_segmenter_busy_share", "Share of the last seconds that the device thread worked")
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    @contextmanager
    def in_flight(self, num_images: int) -> Iterator[None]:
        """Count these images as begun while the body runs."""
        self._num_in_flight += num_images  # on the actor's event loop alone
        try:
            yield
        finally:
            self._num_in_flight -= num_images

    def _run(self) -> None:
        while True:
            self._images.set(self._num_in_flight)
            self._share.set(self.busy.share())
            time.sleep(self._interval_s)


class BusyShare:
    """How much of the time something is at work: a context manager around the work, of one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None
        self._busy_s = 0.0
        self._looked = time.monotonic()

    def __enter__(self) -> None:
        with self._lock:
            self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._since is not None:
                self._busy_s += time.monotonic() - self._since
            self._since = None

    def share(self) -> float:
        """Return the share of the time since the last call, 0 to 1; work that goes on counts up to now."""
        with self._lock:
            now = time.monotonic()
            if self._since is not None:
                self._busy_s += now - self._since
                self._since = now
            share = self._busy_s / max(now - self._looked, 1e-9)
            self._busy_s, self._looked = 0.0, now
            return min(1.0, share)
