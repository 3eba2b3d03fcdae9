"""All figures of one picture: crowds, void, several annotators, and the single-object figures of pysodmetrics."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from effsam2_ray.errors import ConfigError, InputError, MaskError
from effsam2_ray.metrics import (
    SCORE_COLUMNS,
    AnnotationError,
    ImageTruth,
    ObjectSet,
    coverage,
    score_image,
    single_object_scores,
)
from effsam2_ray.rle import encode

SIZE = (1, 10)


def strip(*spans: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    for start, stop in spans:
        mask[0, start:stop] = True
    return mask


def objects(*masks: np.ndarray) -> ObjectSet:
    rles = tuple(encode(np.stack(masks))) if masks else ()
    return ObjectSet(rles, tuple(float(rle.area) for rle in rles), tuple(str(i) for i in range(len(rles))))


def truth(*annotators: ObjectSet, **more) -> ImageTruth:
    return ImageTruth("memory:///a.png", SIZE, annotators, **more)


def test_iou_is_the_mean_over_annotators_and_recall_counts_the_objects_of_all():
    predicted = np.stack([strip((0, 4)), strip((4, 10))])
    scores = score_image(predicted, [0.9, 0.8], truth(objects(strip((0, 4)), strip((4, 10))), objects(strip((0, 8)))))
    assert scores.best_iou == pytest.approx((1.0 + 0.5) / 2)
    assert scores.num_objects == 3 and scores.recall.num_objects[0] == 3
    # Two at every threshold; of the third, IoU 4/8 reaches 0.50 alone.
    assert scores.recall.matched[0, 3].tolist() == [3] + [2] * 9
    assert scores.num_masks == 2 and scores.coverage == 1.0


def test_the_annotations_own_areas_decide_what_is_small():
    known = ObjectSet(objects(strip((0, 4))).masks, (2000.0,), ("1",))
    assert score_image(strip((0, 4))[None], [0.9], truth(known)).recall.num_objects.tolist() == [1, 0, 1, 0]


def test_an_annotator_without_objects_does_not_count():
    both = score_image(strip((0, 4))[None], [0.9], truth(objects(strip((0, 4))), objects()))
    assert both.best_iou == both.label_map_iou == 1.0


def test_no_object_gives_no_iou():
    scores = score_image(strip((0, 4))[None], [0.9], truth(objects()))
    assert scores.best_iou is None and scores.label_map_iou is None
    assert scores.recall.num_objects.tolist() == [0, 0, 0, 0] and scores.coverage == 0.4


def test_no_prediction_scores_zero():
    scores = score_image([], [], truth(objects(strip((0, 4)))))
    assert (scores.best_iou, scores.label_map_iou, scores.coverage, scores.num_masks) == (0.0, 0.0, 0.0, 0)


def test_void_pixels_are_taken_from_predictions_and_crowds_change_nothing():
    predicted = strip((0, 8))[None]
    known = objects(strip((0, 4)))
    plain = score_image(predicted, [0.9], truth(known))
    assert plain.best_iou == plain.label_map_iou == 0.5
    crowd = score_image(predicted, [0.9], truth(known, crowds=tuple(encode(strip((4, 8))[None]))))
    assert crowd.to_row() == plain.to_row()
    void = score_image(predicted, [0.9], truth(known, void=encode(strip((4, 8))[None])[0]))
    assert void.best_iou == void.label_map_iou == 1.0
    assert void.coverage == 0.8
    assert void.recall.matched[0, 3].tolist() == [1] * 10


def test_a_row_has_exactly_the_declared_columns_and_plain_values():
    row = score_image(strip((0, 4))[None], [0.9], truth(objects(strip((0, 4))))).to_row()
    assert list(row) == list(SCORE_COLUMNS)
    assert row["best_mask_s_measure"] is None
    assert len(row["recall_matched"]) == 160 and len(row["recall_objects"]) == 4
    assert all(type(value) in (int, float, list, type(None)) for value in row.values())


def test_masks_of_another_size_and_missing_scores_are_refused():
    known = truth(objects(strip((0, 4))))
    with pytest.raises(MaskError, match=r"one size; got \[\(1, 10\), \(10, 1\)\]"):
        score_image(np.ones((1, 10, 1), bool), [0.9], known)
    with pytest.raises(MaskError, match="one score a mask; got 0 for 1 masks"):
        score_image(strip((0, 4))[None], [], known)


def test_coverage_counts_pixels_under_any_mask_once():
    assert coverage(np.stack([strip((0, 4)), strip((2, 6))]), SIZE) == 0.6
    assert coverage([], SIZE) == 0.0
    with pytest.raises(MaskError, match="one size"):
        coverage(strip((0, 4))[None], (2, 10))


def disc(shift: int = 0, size: tuple[int, int] = (40, 50)) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    return (y - 20) ** 2 + (x - 22 - shift) ** 2 < 100


def test_single_object_figures_of_a_perfect_a_wrong_and_an_empty_mask():
    pytest.importorskip("py_sod_metrics")
    perfect = single_object_scores(disc(), disc())
    assert perfect.mae == 0.0
    assert (perfect.s_measure, perfect.weighted_f) == (pytest.approx(1.0), pytest.approx(1.0))
    assert perfect.e_measure == pytest.approx(2000 / 1999)
    inverse = single_object_scores(~disc(), disc())
    assert inverse.mae == 1.0 and inverse.e_measure == pytest.approx(0.0, abs=1e-6)
    empty = single_object_scores(np.zeros_like(disc()), disc())
    assert empty.mae == pytest.approx(disc().mean()) and empty.weighted_f == pytest.approx(0.0, abs=1e-6)
    assert single_object_scores(np.zeros((4, 5), bool), np.ones((4, 5), bool)).e_measure == 0.0
    # Every pixel of an empty map is at its mean, so nothing aligns: (0 + 1) ** 2 / 4 each.
    assert empty.e_measure == pytest.approx(0.25, abs=1e-3)


def test_single_object_figures_equal_the_librarys_on_grey_maps():
    """The library is fed as its users feed it: 8-bit maps, normalised by it."""
    sod = pytest.importorskip("py_sod_metrics")
    rng = np.random.default_rng(0)
    for shift in (1, 4, 9):
        predicted, true = disc(shift) ^ (rng.random((40, 50)) < 0.02), disc()
        expected = {}
        for name, measure in (
            ("s_measure", sod.Smeasure()),
            ("e_measure", sod.Emeasure()),
            ("weighted_f", sod.WeightedFmeasure()),
            ("mae", sod.MAE()),
        ):
            measure.step(pred=predicted.astype(np.uint8) * 255, gt=true.astype(np.uint8) * 255)
            expected[name] = measure.get_results()
        scores = single_object_scores(predicted, true)
        assert scores.s_measure == expected["s_measure"]["sm"]
        assert scores.e_measure == expected["e_measure"]["em"]["curve"][:-1].max()
        assert scores.e_measure == pytest.approx(expected["e_measure"]["em"]["adp"])
        assert scores.weighted_f == expected["weighted_f"]["wfm"]
        assert scores.mae == expected["mae"]["mae"]


def test_best_mask_and_union_are_scored_on_single_object_sets_only():
    pytest.importorskip("py_sod_metrics")
    known = ImageTruth("memory:///a.png", (40, 50), (objects_of(disc()),), single_object=True)
    predicted = np.stack([disc(30), disc(), disc(15)])
    scores = score_image(predicted, [0.9, 0.1, 0.2], known, with_single_object=True)
    assert scores.best_mask == single_object_scores(disc(), disc())
    assert scores.union == single_object_scores(predicted.any(axis=0), disc())
    assert scores.to_row()["union_mae"] == scores.union.mae
    assert score_image(predicted, [0.9, 0.1, 0.2], known).best_mask is None
    instances = ImageTruth("memory:///a.png", (40, 50), (objects_of(disc()),))
    assert score_image(predicted, [0.9, 0.1, 0.2], instances, with_single_object=True).union is None
    nothing = score_image([], [], known, with_single_object=True)
    assert nothing.best_mask == nothing.union == single_object_scores(np.zeros_like(disc()), disc())


def objects_of(mask: np.ndarray) -> ObjectSet:
    rles = tuple(encode(mask[None]))
    return ObjectSet(rles, (float(rles[0].area),), ("1",))


def test_without_pysodmetrics_the_message_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "py_sod_metrics":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r'pip install "effsam2_ray\[evaluate\]"'):
        single_object_scores(disc(), disc())


def test_single_object_masks_must_be_bool_and_of_one_size():
    with pytest.raises(MaskError, match=r"both masks must be \(H, W\) bool"):
        single_object_scores(disc().astype(float), disc())
    with pytest.raises(MaskError, match=r"both masks must be \(H, W\) bool"):
        single_object_scores(disc(), disc()[:, 1:])


def test_annotation_errors_name_picture_and_annotation_without_credentials():
    error = AnnotationError("s3://key:secret@bucket/a.jpg", "the polygon is wrong", "17")
    assert str(error) == "s3://bucket/a.jpg, annotation 17: the polygon is wrong"
    assert isinstance(error, InputError)
    import pickle

    again = pickle.loads(pickle.dumps(error))
    assert (again.image_uri, again.annotation_id, str(again)) == (error.image_uri, "17", str(error))
    assert str(AnnotationError("memory:///a.png", "is gone")) == "memory:///a.png: is gone"
