"""Types of command-line arguments that several commands take."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from effsam2_ray.config import Config, load_preset_file, preset_config
from effsam2_ray.errors import ConfigError

if TYPE_CHECKING:  # importing Ray takes seconds; `effsam2 --help` need not wait for it
    from effsam2_ray.pipeline.options import RunOptions


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which weights run, and on what."""
    add = parser.add_argument
    add("--weights", default="demo", metavar="NAME|PATH|URI", help="default: %(default)s")
    add("--model-config", metavar="FILE", help="YAML of a fine-tuned model")
    add("--heads-table", metavar="FILE", help="JSON of attention heads by weights")
    add("--device", default="auto", metavar="auto|cpu|cuda")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    add("--batch-size", type=positive, metavar="N", help="pictures that the encoder sees at once")


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a job is spread over a Ray cluster, and when it gives up."""
    add = parser.add_argument
    add("--num-gpus", type=float, metavar="F", help="GPUs of one segmenter")
    add("--num-segmenters", type=number_range, metavar="N|LOW:HIGH")
    add(
        "--num-cluster-actors",
        type=auto_or_number,
        metavar="auto|N",
        help="most clustering actors of each segmenter, added while its pictures wait; auto: 4 on a GPU, else 1",
    )
    add("--compile", action="store_true", help="torch.compile the model: a minute or more at each segmenter's start")
    add("--image-timeout", type=float, metavar="SECONDS", help="give up an image whose step takes longer")
    add("--max-failures", metavar="N|P%%", help="stop when more images failed")
    add("--address", metavar="ADDR", help="Ray cluster to join")


def add_storage_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--storage-option`, which `storage_options` takes apart."""
    parser.add_argument(
        "--storage-option", action="append", default=[], metavar="KEY=VALUE", help="for fsspec; may be repeated"
    )


def run_options(arguments: argparse.Namespace, **more: Any) -> RunOptions:
    """Return the resources and limits that `add_model_arguments` and `add_cluster_arguments` hold, and `more`."""
    from effsam2_ray.pipeline.options import RunOptions

    return RunOptions(
        num_segmenters=arguments.num_segmenters,
        num_cluster_actors=arguments.num_cluster_actors,
        num_gpus=arguments.num_gpus,
        device=arguments.device,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        compile=arguments.compile,
        image_timeout_s=arguments.image_timeout,
        max_failures=arguments.max_failures,
        address=arguments.address,
        **more,
    )


def storage_options(texts: Sequence[str]) -> dict[str, Any] | None:
    """Return fsspec options from `KEY=VALUE` texts, None for none.

    Raises:
        ConfigError: a text of another form.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"a storage option must read KEY=VALUE; got {text!r}")
        options[name] = _option_value(value)
    return options or None


def _option_value(text: str) -> Any:
    """Return `true`, `false`, JSON objects and lists as what they are, all else as text: a key may be all digits."""
    if text in ("true", "false") or text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f"a storage option that starts with {text[:1]!r} must be JSON: {error}") from error
    return text


def preset_or_file(name: str) -> Config:
    """Return the configuration of a preset, or that in a YAML file."""
    return load_preset_file(name) if name.endswith((".yaml", ".yml")) else preset_config(name)


def positive(text: str) -> int:
    """Return a whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more; got {text}")
    return value


def auto_or_number(text: str) -> int | None:
    """Return the number, None for `auto`."""
    return None if text == "auto" else int(text)


def number_range(text: str) -> tuple[int, int]:
    """Return (low, high) from `N` or `LOW:HIGH`."""
    low, _, high = text.partition(":")
    return int(low), int(high or low)


def names(text: str) -> tuple[str, ...]:
    """Return the names in `A,B`."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def closing_lines(summary: dict[str, Any]) -> list[str]:
    """Return what is said of a run at its end."""
    statuses = summary["statuses"]
    failed = {status: count for status, count in statuses.items() if status != "ok"}
    lines = [
        f"Parquet: {summary['output']}",
        f"{summary['images']} images, {summary['masks']} masks, "
        f"{summary['prompts_per_image']:.1f} prompts per image, {summary['images_per_s']:.2f} images/s",
    ]
    if failed:
        reasons = ", ".join(f"{count} {status}" for status, count in failed.items())
        lines.append(f"{sum(failed.values())} images without masks: {reasons}; see _meta/failures.parquet")
    return lines
