"""Settings of a labelling run: named defaults, presets, and overrides.

A `Config` holds everything that changes which masks an image gets, in sections (`cluster`, `attention`, `prompts`,
`decode`, `merge`, `filter`). How a run is spread over machines is not in it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from effsam2_ray.errors import ConfigError


@dataclass(frozen=True)
class ClusterSettings:
    """HDBSCAN over the attention rows.

    Attributes:
        min_samples: neighbours that define a core distance, not counting the patch itself (scikit-learn counts it).
        min_cluster_size: fewest patches in a cluster.
        noise_floor: largest distance below which an attention map counts as constant and gives no prompts.
    """

    min_samples: int = 2
    min_cluster_size: int = 10
    noise_floor: float = 1e-5

    def __post_init__(self) -> None:
        _at_least("cluster.min_samples", self.min_samples, 1)
        _at_least("cluster.min_cluster_size", self.min_cluster_size, 2)
        _at_least("cluster.noise_floor", self.noise_floor, 0)


@dataclass(frozen=True)
class AttentionSettings:
    """Which attention head is captured; None takes the backbone's default.

    Attributes:
        block: 0-based encoder block; must use global attention.
        head: 0-based head of that block.
    """

    block: int | None = None
    head: int | None = None


@dataclass(frozen=True)
class PromptSettings:
    """Where the point prompts come from.

    Attributes:
        source: `clusters` (the method), or the baselines `grid` and `random`.
        count: points a side for `grid`, points an image for `random`; unused for `clusters`.
        seed: seed of `random`.
    """

    source: Literal["clusters", "grid", "random"] = "clusters"
    count: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.source != "clusters":
            _at_least("prompts.count", self.count, 1)

    @classmethod
    def parse(cls, text: str) -> PromptSettings:
        """Return the settings that `clusters`, `grid:32` or `random:1024` stand for."""
        source, _, count = text.partition(":")
        if source == "clusters" and not count:
            return cls()
        if source in ("grid", "random") and count.isdecimal():
            return cls(source=typing.cast(Literal["grid", "random"], source), count=int(count))
        raise ConfigError(f"prompts must be clusters, grid:N or random:N; got {text!r}")


@dataclass(frozen=True)
class DecodeSettings:
    """Which decoded masks become candidates.

    Attributes:
        masks_per_prompt: `best` keeps the mask with the highest predicted IoU, `all` keeps the three.
        pred_iou_thresh: candidates need a predicted IoU above this; None takes the backbone's own (SAM 2: 0.8).
        stability_score_thresh: candidates need at least this stability score; None takes the backbone's own (0.95).
        stability_score_offset: shift of the logit cut-off in the stability score.
        stability_at: `full` scores the upsampled logits as SAM 2 does, `low` the 256 x 256 ones (faster, other rows).
    """

    masks_per_prompt: Literal["best", "all"] = "best"
    pred_iou_thresh: float | None = None
    stability_score_thresh: float | None = None
    stability_score_offset: float = 1.0
    stability_at: Literal["full", "low"] = "full"

    def __post_init__(self) -> None:
        _at_least("decode.stability_score_offset", self.stability_score_offset, 0)


@dataclass(frozen=True)
class MergeSettings:
    """How overlapping candidates become final masks.

    Attributes:
        method: `merge` (the method), `nms` (SAM's box NMS) or `none`.
        thresh: pairs with a larger intersection over the smaller area are joined.
        max_area_frac: a candidate that covers more of the picture joins nothing; 1.0 is the source's literal rule.
        nms_iou_thresh: box IoU above which `nms` drops the mask with the lower predicted IoU.
    """

    method: Literal["merge", "nms", "none"] = "merge"
    thresh: float = 0.8
    max_area_frac: float = 0.5
    nms_iou_thresh: float = 0.7

    def __post_init__(self) -> None:
        _within("merge.thresh", self.thresh, 0, 1)
        _within("merge.max_area_frac", self.max_area_frac, 0, 1)
        _within("merge.nms_iou_thresh", self.nms_iou_thresh, 0, 1)


@dataclass(frozen=True)
class FilterSettings:
    """Limits on the final masks, in the picture's own pixels; all off by default.

    Attributes:
        min_area: fewest pixels.
        max_area: most pixels; None is no limit.
        min_area_frac: smallest share of the picture.
        max_area_frac: largest share of the picture.
        fill_holes_area: holes of at most this many pixels are filled.
        remove_specks_area: separate parts of at most this many pixels are removed.
        drop_border: masks that touch the picture's border are dropped.
    """

    min_area: int = 0
    max_area: int | None = None
    min_area_frac: float = 0.0
    max_area_frac: float = 1.0
    fill_holes_area: int = 0
    remove_specks_area: int = 0
    drop_border: bool = False

    def __post_init__(self) -> None:
        _at_least("filter.min_area", self.min_area, 0)
        _at_least("filter.fill_holes_area", self.fill_holes_area, 0)
        _at_least("filter.remove_specks_area", self.remove_specks_area, 0)
        _within("filter.min_area_frac", self.min_area_frac, 0, 1)
        _within("filter.max_area_frac", self.max_area_frac, 0, 1)


@dataclass(frozen=True)
class Config:
    """Everything that changes which masks an image gets. `preset` is the name it started from."""

    preset: str = "low_latency"
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    attention: AttentionSettings = field(default_factory=AttentionSettings)
    prompts: PromptSettings = field(default_factory=PromptSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    merge: MergeSettings = field(default_factory=MergeSettings)
    filter: FilterSettings = field(default_factory=FilterSettings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dictionaries; `Config.from_dict` takes them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Build a configuration from nested dictionaries; what they leave out keeps its default.

        Raises:
            ConfigError: an unknown section or field, or a value of the wrong type or range.
        """
        config = cls(preset=str(values.get("preset", cls.preset)))
        for section, fields in values.items():
            if section == "preset":
                continue
            if section in SECTIONS and not isinstance(fields, Mapping):
                raise ConfigError(f"section {section!r} must hold fields; got {fields!r}")
            config = _replace(config, str(section), fields)
        return config

    def with_overrides(self, overrides: Iterable[str]) -> Config:
        """Return a copy with `section.field=value` texts applied in order.

        Raises:
            ConfigError: a text of another form, an unknown field, or a value of the wrong type or range.
        """
        config = self
        sections: dict[str, dict[str, Any]] = {}
        for text in overrides:
            path, equals, value = text.partition("=")
            section, dot, name = path.strip().partition(".")
            if not (equals and dot):
                raise ConfigError(f"an override must read section.field=value; got {text!r}")
            try:
                parsed = yaml.safe_load(value)
            except yaml.YAMLError:
                parsed = value
            sections.setdefault(section, {})[name] = parsed
        for section, fields in sections.items():
            config = _replace(config, section, fields)
        return config


SECTIONS = tuple(f.name for f in dataclasses.fields(Config) if f.name != "preset")

# HDBSCAN (min_samples, min_cluster_size), and the average number of prompts an image that the source reports.
PRESETS: dict[str, tuple[int, int]] = {
    "low_latency": (2, 10),
    "high_quality": (2, 5),
    "sam3d": (5, 40),
    "sam1": (2, 3),
}
REPORTED_PROMPTS = {"low_latency": 107.3, "high_quality": 213.1, "sam3d": 22.5, "sam1": 300.5}


def preset_config(name: str) -> Config:
    """Return the configuration of a named preset.

    Raises:
        ConfigError: no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; presets are {', '.join(PRESETS)}")
    min_samples, min_cluster_size = PRESETS[name]
    return Config(preset=name, cluster=ClusterSettings(min_samples, min_cluster_size))


def load_preset_file(path: str | Path) -> Config:
    """Return the configuration in a YAML file of sections; `preset:` names it, else the file's stem does.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds an unknown setting.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read preset file {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"preset file {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"preset file {path} must hold sections such as 'cluster:'")
    return Config.from_dict({"preset": path.stem, **values})


def _replace(config: Config, section: str, fields: Mapping[str, Any]) -> Config:
    """Set the given fields of a section together, as the values of one may depend on another's."""
    if section not in SECTIONS:
        raise ConfigError(f"unknown section {section!r}; sections are {', '.join(SECTIONS)}")
    current = getattr(config, section)
    hints = typing.get_type_hints(type(current))
    coerced = {}
    for name, value in fields.items():
        if name not in hints:
            raise ConfigError(f"unknown setting {section}.{name}; {section} has {', '.join(hints)}")
        coerced[name] = _coerce(f"{section}.{name}", hints[name], value)
    return dataclasses.replace(config, **{section: dataclasses.replace(current, **coerced)})


def _coerce(name: str, hint: Any, value: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is type(None) and value is None:
            return None
        if option is bool and isinstance(value, bool):
            return value
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option is float and isinstance(value, str):  # YAML 1.1 reads 1e-5 as text
            try:
                return float(value)
            except ValueError:
                continue
        if typing.get_origin(option) is Literal and value in typing.get_args(option):
            return value
    accepted = " or ".join(_describe(option) for option in options)
    raise ConfigError(f"{name} must be {accepted}; got {value!r}")


def _describe(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return " or ".join(map(str, typing.get_args(option)))
    return {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}[option]


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ConfigError(f"{name} must be {least} or more; got {value}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} must lie between {low} and {high}; got {value}")
