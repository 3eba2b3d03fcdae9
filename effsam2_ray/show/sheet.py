"""The PNG form: one sheet, two images a row."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

from effsam2_ray.images import STATUSES
from effsam2_ray.show.captions import PANEL_TITLES, facts, failure_text, subtitle
from effsam2_ray.show.drawing import draw_panels
from effsam2_ray.show.run_images import ShownImage

MAX_SHEET_IMAGES = 400
"""Images that one sheet takes: about 50,000 pixels in height, which viewers still open."""

PANEL_SIDE = 300
_PANEL_GAP = 6
_TILE_WIDTH = 3 * PANEL_SIDE + 2 * _PANEL_GAP
_TILES_A_ROW = 2
_TILE_GAP = 40
_MARGIN = 32
_CAPTION_HEIGHT = 28
_HEADER_HEIGHT = 104
_FAILURE_HEIGHT = 132

_PAPER = (250, 250, 248)
_INK = (28, 28, 30)
_QUIET = (104, 104, 110)
_BOX = (236, 236, 234)
_ALARM = (190, 52, 16)

_Color = tuple[int, int, int]


def render_sheet(images: Iterable[ShownImage], run_name: str, num_shown: int, num_images: int) -> bytes:
    """Return a PNG file: a header, then each image's three panels under its caption.

    Args:
        images: taken one by one; only their tiles are kept.
        run_name: for the header.
        num_shown: number of `images`.
        num_images: images in the run.
    """
    tiles, header_facts = [], ""
    for image in images:
        header_facts = header_facts or subtitle(image, num_shown, num_images)
        tiles.append(_draw_tile(image))
    columns = min(_TILES_A_ROW, len(tiles))
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) + _TILE_GAP for row in rows]
    width = 2 * _MARGIN + columns * _TILE_WIDTH + (columns - 1) * _TILE_GAP
    sheet = Image.new("RGB", (width, _HEADER_HEIGHT + sum(heights) - _TILE_GAP + _MARGIN), _PAPER)
    _draw_header(sheet, run_name, header_facts, columns)
    top = _HEADER_HEIGHT
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (_tile_left(column), top))
        top += height
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _tile_left(column: int) -> int:
    return _MARGIN + column * (_TILE_WIDTH + _TILE_GAP)


def _draw_header(sheet: Image.Image, run_name: str, header_facts: str, columns: int) -> None:
    draw = ImageDraw.Draw(sheet)
    room = sheet.width - 2 * _MARGIN
    draw.text((_MARGIN, 22), fit_text(run_name, _font(26), room), _INK, _font(26))
    draw.text((_MARGIN, 56), fit_text(header_facts, _font(16), room), _QUIET, _font(16))
    for column in range(columns):
        for place, title in enumerate(PANEL_TITLES):
            left = _tile_left(column) + place * (PANEL_SIDE + _PANEL_GAP)
            draw.text((left, 82), title, _QUIET, _font(13))


def _draw_tile(image: ShownImage) -> Image.Image:
    if image.size_hw is None or image.status != "ok":
        tile = Image.new("RGB", (_TILE_WIDTH, _CAPTION_HEIGHT + _FAILURE_HEIGHT), _PAPER)
        _draw_failure(tile, image)
    else:
        panels = draw_panels(image, PANEL_SIDE)
        tile = Image.new("RGB", (_TILE_WIDTH, _CAPTION_HEIGHT + panels.masks.height), _PAPER)
        empty = _text_panel(panels.masks.size, "no cluster map:\nprompts do not come\nfrom clusters")
        for place, panel in enumerate((panels.prompts, panels.clusters or empty, panels.masks)):
            left = place * (PANEL_SIDE + _PANEL_GAP) + (PANEL_SIDE - panel.width) // 2
            tile.paste(panel, (left, _CAPTION_HEIGHT))
        if image.note:
            _draw_note(tile, image.note, panels.prompts.size)
    _draw_caption(tile, image)
    return tile


def _draw_caption(tile: Image.Image, image: ShownImage) -> None:
    draw, small = ImageDraw.Draw(tile), _font(15)
    text = facts(image)
    width = small.getlength(text)
    draw.text((tile.width - width, 5), text, _QUIET if image.status == "ok" else _ALARM, small)
    draw.text((0, 4), fit_text(image.name, _font(16), tile.width - width - 24), _INK, _font(16))


def _draw_failure(tile: Image.Image, image: ShownImage) -> None:
    draw, left = ImageDraw.Draw(tile), 24
    draw.rectangle((0, _CAPTION_HEIGHT, tile.width - 1, tile.height - 1), _BOX)
    draw.rectangle((0, _CAPTION_HEIGHT, 5, tile.height - 1), _ALARM)
    draw.text((left, _CAPTION_HEIGHT + 14), image.status, _ALARM, _font(22))
    meaning = STATUSES.get(image.status, "")
    draw.text((left, _CAPTION_HEIGHT + 44), fit_text(meaning, _font(15), tile.width - 2 * left), _INK, _font(15))
    lines = wrap_text(failure_text(image), _font(14), tile.width - 2 * left, 3)
    draw.multiline_text((left, _CAPTION_HEIGHT + 70), "\n".join(lines), _QUIET, _font(14), spacing=4)


def _draw_note(tile: Image.Image, note: str, panel_wh: tuple[int, int]) -> None:
    """Write on the first panel why it holds no picture."""
    draw = ImageDraw.Draw(tile)
    left, top = (PANEL_SIDE - panel_wh[0]) // 2 + 8, _CAPTION_HEIGHT + 8
    lines = wrap_text(note, _font(13), panel_wh[0] - 16, 3)
    draw.multiline_text((left, top), "\n".join(lines), (255, 255, 255), _font(13), spacing=3)


def _text_panel(size_wh: tuple[int, int], text: str) -> Image.Image:
    panel = Image.new("RGB", size_wh, _BOX)
    center = (size_wh[0] / 2, size_wh[1] / 2)
    ImageDraw.Draw(panel).multiline_text(center, text, _QUIET, _font(14), anchor="mm", align="center", spacing=5)
    return panel


def fit_text(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return the text, its middle cut out where it is wider than `width` pixels; control characters become "?"."""
    text = _printable(text)
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)  # the most characters that may stay
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(_shortened(text, middle)) <= width else (low, middle - 1)
    return _shortened(text, low)


def wrap_text(text: str, font: ImageFont.FreeTypeFont, width: float, max_lines: int) -> Sequence[str]:
    """Return at most `max_lines` lines, none wider than `width` pixels; the last one shortened where text is left."""
    text = _printable(text)
    per_line = max(int(width / font.getlength("n")), 1)
    lines = textwrap.wrap(text, per_line)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], lines[max_lines - 1] + " ..."]
    return [fit_text(line, font, width) for line in lines]


def _shortened(text: str, num_kept: int) -> str:
    head = (num_kept + 1) // 2
    return text[:head] + "..." + text[len(text) - (num_kept - head) :]


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow carries this font itself, so that sheets look the same everywhere.
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
