"""Times and memory as medians with quartiles. What is compared is run in turns, so that both meet the same machine."""

from __future__ import annotations

import ctypes
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Spread:
    """A median and how far values spread around it.

    Attributes:
        median: of the values.
        low, high: their quartiles.
        count: how many there were.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one value or more."""
        low, median, high = np.percentile(values, [25, 50, 75]).tolist()
        return cls(median, low, high, len(values))

    def to_dict(self) -> dict[str, float]:
        """Return plain values for JSON."""
        return {"median": self.median, "low": self.low, "high": self.high, "count": self.count}


@dataclass(frozen=True)
class PeakMemory:
    """Most memory that was in use at once above what was there before.

    Attributes:
        host_bytes: resident memory of this process.
        device_bytes: memory of tensors on a CUDA device; None on a CPU.
    """

    host_bytes: int
    device_bytes: int | None


def clock(device: torch.device) -> float:
    """Return the time in seconds once `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def interleave(
    functions: Mapping[str, Callable[[], Any]], rounds: int, limit_s: float = float("inf"), device: str = "cpu"
) -> dict[str, list[float]]:
    """Run functions in turns and return the seconds of each call.

    Args:
        functions: what to time, warm already; what they return is dropped.
        rounds: how often each is called.
        limit_s: no round after the first begins later than this many seconds after the start.
        device: where the work is done.
    """
    where = torch.device(device)
    taken: dict[str, list[float]] = {name: [] for name in functions}
    begin = time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - begin > limit_s:
            break
        for name, function in functions.items():
            start = clock(where)
            function()
            taken[name].append(clock(where) - start)
    return taken


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """Return how many times faster `fast` was, round by round."""
    return Spread.of([a / b for a, b in zip(slow, fast, strict=True)])


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[PeakMemory]]:
    """Measure the block; the list yielded holds one value once the block is left.

    On systems other than Linux a process only knows the peak of its whole life, and the host's value is what the block
    added to that.
    """
    found: list[PeakMemory] = []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        device_before = torch.cuda.memory_allocated(device)
    before = _reset_host_peak()
    yield found
    device_bytes = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        device_bytes = torch.cuda.max_memory_allocated(device) - device_before
    found.append(PeakMemory(max(0, _host_peak() - before), device_bytes))


def _reset_host_peak() -> int:
    """Forget the host's peak where that is possible; return the bytes in use now, or the peak so far."""
    with suppress(AttributeError, OSError):  # memory that is free already must not hide what the block takes
        ctypes.CDLL(None).malloc_trim(0)  # glibc's
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return _host_peak()
    return _status("VmRSS") or _host_peak()


def _host_peak() -> int:
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(key: str) -> int | None:
    """Return a value of Linux's process status in bytes, None elsewhere."""
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None
