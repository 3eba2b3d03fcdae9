"""`summary.json` -> Markdown tables, laid out as the source's: IoU, prompts, latency, difference from the grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from effsam2_ray.metrics import AR_NAMES

Entries = Mapping[str, Mapping[str, Any]]


def report(summary: Mapping[str, Any]) -> str:
    """Return all tables of one evaluation, with what was measured and how above them."""
    methods: Entries = summary["methods"]
    groups: Mapping[str, Sequence[str]] = summary["groups"]
    compared = [name for name in groups["methods"] if name in methods]
    parts = [f"# {summary['data_set']['name']}", facts(summary)]
    if compared:
        entries = {name: methods[name] for name in compared}
        parts += [comparison_table(entries, summary["reference"]), "## Average recall", recall_table(entries)]
        if single := single_object_table(entries):
            parts += ["## Measures of single-object sets", single]
    if groups.get("ablation"):
        parts += ["## Ablation", ablation_table({name: methods[name] for name in groups["ablation"]})]
    if groups.get("sweep"):
        parts += ["## Trade-off", tradeoff_table({name: methods[name] for name in groups["sweep"]}, summary["front"])]
    if summary.get("suggestion"):
        parts.append(summary["suggestion"]["text"])
    parts += ["## Seconds by step", steps_table(summary["step_s"]), "## What the columns mean", DEFINITIONS]
    return "\n\n".join(part for part in parts if part) + "\n"


DEFINITIONS = """\
- best_iou: mean over a picture's objects of the best IoU that any mask reaches; then the mean over pictures.
- label_map_iou: the same against the segments that remain when masks are painted from large to small.
- prompts: point prompts a picture. masks: final masks a picture. collapsed: pictures where more than half of the
  candidates were merged into one mask.
- seconds: sum of one picture's steps, from decoding its bytes to its final masks, on warm workers; without reading it
  from storage, and without waiting for other pictures. A step that methods share is in the time of each.
- difference: this line minus the one under "against", picture by picture; an interval that holds 0 shows no difference.
- Ranges are bootstrap intervals over pictures."""


def facts(summary: Mapping[str, Any]) -> str:
    """Return what was measured, with what, where and when, as a list."""
    data, weights, run = summary["data_set"], summary["weights"], summary["run"]
    failed = sorted(
        {(name, count) for entry in summary["methods"].values() for name, count in entry["failures"].items()}
    )
    lines = [
        f"- data: {data['num_images']} pictures of {data['uri']} ({data['format']})"
        + (f", the first {data['limit']}" if data["limit"] else ""),
        f"- weights: {weights['name']}, sha256 {weights['sha256'][:12]}"
        + (" (a small demonstration model, not SAM 2.1)" if weights["is_demo"] else ""),
        f"- machine: {run['device_name']}, {run['dtype']}, {run['batch_size']} pictures in the encoder's batch, "
        f"{run['num_segmenters']} segmenter(s) at once, {run['cpus']} CPUs",
        f"- date: {summary['date']}; seeds: bootstrap {summary['bootstrap']['seed']}"
        + "".join(f", {name} {seed}" for name, seed in summary["seeds"].items()),
        f"- intervals: {summary['bootstrap']['level']:.0%}, {summary['bootstrap']['num']} resamples of the pictures",
    ]
    lines += [f"- not scored: up to {count} pictures with status {name}" for name, count in failed]
    if data["num_missing"]:
        lines.append(f"- {data['num_missing']} annotated pictures are not there")
    return "\n".join(lines + [f"- {note}" for note in summary["notes"]])


def comparison_table(entries: Entries, reference: str | None) -> str:
    """Return the main table: one row a line, compared with the reference where there is one."""
    header = ["method", "masks by", "best_iou", "label_map_iou", "prompts", "masks", "collapsed", "seconds"]
    if reference is not None:
        header += ["against", "best_iou difference", "label_map_iou difference", "prompts saved"]
    rows = []
    for name, entry in entries.items():
        row = [
            name,
            entry["post"],
            ranged(entry["best_iou"]),
            ranged(entry["label_map_iou"]),
            ranged(entry["num_prompts"], 1),
            ranged(entry["num_masks"], 1),
            str(entry["collapsed"]),
            ranged(entry["latency_s"]),
        ]
        if reference is not None and "difference" in entry:
            difference, saved = entry["difference"], entry["prompts_saved_frac"]
            row += [
                entry["against"],
                ranged(difference["best_iou"], signed=True),
                ranged(difference["label_map_iou"], signed=True),
            ]
            row.append("" if saved is None else f"{saved:.1%}")
        rows.append(row)
    return markdown(header, rows)


def joined_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return the main tables of several data sets as one: a row for each data set and line."""
    header = ["data", "pictures", "method", "masks by", "best_iou", "label_map_iou", "AR 1000", "prompts", "seconds"]
    header += ["against", "best_iou difference", "label_map_iou difference", "prompts saved"]
    rows = []
    for summary in summaries:
        for name in summary["groups"]["methods"]:
            entry = summary["methods"][name]
            difference = entry.get("difference", {})
            saved = entry.get("prompts_saved_frac")
            rows.append(
                [
                    summary["data_set"]["name"],
                    str(entry["num_images_with_objects"]),
                    name,
                    entry["post"],
                    ranged(entry["best_iou"]),
                    ranged(entry["label_map_iou"]),
                    number(entry["average_recall"]["ar_1000"]),
                    ranged(entry["num_prompts"], 1),
                    ranged(entry["latency_s"], 2),
                    entry.get("against", ""),
                    ranged(difference.get("best_iou"), signed=True),
                    ranged(difference.get("label_map_iou"), signed=True),
                    "-" if saved is None else f"{saved:.1%}",
                ]
            )
    return markdown(header, rows)


def recall_table(entries: Entries) -> str:
    """Return class-agnostic average recall at several numbers of masks, and coverage."""
    header = ["method", *(name.replace("ar_", "AR ") for name in AR_NAMES), "coverage"]
    rows = [
        [name, *(number(entry["average_recall"][key]) for key in AR_NAMES), ranged(entry["coverage"])]
        for name, entry in entries.items()
    ]
    return markdown(header, rows)


def single_object_table(entries: Entries) -> str:
    """Return the measures of salient and camouflaged object detection; "" where no line has any."""
    with_measures = {name: entry for name, entry in entries.items() if entry.get("single_object")}
    if not with_measures:
        return ""
    names = list(next(iter(with_measures.values()))["single_object"])
    rows = [[name, *(ranged(entry["single_object"][key]) for key in names)] for name, entry in with_measures.items()]
    return markdown(["method", *(key.replace("_", " ") for key in names)], rows)


def ablation_table(entries: Entries) -> str:
    """Return prompts x masks a prompt x post."""
    header = ["prompts from", "masks a prompt", "post", "best_iou", "label_map_iou", "prompts", "masks", "seconds"]
    rows = [
        [
            entry["config"]["prompts"]["source"],
            entry["config"]["decode"]["masks_per_prompt"],
            entry["post"],
            ranged(entry["best_iou"]),
            ranged(entry["label_map_iou"]),
            ranged(entry["num_prompts"], 1),
            ranged(entry["num_masks"], 1),
            ranged(entry["latency_s"]),
        ]
        for entry in entries.values()
    ]
    return markdown(header, rows)


def tradeoff_table(entries: Entries, front: Iterable[str]) -> str:
    """Return IoU against prompts against seconds, fewest prompts first; lines that no other beats are marked."""
    marked = set(front)
    ordered = sorted(entries.items(), key=lambda item: item[1]["num_prompts"]["mean"] if item[1]["num_prompts"] else 0)
    rows = [
        [
            f"{name} *" if name in marked else name,
            ranged(entry["num_prompts"], 1),
            ranged(entry["latency_s"]),
            ranged(entry["best_iou"]),
            ranged(entry["label_map_iou"]),
            ranged(entry["num_masks"], 1),
        ]
        for name, entry in ordered
    ]
    table = markdown(["settings", "prompts", "seconds", "best_iou", "label_map_iou", "masks"], rows)
    return f"{table}\n\n\\* no other line has as few prompts and a better best_iou."


def steps_table(step_s: Mapping[str, Mapping[str, float]]) -> str:
    """Return the mean seconds of each step, one row a method; the last step with the method's own settings."""
    steps = list(dict.fromkeys(step for seconds in step_s.values() for step in seconds))
    rows = [[name, *(number(seconds.get(step), 4) for step in steps)] for name, seconds in step_s.items()]
    return markdown(["method", *(step.removesuffix("_s").replace("_", " ") for step in steps)], rows)


def ranged(value: Mapping[str, float] | None, digits: int = 3, *, signed: bool = False) -> str:
    """Return `0.812 [0.790, 0.835]`, "-" for None."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    return f"{value['mean']:{sign}.{digits}f} [{value['low']:{sign}.{digits}f}, {value['high']:{sign}.{digits}f}]"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits, "-" for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; rows shorter than the header are filled up."""
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in (*row, *[""] * (len(header) - len(row)))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
