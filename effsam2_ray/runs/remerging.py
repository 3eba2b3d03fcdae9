"""Filter and merge the stored candidates of a part anew: no picture, no model."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from effsam2_ray.config import Config
from effsam2_ray.postprocess import finish
from effsam2_ray.schema import candidates_of, result_columns
from effsam2_ray.uris import redact_text

_NEEDED = ("status", "width", "height", "prompts", "cluster_map", "candidates", "step_s")
_CHANGED = ("merge_largest_share", "masks", "candidates", "step_s")
_FAILED = ("width", "height", "num_prompts", "prompts", "cluster_map", "num_candidates", *_CHANGED)


def remerge_part(table: pa.Table, config: Config) -> tuple[pa.Table, dict[int, str]]:
    """Return a part as a fresh run with other merge and filter settings would have written it.

    Args:
        table: rows of a run with stored candidates.
        config: its resolved configuration but for `merge` and `filter`.

    Returns:
        The new rows, of the same schema; and for each image that could not be merged its `image_uid` and the reason.
    """
    uids = table["image_uid"].to_pylist()
    rows = table.select(_NEEDED).to_pylist()
    columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in ("status", "error")}
    columns |= {name: [row[name] for row in rows] for name in ("candidates", "step_s")}
    columns |= {name: table[name].to_pylist() for name in ("merge_largest_share", "masks")}
    failures: dict[int, str] = {}
    for index, row in enumerate(rows):
        if row["status"] != "ok":
            continue
        try:
            labelled = finish(candidates_of(row), config.merge, config.filter)
        except Exception as error:  # as in a fresh run, a row with a status
            failures[uids[index]] = redact_text(f"{type(error).__name__}: {error}")
            continue
        result = result_columns(labelled, keep_candidates=True)
        for name in _CHANGED:
            columns[name][index] = result[name]
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        table = table.set_column(place, field, pa.array(values, field.type))
    return (_with_failures(table, failures) if failures else table), failures


def _with_failures(table: pa.Table, failures: dict[int, str]) -> pa.Table:
    empty = {name: None for name in _FAILED} | result_columns(None, keep_candidates=True)
    rows = table.to_pylist()
    for row in rows:
        if row["image_uid"] in failures:
            row |= {**empty, "status": "failed", "error": failures[row["image_uid"]]}
    return pa.Table.from_pylist(rows, schema=table.schema)
