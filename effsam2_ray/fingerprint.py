"""What decides a run's rows, and the differences between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from effsam2_ray.config import Config
from effsam2_ray.schema import SCHEMA_VERSION

if TYPE_CHECKING:  # the model layer loads torch, which those who read an output folder do not need
    from effsam2_ray.model.interface import ModelInfo

ALGORITHM_VERSION = 1
"""Raised whenever the same settings and weights would give other rows."""


def fingerprint(
    config: Config,
    info: ModelInfo,
    *,
    dtype: str,
    compiled: bool,
    device_type: str,
    keep_candidates: bool,
    model_config_sha256: str,
    inputs: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything that changes rows, as flat `section.field` keys with plain values.

    Args:
        config: the resolved configuration.
        info: facts about the weights.
        dtype: type of the model's products, such as `float32`.
        compiled: whether compiled code runs, which adds in another order.
        device_type: `cpu` or `cuda`.
        keep_candidates: whether candidates are stored.
        model_config_sha256: digest of the model configuration's content, "" where none was given.
        inputs: what the work list was built from (inputs, limit, columns).
    """
    return {
        **flatten(config),
        **{f"inputs.{name}": value for name, value in inputs.items()},
        "weights.name": info.name,
        "weights.sha256": info.weights_sha256,
        "weights.model_config_sha256": model_config_sha256,
        "dtype": dtype,
        "compiled": compiled,
        "device": device_type,
        "keep_candidates": keep_candidates,
        "algorithm_version": ALGORITHM_VERSION,
        "schema_version": SCHEMA_VERSION,
    }


def flatten(config: Config) -> dict[str, Any]:
    """Return a configuration as flat `section.field` keys with plain values."""
    flat: dict[str, Any] = {}
    for section, fields in config.to_dict().items():
        if isinstance(fields, Mapping):
            flat.update({f"{section}.{name}": value for name, value in fields.items()})
        else:
            flat[section] = fields
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line for each field whose value differs, with both values, in alphabetical order."""
    missing = object()
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, missing), new.get(name, missing)
        if before != after:
            texts = ["(absent)" if value is missing else repr(value) for value in (before, after)]
            lines.append(f"{name}: {texts[0]} in the output, {texts[1]} now")
    return lines
