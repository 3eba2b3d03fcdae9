"""A sign of life of the driver in the output folder, so that a second driver can be told of the first."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from effsam2_ray.errors import OutputError
from effsam2_ray.output import OutputFolder
from effsam2_ray.storage import delete

INTERVAL_S = 30.0
SILENT_AFTER_S = 90.0
_NAME = "driver.json"


def other_driver(output: OutputFolder, run_id: str) -> str:
    """Return which other driver wrote its sign of life within the last `SILENT_AFTER_S` seconds, "" for none."""
    try:
        sign = output.read_json(_NAME) or {}
        ago_s = time.time() - float(sign.get("time", 0.0))
    except (OutputError, AttributeError, TypeError, ValueError):  # what cannot be read is no sign
        return ""
    if sign.get("run_id") == run_id or ago_s > SILENT_AFTER_S:
        return ""
    return f"{sign.get('host')}, process {sign.get('pid')}, {max(0.0, ago_s):.0f} s ago"


@contextmanager
def heartbeat(output: OutputFolder, run_id: str) -> Iterator[None]:
    """Write the sign of life every `INTERVAL_S` seconds while the body runs, and remove it at the end."""
    stop = threading.Event()

    def beat() -> None:
        while True:
            sign = {"run_id": run_id, "host": platform.node(), "pid": os.getpid(), "time": time.time()}
            with contextlib.suppress(Exception):  # the parts tell the user whether the storage works
                output.put_json(_NAME, sign)
            if stop.wait(INTERVAL_S):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(Exception):
            if not other_driver(output, run_id):
                delete(output.meta_uri(_NAME), output.storage_options)
