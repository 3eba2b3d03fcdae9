"""Faults for jobs under test. Every Python process of a job that has this folder on its path reads it at its start.

`EFFSAM2_TEST_FAULTS` holds the names of those that are wanted, and `EFFSAM2_TEST_FOLDER` a folder for their notes.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Any

FAULTS = os.environ.get("EFFSAM2_TEST_FAULTS", "").split()
FOLDER = os.environ.get("EFFSAM2_TEST_FOLDER", "")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang_in_a_c_call() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    signal.sigwait([signal.SIGUSR1])


def first(name: str) -> bool:
    """Return True for the first process of the job, and of its reruns, that asks for this name."""
    try:
        os.close(os.open(os.path.join(FOLDER, name), os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False


if "pictures" in FAULTS:  # one picture kills whoever decodes it, another never ends
    import PIL.Image

    plain_open = PIL.Image.open

    def open_poisoned(file: Any, *args: Any, **kwargs: Any) -> Any:
        data = file.getvalue() if hasattr(file, "getvalue") else b""
        if b"KILLS ITS PROCESS" in data:
            die()
        if b"HANGS IN A C CALL" in data:
            hang_in_a_c_call()
        return plain_open(file, *args, **kwargs)

    PIL.Image.open = open_poisoned

if "parts" in FAULTS:  # the first writers of parts die at four places, one each
    plain_makedirs, plain_fsync, plain_replace = os.makedirs, os.fsync, os.replace

    def makedirs(name: Any, *args: Any, **kwargs: Any) -> None:
        existed = os.path.isdir(name)  # else it is the driver who makes the folder of the run, for `_meta/`
        plain_makedirs(name, *args, **kwargs)
        if existed and os.path.basename(str(name)) == "out" and first("built"):
            die()

    def fsync(descriptor: int) -> None:
        if ".part-" in os.readlink(f"/proc/self/fd/{descriptor}") and first("half written"):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()
        plain_fsync(descriptor)

    def replace(source: Any, target: Any, **kwargs: Any) -> None:
        is_part = ".part-" in str(source)
        if is_part and first("written aside"):
            die()
        plain_replace(source, target, **kwargs)
        if is_part and first("put"):
            die()

    os.makedirs, os.fsync, os.replace = makedirs, fsync, replace

if "merging" in FAULTS:  # pictures of three heights cannot be merged
    import effsam2_ray.postprocess

    plain_finish = effsam2_ray.postprocess.finish

    def finish(candidates: Any, *args: Any, **kwargs: Any) -> Any:
        height = candidates.size_hw[0]
        if height == 91:
            die()
        if height == 93:
            hang_in_a_c_call()
        if height == 95:
            raise ArithmeticError("cannot be merged")
        return plain_finish(candidates, *args, **kwargs)

    effsam2_ray.postprocess.finish = finish

if "files" in FAULTS:  # logged:///path is a local file whose every use is noted; some may not be read
    import fsspec
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.spec import AbstractFileSystem

    class LoggedFileSystem(AbstractFileSystem):
        protocol = "logged"
        local = LocalFileSystem()

        def info(self, path: str, **kwargs: Any) -> Any:
            return self.local.info(self.noted("info", path))

        def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
            return self.local.ls(self.noted("ls", path), detail=detail)

        def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
            return bytes(self.local.cat_file(self.noted("read", path), start=start, end=end))

        def noted(self, what: str, path: str) -> str:
            path = "/" + self._strip_protocol(path).lstrip("/")
            with open(os.path.join(FOLDER, "files.log"), "a") as log:
                log.write(f"{what} {path}\n")
            if "forbidden" in path:
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return path

    fsspec.register_implementation("logged", LoggedFileSystem)
