"""Who is to blame when labelling or merging a unit kills or hangs its process.

While a unit is being labelled, `_meta/attempts/<unit>.json` says so, and `<unit>.merge.json` while it is being merged.
An actor that finds such a record knows that an earlier attempt did not end. Where that attempt's node and job are still
alive, its process died; the unit is then redone image by image, each image noted before it is touched. An image that
was alone when its process died `MAX_DEATHS` times is `crashed`; one that was alone when it overran its time is
`timeout`. A lost node convicts nobody.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import ray

from effsam2_ray.errors import OutputError
from effsam2_ray.output import OutputFolder
from effsam2_ray.storage import delete, put_bytes, read_bytes

MAX_DEATHS = 3

VERDICTS = {"crashed": f"its process died {MAX_DEATHS} times", "timeout": "one step took longer than the limit"}
"""What an image may be convicted of, in words."""


@dataclass
class Attempt:
    """One unit's record, changed and stored as labelling goes on.

    Attributes:
        unit_id: the unit, or `<unit>.merge`.
        place: node and job that works on it now.
        alone: whether images are taken one by one.
        current_uid: the image that is at work alone, None between images.
        deaths: image_uid as text -> times that its process died while it was alone.
        verdicts: image_uid as text -> `crashed` or `timeout`.
        idle_deaths: times that its process died while images were taken one by one and none was at work.
    """

    unit_id: str
    place: dict[str, str]
    alone: bool = False
    current_uid: int | None = None
    deaths: dict[str, int] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)
    idle_deaths: int = 0

    def verdict(self, image_uid: int) -> str | None:
        """Return `crashed`, `timeout`, or None for an image that has not been convicted."""
        return self.verdicts.get(str(image_uid))

    def tries(self, image_uid: int) -> int:
        """Return how often an image that was convicted has been tried; the first time it was not alone."""
        return 1 + self.deaths.get(str(image_uid), 1)

    def convict_current(self) -> bool:
        """Note that the image at work alone overran its time; False where none is."""
        if self.current_uid is None:
            return False
        self.verdicts[str(self.current_uid)] = "timeout"
        return True


class AttemptLog:
    """The attempt records of one run.

    Args:
        output: the run's folder.
        place: node and job of this process.
        node_died: tells whether the process at an earlier place was taken down from outside.
    """

    def __init__(self, output: OutputFolder, place: dict[str, str], node_died: Callable[[dict[str, str]], bool]):
        self._output = output
        self._place = place
        self._node_died = node_died

    def begin(self, unit_id: str, max_idle_deaths: int | None = None) -> Attempt:
        """Return this attempt's record, stored, having drawn the conclusions from an earlier one.

        Args:
            unit_id: the unit.
            max_idle_deaths: give up after so many deaths with no image at work; only for a process that works on one
                unit at a time, since another may have killed it.

        Raises:
            OutputError: gave up.
        """
        earlier = self._load(unit_id)
        attempt = Attempt(unit_id, self._place)
        if earlier is not None:
            attempt = dataclasses.replace(earlier, place=self._place, current_uid=None)
            if not self._node_died(earlier.place):
                attempt.alone = True
                if earlier.alone and earlier.current_uid is not None:
                    uid = str(earlier.current_uid)
                    attempt.deaths[uid] = attempt.deaths.get(uid, 0) + 1
                    if attempt.deaths[uid] >= MAX_DEATHS:
                        attempt.verdicts.setdefault(uid, "crashed")
                elif earlier.alone:
                    attempt.idle_deaths += 1
                    if max_idle_deaths is not None and attempt.idle_deaths >= max_idle_deaths:
                        raise OutputError(
                            f"the process that works on unit {unit_id} died {attempt.idle_deaths} times while no image "
                            "was at work: is there enough memory for its part?"
                        )
        self.store(attempt)
        return attempt

    def store(self, attempt: Attempt) -> None:
        """Put the record as it stands now."""
        put_bytes(self._uri(attempt.unit_id), json.dumps(asdict(attempt)).encode(), self._output.storage_options)

    def end(self, attempt: Attempt) -> None:
        """Remove the record of a unit that was labelled to its end.

        Where removing is forbidden the record stays, which blames no image as long as the unit's part is there.
        """
        with contextlib.suppress(PermissionError):
            delete(self._uri(attempt.unit_id), self._output.storage_options)

    def _load(self, unit_id: str) -> Attempt | None:
        try:
            values: dict[str, Any] = json.loads(read_bytes(self._uri(unit_id), self._output.storage_options))
            return Attempt(**values)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # a record of another version tells nothing
            return None

    def _uri(self, unit_id: str) -> str:
        return self._output.meta_uri(f"attempts/{unit_id}.json")


def attempt_log(output: OutputFolder, run_id: str) -> AttemptLog:
    """Return the records as this actor keeps them, in the call of the job that is named `run_id`."""
    place = {"node": ray.get_runtime_context().get_node_id(), "job": run_id}
    return AttemptLog(output, place, functools.partial(_taken_down, place))


def _taken_down(here: dict[str, str], earlier: dict[str, str]) -> bool:
    """Whether an earlier attempt's process was ended from outside: with its job, or with its node."""
    if earlier["job"] != here["job"]:
        return True
    return earlier["node"] not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}
