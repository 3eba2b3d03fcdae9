"""Configuration file -> model, without Hydra's process-wide state."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from effsam2_ray.errors import ConfigError

# A configuration names the classes to call; only these modules' may be named, so that reading one runs no other code.
ALLOWED_TARGETS = ("sam2.modeling.", "torch.nn.", "effsam2_ray.model.")


def load_config(source: str | Path) -> dict[str, Any]:
    """Read a configuration in the sam2 package's form.

    Args:
        source: a path, or `PACKAGE:PATH` for a file inside an installed package, such as
            `sam2:configs/sam2.1/sam2.1_hiera_l.yaml`.

    Returns:
        Plain nested dicts and lists, interpolations resolved; the tree to build is under `model`.

    Raises:
        ConfigError: there is no such file, it is not YAML, or it has no `model` with a `_target_`.
    """
    text = _read_text(str(source))
    try:
        config = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"cannot read the model configuration {source}: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict) or "_target_" not in config["model"]:
        raise ConfigError(f"{source} is no model configuration: a `model` tree with a `_target_` is needed")
    return config  # type: ignore[return-value]


def build_model(config: Mapping[str, Any]) -> torch.nn.Module:
    """Build the model of a configuration, with random weights, in evaluation mode.

    Args:
        config: what `load_config` returns.

    Raises:
        ConfigError: a `_target_` is outside `ALLOWED_TARGETS` or unknown, or does not accept its arguments.
    """
    model = _instantiate(config["model"], "model")
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(f"model._target_ must name a torch module; {config['model']['_target_']!r} is none")
    return model.eval()


def _instantiate(node: Any, where: str) -> Any:
    """Build a node's children, then call the node's own target if it has one."""
    if isinstance(node, list):
        return [_instantiate(item, f"{where}[{index}]") for index, item in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    arguments = {key: _instantiate(value, f"{where}.{key}") for key, value in node.items() if key != "_target_"}
    if "_target_" not in node:
        return arguments
    target = _find_target(node["_target_"], where)
    try:
        return target(**arguments)
    except (TypeError, ValueError, AssertionError, ArithmeticError) as error:
        raise ConfigError(f"{where}: cannot build {node['_target_']}: {error}") from error


def _find_target(name: Any, where: str) -> type[torch.nn.Module]:
    if not isinstance(name, str) or not name.startswith(ALLOWED_TARGETS):
        raise ConfigError(f"{where}._target_ must start with one of {', '.join(ALLOWED_TARGETS)}; got {name!r}")
    module_name, _, attribute = name.rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}._target_ names nothing that can be imported: {name!r}") from error
    if not (isinstance(target, type) and issubclass(target, torch.nn.Module)):
        raise ConfigError(f"{where}._target_ must name a torch module class; got {name!r}")
    return target


def _read_text(source: str) -> str:
    package, colon, inner = source.partition(":")
    try:
        if colon and package.isidentifier() and len(package) > 1:
            return resources.files(package).joinpath(inner).read_text()
        return Path(source).read_text()
    except (OSError, ModuleNotFoundError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the model configuration {source}: {error}") from error
