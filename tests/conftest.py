"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

# Two busy processes with two threads each are many times slower than with one thread each.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
# Tests start Ray on loopback only, without tokens and without calling home.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray's workers run at nice 15, where whatever else the machine does starves them past the deadlines of tests.
os.environ.setdefault("RAY_worker_niceness", "0")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real photographs beside the checkout; the test is skipped where there is none."""
    folder = Path(os.environ.get("EFFSAM2_SHARED_DATA", SHARED))
    if not folder.is_dir():
        if os.environ.get("EFFSAM2_REQUIRE_SHARED"):
            pytest.fail("../shared/data was there when the tests were started")
        pytest.skip("needs ../shared/data")
    return folder
