"""End the process when one step of one image takes too long, also inside a C call that no exception can reach."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watchdog:
    """A thread that kills this process once a watched step overruns.

    Args:
        on_overrun: called first; stores who was at work.
    """

    def __init__(self, on_overrun: Callable[[], None]):
        self._on_overrun = on_overrun
        self._deadlines: dict[int, float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    @contextmanager
    def watch(self, limit_s: float | None) -> Iterator[None]:
        """Kill the process unless the body ends within `limit_s` seconds; None watches nothing."""
        if limit_s is None:
            yield
            return
        token = threading.get_ident()
        with self._lock:
            self._deadlines[token] = time.monotonic() + limit_s
        try:
            yield
        finally:
            with self._lock:
                self._deadlines.pop(token, None)

    def _run(self) -> None:
        while True:
            time.sleep(0.2)
            with self._lock:
                overdue = any(deadline < time.monotonic() for deadline in self._deadlines.values())
            if overdue:
                try:
                    self._on_overrun()
                finally:
                    os.kill(os.getpid(), signal.SIGKILL)
