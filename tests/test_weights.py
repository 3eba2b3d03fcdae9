"""Weights: found, fetched once, recognised from the file itself, refused with a reason."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import threading
import urllib.error
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import yaml

from effsam2_ray import storage
from effsam2_ray.errors import ConfigError, WeightsError
from effsam2_ray.model import fetch, weights
from effsam2_ray.model.backbones import BACKBONES, load_heads_table
from effsam2_ray.model.build import build_model, load_config
from effsam2_ray.model.weights import (
    check_weights,
    load_model,
    read_state_dict,
    recognise,
    resolve_device,
    resolve_dtype,
)

TINY = "sam2.1_hiera_tiny"


@pytest.fixture(scope="module")
def tiny_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model(load_config(BACKBONES[TINY].config)).state_dict()


@pytest.fixture(scope="module")
def tiny_file(tiny_state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the official format under a name that says nothing."""
    path = tmp_path_factory.mktemp("weights") / "mine.pt"
    torch.save({"model": tiny_state}, path)
    return path


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A fine-tuned model of no official size: weights and configuration."""
    folder = tmp_path_factory.mktemp("small")
    tree = load_config(BACKBONES[TINY].config)
    tree["model"]["image_size"] = 128
    tree["model"]["image_encoder"]["trunk"] |= {"stages": [1, 1, 4, 1], "global_att_blocks": [3, 5], "embed_dim": 48}
    tree["model"]["image_encoder"]["neck"]["backbone_channel_list"] = [384, 192, 96, 48]
    (folder / "own.yaml").write_text(yaml.safe_dump(tree))
    torch.manual_seed(0)
    torch.save({"model": build_model(tree).state_dict()}, folder / "own.pt")
    return folder / "own.pt", folder / "own.yaml"


def test_an_official_file_is_recognised_and_runs(tiny_file: Path, tiny_state: dict[str, torch.Tensor]) -> None:
    model = load_model(str(tiny_file), device="cpu")
    info = model.info
    assert info.name == TINY
    assert info.default_head == (5, 2)
    assert "unverified" in info.head_source
    assert info.weights_sha256 == hashlib.sha256(tiny_file.read_bytes()).hexdigest()
    assert (info.family, info.image_size, info.is_demo) == ("sam2", 1024, False)
    assert check_weights(str(tiny_file)) == info
    loaded: Any = model
    assert torch.equal(loaded._model.no_mem_embed, tiny_state["no_mem_embed"])
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", [name for name, backbone in BACKBONES.items() if backbone.family == "sam2"])
def test_every_official_sam2_shape_is_told_apart(name: str) -> None:
    config = load_config(BACKBONES[name].config)
    trunk = config["model"]["image_encoder"]["trunk"]
    # Only what recognition looks at: building the large ones takes seconds each.
    state = {"image_encoder.trunk.patch_embed.proj.weight": torch.empty(trunk["embed_dim"], 3, 7, 7, device="meta")}
    depth = sum(trunk.get("stages", [2, 3, 16, 3]))
    state |= {f"image_encoder.trunk.blocks.{index}.norm1.weight": torch.empty(0) for index in range(depth)}
    if config["model"].get("no_obj_embed_spatial"):
        state["no_obj_embed_spatial"] = torch.empty(1, 64, device="meta")
    backbone = recognise(state)
    assert backbone is not None
    assert backbone.name == name
    assert backbone.global_blocks == tuple(trunk.get("global_att_blocks", (12, 16, 20)))


@pytest.mark.parametrize("size", ["b", "l", "h"])
def test_every_official_sam1_shape_is_told_apart(size: str) -> None:
    registry = pytest.importorskip("segment_anything").sam_model_registry
    with torch.device("meta"):
        state = registry[f"vit_{size}"]().state_dict()
    backbone = recognise(state)
    assert backbone is not None
    assert backbone.name == f"sam_vit_{size}"
    head_dim = state[f"image_encoder.blocks.{backbone.default_head[0]}.attn.rel_pos_h"].shape
    # A global block's table covers offsets over the whole grid of 64 patches.
    assert head_dim == (127, backbone.head_dim)


def test_a_bare_state_dict_of_sam1_is_loaded(tmp_path: Path) -> None:
    registry = pytest.importorskip("segment_anything").sam_model_registry
    torch.manual_seed(0)
    path = tmp_path / "renamed.bin"
    torch.save(registry["vit_b"]().half().state_dict(), path)
    info = check_weights(str(path))
    assert (info.name, info.family, info.default_head) == ("sam_vit_b", "sam1", (5, 2))


def test_own_sizes_need_their_configuration(small_model: tuple[Path, Path]) -> None:
    path, config = small_model
    with pytest.raises(WeightsError, match="no official size; give its model configuration"):
        load_model(str(path))
    model = load_model(str(path), model_config=str(config), device="cpu")
    assert (model.info.name, model.info.image_size, model.info.grid_size) == ("own", 128, 8)
    assert (model.info.global_blocks, model.info.default_head) == ((3, 5), (3, 2))
    [image] = model.encode([np.zeros((50, 70, 3), np.uint8)], [(5, 1)])
    assert image.captured[5, 1].grid_hw == (8, 8)
    [decoded] = model.decode([(image, np.array([[3.0, 4.0]]))])
    assert decoded.low_res_logits.shape == (1, 3, 32, 32)


def broken(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    return str(path)


def test_truncated_file(tiny_file: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="truncated or no weights file"):
        load_model(broken(tmp_path, tiny_file.read_bytes()[:1_000_000]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a git-lfs pointer"),
        (b"\xff\xd8\xff\xe0 a photograph", "not a file of tensors|no weights file"),
        (pickle.dumps({"model": 3}), "not a file of tensors|no weights file|no state dict"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        load_model(broken(tmp_path, content))


class Payload:
    """Would make a file if it were ever unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save({"model": {"a": Payload(trace)}}, tmp_path / "zip.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Payload(trace)))
    for name in ("zip.pt", "bare.pt"):
        with pytest.raises(WeightsError, match="Python objects, which are never loaded"):
            load_model(str(tmp_path / name))
    assert not trace.exists()


def test_other_networks_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}, tmp_path / "resnet.pt")
    with pytest.raises(WeightsError, match=r"neither SAM 2 nor SAM 1 weights: .* it has conv1.weight, fc.bias"):
        load_model(str(tmp_path / "resnet.pt"))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="holds no state dict"):
        load_model(str(tmp_path / "list.pt"))


def test_differences_are_named(
    tiny_state: dict[str, torch.Tensor], small_model: tuple[Path, Path], tmp_path: Path
) -> None:
    state = dict(tiny_state)
    del state["no_mem_embed"]
    state["extra"] = torch.zeros(1)
    state["no_obj_ptr"] = torch.zeros(1, 8)
    torch.save({"model": state}, tmp_path / "odd.pt")
    with pytest.raises(
        WeightsError,
        match=r"odd.pt does not match sam2.1_hiera_tiny: 1 missing: no_mem_embed; 1 unexpected: extra; "
        r"1 of another shape: no_obj_ptr \(1, 8\) instead of \(1, 256\)",
    ):
        load_model(str(tmp_path / "odd.pt"))
    _, config = small_model
    torch.save({"model": tiny_state}, tmp_path / "tiny.pt")
    with pytest.raises(WeightsError, match=r"does not match .*own.yaml: .*of another shape: .*, \.\.\."):
        load_model(str(tmp_path / "tiny.pt"), model_config=str(config))


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(
        WeightsError, match="no weights called 'sam3': .*demo, sam2_hiera_tiny.*sam_vit_h.*facebook/sam2.1-hiera-large"
    ):
        load_model("sam3")


def test_a_uri_is_fetched_once_and_anew_when_replaced(small_model: tuple[Path, Path], tmp_path: Path) -> None:
    path, config = small_model
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/w.pt", path.read_bytes())
    cache = tmp_path / "cache"
    info = check_weights("memory://bucket/w.pt", model_config=str(config), cache_dir=cache)
    assert info.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    first = fetch.local_file("memory://bucket/w.pt", cache)
    assert first == fetch.local_file("memory://bucket/w.pt", cache)
    memory.pipe("/bucket/w.pt", b"other")
    assert fetch.local_file("memory://bucket/w.pt", cache).read_bytes() == b"other"
    assert fetch.local_file(path.as_uri(), cache) == path
    with pytest.raises(WeightsError, match="cannot read the weights at memory://bucket/none.pt: FileNotFoundError"):
        fetch.local_file("memory://bucket/none.pt", cache)


def official(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    monkeypatch.setitem(BACKBONES, TINY, dataclasses.replace(BACKBONES[TINY], **changes))


def test_an_official_name_is_downloaded_once_by_many(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official(monkeypatch, url=tiny_file.as_uri(), sha256=fetch.file_sha256(tiny_file))
    monkeypatch.setenv("EFFSAM2_CACHE", str(tmp_path))
    opened: list[str] = []
    original = fetch.urllib.request.urlopen

    def count(url: str, timeout: float) -> Any:
        opened.append(url)
        return original(url, timeout=timeout)

    monkeypatch.setattr(fetch.urllib.request, "urlopen", count)
    threads = [threading.Thread(target=fetch.local_file, args=(TINY,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    assert check_weights(TINY).name == TINY
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.pt", "mine.pt.lock"]


def test_a_download_with_another_digest_leaves_nothing(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official(monkeypatch, url=tiny_file.as_uri())
    with pytest.raises(WeightsError, match="cannot download sam2.1_hiera_tiny .*sha256 should be 7402e0d8"):
        load_model(TINY, cache_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.pt.lock"]


def test_a_damaged_cache_is_noticed(tiny_file: Path, tmp_path: Path) -> None:
    (tmp_path / "sam2.1_hiera_tiny.pt").write_bytes(tiny_file.read_bytes())
    with pytest.raises(WeightsError, match="is not the official sam2.1_hiera_tiny .*delete it"):
        load_model(TINY, cache_dir=tmp_path)


def test_offline_says_where_the_file_may_be_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official(monkeypatch, url="http://127.0.0.1:9/sam2.1_hiera_tiny.pt")
    with pytest.raises(WeightsError, match=f"cannot download .*Without internet, copy that file to {tmp_path}/sam2.1"):
        load_model(TINY, cache_dir=tmp_path)


def test_a_hub_id_without_the_hub_package_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match="pip install huggingface_hub.*sam2.1_hiera_base_plus are the same file"):
        load_model("facebook/sam2.1-hiera-base-plus", cache_dir=tmp_path)


def test_sam1_without_its_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "segment_anything", None)
    with pytest.raises(WeightsError, match="pip install 'segment-anything==1.0'"):
        weights.sam1.build("vit_b")


def test_a_table_of_heads_sets_the_default(small_model: tuple[Path, Path], tmp_path: Path) -> None:
    path, config = small_model
    table = tmp_path / "table.json"
    by_name, by_digest = {"block": 3, "head": 0}, {"block": 5, "head": 1, "source": "calibrated on X"}

    def default_head(content: Any) -> tuple[tuple[int, int], str]:
        table.write_text(json.dumps(content))
        info = check_weights(str(path), model_config=str(config), heads_table=str(table))
        return info.default_head, info.head_source

    assert default_head({"own": by_name}) == ((3, 0), f"table {table}")
    assert default_head({"own": by_name, fetch.file_sha256(path): by_digest}) == ((5, 1), "calibrated on X")
    assert default_head({"other": by_name}) == ((3, 2), "unverified: first global block")
    with pytest.raises(ConfigError, match="block 4 of own has no global attention"):
        default_head({"own": {"block": 4, "head": 0}})


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot read"), ("[]", "must be a JSON object"), ('{"a": {"block": "3", "head": 0}}', "needs .*for a")],
)
def test_a_broken_table_of_heads(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_heads_table(str(tmp_path / "table.json"))


def test_device_and_dtype_settings() -> None:
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    assert resolve_dtype("auto", cpu) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("float16", cpu) == torch.float16
    with pytest.raises(ConfigError, match="device must be auto, cpu, cuda"):
        resolve_device("gpu")
    with pytest.raises(ConfigError, match="dtype must be auto, float32, bfloat16, float16; got 'int8'"):
        resolve_dtype("int8", cpu)
    if not torch.cuda.is_available():
        assert resolve_device("auto") == cpu
        with pytest.raises(ConfigError, match="no usable CUDA device"):
            resolve_device("cuda")


def test_the_demo_weights_are_named_as_such() -> None:
    if not fetch.demo_file("sam2_demo.pt").is_file():
        with pytest.raises(WeightsError, match="demonstration weights are not in this installation"):
            load_model("demo")
        return
    info = check_weights("demo")
    assert (info.name, info.is_demo, info.image_size) == ("demo", True, 512)
    assert check_weights(str(fetch.demo_file("sam2_demo.pt"))) == info
    read_state_dict(fetch.demo_file("sam2_demo.pt"))


def test_a_table_given_wins_over_the_shipped_one(tmp_path: Path):
    table = tmp_path / "heads.json"
    table.write_text(json.dumps({"demo": {"block": 5, "head": 1}}))
    assert check_weights("demo", heads_table=str(table)).default_head == (5, 1)


def test_the_demo_weights_head_is_the_first_of_a_calibration_with_these_weights():
    info = check_weights("demo")
    table = json.loads(fetch.demo_file("sam2_demo_heads.json").read_text())
    assert list(table) == [info.weights_sha256]
    [entry] = table.values()
    ranking = entry["evidence"]["ranking"]
    assert (ranking[0]["block"], ranking[0]["head"]) == (entry["block"], entry["head"]) == info.default_head
    assert {(each["block"], each["head"]) for each in ranking} == set(info.all_heads)
    assert entry["evidence"]["num_images"] >= 40 and info.head_source.startswith("effsam2 calibrate on ")


def test_a_download_that_breaks_off_is_tried_again(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official(monkeypatch, url=tiny_file.as_uri(), sha256=fetch.file_sha256(tiny_file))
    original, answers = (
        fetch.urllib.request.urlopen,
        [ConnectionResetError("reset"), urllib.error.URLError(TimeoutError())],
    )

    def fail_twice(url: str, timeout: float) -> Any:
        if answers:
            raise answers.pop()
        return original(url, timeout=timeout)

    monkeypatch.setattr(fetch.urllib.request, "urlopen", fail_twice)
    monkeypatch.setattr(storage, "RETRY", storage.Retry(4, 0.01, 0.01))
    assert fetch.local_file(TINY, tmp_path).is_file() and not answers
