"""Work on the units of a run in several processes of one machine, results in order, a bounded number under way."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from effsam2_ray.errors import OutputError

Task = TypeVar("Task")
Result = TypeVar("Result")

# A process takes about two seconds to start.
_MIN_TASKS_A_PROCESS = 8
_TASKS_AHEAD = 3


def map_tasks(
    function: Callable[[Task], Result], tasks: Iterable[Task], num_tasks: int, num_processes: int | None = None
) -> Iterator[Result]:
    """Yield `function(task)` for each task, in order.

    Args:
        function: a module's function, or a `functools.partial` of one.
        tasks: taken a few ahead of the results.
        num_tasks: how many there are.
        num_processes: None takes the machine's CPUs, and no more than pay off; 1 works in this process.

    Raises:
        OutputError: a process died.
    """
    if num_processes is None:
        num_processes = min(len(os.sched_getaffinity(0)), num_tasks // _MIN_TASKS_A_PROCESS)
    if num_processes <= 1:
        yield from map(function, tasks)
        return
    # Forked, a process would inherit threads of Arrow and of fsspec in the middle of whatever they hold.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, mp_context=context)
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) >= _TASKS_AHEAD * num_processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise OutputError(
            f"one of {num_processes} processes died, perhaps for want of memory; try fewer (--num-processes)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
