"""Bootstrap intervals of means over pictures.

Pictures are drawn with replacement as often as there are pictures, the mean of each draw is taken, and the interval is
between two percentiles of those means (Efron's percentile method). It says how far the mean could move with other
pictures of the same kind, not with other weights or another seed of the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_DRAWS_AT_ONCE = 1 << 22  # 32 MB of indices


class Interval(NamedTuple):
    """A mean and the bounds of its interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    seed: int,
    num: int = 1000,
    level: float = 0.95,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Interval:
    """Return the mean of one value a picture and its bootstrap interval.

    Args:
        values: (N,) finite, N at least 1, in any order; one value has the interval [value, value].
        seed: same seed and values, same interval.
        num: draws, at least 1.
        level: share of the draws' means within the interval, in (0, 1).
        weights: (N,) non-negative, not all 0, for a mean over what the pictures hold, such as objects. A picture of
            weight 0 does not count, and its value may be NaN.

    Raises:
        ValueError: an argument breaks its contract.
    """
    data = np.asarray(values, np.float64)
    if num < 1 or not 0 < level < 1:
        raise ValueError(f"num must be 1 or more and level within (0, 1); got {num}, {level}")
    scale = np.ones_like(data) if weights is None else np.asarray(weights, np.float64)
    if data.ndim != 1 or scale.shape != data.shape:
        raise ValueError(f"there must be one value and one weight a picture; got {data.shape} and {scale.shape}")
    if not np.isfinite(scale).all() or (scale < 0).any():
        raise ValueError("weights must be finite and not negative")
    data, scale = data[scale > 0], scale[scale > 0]
    if data.size == 0:
        raise ValueError("a mean needs at least one value")
    if not np.isfinite(data).all():
        raise ValueError("values must be finite")
    # Pictures come in the order of their URIs' hashes, and a copy of the data set in another folder has other hashes.
    order = np.lexsort((scale, data))
    data, scale = data[order], scale[order]
    sums = data * scale
    rng = np.random.default_rng(seed)
    means = []
    step = max(1, _DRAWS_AT_ONCE // data.size)
    for start in range(0, num, step):
        drawn = rng.integers(0, data.size, (min(step, num - start), data.size))
        means.append(sums[drawn].sum(axis=1) / scale[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / scale.sum()), float(low), float(high))


def bootstrap_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    seed: int,
    num: int = 1000,
    level: float = 0.95,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Interval:
    """Return the mean of `first - second` and its interval, both methods on the same pictures.

    Each draw takes the same pictures for both, so that what is hard for both does not widen the interval. Two methods
    differ by more than the choice of pictures where 0 lies outside it.

    Args:
        first, second: (N,), of the same pictures in the same order.
        seed, num, level, weights: as `bootstrap_mean`.

    Raises:
        ValueError: an argument breaks its contract.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != other.shape:
        raise ValueError(f"both methods need a value for every picture; got {one.shape} and {other.shape}")
    return bootstrap_mean(one - other, seed, num, level, weights)
