"""Methods, per-image scores, summaries, tables, the trade-off and the ranking of heads: all without Ray."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from effsam2_ray import Labeller, preset_config
from effsam2_ray.attention import CapturedHead
from effsam2_ray.config import ClusterSettings, Config, FilterSettings, MergeSettings, PromptSettings
from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.errors import ConfigError
from effsam2_ray.evaluation.attention_figure import attention_panels, draw_attention
from effsam2_ray.evaluation.budget import cut_prompts, prompt_budget
from effsam2_ray.evaluation.chart import Bar, ChartPoint, bars, below, beside, scatter
from effsam2_ray.evaluation.gathering import Line, gather
from effsam2_ray.evaluation.image_scores import SCORE_SCHEMA, KnownTruth, score_rows, scoring_digest
from effsam2_ray.evaluation.methods import Method, Post, ablation, parse_methods, sweep, without_score_filter
from effsam2_ray.evaluation.ranking import ALL_PROMPTS, EQUAL_PROMPTS, head_method, heads_table, rank_heads, verdict
from effsam2_ray.evaluation.summary import Bootstrap, find_reference, reference_for, summarize_line
from effsam2_ray.evaluation.tables import joined_table, markdown, ranged, report
from effsam2_ray.evaluation.tradeoff import Point, front, suggest
from effsam2_ray.labeller import FoundPrompts
from effsam2_ray.masks import Mask
from effsam2_ray.metrics import ImageTruth, ObjectSet, RecallCounts
from effsam2_ray.model.backbones import load_heads_table
from effsam2_ray.model.interface import EncodedImage
from effsam2_ray.prompts import Prompts, grid_prompts
from effsam2_ray.results import ImageCandidates
from effsam2_ray.rle import encode
from effsam2_ray.schema import result_columns

# --- methods -----------------------------------------------------------------------------------------------------


def names_of(methods: list[Method]) -> list[tuple[str, list[str]]]:
    return [(method.name, [post.name for post in method.posts]) for method in methods]


def test_clusters_are_merged_and_grids_go_through_nms_unless_told_otherwise():
    texts = ["low_latency", "grid:32", "random:9"]
    assert names_of(parse_methods(texts)) == [("low_latency", ["merge"]), ("grid:32", ["nms"]), ("random:9", ["nms"])]
    assert names_of(parse_methods(texts[:2], post="both")) == [
        ("low_latency", ["merge", "nms"]),
        ("grid:32", ["merge", "nms"]),
    ]
    assert names_of(parse_methods(texts[:1], post="none")) == [("low_latency", ["none"])]
    assert parse_methods(["low_latency"], ["merge.method=nms"])[0].posts[0].merge.method == "nms"


def test_a_method_may_be_a_file_and_overrides_hold_for_all(tmp_path):
    (tmp_path / "mine.yaml").write_text("cluster: {min_samples: 4}\nmerge: {thresh: 0.6}\n")
    mine, grid = parse_methods([str(tmp_path / "mine.yaml"), "grid:4"], ["decode.pred_iou_thresh=0.1"])
    assert (mine.name, mine.config.cluster.min_samples, mine.posts[0].merge.thresh) == ("mine", 4, 0.6)
    assert mine.config.decode == grid.config.decode and grid.config.decode.pred_iou_thresh == 0.1


def test_unknown_and_repeated_methods_are_refused():
    with pytest.raises(ConfigError, match=r"a method must be low_latency, .*; got 'fast'"):
        parse_methods(["fast"])
    with pytest.raises(ConfigError, match="names of their own; got 'grid:4' and 'grid:4'"):
        parse_methods(["grid:4", "grid:4"])
    with pytest.raises(ConfigError, match="post must be own, merge, nms, both, none; got 'soft'"):
        parse_methods(["grid:4"], post="soft")


def test_slugs_can_be_file_names_and_line_names_tell_posts_apart():
    method = parse_methods(["grid:4"], post="both")[0]
    assert method.slug == "grid-4"
    assert [method.line_name(post) for post in method.posts] == ["grid:4+merge", "grid:4+nms"]
    assert without_score_filter(method).name == "grid:4+unfiltered"
    assert without_score_filter(method).config.decode.pred_iou_thresh == -1.0


def test_a_sweep_is_every_combination_and_merging_needs_no_further_run():
    base = parse_methods(["low_latency"])[0]
    swept = sweep(base, ["min_cluster_size=3,5", "cluster.min_samples=1,2", "merge.thresh=0.6,0.9"])
    assert [method.config.cluster for method in swept] == [
        ClusterSettings(1, 3),
        ClusterSettings(2, 3),
        ClusterSettings(1, 5),
        ClusterSettings(2, 5),
    ]
    assert swept[0].name == "low_latency min_cluster_size=3 min_samples=1"
    assert [post.merge.thresh for post in swept[0].posts] == [0.6, 0.9]
    assert names_of(sweep(base, ["merge.max_area_frac=0.3,1"])) == [
        ("low_latency sweep", ["max_area_frac=0.3", "max_area_frac=1"])
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_samples", "a sweep must read FIELD=VALUE"),
        ("filter.min_area=1,2", "a sweep takes fields of cluster, attention, prompts, decode, merge"),
        ("min_sample=1", "unknown setting cluster.min_sample"),
        ("min_cluster_size=1", "cluster.min_cluster_size must be 2 or more; got 1"),
    ],
)
def test_bad_sweeps_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        sweep(parse_methods(["low_latency"])[0], [text])


def test_the_ablation_has_eight_lines():
    own, grid = parse_methods(["low_latency", "grid:8"])
    methods = ablation(own, grid)
    lines = [
        (method.config.prompts.source, method.config.decode.masks_per_prompt, post.name)
        for method in methods
        for post in method.posts
    ]
    assert sorted(lines) == sorted(
        (source, masks, post)
        for source in ("clusters", "grid")
        for masks in ("best", "all")
        for post in ("merge", "nms")
    )


# --- the baselines share the method's decoding and filtering -----------------------------------------------------


def test_baselines_differ_from_the_method_in_prompts_and_in_how_masks_are_combined_only():
    own, *baselines = (method.config for method in parse_methods(["low_latency", "grid:16", "random:9"]))
    for baseline in baselines:
        same = dataclasses.replace(baseline, preset=own.preset, prompts=own.prompts, merge=own.merge)
        assert same == own
        assert dataclasses.replace(baseline.merge, method="merge") == own.merge


@pytest.fixture(scope="module")
def open_settings() -> list[str]:
    return ["decode.pred_iou_thresh=0.3", "decode.stability_score_thresh=0.5"]


def test_the_same_points_give_the_same_candidates_whoever_asks(open_settings):
    own = Labeller.from_weights("demo", config=parse_methods(["low_latency"], open_settings)[0].config, device="cpu")
    grid = Labeller(own.model, parse_methods(["grid:3"], open_settings)[0].config)
    random = Labeller(own.model, parse_methods(["random:5"], open_settings)[0].config)
    picture = draw_scene(3, (96, 128)).image
    points = FoundPrompts(grid_prompts(3, (96, 128)), None, {})
    found = []
    for labeller in (own, grid, random):
        encoded, _ = labeller.encode([picture])
        found.append(labeller.decode([(encoded[0], points, {})])[0].candidates)
    assert len(found[0]) > 0
    assert found[0] == found[1] == found[2]
    assert grid.label(picture).candidates == found[0]  # and these are what the grid itself gives


# --- equal prompts -----------------------------------------------------------------------------------------------


def test_the_budget_is_the_smallest_of_a_few_and_the_lower_quartile_of_many():
    assert prompt_budget([9, 5, 7]) == 5
    assert prompt_budget([4, 6]) == 4
    assert prompt_budget([0, 1, 10, 10, 10, 10, 10, 10, 10]) == 10
    assert prompt_budget([0, 0]) == 1


def box(row: slice, column: slice, size_hw: tuple[int, int] = (4, 4)) -> np.ndarray:
    mask = np.zeros(size_hw, bool)
    mask[row, column] = True
    return mask


def mask_of(array: np.ndarray, member: int, point: tuple[float, float], score: float = 0.9) -> Mask:
    rle = encode(array[None])[0]
    return Mask(rle, rle.area, rle.bbox, score, 0.9, (point,), (member,))


LEFT, RIGHT, CORNER = box(slice(None), slice(0, 2)), box(slice(None), slice(2, 4)), box(slice(0, 1), slice(0, 1))


def candidates(
    arrays: list[np.ndarray], sizes: list[int], persistence: list[float], points: list[tuple[float, float]]
) -> ImageCandidates:
    prompts = Prompts(np.array(points, np.float32), np.array(sizes, np.int32), np.array(persistence, np.float32))
    masks = tuple(mask_of(array, n, points[n]) for n, array in enumerate(arrays))
    cluster_map = np.array([[0, 1], [0, 1]], np.int16)
    return ImageCandidates((4, 4), prompts, cluster_map, masks, {"load_s": 250, "decode_s": 500})


def test_a_cut_keeps_the_largest_clusters_and_what_came_of_them():
    points = [(0.1, 0.5), (1.5, 0.5), (2.5, 0.5)]
    image = candidates([LEFT, CORNER, RIGHT], [5, 9, 5], [0.1, 0.1, 0.2], points)
    cut = cut_prompts(image, 2)
    np.testing.assert_array_equal(cut.prompts.point_coords, np.array(points, np.float32)[1:])
    assert [mask.area for mask in cut.candidates] == [1, 8]
    assert [mask.members for mask in cut.candidates] == [(0,), (1,)]
    assert cut_prompts(image, 3) is image


def test_a_cut_survives_the_way_through_a_file():
    """Points that are no round numbers in float32 still name their candidates."""
    points = [(0.1, 1 / 3), (2.7, 1.1)]
    points = [tuple(point) for point in np.array(points, np.float32).tolist()]
    image = candidates([LEFT, RIGHT], [3, 9], [0, 0], points)
    assert [mask.area for mask in cut_prompts(image, 1).candidates] == [8]
    assert cut_prompts(image, 1).candidates[0].point_coords == (points[1],)


# --- scores of one picture ---------------------------------------------------------------------------------------

MERGE, NONE = MergeSettings(), MergeSettings(method="none")


def row_of(image: ImageCandidates, **changes) -> dict:
    from effsam2_ray.postprocess import finish

    row = result_columns(finish(image, NONE, FilterSettings()), keep_candidates=True)
    return (
        {"image_uid": 7, "image_uri": "file:///a.png", "status": "ok", "error": None, "cluster_map": None}
        | row
        | changes
    )


def truth_of(*arrays: np.ndarray) -> ImageTruth:
    rles = tuple(encode(array[None])[0] for array in arrays)
    objects = ObjectSet(rles, tuple(float(rle.area) for rle in rles), tuple(map(str, range(len(rles)))))
    return ImageTruth("file:///a.png", (4, 4), (objects,))


def test_scores_of_a_picture_worked_by_hand():
    image = candidates([LEFT, CORNER], [2, 2], [0, 0], [(0.5, 0.5), (1.5, 0.5)])
    known = KnownTruth(truth_of(LEFT, RIGHT))
    posts = [Post("none", NONE), Post("merge", MERGE), Post("equal prompts", MERGE, equal_prompts=True)]
    none, merged, equal = score_rows(
        row_of(image), known, "m", posts, FilterSettings(), budget=1, truth_patches=known.patches((2, 2))
    )
    # The corner hides 1 of the 8 pixels of the left mask in the label map; merged, it is part of it.
    assert (none["best_iou"], none["label_map_iou"], none["num_masks"]) == (0.5, 7 / 16, 2)
    assert (merged["best_iou"], merged["label_map_iou"], merged["num_masks"]) == (0.5, 0.5, 1)
    assert (none["num_prompts"], equal["num_prompts"], equal["num_candidates"]) == (2, 1, 1)
    assert none["coverage"] == 0.5 and none["num_objects"] == 2
    assert none["cluster_purity"] == none["adjusted_rand_index"] == 1.0
    # Two seconds-old steps and the final one, which is measured anew; none for a picture with prompts left out.
    assert 750 < none["latency_s"] < 760 and equal["latency_s"] is None
    assert {row["status"] for row in (none, merged, equal)} == {"ok"}
    pa.Table.from_pylist([none, merged, equal], schema=SCORE_SCHEMA)


def test_a_failed_or_unknown_picture_has_a_status_and_no_scores():
    image = candidates([LEFT], [2], [0], [(0.5, 0.5)])
    posts = [Post("none", NONE)]

    def scored(row: dict, known: KnownTruth) -> dict:
        return score_rows(row, known, "m", posts, FilterSettings())[0]

    failed = scored(row_of(image, status="corrupt", error="cut short"), KnownTruth(truth_of(LEFT)))
    assert (failed["status"], failed["error"]) == ("corrupt", "cut short") and "best_iou" not in failed
    unknown = scored(row_of(image), KnownTruth(None, "no annotation"))
    assert (unknown["status"], unknown["error"]) == ("truth", "no annotation")
    other = scored(row_of(image, height=4, width=5), KnownTruth(truth_of(LEFT)))
    assert other["status"] == "truth" and "(4, 5)" in other["error"] and "(4, 4)" in other["error"]


def test_a_picture_without_objects_has_prompts_and_no_iou():
    image = candidates([LEFT], [2], [0], [(0.5, 0.5)])
    known = KnownTruth(truth_of())
    row = score_rows(
        row_of(image), known, "m", [Post("none", NONE)], FilterSettings(), truth_patches=known.patches((2, 2))
    )
    assert row[0]["status"] == "ok" and row[0]["best_iou"] is None and row[0]["num_prompts"] == 1
    assert row[0].get("cluster_purity") is None


def test_the_digest_tells_when_scores_would_change():
    post = [Post("merge", MERGE)]
    first = scoring_digest(post, FilterSettings(), truth="t", with_single_object=False, among="")
    assert first == scoring_digest(post, FilterSettings(), truth="t", with_single_object=False, among="")
    others = [
        scoring_digest(
            [Post("merge", MergeSettings(thresh=0.7))], FilterSettings(), truth="t", with_single_object=False, among=""
        ),
        scoring_digest(post, FilterSettings(min_area=9), truth="t", with_single_object=False, among=""),
        scoring_digest(post, FilterSettings(), truth="t", with_single_object=True, among=""),
        scoring_digest(post, FilterSettings(), truth="t", with_single_object=False, among="a,b"),
        scoring_digest(post, FilterSettings(), truth="u", with_single_object=False, among=""),
    ]
    assert len({first, *others}) == 6


# --- gathering and summing up ------------------------------------------------------------------------------------


def score_row(uid: int, method: str, best: float | None, status: str = "ok", **changes) -> dict:
    matched, objects = RecallCounts.zero().to_lists()
    row = {
        "image_uid": uid,
        "image_uri": f"file:///{uid}.png",
        "method": method,
        "post": "merge",
        "status": status,
        "num_prompts": 10 * uid,
        "num_candidates": 5,
        "largest_share": 0.2,
        "latency_s": 0.5,
        "num_masks": 4,
        "num_objects": uid,
        "best_iou": best,
        "label_map_iou": None if best is None else best / 2,
        "coverage": 0.9,
        "recall_matched": matched,
        "recall_objects": objects,
    }
    return {**row, **changes}


def tables_of(*rows: dict) -> list[pa.Table]:
    """One table a row, so that lines grow over parts."""
    return [pa.Table.from_pylist([row], schema=SCORE_SCHEMA) for row in rows]


def test_lines_are_in_the_order_of_the_pictures_and_count_failures():
    lines = gather(
        tables_of(
            score_row(3, "a", 0.6),
            score_row(1, "a", 0.2),
            score_row(2, "a", None),
            score_row(4, "a", None, status="corrupt"),
            score_row(1, "b", 0.1),
            score_row(3, "b", None),
        )
    )
    line = lines["a", "merge"]
    assert line.image_uids.tolist() == [1, 2, 3]
    assert line.measure("best_iou").tolist() == [0.2, 0.6]
    assert line.measure("num_prompts").tolist() == [10, 20, 30]
    assert line.failures == {"corrupt": 1}
    mine, other = line.paired(lines["b", "merge"], "best_iou")
    assert (mine.tolist(), other.tolist()) == ([0.2], [0.1])


def test_a_line_is_summed_up_over_pictures_and_over_objects():
    lines = gather(
        tables_of(score_row(1, "a", 0.2), score_row(3, "a", 0.6), score_row(1, "g", 0.3), score_row(3, "g", 0.5))
    )
    post = Post("merge", MERGE)
    entry = summarize_line(lines["a", "merge"], Config(), "a", post, Bootstrap(), ("g", lines["g", "merge"]))
    assert entry["best_iou"]["mean"] == pytest.approx(0.4)
    assert entry["best_iou"]["low"] == pytest.approx(0.2) and entry["best_iou"]["high"] == pytest.approx(0.6)
    assert entry["best_iou_over_objects"] == pytest.approx((1 * 0.2 + 3 * 0.6) / 4)
    assert entry["num_prompts"]["mean"] == 20 and entry["num_images"] == 2
    assert entry["difference"]["best_iou"]["mean"] == pytest.approx(0.0)
    assert entry["prompts_saved_frac"] == 0.0
    assert entry["collapsed"] == 0 and entry["failures"] == {}
    json.dumps(entry)
    again = summarize_line(lines["a", "merge"], Config(), "a", post, Bootstrap(), ("g", lines["g", "merge"]))
    assert entry == again
    other = Bootstrap(seed=5).mean(np.arange(40.0))
    assert other == Bootstrap(seed=5).mean(np.arange(40.0)) != Bootstrap(seed=6).mean(np.arange(40.0))


def test_a_line_without_any_scored_picture_has_no_means():
    line = gather(tables_of(score_row(1, "a", None, status="corrupt")))["a", "merge"]
    entry = summarize_line(line, Config(), "a", Post("merge", MERGE), Bootstrap(), ("a", line))
    assert entry["best_iou"] is None and entry["difference"]["best_iou"] is None and entry["prompts_saved_frac"] is None


def test_the_reference_is_the_largest_grid_or_the_one_asked_for():
    methods = parse_methods(["low_latency", "grid:4", "grid:16"])
    assert find_reference(methods) == "grid:16"
    assert find_reference(methods, "low_latency") == "low_latency"
    assert find_reference(methods[:1]) is None
    assert find_reference(parse_methods(["grid:4"], post="both")) == "grid:4+merge"
    with pytest.raises(ValueError, match="no line is called 'grid:5'; there are low_latency, grid:4, grid:16"):
        find_reference(methods, "grid:5")


def test_a_method_without_score_filter_is_compared_with_a_grid_without_one():
    filtered = parse_methods(["low_latency", "grid:4", "random:9"])
    methods = [*filtered, *map(without_score_filter, filtered)]
    assert [reference_for(method, methods, "grid:4") for method in methods] == [
        *["grid:4"] * 3,
        *["grid:4+unfiltered"] * 3,
    ]
    assert reference_for(methods[3], methods[:4], "grid:4") == "grid:4"  # no such grid was run
    own, grid = parse_methods(["low_latency", "grid:4"])
    eight = ablation(own, grid)
    assert reference_for(eight[1], eight, "grid:4+best+nms") == "grid:4+all+nms"


# --- tables ------------------------------------------------------------------------------------------------------


def test_numbers_and_tables_in_markdown():
    assert ranged({"mean": 0.5, "low": 0.25, "high": 0.75}) == "0.500 [0.250, 0.750]"
    assert ranged({"mean": 0.5, "low": -0.25, "high": 0.75}, 1, signed=True) == "+0.5 [-0.2, +0.8]"
    assert ranged(None) == "-"
    assert markdown(["a", "b"], [["1|2"]]) == "| a | b |\n| --- | --- |\n| 1\\|2 |  |"


def test_the_report_holds_every_table_and_what_was_measured():
    lines = gather(tables_of(*(score_row(uid, name, 0.5) for uid in (1, 2) for name in ("low_latency", "grid:4"))))
    entries = {
        name: summarize_line(
            lines[name, "merge"],
            Config(),
            name,
            Post("merge", MERGE),
            Bootstrap(),
            None if name == "grid:4" else ("grid:4", lines["grid:4", "merge"]),
        )
        for name in ("low_latency", "grid:4")
    }
    summary = {
        "data_set": {"name": "drawn", "uri": "drawn/", "format": "coco", "limit": 2, "num_images": 2, "num_missing": 1},
        "weights": {"name": "demo", "sha256": "ab" * 32, "is_demo": True},
        "run": {"device_name": "a CPU", "dtype": "float32", "batch_size": 1, "num_segmenters": 1, "cpus": 2},
        "date": "2026-01-01T00:00:00Z",
        "bootstrap": {"seed": 3, "num": 1000, "level": 0.95},
        "seeds": {"random:9": 0},
        "reference": "grid:4",
        "groups": {"methods": ["low_latency", "grid:4"], "ablation": ["grid:4"], "sweep": ["low_latency"]},
        "methods": entries,
        "front": ["low_latency"],
        "suggestion": {"text": "Take it."},
        "step_s": {"low_latency": {"load_s": 0.1, "encode_s": 0.2}, "grid:4": {"load_s": 0.1}},
        "notes": ["one note"],
    }
    text = report(summary)
    for part in (
        "# drawn",
        "demonstration model, not SAM 2.1",
        "seeds: bootstrap 3, random:9 0",
        "1 pictures in the encoder's batch",
        "1 annotated pictures are not there",
        "one note",
        "| method | masks by | best_iou | label_map_iou | prompts | masks | collapsed | seconds | against |",
        "| low_latency | merge | 0.500 [0.500, 0.500] | 0.250 [0.250, 0.250] | 15.0 [10.0, 20.0] |",
        "| grid:4 | +0.000 [+0.000, +0.000] |",
        "## Ablation",
        "| clusters | best | merge |",
        "| low_latency * |",
        "Take it.",
        "| grid:4 | 0.1000 | - |",
    ):
        assert part in text, part
    joined = joined_table([summary, {**summary, "data_set": {**summary["data_set"], "name": "other"}}])
    assert joined.count("\n") == 5
    assert "| other | 2 | grid:4 | merge | 0.500 [0.500, 0.500] | 0.250 [0.250, 0.250] | - | 15.0" in joined


# --- trade-off ---------------------------------------------------------------------------------------------------

SWEPT = [Point("few", 0.5, 0.6, 10, 1.0), Point("some", 0.7, 0.5, 20, 2.0), Point("many", 0.7, 0.4, 40, 3.0)]


def test_no_point_of_the_front_is_beaten():
    assert front(SWEPT) == ["few", "some"]
    assert front(SWEPT, "label_map_iou") == ["few"]
    assert front([]) == []
    assert front([Point("a", float("nan"), float("nan"), 5, 1), *SWEPT]) == ["a", "few", "some"]


def test_the_suggestion_is_the_most_accurate_within_the_budget():
    assert suggest(SWEPT, target_prompts=40).point.name == "some"  # as accurate as "many", with fewer prompts
    assert suggest(SWEPT, target_prompts=20).point.name == "some"
    assert suggest(SWEPT, target_prompts=19.9).point.name == "few"
    assert suggest(SWEPT, target_s=2.5, accuracy="label_map_iou").point.name == "few"
    assert suggest(SWEPT, target_prompts=100, target_s=1.5).point.name == "few"
    over = suggest(SWEPT, target_prompts=5)
    assert (over.point.name, over.within) == ("few", False)
    assert over.text.startswith("Nothing tried keeps to 5 prompts a picture; the nearest: few (10.0 prompts")
    with pytest.raises(ConfigError, match="a suggestion needs"):
        suggest(SWEPT)


# --- heads -------------------------------------------------------------------------------------------------------


def line_of(best: np.ndarray, prompts: float = 9) -> Line:
    values = {
        name: np.full(len(best), value)
        for name, value in (
            ("num_prompts", prompts),
            ("cluster_purity", 0.8),
            ("adjusted_rand_index", 0.4),
        )
    }
    values |= {"best_iou": best, "label_map_iou": best}
    return Line(np.arange(len(best)), values, np.ones(len(best), np.int64), RecallCounts.zero(), {})


def test_heads_are_ranked_by_their_score_with_equal_prompts(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.9, 30)
    scores = {(5, 0): base, (5, 1): base + 0.1, (6, 0): base + 0.1 + rng.normal(0, 0.2, 30)}
    scores[6, 0] += (scores[5, 1] - scores[6, 0]).mean() - 0.001  # just behind, and far from it picture by picture
    lines = {(head, EQUAL_PROMPTS): line_of(values) for head, values in scores.items()}
    lines |= {(head, ALL_PROMPTS): line_of(values[::-1], 30) for head, values in scores.items()}
    ranking = rank_heads(lines, Bootstrap())
    assert [entry.head for entry in ranking] == [(5, 1), (6, 0), (5, 0)]
    assert [entry.differs for entry in ranking] == [False, False, True]
    assert ranking[0].behind is None and ranking[2].behind["mean"] == pytest.approx(0.1)
    assert ranking[0].equal["num_prompts"]["mean"] == 9 and ranking[0].whole["num_prompts"]["mean"] == 30

    evidence = {"data_set": "drawn", "num_images": 30, "date": "2026-01-01T00:00:00Z"}
    assert "not to be told from the second (block 6, head 0)" in verdict(ranking, evidence)
    assert "1 of 2 others within the interval" in verdict(ranking, evidence)
    table = heads_table(ranking, "ab" * 32, "demo", evidence)
    (tmp_path / "table.json").write_text(json.dumps(table))
    head, source = load_heads_table(str(tmp_path / "table.json"))["ab" * 32]
    assert head == (5, 1) and source == verdict(ranking, evidence)
    assert [entry["head"] for entry in table["ab" * 32]["evidence"]["ranking"]] == [1, 0, 0]


def test_heads_without_any_object_come_last_and_do_not_break_the_ranking():
    nothing = np.full(3, np.nan)
    lines = {(head, post): line_of(nothing) for head in ((5, 0), (5, 1)) for post in (ALL_PROMPTS, EQUAL_PROMPTS)}
    ranking = rank_heads(lines, Bootstrap())
    assert [entry.head for entry in ranking] == [(5, 0), (5, 1)]
    assert ranking[0].score is None and ranking[1].behind is None


def test_a_head_is_a_method_that_differs_in_its_head_only():
    config = preset_config("high_quality")
    method = head_method(config, (6, 3))
    assert (method.config.attention.block, method.config.attention.head) == (6, 3)
    assert dataclasses.replace(method.config, attention=config.attention) == config
    assert [post.equal_prompts for post in method.posts] == [False, True]


# --- pictures ----------------------------------------------------------------------------------------------------


def test_charts_are_drawn_whatever_they_hold():
    empty = scatter([], "x", "y", (300, 200))
    one = scatter([ChartPoint("only", 3, 0.5)], "x", "y", (300, 200))
    points = [ChartPoint(f"p{n}", 10.0**n, n / 10, n, n == 1) for n in range(4)]
    many = scatter([*points, ChartPoint("none", float("nan"), 1)], "x", "y", (300, 200))
    for chart in (empty, one, many):
        assert chart.size == (300, 200)
    assert len(many.getcolors(1 << 20)) > len(empty.getcolors(1 << 20))
    drawn = bars([Bar("a", 0.5, 0.4, 0.6), Bar("b", 0.0, 0.0, 0.0)], "title")
    assert beside([empty, one]).size == (600, 200) and below([empty, drawn]).size == (900, 200 + drawn.height)


def test_attention_panels_show_the_medoids_of_the_largest_clusters_or_the_patch_asked_for():
    # Two groups of patches of a 6 x 6 grid that attend to themselves: the left four columns and the right two.
    side = 6
    group = np.tile(np.repeat([0, 1], [4, 2]), (side, 1)).ravel()
    rng = np.random.default_rng(0)
    q = torch.tensor(np.eye(2)[group] * 6 + rng.normal(0, 0.05, (side * side, 2)), dtype=torch.float32)
    encoded = EncodedImage({(5, 0): CapturedHead(q, q, (side, side))}, (60, 120), (60.0, 120.0), None)
    panels = attention_panels(encoded, (5, 0), ClusterSettings(2, 5))
    assert panels.cluster_map.shape == (side, side) and len(panels.rows) == 2
    first, second = (group[patch] for patch in panels.patches)
    assert (first, second) == (0, 1)  # the larger cluster first
    for row in panels.rows:
        assert row.shape == (side, side) and row.sum() == pytest.approx(1, abs=1e-5)
    asked = attention_panels(encoded, (5, 0), ClusterSettings(2, 5), patch=(1.0, 0.0))
    assert asked.patches == (5,)
    np.testing.assert_allclose(asked.rows[0], encoded.captured[5, 0].attention()[5].numpy().reshape(side, side))
    line = draw_attention(np.zeros((60, 120, 3), np.uint8), panels, "a.png")
    assert line.size == (4 * 306 + 6, 150 + 52 + 6)


def test_random_prompts_of_another_seed_are_another_method():
    settings = parse_methods(["random:9"], ["prompts.seed=4"])[0].config.prompts
    assert settings == PromptSettings("random", 9, seed=4)
