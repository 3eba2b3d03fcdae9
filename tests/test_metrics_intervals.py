"""Bootstrap intervals: edges, coverage of a known mean, and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from effsam2_ray.metrics import Interval, bootstrap_difference, bootstrap_mean


def test_one_value_and_equal_values_have_no_width():
    assert bootstrap_mean([0.7], seed=0) == Interval(0.7, 0.7, 0.7)
    assert bootstrap_mean([0.25] * 9, seed=0) == Interval(0.25, 0.25, 0.25)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_the_order_of_the_pictures_does_not_matter():
    rng = np.random.default_rng(9)
    values, weights, other = rng.random(6), rng.integers(1, 9, 6), rng.random(6)
    first, difference = bootstrap_mean(values, seed=3, weights=weights), bootstrap_difference(values, other, seed=3)
    for _ in range(5):
        order = rng.permutation(6)
        assert bootstrap_mean(values[order], seed=3, weights=weights[order]) == first
        assert bootstrap_difference(values[order], other[order], seed=3) == difference


def test_two_values_give_the_three_possible_means():
    mean, low, high = bootstrap_mean([0.0, 1.0], seed=0, num=2000)
    assert (mean, low, high) == (0.5, 0.0, 1.0)  # each end is drawn in a quarter of the draws
    assert bootstrap_mean([0.0, 1.0], seed=0, num=2000, level=0.3) == Interval(0.5, 0.5, 0.5)


def test_equals_scipys_percentile_bootstrap():
    values = np.random.default_rng(1).exponential(size=80)
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", random_state=np.random.default_rng(2)
    )
    mean, low, high = bootstrap_mean(values, seed=5, num=20_000)
    assert mean == pytest.approx(values.mean())
    # Two random draws of 20,000: percentiles of means with standard error 0.11 agree to about 1 % of it.
    assert low == pytest.approx(result.confidence_interval.low, abs=0.01)
    assert high == pytest.approx(result.confidence_interval.high, abs=0.01)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(6)
    inside = 0
    for trial in range(200):
        _, low, high = bootstrap_mean(rng.normal(size=60), seed=trial, num=400, level=0.9)
        inside += low <= 0 <= high
    assert 165 <= inside <= 192  # 180 expected, standard deviation 4.2


def test_weights_make_it_the_mean_over_what_pictures_hold():
    values, weights = [1.0, 0.0, float("nan")], [3, 1, 0]
    mean, low, high = bootstrap_mean(values, seed=0, weights=weights)
    assert mean == 0.75
    assert (low, high) == (0.0, 1.0)
    assert bootstrap_mean([0.2, 0.4], seed=1, weights=[4, 4]) == bootstrap_mean([0.2, 0.4], seed=1)


def test_a_constant_difference_is_seen_through_any_noise():
    hard = np.random.default_rng(7).random(30)
    difference = bootstrap_difference(hard + 0.01, hard, seed=0)
    assert difference.low == pytest.approx(0.01) and difference.high == pytest.approx(0.01)
    assert bootstrap_difference(hard, hard + 0.01, seed=0).mean == pytest.approx(-0.01)


def test_large_draws_are_made_in_pieces(monkeypatch):
    from effsam2_ray.metrics import intervals

    values = np.random.default_rng(8).random(100)
    whole = bootstrap_mean(values, seed=1, num=500)
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 1000)
    assert bootstrap_mean(values, seed=1, num=500) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "at least one value"),
        ([1.0], {"weights": [0.0]}, "at least one value"),
        ([1.0, float("nan")], {}, "values must be finite"),
        ([1.0], {"weights": [-1.0]}, "weights must be finite and not negative"),
        ([1.0, 2.0], {"weights": [1.0]}, "one value and one weight a picture"),
        ([1.0], {"num": 0}, "num must be 1 or more"),
        ([1.0], {"level": 1.0}, "level within"),
    ],
)
def test_wrong_arguments_are_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(values, seed=0, **options)


def test_both_methods_need_the_same_pictures():
    with pytest.raises(ValueError, match="a value for every picture"):
        bootstrap_difference([1.0, 2.0], [1.0], seed=0)
