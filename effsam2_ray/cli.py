"""The `effsam2` command.

Exit codes: 0 every image has its row, 2 wrong settings or input, 3 too many failures, 4 stopped before the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from effsam2_ray.config import PRESETS, REPORTED_PROMPTS, Config, PromptSettings, load_preset_file, preset_config
from effsam2_ray.errors import ConfigError, EffSam2Error, OutputError, StoppedError, TooManyFailuresError

EXIT_OK, EXIT_CONFIG, EXIT_FAILURES, EXIT_STOPPED = 0, 2, 3, 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `effsam2` command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except TooManyFailuresError as error:
        return _fail(error, EXIT_FAILURES)
    except StoppedError as error:
        return _fail(error, EXIT_STOPPED)
    except EffSam2Error as error:
        return _fail(error, EXIT_CONFIG)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        from effsam2_ray.uris import redact_text

        return _fail(OutputError(f"{type(error).__name__}: {redact_text(str(error))}"), EXIT_CONFIG)
    except KeyboardInterrupt:
        return _fail(StoppedError("stopped; run the same command again to go on"), EXIT_STOPPED)


def _fail(error: EffSam2Error, code: int) -> int:
    print(f"effsam2: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="effsam2", description="Label image data sets with SAM 2, without prompts.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_label(commands.add_parser("label", help="label images into Parquet with RLE masks"))
    presets = commands.add_parser("presets", help="print the presets")
    presets.set_defaults(run=_presets)
    _add_show(commands.add_parser("show", help="draw a contact sheet of a run"))
    return parser


def _add_label(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="folder, glob, tar shards, Parquet, or a manifest; any fsspec URI")
    add("--output", required=True, metavar="URI", help="folder for the Parquet parts")
    preset = parser.add_mutually_exclusive_group()
    preset.add_argument("--preset", default="low_latency", choices=PRESETS, help="default: %(default)s")
    preset.add_argument("--preset-file", metavar="FILE", help="YAML of settings, in sections")
    add("--weights", default="demo", metavar="NAME|PATH|URI", help="default: %(default)s")
    add("--model-config", metavar="FILE", help="YAML of a fine-tuned model")
    add("--heads-table", metavar="FILE", help="JSON of attention heads by weights")
    add("--prompts", metavar="SOURCE", help="clusters, grid:N or random:N; default: clusters")
    add("--set", dest="overrides", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="may be repeated")
    add("--limit", type=_positive, metavar="N", help="only the first N images")
    add("--device", default="auto", metavar="auto|cpu|cuda")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    add("--batch-size", type=_positive, metavar="N", help="pictures that the encoder sees at once")
    add("--num-gpus", type=float, metavar="F", help="GPUs of one segmenter")
    add("--num-segmenters", type=_range, metavar="N|LOW:HIGH")
    add("--num-cluster-actors", type=int, metavar="N", help="clustering actors of each segmenter")
    add("--image-timeout", type=float, metavar="SECONDS", help="give up an image whose step takes longer")
    add("--max-failures", metavar="N|P%%", help="stop when more images failed")
    add("--retry-failed", action="store_true", help="take up failed rows of finished units again")
    add("--keep-candidates", action="store_true", help="store the masks before merging too")
    add("--id-column", metavar="C", help="your own identifier, in Parquet inputs and manifests")
    add("--image-column", metavar="C")
    add("--keep-columns", type=_names, default=(), metavar="A,B", help="columns of yours that go along")
    add("--storage-option", action="append", default=[], metavar="KEY=VALUE", help="for fsspec; may be repeated")
    add("--address", metavar="ADDR", help="Ray cluster to join")
    add("--dry-run", action="store_true", help="print the plan and all settings; run nothing")
    parser.set_defaults(run=_label)


def _label(arguments: argparse.Namespace) -> int:
    # Importing Ray and torch takes seconds; `effsam2 --help` need not wait for them.
    from effsam2_ray.pipeline.label import LabelJob, label, plan
    from effsam2_ray.pipeline.options import RunOptions

    options = RunOptions(
        num_segmenters=arguments.num_segmenters,
        num_cluster_actors=arguments.num_cluster_actors,
        num_gpus=arguments.num_gpus,
        device=arguments.device,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        image_timeout_s=arguments.image_timeout,
        max_failures=arguments.max_failures,
        keep_candidates=arguments.keep_candidates,
        retry_failed=arguments.retry_failed,
        address=arguments.address,
    )
    job = LabelJob(
        inputs=tuple(arguments.inputs),
        output=arguments.output,
        config=_config(arguments),
        weights=arguments.weights,
        model_config=arguments.model_config,
        heads_table=arguments.heads_table,
        limit=arguments.limit,
        id_column=arguments.id_column,
        image_column=arguments.image_column,
        keep_columns=arguments.keep_columns,
        storage_options=_storage_options(arguments.storage_option),
        options=options,
    )
    if arguments.dry_run:
        config, info, work_list = plan(job)
        listed = work_list.summary
        print(f"{listed.num_images} images, {listed.num_shards} shards, {listed.num_units} units")
        print(
            f"{listed.num_duplicates} listed twice, {listed.num_ignored} files that are no images by name, "
            f"{listed.num_lost} already known to be lost"
        )
        print(yaml.safe_dump({"weights": dataclasses.asdict(info), **config.to_dict()}, sort_keys=False).rstrip())
        return EXIT_OK
    summary = label(job)
    for line in _closing_lines(summary):
        print(line)
    return EXIT_OK


def _closing_lines(summary: dict[str, Any]) -> list[str]:
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


def _config(arguments: argparse.Namespace) -> Config:
    config = load_preset_file(arguments.preset_file) if arguments.preset_file else preset_config(arguments.preset)
    if arguments.prompts:
        config = dataclasses.replace(config, prompts=PromptSettings.parse(arguments.prompts))
    return config.with_overrides(arguments.overrides)


def _presets(_: argparse.Namespace) -> int:
    print(f"{'preset':14}{'min_samples':>12}{'min_cluster_size':>18}{'prompts (reported, Hiera-L)':>30}")
    for name, (min_samples, min_cluster_size) in PRESETS.items():
        print(f"{name:14}{min_samples:>12}{min_cluster_size:>18}{REPORTED_PROMPTS[name]:>30}")
    return EXIT_OK


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_uri", metavar="RUN", help="output folder of `effsam2 label`")
    parser.add_argument("--num", type=_positive, default=16, metavar="N", help="images; default: %(default)s")
    parser.add_argument("--output", default="sheet.png", metavar="FILE", help=".png or .html; default: %(default)s")
    parser.add_argument("--storage-option", action="append", default=[], metavar="KEY=VALUE")
    parser.set_defaults(run=_show)


def _show(arguments: argparse.Namespace) -> int:
    from effsam2_ray.show import show_run

    path = show_run(
        arguments.run_uri,
        num_images=arguments.num,
        output=arguments.output,
        storage_options=_storage_options(arguments.storage_option),
    )
    print(f"Contact sheet: {path}")
    return EXIT_OK


def _storage_options(texts: Sequence[str]) -> dict[str, Any] | None:
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


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more; got {text}")
    return value


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    return int(low), int(high or low)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
