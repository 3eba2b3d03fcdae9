"""Load weights: name, path or URI -> a `SegmentationModel`, or an error that says what is wrong with the file.

A file is read as tensors only, never as Python objects, and recognised from its keys and shapes, whatever it is called:

- SAM 2 and 2.1: ``{"model": state dict}``; the Hiera size is told by the width and number of blocks, 2.1 by its
  `no_obj_embed_spatial`;
- SAM 1: a bare state dict with a ViT's `image_encoder.patch_embed`;
- other sizes of SAM 2 need their model configuration.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from effsam2_ray.errors import ConfigError, WeightsError
from effsam2_ray.model import sam1, sam2
from effsam2_ray.model.backbones import BACKBONES, Backbone, load_heads_table
from effsam2_ray.model.build import build_model, load_config
from effsam2_ray.model.fetch import DEMO, demo_file, file_sha256, local_file
from effsam2_ray.model.interface import Head, ModelInfo, SegmentationModel

DEMO_CONFIG = "effsam2_ray:demo/sam2_demo.yaml"
DEMO_HEADS = "sam2_demo_heads.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SAM2_PATCHES = "image_encoder.trunk.patch_embed.proj.weight"
_SAM1_PATCHES = "image_encoder.patch_embed.proj.weight"


def load_model(
    weights: str,
    *,
    model_config: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    cache_dir: Path | None = None,
    heads_table: str | None = None,
    prompts_per_call: int | None = None,
) -> SegmentationModel:
    """Load weights, ready to encode.

    Args:
        weights: `demo`, an official name, a path, an fsspec URI or a hub id; see `fetch.local_file`.
        model_config: YAML in the sam2 package's form, for weights that are not of an official shape.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        dtype: `auto` (bfloat16 on CUDA, float32 elsewhere), `float32`, `bfloat16` or `float16`.
        cache_dir: where downloads are kept; None takes $EFFSAM2_CACHE or ~/.cache/effsam2_ray.
        heads_table: path or URI of a table (`backbones.load_heads_table`); it sets the default head.
        prompts_per_call: size of the decoder's calls; None takes what is fast on the device.

    Raises:
        WeightsError: the file cannot be had, is damaged, holds something else, or does not match the configuration.
        ConfigError: an unknown device or dtype, or a heads table or model configuration that cannot be used.
    """
    torch_device = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, torch_device)
    model, info = _load(weights, model_config, cache_dir, heads_table)
    implementation = sam2.Sam2Model if info.family == "sam2" else sam1.Sam1Model
    return implementation(model, info, torch_device, torch_dtype, prompts_per_call)


def check_weights(
    weights: str, *, model_config: str | None = None, cache_dir: Path | None = None, heads_table: str | None = None
) -> ModelInfo:
    """Return the facts of weights after the same checks as `load_model`, without touching a device.

    Args and errors: as in `load_model`.
    """
    return _load(weights, model_config, cache_dir, heads_table)[1]


def resolve_device(device: str) -> torch.device:
    """Return the device that a setting names; ConfigError where it is unknown or not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N; got {device!r}") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but this machine has no usable CUDA device; use --device auto or cpu")
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the type that a setting names; ConfigError where it is unknown."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype must be auto, {', '.join(_DTYPES)}; got {dtype!r}")
    return _DTYPES[dtype]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a weights file: a bare state dict, or one under `model`.

    Raises:
        WeightsError: empty, a web page, truncated, not of tensors only, or with no state dict inside.
    """
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise WeightsError(f"cannot read the weights file {path}: {error}") from error
    if not head:
        raise WeightsError(f"the weights file {path} is empty")
    if head.lstrip()[:1] == b"<":
        raise WeightsError(f"{path} is a web page or XML, not weights; the download was answered with an error page")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a git-lfs pointer, not weights; fetch the file itself with: git lfs pull")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=head.startswith(b"PK") or None)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is not a file of tensors: either damaged, or it holds Python objects, which are never loaded "
            f"({_first_line(error)})"
        ) from error
    # torch raises whatever its zip and pickle readers meet in bytes that are no weights.
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read; it is truncated or no weights file ({_first_line(error)})"
        ) from error
    state = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict (names to tensors), neither bare nor under 'model'")
    return {str(name): value for name, value in state.items()}


def recognise(state: Mapping[str, Tensor]) -> Backbone | None:
    """Return the official backbone whose width, depth and release a state dict has; None where it has none's.

    Raises:
        WeightsError: this is neither SAM 2 nor SAM 1.
    """
    if _SAM2_PATCHES in state:
        family, prefix = "sam2", "image_encoder.trunk.blocks."
        embed_dim = state[_SAM2_PATCHES].shape[0]
        release = "sam2.1_" if "no_obj_embed_spatial" in state else "sam2_"
    elif _SAM1_PATCHES in state:
        family, prefix, release = "sam1", "image_encoder.blocks.", "sam_vit_"
        embed_dim = state[_SAM1_PATCHES].shape[0]
    else:
        names = ", ".join(list(state)[:3])
        raise WeightsError(
            f"neither SAM 2 nor SAM 1 weights: no {_SAM2_PATCHES} and no {_SAM1_PATCHES}; it has {names}, ..."
        )
    depth = len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
    for backbone in BACKBONES.values():
        if (backbone.family, backbone.embed_dim, backbone.depth) == (family, embed_dim, depth):
            if backbone.name.startswith(release):
                return backbone
    return None


def compare(state: Mapping[str, Tensor], model: nn.Module) -> str:
    """Say how a state dict differs from a model's own, "" where it does not: names, shapes, first few of each."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    lists = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "of another shape": [
            f"{name} {given[name]} instead of {own[name]}" for name in own if name in given and given[name] != own[name]
        ],
    }
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for kind, names in lists.items()
        if names
    )


def _load(
    weights: str, model_config: str | None, cache_dir: Path | None, heads_table: str | None
) -> tuple[nn.Module, ModelInfo]:
    path = local_file(weights, cache_dir)
    digest = file_sha256(path)
    if weights in BACKBONES and digest != BACKBONES[weights].sha256:
        raise WeightsError(f"{path} is not the official {weights} (another sha256); delete it to download it again")
    state = read_state_dict(path)
    backbone = recognise(state)
    is_demo = path == demo_file("sam2_demo.pt")
    name = DEMO if is_demo else backbone.name if backbone and not model_config else Path(model_config or path).stem
    tables = [load_heads_table(heads_table)] if heads_table else []
    if is_demo and demo_file(DEMO_HEADS).is_file():
        tables.append(load_heads_table(str(demo_file(DEMO_HEADS))))
    default = (backbone.default_head, backbone.head_source) if backbone and not model_config else None
    found = (table.get(digest) or table.get(name) for table in tables)
    default_head: tuple[Head, str] | None = next(filter(None, found), default)

    config = DEMO_CONFIG if is_demo and not model_config else model_config
    if config is None and backbone is None:
        raise WeightsError(f"{path} has the keys of SAM, but no official size; give its model configuration too")
    if config is None and backbone is not None and backbone.family == "sam1":
        model = sam1.build(backbone.config)
    else:
        model = build_model(load_config(config or (backbone.config if backbone else "")))
    difference = compare(state, model)
    if difference:
        raise WeightsError(f"{path} does not match {config or name}: {difference}")
    model.load_state_dict(state)
    if hasattr(model, "sam_mask_decoder"):
        return model, sam2.describe(model, name, default_head, digest, is_demo)
    return model, sam1.describe(model, name, default_head, digest)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
