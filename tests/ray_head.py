"""A Ray head as a process of its own on loopback, with ports and a folder of its own, ended with all its children."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@dataclass(frozen=True)
class RayHead:
    """A running head.

    Attributes:
        address: `HOST:PORT` of its control store.
        dashboard: URL for `ray job submit`; "" where the dashboard is off.
        folder: session folders and logs.
        process: `ray start --block`.
    """

    address: str
    dashboard: str
    folder: Path
    process: psutil.Popen

    def log(self) -> str:
        """Return what `ray start` printed."""
        return (self.folder / "start.log").read_text()


@contextlib.contextmanager
def ray_head(
    *options: str, env: Mapping[str, str] | None = None, host: str = "127.0.0.1", port: int = 0, dashboard: bool = True
) -> Iterator[RayHead]:
    """Run `ray start --head` with these options while the body runs."""
    port = port or free_port(host)
    dashboard_port = free_port(host)
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: Ray's sockets have names of 107 bytes at most
    command = [*RAY, "start", "--head", "--block", f"--node-ip-address={host}", f"--port={port}"]
    command += [f"--temp-dir={folder}", "--disable-usage-stats", *options]
    if dashboard:
        command += ["--include-dashboard=true", f"--dashboard-host={host}", f"--dashboard-port={dashboard_port}"]
    else:
        command += ["--include-dashboard=false"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # "python" of a job is this one
    with (folder / "start.log").open("w") as log:
        process = psutil.Popen(
            command,
            env={**os.environ, "PATH": path, "RAY_AUTH_MODE": "disabled", **(env or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    head = RayHead(f"{host}:{port}", f"http://{host}:{dashboard_port}" if dashboard else "", folder, process)
    try:
        _wait_until_up(head, (host, dashboard_port if dashboard else port))
        yield head
    finally:
        end_with_children(process, folder)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(head: RayHead, place: tuple[str, int]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert head.process.poll() is None, head.log()
        with contextlib.suppress(OSError), socket.create_connection(place, timeout=1):
            if "Ray runtime started" in head.log():
                return
        time.sleep(0.3)
    raise AssertionError(f"no head within 90 s:\n{head.log()}")


def end_with_children(process: psutil.Popen, folder: Path) -> None:
    """Kill a process, its children, and whoever else was started with its session folder."""
    members = {process.pid: process}
    with contextlib.suppress(psutil.Error):
        members |= {child.pid: child for child in process.children(recursive=True)}
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in word for word in other.cmdline()):
                members[other.pid] = other
    for member in members.values():
        with contextlib.suppress(psutil.Error):
            member.kill()
    psutil.wait_procs(list(members.values()), timeout=20)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        port: int = listener.getsockname()[1]
        return port
