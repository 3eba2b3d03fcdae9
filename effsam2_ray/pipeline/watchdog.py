"""End the process when one step of one image takes too long, also inside a C call that no exception can reach."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERVAL_S = 0.2
GRACE_S = 10.0
"""How long the record of who was at work may take; also how long a call that holds Python's lock may overrun."""


class Watchdog:
    """A thread that kills this process once a watched step overruns.

    A C call that holds Python's lock stops that thread too: then a timer of the interpreter's own, set anew at each
    look, ends the process, and no record is made.

    Args:
        on_overrun: called first; stores who was at work.
    """

    def __init__(self, on_overrun: Callable[[], None]):
        self._on_overrun = on_overrun
        self._deadlines: dict[int, float] = {}
        self._lock = threading.Lock()
        self._nowhere = open(os.devnull, "w")  # the timer insists on a place for its tracebacks
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
        armed = False
        while True:
            time.sleep(INTERVAL_S)
            with self._lock:
                deadlines = list(self._deadlines.values())
            now = time.monotonic()
            if deadlines:
                left_s = max(0.0, max(deadlines) - now)
                faulthandler.dump_traceback_later(left_s + GRACE_S, exit=True, file=self._nowhere)
            elif armed:
                faulthandler.cancel_dump_traceback_later()
            armed = bool(deadlines)
            if any(deadline < now for deadline in deadlines):
                record = threading.Thread(target=self._on_overrun, daemon=True)
                record.start()
                record.join(GRACE_S)
                os.kill(os.getpid(), signal.SIGKILL)
