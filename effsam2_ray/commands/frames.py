"""`effsam2 frames`."""

from __future__ import annotations

import argparse

from effsam2_ray.commands.arguments import add_storage_arguments, positive, storage_options

EXIT_DAMAGED = 3
"""Not every frame could be decoded; those before the damage are written."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "frames",
        help="write the frames of a video as pictures, to be labelled",
        epilog="Exit codes: 0 every frame was decoded, 3 the video is damaged or ends early, 2 wrong arguments.",
    )
    add = parser.add_argument
    add("video", metavar="VIDEO", help="a video file, any fsspec URI")
    add("--output", required=True, metavar="URI", help="folder for the pictures, named by the number of the frame")
    add("--every", type=positive, default=1, metavar="N", help="only each N-th frame; default: %(default)s")
    add("--format", choices=("png", "jpg"), default="png", help="png keeps every pixel; default: %(default)s")
    add_storage_arguments(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from effsam2_ray.runs.frames import write_frames
    from effsam2_ray.uris import redact

    found = write_frames(
        arguments.video,
        arguments.output,
        every=arguments.every,
        file_format=arguments.format,
        storage_options=storage_options(arguments.storage_option),
    )
    print(f"{found.written} of {found.decoded} frames: {redact(arguments.output)}")
    if found.error:
        print(f"the video ends early or is damaged: {found.error}")
        return EXIT_DAMAGED
    return 0
