"""Attention heads compared: the order, the evidence, and the table that `--heads-table` takes.

A head's score is the mean over pictures of (best_iou + label_map_iou) / 2 with equally many prompts (`budget.py`): the
first rewards finding every object, the second not cluttering the picture. Purity and the adjusted Rand index judge
the clusters themselves, with no decoder; they stand beside the score and do not enter it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from effsam2_ray.config import Config
from effsam2_ray.evaluation.gathering import Line
from effsam2_ray.evaluation.methods import Method, Post
from effsam2_ray.evaluation.summary import Bootstrap
from effsam2_ray.evaluation.tables import markdown, number, ranged
from effsam2_ray.model.interface import Head

ALL_PROMPTS, EQUAL_PROMPTS = "all prompts", "equal prompts"


@dataclass(frozen=True)
class HeadScores:
    """One head's place in the ranking.

    Attributes:
        head: (block, head).
        score: mean and interval of the score; None where no picture has objects.
        equal: intervals of best_iou, label_map_iou and num_prompts with equal prompts.
        whole: the same with all of the head's own prompts.
        clusters: intervals of cluster_purity and adjusted_rand_index.
        behind: the best head's score minus this one's, paired; None for the best itself.
        failures: pictures by status that were not scored.
    """

    head: Head
    score: dict[str, float] | None
    equal: dict[str, dict[str, float] | None]
    whole: dict[str, dict[str, float] | None]
    clusters: dict[str, dict[str, float] | None]
    behind: dict[str, float] | None
    failures: dict[str, int]

    @property
    def differs(self) -> bool:
        """Whether the best head is better than this one beyond the choice of pictures."""
        return self.behind is not None and self.behind["low"] > 0


def head_method(config: Config, head: Head) -> Method:
    """Return the method that clusters one head with a configuration's settings, with and without equal prompts."""
    block, number_ = head
    chosen = config.with_overrides([f"attention.block={block}", f"attention.head={number_}"])
    posts = (Post(ALL_PROMPTS, chosen.merge), Post(EQUAL_PROMPTS, chosen.merge, equal_prompts=True))
    return Method(head_name(head), chosen, posts)


def head_name(head: Head) -> str:
    """Return `block-5-head-2`."""
    return f"block-{head[0]}-head-{head[1]}"


def rank_heads(lines: Mapping[tuple[Head, str], Line], bootstrap: Bootstrap) -> list[HeadScores]:
    """Return the heads, best score first; of equal scores the lower block, then the lower head.

    Args:
        lines: by head and post (`ALL_PROMPTS`, `EQUAL_PROMPTS`).
        bootstrap: how intervals are drawn.
    """
    heads = sorted({head for head, _ in lines})
    scored = {head: _with_score(lines[head, EQUAL_PROMPTS]) for head in heads}
    means = {head: bootstrap.mean(line.measure("score")) for head, line in scored.items()}

    def place(head: Head) -> tuple[float, Head]:
        mean = means[head]
        return (-mean["mean"] if mean else np.inf), head

    order = sorted(heads, key=place)
    best = order[0]
    measures = ("best_iou", "label_map_iou", "num_prompts")
    ranking = []
    for head in order:
        equal, whole = scored[head], lines[head, ALL_PROMPTS]
        behind = None if head == best else bootstrap.difference(*scored[best].paired(equal, "score"))
        ranking.append(
            HeadScores(
                head=head,
                score=means[head],
                equal={name: bootstrap.mean(equal.measure(name)) for name in measures},
                whole={name: bootstrap.mean(whole.measure(name)) for name in measures},
                clusters={
                    name: bootstrap.mean(whole.measure(name)) for name in ("cluster_purity", "adjusted_rand_index")
                },
                behind=behind,
                failures=dict(whole.failures),
            )
        )
    return ranking


def heads_table(
    ranking: Sequence[HeadScores], key: str, name: str, evidence: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the JSON that `--heads-table` takes (`backbones.load_heads_table`), with the whole ranking inside.

    Args:
        ranking: best first, at least one.
        key: sha256 of the weights file, or a name.
        name: what the weights are called.
        evidence: data set, date, settings and the like.
    """
    block, head = ranking[0].head
    return {
        key: {
            "block": block,
            "head": head,
            "source": verdict(ranking, evidence),
            "weights": name,
            "evidence": {**evidence, "ranking": [_plain(entry) for entry in ranking]},
        }
    }


def verdict(ranking: Sequence[HeadScores], evidence: Mapping[str, Any]) -> str:
    """Return in one sentence which head came first, on what, and whether it differs from the second."""
    about = f"effsam2 calibrate on {evidence['num_images']} pictures of {evidence['data_set']}, {evidence['date'][:10]}"
    if len(ranking) == 1 or ranking[1].behind is None:
        return f"{about}: nothing to compare with"
    behind, (block, head) = ranking[1].behind, ranking[1].head
    relation = "better than" if ranking[1].differs else "not to be told from"
    close = sum(not entry.differs for entry in ranking[1:])
    return (
        f"{about}: {relation} the second (block {block}, head {head}) by {ranged(behind, signed=True)}; "
        f"{close} of {len(ranking) - 1} others within the interval"
    )


def ranking_table(ranking: Sequence[HeadScores]) -> str:
    """Return the ranking as Markdown."""
    header = [
        "block",
        "head",
        "score",
        "behind the best",
        "best_iou",
        "label_map_iou",
        "prompts",
        "own prompts: best_iou",
        "label_map_iou",
        "prompts",
        "purity",
        "adjusted Rand",
    ]
    rows = []
    for entry in ranking:
        behind = "" if entry.behind is None else ranged(entry.behind) + ("" if entry.differs else " ~")
        rows.append(
            [
                str(entry.head[0]),
                str(entry.head[1]),
                ranged(entry.score),
                behind,
                *(_short(entry.equal[name]) for name in ("best_iou", "label_map_iou")),
                _short(entry.equal["num_prompts"], 1),
                *(_short(entry.whole[name]) for name in ("best_iou", "label_map_iou")),
                _short(entry.whole["num_prompts"], 1),
                *(ranged(entry.clusters[name]) for name in ("cluster_purity", "adjusted_rand_index")),
            ]
        )
    return f"{markdown(header, rows)}\n\n~ the paired interval holds 0: these pictures do not tell it from the best."


def _with_score(line: Line) -> Line:
    score = (line.values["best_iou"] + line.values["label_map_iou"]) / 2
    return Line(line.image_uids, {**line.values, "score": score}, line.num_objects, line.recall, line.failures)


def _short(value: Mapping[str, float] | None, digits: int = 3) -> str:
    return number(None if value is None else value["mean"], digits)


def _plain(entry: HeadScores) -> dict[str, Any]:
    block, head = entry.head
    return {
        "block": block,
        "head": head,
        "score": entry.score,
        "behind_best": entry.behind,
        "differs_from_best": entry.differs,
        "equal_prompts": entry.equal,
        "own_prompts": entry.whole,
        **entry.clusters,
        "failures": entry.failures,
    }
