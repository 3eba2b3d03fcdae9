"""What an evaluation compares: methods, each with the ways in which its candidates become final masks.

A method is a configuration; it differs from another in its prompts, or in a setting of its clusters or its decoding.
What happens to candidates afterwards (a `Post`) needs no model, so that one method can have several.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from effsam2_ray.config import PRESETS, Config, MergeSettings, PromptSettings, load_preset_file, preset_config
from effsam2_ray.errors import ConfigError

POST_CHOICES = ("own", "merge", "nms", "both", "none")
"""`own`: clusters are merged and grid and random prompts go through NMS, as in the method's source."""

SWEPT_SECTIONS = ("cluster", "attention", "prompts", "decode", "merge")
_OPEN_THRESHOLDS = ("decode.pred_iou_thresh=-1", "decode.stability_score_thresh=-1")


@dataclass(frozen=True)
class Post:
    """One way from candidates to final masks.

    Attributes:
        name: for tables.
        merge: how overlapping candidates are joined or suppressed.
        equal_prompts: keep only the candidates of a picture's largest clusters, as many as the methods compared can
            all give (`effsam2_ray.evaluation.budget`).
    """

    name: str
    merge: MergeSettings
    equal_prompts: bool = False


@dataclass(frozen=True)
class Method:
    """One configuration that is run over the data set.

    Attributes:
        name: what tables call it.
        config: its settings, not yet resolved.
        posts: at least one; each gives a line in the tables.
    """

    name: str
    config: Config
    posts: tuple[Post, ...]

    @property
    def slug(self) -> str:
        """Its name as files and folders carry it: letters, digits, `.`, `_` and `-`."""
        return re.sub(r"[^A-Za-z0-9._]+", "-", self.name).strip("-.")

    def line_name(self, post: Post) -> str:
        """Return what a table calls the method with one of its posts: its own name where it has but one."""
        return self.name if len(self.posts) == 1 else f"{self.name}+{post.name}"

    @property
    def is_clustered(self) -> bool:
        """Whether its prompts are the medoids of clusters."""
        return self.config.prompts.source == "clusters"


def parse_methods(texts: Sequence[str], overrides: Iterable[str] = (), post: str = "own") -> list[Method]:
    """Return the methods that `low_latency`, `grid:32`, `random:1024` and `my.yaml` stand for.

    Args:
        texts: names of presets, `grid:N`, `random:N`, or YAML files of settings.
        overrides: `section.field=value` texts that hold for all of them.
        post: one of `POST_CHOICES`.

    Raises:
        ConfigError: an unknown name or setting, or one name twice.
    """
    if post not in POST_CHOICES:
        raise ConfigError(f"post must be {', '.join(POST_CHOICES)}; got {post!r}")
    overrides = list(overrides)
    methods = []
    for text in texts:
        config = method_config(text).with_overrides(overrides)
        methods.append(Method(config.preset, config, _posts(config, post)))
    return check_names(methods)


def method_config(text: str) -> Config:
    """Return the configuration of one method by its name; see `parse_methods`."""
    if text.startswith(("grid:", "random:")):
        return Config(preset=text, prompts=PromptSettings.parse(text), merge=MergeSettings(method="nms"))
    if text.lower().endswith((".yaml", ".yml")):
        return load_preset_file(text)
    if text not in PRESETS:
        raise ConfigError(f"a method must be {', '.join(PRESETS)}, grid:N, random:N or a .yaml file; got {text!r}")
    return preset_config(text)


def without_score_filter(method: Method) -> Method:
    """Return the same method with every decoded mask kept as a candidate."""
    return dataclasses.replace(
        method, name=f"{method.name}+unfiltered", config=method.config.with_overrides(_OPEN_THRESHOLDS)
    )


def ablation(own: Method, grid: Method) -> list[Method]:
    """Return (own prompts, grid) x masks a prompt (best, all), each with both NMS and merging."""
    methods = []
    for base, masks in itertools.product((own, grid), ("best", "all")):
        config = base.config.with_overrides([f"decode.masks_per_prompt={masks}"])
        methods.append(Method(f"{base.name}+{masks}", config, _posts(config, "both")))
    return check_names(methods)


def sweep(base: Method, texts: Sequence[str]) -> list[Method]:
    """Return every combination of the values in `FIELD=V1,V2,...` texts.

    Fields of `merge` become further posts of each method, for they need no model; all others give methods.

    Args:
        base: what the settings not swept are taken from.
        texts: FIELD is `section.field`; without a section it is one of `cluster`.

    Raises:
        ConfigError: a text of another form, an unknown field or a value out of range.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        path, equals, values = text.partition("=")
        path = path.strip() if "." in path else f"cluster.{path.strip()}"
        section, _, _ = path.partition(".")
        chosen = list(dict.fromkeys(value.strip() for value in values.split(",") if value.strip()))
        if not equals or not chosen:
            raise ConfigError(f"a sweep must read FIELD=VALUE,VALUE,...; got {text!r}")
        if section not in SWEPT_SECTIONS:
            raise ConfigError(f"a sweep takes fields of {', '.join(SWEPT_SECTIONS)}; got {text!r}")
        axes[path] = chosen
    run_axes = {path: values for path, values in axes.items() if not path.startswith("merge.")}
    merge_axes = {path: values for path, values in axes.items() if path.startswith("merge.")}
    methods = []
    for run_settings in _combinations(run_axes):
        config = base.config.with_overrides(run_settings)
        posts = tuple(
            Post(_short(merge_settings), config.with_overrides(merge_settings).merge)
            for merge_settings in _combinations(merge_axes)
        )
        name = f"{base.name} {_short(run_settings)}" if run_settings else f"{base.name} sweep"
        methods.append(Method(name, config, posts if merge_axes else base.posts))
    return check_names(methods)


def check_names(methods: Sequence[Method]) -> list[Method]:
    """Return the methods, or raise ConfigError where two have one name, or names that files cannot tell apart."""
    seen: dict[str, str] = {}
    for method in methods:
        other = seen.setdefault(method.slug.lower(), method.name)
        if other != method.name or sum(m.name == method.name for m in methods) > 1:
            raise ConfigError(f"methods need names of their own; got {other!r} and {method.name!r}")
    return list(methods)


def _posts(config: Config, post: str) -> tuple[Post, ...]:
    names = {"own": (config.merge.method,), "both": ("merge", "nms")}.get(post, (post,))
    return tuple(Post(name, config.with_overrides([f"merge.method={name}"]).merge) for name in names)


def _combinations(axes: dict[str, list[str]]) -> list[list[str]]:
    return [
        [f"{path}={value}" for path, value in zip(axes, values, strict=True)]
        for values in itertools.product(*axes.values())
    ]


def _short(settings: Sequence[str]) -> str:
    return " ".join(setting.partition(".")[2] for setting in settings)
