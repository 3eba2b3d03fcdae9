from __future__ import annotations

import dataclasses

from effsam2_ray.config import Config
from effsam2_ray.fingerprint import differences, fingerprint
from effsam2_ray.model.interface import ModelInfo

INFO = ModelInfo("demo", "sam2", 512, 32, (5, 6, 7), (4, 4, 4), 32, 7, 0, "", 0.8, 0.95, "abc", True)


def flat(config: Config = Config(), info: ModelInfo = INFO, **changes: object) -> dict[str, object]:  # noqa: B008
    values = {
        "dtype": "float32",
        "compiled": False,
        "device_type": "cpu",
        "keep_candidates": False,
        "model_config_sha256": "",
        "inputs": {"limit": None},
        **changes,
    }
    return fingerprint(config, info, **values)  # type: ignore[arg-type]


def test_same_settings_have_no_differences():
    assert differences(flat(), flat()) == []


def test_each_difference_is_listed_with_both_values():
    other = flat(
        Config(preset="sam3d").with_overrides(["merge.thresh=0.7"]),
        dataclasses.replace(INFO, weights_sha256="def"),
        dtype="bfloat16",
        compiled=True,
        inputs={"limit": 5},
    )
    assert differences(flat(), other) == [
        "compiled: False in the output, True now",
        "dtype: 'float32' in the output, 'bfloat16' now",
        "inputs.limit: None in the output, 5 now",
        "merge.thresh: 0.8 in the output, 0.7 now",
        "preset: 'low_latency' in the output, 'sam3d' now",
        "weights.sha256: 'abc' in the output, 'def' now",
    ]


def test_absent_fields_count_as_different():
    assert differences({"a": None}, {}) == ["a: None in the output, (absent) now"]


def test_every_setting_is_part_of_the_fingerprint():
    names = set(flat())
    for section, fields in Config().to_dict().items():
        if isinstance(fields, dict):
            assert {f"{section}.{name}" for name in fields} <= names
