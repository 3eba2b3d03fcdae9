"""Errors that a user can meet, in one tree.

::

    EffSam2Error                 anything this package raises on purpose
     |- ConfigError              settings, presets, command line            (exit code 2)
     |- WeightsError             weights or model configuration             (exit code 2)
     |- InputError               an input that cannot be listed or read     (exit code 2)
     |- OutputError              an output that must not be written to      (exit code 2)
     |- TooManyFailuresError     more failed images than allowed            (exit code 3)
     |- StoppedError             stopped before the end                     (exit code 4)
     |- ImageError               one picture; becomes a row with a status
     '- MaskError                a mask or RLE that breaks its contract
"""

from __future__ import annotations


class EffSam2Error(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(EffSam2Error):
    """A setting, preset or option that is wrong; the message names it, its value and what is accepted."""


class WeightsError(EffSam2Error):
    """Weights or a model configuration that cannot be found, read or matched to each other."""


class InputError(EffSam2Error):
    """An input that cannot be listed or understood as a whole (one bad picture is an `ImageError`)."""


class OutputError(EffSam2Error):
    """An output folder that belongs to another configuration or cannot be written."""


class TooManyFailuresError(EffSam2Error):
    """More images failed than `--max-failures` allows."""


class StoppedError(EffSam2Error):
    """The job was told to stop before every image had its row."""


class ImageError(EffSam2Error):
    """One picture that cannot be used.

    Attributes:
        status: the row's status, one of `effsam2_ray.images.STATUSES`.
    """

    def __init__(self, status: str, message: str):
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.status, str(self))


class MaskError(EffSam2Error):
    """A mask or run-length encoding that breaks its contract."""
