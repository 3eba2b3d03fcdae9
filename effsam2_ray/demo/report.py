"""The figures of the model card as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from effsam2_ray.demo.measure import MethodFigures, PointFigures
from effsam2_ray.model.interface import Head

FIGURES_HEADING = "## Measured figures"


def with_figures(card: str, figures: str) -> str:
    """Return a model card whose part below `FIGURES_HEADING` is `figures`.

    Raises:
        ValueError: the card has no such heading.
    """
    text, heading, _ = card.partition(f"{FIGURES_HEADING}\n")
    if not heading:
        raise ValueError(f"the card has no line {FIGURES_HEADING!r}")
    return f"{text}{heading}\n{figures.strip()}\n"


def point_table(figures: Mapping[str, PointFigures]) -> str:
    """Return a table with one row a set of pictures."""
    lines = [
        "| pictures | objects | best-scored IoU | best of three | Pearson (best-scored) | Pearson (all three) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in figures.items():
        lines.append(
            f"| {name} | {row.num_objects} | {row.scored_iou:.3f} | {row.best_iou:.3f} "
            f"| {row.correlation:.3f} | {row.correlation_all:.3f} |"
        )
    return "\n".join(lines)


def head_table(scores: Mapping[Head, float]) -> str:
    """Return a table with one row a block and one column a head; blocks may differ in their number of heads."""
    blocks = sorted({block for block, _ in scores})
    num_heads = 1 + max(head for _, head in scores)
    lines = [
        "| block | " + " | ".join(f"head {head}" for head in range(num_heads)) + " |",
        "| --- |" + " --- |" * num_heads,
    ]
    for block in blocks:
        cells = [f"{scores[block, head]:.3f}" if (block, head) in scores else "" for head in range(num_heads)]
        lines.append(f"| {block} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def method_table(figures: Sequence[MethodFigures]) -> str:
    """Return a table with one row a method."""
    lines = [
        "| method | prompts | masks | best_iou | label_map_iou | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in figures:
        lines.append(
            f"| {row.method} | {row.num_prompts:.1f} | {row.num_masks:.1f} | {row.best_iou:.3f} "
            f"| {row.label_map_iou:.3f} | {row.seconds:.2f} |"
        )
    return "\n".join(lines)
