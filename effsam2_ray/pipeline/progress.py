"""Progress of a job: a live bar on a terminal, one line every 30 s and one at the end in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

LOG_INTERVAL_S = 30.0


class Progress:
    """Counts finished units and tells of them. Use as a context manager.

    Args:
        total: images of the whole job.
        done: images of units that were finished before.
        waiting_for: says what the job waits for, "" for nothing; asked only until the first unit ends.
    """

    def __init__(self, total: int, done: int, waiting_for: Callable[[], str]):
        self.statuses: Counter[str] = Counter()
        self._total, self._before = total, done
        self._waiting_for = waiting_for
        self._start = time.monotonic()
        self._stop = threading.Event()
        self._bar = tqdm(total=total, initial=done, unit="image") if sys.stderr.isatty() else None
        self._thread = threading.Thread(target=self._report, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.close()
        else:
            print(self.line(), flush=True)

    def add(self, summary: Mapping[str, Any]) -> None:
        """Count one finished unit."""
        self.statuses.update(summary["statuses"])
        if self._bar is not None:
            self._bar.update(summary["images"])
            self._bar.set_postfix_str(self._failures())

    def line(self) -> str:
        """Return done / total, images/s, time left, and failures by reason."""
        now = sum(self.statuses.values())
        elapsed_s = time.monotonic() - self._start
        rate = now / elapsed_s if elapsed_s > 0 else 0.0
        left = self._total - self._before - now
        eta = _duration(left / rate) if rate > 0 else "unknown"
        text = f"{self._before + now:,}/{self._total:,} images, {rate:.2f} images/s, {eta} left"
        failures = self._failures()
        waiting = self._waiting_for() if now == 0 and not self._stop.is_set() else ""
        return text + (f", failed: {failures}" if failures else "") + (f", waiting for {waiting}" if waiting else "")

    def _failures(self) -> str:
        return ", ".join(f"{n} {status}" for status, n in self.statuses.most_common() if status != "ok")

    def _report(self) -> None:
        if self._bar is None and self._waiting_for():
            print(self.line(), flush=True)
        while not self._stop.wait(LOG_INTERVAL_S):
            if self._bar is None:
                print(self.line(), flush=True)
            elif not self.statuses and (waiting := self._waiting_for()):
                self._bar.set_postfix_str(f"waiting for {waiting}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
