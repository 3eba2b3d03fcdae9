"""Lines that say how far a listing is."""

from __future__ import annotations

import time
from collections.abc import Callable

INTERVAL_S = 10.0


class ListingProgress:
    """Callable for `build_work_list`: says a line every `interval_s` seconds, the first after as long.

    Args:
        say: takes a line.
        interval_s: seconds between two lines.
    """

    def __init__(self, say: Callable[[str], None], interval_s: float = INTERVAL_S):
        self._say, self._interval_s = say, interval_s
        self._start = self._last = time.monotonic()

    def __call__(self, num_images: int, num_shards: int) -> None:
        """Take the counts so far."""
        now = time.monotonic()
        if now - self._last >= self._interval_s:
            self._last = now
            shards = f" in {num_shards:,} shards" if num_shards else ""
            rate = num_images / max(now - self._start, 1e-9)
            self._say(f"Listing: {num_images:,} images{shards} so far, {rate:,.0f} a second")
