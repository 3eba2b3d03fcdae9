"""The `effsam2` command.

Exit codes: 0 every image has its row, 2 wrong settings or input, 3 too many failures, 4 stopped before the end.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from effsam2_ray.commands import (
    calibrate,
    check,
    compare,
    evaluate,
    export,
    frames,
    label,
    manifest,
    plan,
    presets,
    remerge,
    show,
)
from effsam2_ray.errors import EffSam2Error, OutputError, StoppedError, TooManyFailuresError

COMMANDS = (label, remerge, evaluate, calibrate, manifest, plan, presets, show, check, compare, export, frames)

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
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
