"""The HTML form: one page that holds everything, with pictures as data URIs.

`page.html` holds the page's frame, its style and its script. All text that comes from a run is escaped, and the page's
content security policy lets it load nothing.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template

from PIL import Image

from effsam2_ray.images import STATUSES
from effsam2_ray.show.captions import NO_CLUSTERS, PANEL_TITLES, counted, facts, failure_text, subtitle
from effsam2_ray.show.drawing import draw_panels
from effsam2_ray.show.run_images import ShownImage

PANEL_SIDE = 560
_QUALITY = 82


def render_gallery(images: Iterable[ShownImage], run_name: str, num_shown: int, num_images: int) -> bytes:
    """Return an HTML file that filters by status and number of masks, and sorts.

    `#status=ok&min=2&max=9&sort=most` behind its address sets the filter, as the controls do.

    Args:
        images: taken one by one; only their finished cards are kept.
        run_name: for the title.
        num_shown: number of `images`.
        num_images: images in the run.
    """
    cards, header_facts, statuses = [], "", Counter[str]()
    for position, image in enumerate(images):
        header_facts = header_facts or subtitle(image, num_shown, num_images)
        statuses[image.status] += 1
        cards.append(_card(position, image))
    page = Template(files("effsam2_ray.show").joinpath("page.html").read_text("utf-8"))
    options = "".join(
        f'<option value="{escape(status)}">{escape(status)} ({count})</option>'
        for status, count in statuses.most_common()
    )
    text = page.substitute(
        title=escape(run_name),
        subtitle=escape(header_facts),
        status_options=options,
        num_cards=len(cards),
        cards="\n".join(cards),
    )
    return text.encode("utf-8", "replace")


def _card(position: int, image: ShownImage) -> str:
    failed = image.size_hw is None or image.status != "ok"
    body = _failure(image) if failed else _panels(image)
    return (
        f'<li class="card{" failed" if failed else ""}" data-position="{position}"'
        f' data-status="{escape(image.status)}" data-masks="{len(image.masks)}">\n'
        f'<h2 title="{escape(image.uri)}">{escape(image.name)}</h2>\n'
        f'<p class="facts">{escape(facts(image))}</p>\n{body}</li>'
    )


def _failure(image: ShownImage) -> str:
    meaning = STATUSES.get(image.status, "")
    return (
        f'<div class="failure"><p class="meaning">{escape(meaning)}</p>'
        f'<p class="error">{escape(failure_text(image))}</p></div>\n'
    )


def _panels(image: ShownImage) -> str:
    panels = draw_panels(image, PANEL_SIDE)
    num_clusters = 0 if image.cluster_map is None else int(image.cluster_map.max(initial=-1)) + 1
    contents = (
        counted(len(image.point_coords), "prompt") + (" on the picture" if image.picture is not None else ""),
        f"{counted(num_clusters, 'cluster')} of patches",
        counted(len(image.masks), "mask"),
    )
    drawn = (panels.prompts, panels.clusters, panels.masks)
    figures = [_figure(*panel, image.name) for panel in zip(PANEL_TITLES, contents, drawn, strict=True)]
    note = f'<p class="note">{escape(image.note)}</p>\n' if image.note else ""
    return f'{note}<div class="panels">{"".join(figures)}</div>\n'


def _figure(title: str, content: str, panel: Image.Image | None, name: str) -> str:
    if panel is None:
        return f'<figure><p class="none">{NO_CLUSTERS}</p><figcaption>{title}</figcaption></figure>'
    buffer = io.BytesIO()
    panel.save(buffer, "WEBP", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = panel.size
    return (
        f'<figure><button type="button" class="zoom"><img width="{width}" height="{height}" loading="lazy"'
        f' alt="{escape(name)}: {content}" src="data:image/webp;base64,{data}"></button>'
        f"<figcaption>{title}</figcaption></figure>"
    )
