"""What ends a job before or in its course: another configuration in the same output, and each error's exit code."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from effsam2_ray import cli, errors, storage
from effsam2_ray.cli import main
from effsam2_ray.commands import label as label_command
from effsam2_ray.demo.train import DEMO_CONFIG
from effsam2_ray.pipeline import label as label_module
from effsam2_ray.pipeline.graph import stage_error


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Iterator[Path]:
    """An output that was claimed; its job was stopped before the first unit."""
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    root = tmp_path_factory.mktemp("claimed")
    (root / "list.txt").write_text("a.png\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_module, "run_graph", stopped)
        assert run(root / "out") == 4
    assert (root / "out" / "_meta" / "job.json").exists()
    yield root / "out"
    ray.shutdown()


def stopped(*args: object, **kwargs: object) -> None:
    raise errors.StoppedError("stopped by the test")


def run(output: Path, *options: str) -> int:
    return main(["label", str(output.parent / "list.txt"), "--output", str(output), *options])


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory) -> Path:
    """The demo weights with one number changed."""
    path = tmp_path_factory.mktemp("weights") / "demo.pt"
    content = torch.load(DEMO_CONFIG.with_suffix(".pt"), weights_only=True)
    next(iter(content["model"].values())).view(-1)[0] += 1
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (["--preset", "high_quality"], ["cluster.min_cluster_size: 10 in the output, 5 now"]),
        (["--set", "decode.pred_iou_thresh=0.7"], ["decode.pred_iou_thresh: 0.8 in the output, 0.7 now"]),
        (
            ["--set", "attention.block=5", "--set", "attention.head=1"],
            ["attention.block: {block} in the output, 5 now", "attention.head: {head} in the output, 1 now"],
        ),
        (["--weights", "{other_weights}"], ["weights.sha256: '{sha256}' in the output, "]),
    ],
    ids=["preset", "threshold", "block and head", "weights"],
)
def test_other_settings_in_the_same_output_are_refused_with_both_values(output, other_weights, capsys, options, lines):
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    job = json.loads((output / "_meta" / "job.json").read_text())
    values = {**job["config"]["attention"], "sha256": job["weights"]["weights_sha256"]}
    options = [option.format(other_weights=other_weights) for option in options]
    if "--weights" in options:
        options += ["--model-config", str(DEMO_CONFIG)]
    assert run(output, *options) == cli.EXIT_CONFIG == 2
    told = capsys.readouterr().err
    for line in lines:
        assert line.format(**values) in told
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("wrong"), 2),
        (errors.WeightsError("wrong"), 2),
        (errors.InputError("wrong"), 2),
        (errors.OutputError("wrong"), 2),
        (PermissionError(13, "Permission denied", "/somewhere"), 2),
        (errors.TooManyFailuresError("3 images failed"), 3),
        (errors.StoppedError("stopped by SIGTERM"), 4),
        (KeyboardInterrupt(), 4),
    ],
)
def test_exit_codes(monkeypatch, capsys, error: BaseException, code: int):
    def fail(arguments: object) -> int:
        raise error

    monkeypatch.setattr(label_command, "_run", fail)
    assert main(["label", "in", "--output", "out"]) == code
    told = capsys.readouterr().err
    assert told.startswith("effsam2: ") and told.count("\n") == 1 and "Traceback" not in told


def test_pauses_between_tries_are_random_and_bounded(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    monkeypatch.setattr(storage, "RETRY", storage.Retry(attempts=9, base_s=0.5, longest_s=20.0))
    random.seed(0)

    def busy() -> None:
        raise TimeoutError("busy")

    for _ in range(50):
        with pytest.raises(TimeoutError):
            storage.retrying(busy)
    each = [pauses[number::8] for number in range(8)]
    for number, tries in enumerate(each):
        longest = min(20.0, 0.5 * 2 ** (number + 1))
        assert 0 <= min(tries) < 0.2 * longest and 0.8 * longest < max(tries) <= longest


def test_the_error_of_a_stage_shows_no_secret():
    told = stage_error(
        ray.exceptions.RayError("PermissionError: https://me:hunter2@host/out?sig=swordfish&v=1 is denied")
    )
    assert isinstance(told, errors.StoppedError) and "https://host/out?v=1 is denied" in str(told)
