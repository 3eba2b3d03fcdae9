"""Text on a sheet: fonts, and text cut or wrapped to a width in pixels."""

from __future__ import annotations

import functools

from PIL import ImageFont

Font = ImageFont.FreeTypeFont

# Looked for by name where the system keeps its fonts; only for names that Pillow's own font cannot spell.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")
_ELLIPSIS = "..."


@functools.cache
def plain_font(size: int) -> Font:
    """Return the font that Pillow carries itself, the same on every machine; it spells ASCII, "·" and little else."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@functools.cache
def _wide_font(size: int) -> Font | None:
    for name in _WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None


def spell(text: str, size: int) -> tuple[str, Font]:
    """Return text as one printable line, and a font that spells it.

    Line breaks and control characters become spaces and "?". Where the machine has no font for letters beyond ASCII,
    they become escapes such as `\\xe9`.
    """
    text = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    if text.replace("·", "").isascii():
        return text, plain_font(size)
    wide = _wide_font(size)
    if wide is not None:
        return text, wide
    return text.encode("ascii", "backslashreplace").decode("ascii"), plain_font(size)


def fit_text(text: str, font: Font, width: float) -> str:
    """Return one line, its middle cut out where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)  # characters that can stay
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(_shortened(text, middle)) <= width else (low, middle - 1)
    return _shortened(text, low)


def wrap_text(text: str, font: Font, width: float, max_lines: int) -> list[str]:
    """Return text in at most `max_lines` lines, none wider than `width` pixels, broken at spaces where there are any.

    The last line has its middle cut out where the rest does not fit.
    """
    lines: list[str] = []
    while text:
        if len(lines) == max_lines - 1:
            return [*lines, fit_text(text, font, width)]
        end = _num_fitting(text, font, width)
        space = text.rfind(" ", 0, end + 1)
        if end < len(text) and space > 0:
            end = space
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return lines


def _num_fitting(text: str, font: Font, width: float) -> int:
    """Return how many characters fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


def _shortened(text: str, num_kept: int) -> str:
    head = (num_kept + 1) // 2
    return text[:head] + _ELLIPSIS + text[len(text) - (num_kept - head) :]
