"""Clustering on CPU actors that belong to one segmenter: made by it, on its node, gone with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from effsam2_ray.attention import CapturedHead
from effsam2_ray.cluster_prompts import select_clusters
from effsam2_ray.clustering import Clusters
from effsam2_ray.config import Config
from effsam2_ray.labeller import FoundPrompts, find_prompts
from effsam2_ray.model.interface import Head


class ClusterActor:
    """Finds the prompts of one picture at a time, on one thread."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)

    def find(
        self,
        captured: Mapping[Head, CapturedHead],
        size_hw: tuple[int, int],
        extent_hw: tuple[float, float],
        configs: Sequence[Config],
    ) -> list[FoundPrompts]:
        """Return the prompts of one picture (`effsam2_ray.labeller.find_prompts`)."""
        return find_prompts(captured, size_hw, extent_hw, configs)

    def select(self, edges: np.ndarray, ties_at_once: bool, min_cluster_size: int) -> Clusters:
        """Return the clusters of one picture's spanning tree (`effsam2_ray.cluster_prompts.select_clusters`)."""
        return select_clusters(edges, ties_at_once, min_cluster_size)

    def ready(self) -> bool:
        """Answer once the actor has started."""
        return True


class ClusterPool:
    """The clustering actors of one segmenter, each given one picture at a time.

    It starts with one actor and adds another whenever a picture has to wait for a free one, so that its size follows
    from what the first pictures need. Their CPUs are part of the segmenter's own request, so they ask for none.

    Args:
        size: most actors, 1 or more.
        timeout_s: seconds that one picture may take with one configuration; None never gives up.
    """

    def __init__(self, size: int, timeout_s: float | None):
        self._timeout_s = timeout_s
        self._size = size
        self._actors = [self._start()]
        ray.get(self._actors[0].ready.remote())
        self._free: asyncio.Queue[Any] | None = None
        self._growing: set[asyncio.Task[None]] = set()

    async def find(
        self,
        captured: Mapping[Head, CapturedHead],
        size_hw: tuple[int, int],
        extent_hw: tuple[float, float],
        configs: Sequence[Config],
    ) -> list[FoundPrompts]:
        """Return the prompts of one picture whose captured heads lie in host memory, for each configuration.

        Raises:
            TimeoutError: the picture took too long; its actor was replaced.
        """
        arguments = (captured, size_hw, extent_hw, configs)
        found: list[FoundPrompts] = await self._call(len(configs), "find", *arguments)
        return found

    async def select(self, edges: np.ndarray, ties_at_once: bool, min_cluster_size: int) -> Clusters:
        """Return the clusters of one picture whose spanning tree was found on a device.

        Raises:
            TimeoutError: the picture took too long; its actor was replaced.
        """
        clusters: Clusters = await self._call(1, "select", edges, ties_at_once, min_cluster_size)
        return clusters

    async def _call(self, num_configs: int, method: str, *args: Any) -> Any:
        limit_s = None if self._timeout_s is None else self._timeout_s * num_configs
        if self._free is None:  # a queue belongs to the loop that first waits on it
            self._free = asyncio.Queue()
            for actor in self._actors:
                self._free.put_nowait(actor)
        if self._free.empty() and len(self._actors) < self._size:
            self._grow(self._free)
        actor = await self._free.get()
        try:
            await actor.ready.remote()  # a fresh one imports for seconds, which are not the picture's
            future = getattr(actor, method).remote(*args).future()
            return await asyncio.wait_for(asyncio.wrap_future(future), limit_s)
        except TimeoutError as error:
            ray.kill(actor)
            actor = self._start()
            raise TimeoutError(f"clustering took more than {limit_s:g} s") from error
        except ray.exceptions.RayActorError:
            actor = self._start()
            raise
        finally:
            self._free.put_nowait(actor)

    def _grow(self, free: asyncio.Queue[Any]) -> None:
        actor = self._start()
        self._actors.append(actor)

        async def join() -> None:  # it imports for seconds; until then the pictures go on with the others
            with contextlib.suppress(ray.exceptions.RayError):  # a dead one is replaced by the picture that meets it
                await actor.ready.remote()
            free.put_nowait(actor)

        task = asyncio.get_running_loop().create_task(join())
        self._growing.add(task)  # or it could be collected before it is done
        task.add_done_callback(self._growing.discard)

    @staticmethod
    def _start() -> Any:
        node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # A death is retried by Ray; a picture that kills three actors in a row fails alone.
        options = {"num_cpus": 0, "scheduling_strategy": node, "max_restarts": -1, "max_task_retries": 3}
        return ray.remote(ClusterActor).options(**options).remote()
