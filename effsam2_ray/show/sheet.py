"""The PNG form: one sheet, two images a row."""

from __future__ import annotations

import io
from collections.abc import Iterable

from PIL import Image, ImageDraw

from effsam2_ray.images import STATUSES
from effsam2_ray.show.captions import NO_CLUSTERS, PANEL_TITLES, facts, failure_text, subtitle
from effsam2_ray.show.drawing import draw_panels
from effsam2_ray.show.lettering import fit_text, plain_font, spell, wrap_text
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
    _write(draw, (_MARGIN, 22), run_name, 26, _INK, room)
    _write(draw, (_MARGIN, 56), header_facts, 16, _QUIET, room)
    for column in range(columns):
        for place, title in enumerate(PANEL_TITLES):
            left = _tile_left(column) + place * (PANEL_SIDE + _PANEL_GAP)
            _write(draw, (left, 84), title, 13, _QUIET, PANEL_SIDE)


def _draw_tile(image: ShownImage) -> Image.Image:
    if image.size_hw is None or image.status != "ok":
        tile = Image.new("RGB", (_TILE_WIDTH, _CAPTION_HEIGHT + _FAILURE_HEIGHT), _PAPER)
        _draw_failure(tile, image)
    else:
        panels = draw_panels(image, PANEL_SIDE)
        size_wh = panels.masks.size
        tile = Image.new("RGB", (_TILE_WIDTH, _CAPTION_HEIGHT + size_wh[1]), _PAPER)
        if image.note:
            _draw_note(panels.prompts, image.note)
        clusters = panels.clusters or _text_panel(size_wh, NO_CLUSTERS)
        for place, panel in enumerate((panels.prompts, clusters, panels.masks)):
            tile.paste(panel, (place * (PANEL_SIDE + _PANEL_GAP), _CAPTION_HEIGHT))
    _draw_caption(tile, image)
    return tile


def _draw_caption(tile: Image.Image, image: ShownImage) -> None:
    draw, font = ImageDraw.Draw(tile), plain_font(15)
    text = facts(image)
    width = font.getlength(text)
    draw.text((tile.width - width, 5), text, _QUIET if image.status == "ok" else _ALARM, font)
    _write(draw, (0, 4), image.name, 16, _INK, tile.width - width - 24)


def _draw_failure(tile: Image.Image, image: ShownImage) -> None:
    draw, left, top = ImageDraw.Draw(tile), 24, _CAPTION_HEIGHT
    room = tile.width - 2 * left
    draw.rectangle((0, top, tile.width - 1, tile.height - 1), _BOX)
    draw.rectangle((0, top, 5, tile.height - 1), _ALARM)
    _write(draw, (left, top + 14), image.status, 22, _ALARM, room)
    _write(draw, (left, top + 46), STATUSES.get(image.status, ""), 15, _INK, room)
    _write_lines(draw, (left, top + 70), failure_text(image), 14, _QUIET, room)


def _draw_note(panel: Image.Image, note: str) -> None:
    """Write on the first panel why it holds no picture."""
    ImageDraw.Draw(panel).rectangle((0, 0, panel.width, 48), (40, 40, 42))
    _write_lines(ImageDraw.Draw(panel), (8, 7), note, 13, (255, 255, 255), panel.width - 16, max_lines=2)


def _text_panel(size_wh: tuple[int, int], text: str) -> Image.Image:
    panel = Image.new("RGB", size_wh, _BOX)
    lines = wrap_text(text, plain_font(14), size_wh[0] - 16, 4)
    center = (size_wh[0] / 2, size_wh[1] / 2)
    draw = ImageDraw.Draw(panel)
    draw.multiline_text(center, "\n".join(lines), _QUIET, plain_font(14), anchor="mm", align="center", spacing=5)
    return panel


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, ink: _Color, room: float) -> None:
    text, font = spell(text, size)
    draw.text(at, fit_text(text, font, room), ink, font)


def _write_lines(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    ink: _Color,
    room: float,
    max_lines: int = 3,
) -> None:
    text, font = spell(text, size)
    draw.multiline_text(at, "\n".join(wrap_text(text, font, room, max_lines)), ink, font, spacing=4)
