from __future__ import annotations

import pytest

from effsam2_ray.config import PRESETS, Config, PromptSettings, load_preset_file, preset_config
from effsam2_ray.errors import ConfigError


def test_presets_are_those_of_the_source():
    assert PRESETS == {"low_latency": (2, 10), "high_quality": (2, 5), "sam3d": (5, 40), "sam1": (2, 3)}


def test_preset_sets_only_the_two_numbers():
    config = preset_config("sam3d")
    assert (config.cluster.min_samples, config.cluster.min_cluster_size) == (5, 40)
    assert config.merge == Config().merge and config.decode == Config().decode and config.preset == "sam3d"


def test_unknown_preset_lists_the_presets():
    with pytest.raises(ConfigError, match="unknown preset 'fast'; presets are low_latency, high_quality, sam3d, sam1"):
        preset_config("fast")


def test_overrides_apply_in_order_and_keep_types():
    config = Config().with_overrides(
        [
            "merge.thresh=0.7",
            "merge.thresh=1",
            "filter.max_area=500",
            "filter.drop_border=true",
            "decode.masks_per_prompt=all",
        ]
    )
    assert config.merge.thresh == 1.0 and isinstance(config.merge.thresh, float)
    assert config.filter.max_area == 500 and config.filter.drop_border is True
    assert config.decode.masks_per_prompt == "all"
    assert Config().merge.thresh == 0.8


def test_override_takes_scientific_notation_and_null():
    config = Config().with_overrides(["cluster.noise_floor=1e-6", "filter.max_area=7", "filter.max_area=null"])
    assert config.cluster.noise_floor == 1e-6 and config.filter.max_area is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge.thresh", "must read section.field=value"),
        ("thresh=1", "must read section.field=value"),
        ("merged.thresh=1", "unknown section 'merged'; sections are cluster, attention"),
        ("merge.threshold=1", "unknown setting merge.threshold; merge has method, thresh"),
        ("merge.thresh=high", "merge.thresh must be a number; got 'high'"),
        ("merge.thresh=1.5", "merge.thresh must lie between 0 and 1; got 1.5"),
        ("merge.thresh=.nan", "merge.thresh must lie between 0 and 1; got nan"),
        ("cluster.min_samples=2.5", "cluster.min_samples must be a whole number; got 2.5"),
        ("cluster.min_samples=true", "cluster.min_samples must be a whole number; got True"),
        ("cluster.min_cluster_size=1", "cluster.min_cluster_size must be 2 or more; got 1"),
        ("decode.masks_per_prompt=some", "must be best or all; got 'some'"),
        ("decode.masks_per_prompt=[", r"must be best or all; got '\['"),
        ("filter.drop_border=3", "must be true or false; got 3"),
        ("prompts.source=grid", "prompts.count must be 1 or more; got 0"),
    ],
)
def test_wrong_override_says_what_is_accepted(text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        Config().with_overrides([text])


def test_dictionary_round_trip():
    config = Config().with_overrides(["merge.method=nms", "attention.block=5"])
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("order", [("source=grid", "count=32"), ("count=32", "source=grid")])
def test_fields_of_a_section_are_set_together(order):
    config = Config().with_overrides([f"prompts.{text}" for text in order])
    assert config.prompts == PromptSettings("grid", 32)
    assert Config.from_dict(config.to_dict()) == config


def test_a_section_without_fields_says_so():
    with pytest.raises(ConfigError, match="section 'cluster' must hold fields; got None"):
        Config.from_dict({"cluster": None})


def test_prompt_texts():
    assert PromptSettings.parse("clusters") == PromptSettings()
    assert PromptSettings.parse("grid:32") == PromptSettings("grid", 32)
    assert PromptSettings.parse("random:1024") == PromptSettings("random", 1024)
    for text in ("grid", "grid:", "grid:x", "grid:-1", "clusters:3", "points:3"):
        with pytest.raises(ConfigError, match="clusters, grid:N or random:N"):
            PromptSettings.parse(text)


def test_preset_file_is_named_by_its_stem_and_keeps_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("cluster: {min_samples: 3, min_cluster_size: 7}\n")
    config = load_preset_file(path)
    assert config.preset == "mine" and (config.cluster.min_samples, config.cluster.min_cluster_size) == (3, 7)
    assert config.merge == Config().merge


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "must hold sections"),
        ("a: [", "is not YAML"),
        ("colour: {red: 1}", "unknown section 'colour'"),
        ("merge: 3", "section 'merge' must hold fields; got 3"),
        ("merge: {thresh: 7}", "merge.thresh must lie between"),
    ],
)
def test_wrong_preset_file(tmp_path, text: str, message: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_preset_file(path)


def test_missing_preset_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read preset file"):
        load_preset_file(tmp_path / "none.yaml")
