"""The usual figures of salient and camouflaged object detection, from the library pysodmetrics.

They compare one binary map with one binary mask. The method gives many masks, so two maps are made of them: the best
mask (the one with the highest IoU with the truth, chosen knowing the truth: what a perfect selection would give), and
the union of all masks (what no selection gives; an image segmented throughout is all object there).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effsam2_ray.errors import ConfigError, MaskError


@dataclass(frozen=True)
class SingleObjectScores:
    """Figures of one binary map, each from 0 to 1.

    Attributes:
        s_measure: S-measure, structural similarity, alpha 0.5 (Fan et al., ICCV 2017); higher is better.
        e_measure: E-measure, enhanced alignment (Fan et al., IJCAI 2018) of the map as it is: on a binary map the
            usual maximum and mean over thresholds are this one number. Higher is better. It divides by the number of
            pixels less one, as its authors do, so that a perfect map is a hair above 1.
        weighted_f: weighted F-measure, beta 1 (Margolin et al., CVPR 2014); higher is better.
        mae: mean absolute error, the share of wrong pixels; lower is better.
    """

    s_measure: float
    e_measure: float
    weighted_f: float
    mae: float


def single_object_scores(predicted: np.ndarray, truth: np.ndarray) -> SingleObjectScores:
    """Return the figures of one predicted mask.

    Args:
        predicted: (H, W) bool, all False where nothing was predicted.
        truth: (H, W) bool.

    Raises:
        MaskError: sizes differ, or an array is not (H, W) bool.
        ConfigError: pysodmetrics is not installed.
    """
    if predicted.shape != truth.shape or predicted.ndim != 2 or predicted.dtype != np.bool_ or truth.dtype != np.bool_:
        raise MaskError(
            f"both masks must be (H, W) bool; got {predicted.shape} {predicted.dtype} and {truth.shape} {truth.dtype}"
        )
    try:
        from py_sod_metrics import MAE, Emeasure, Smeasure, WeightedFmeasure
    except ImportError as error:
        raise ConfigError(
            'S-measure, E-measure, weighted F and MAE need pysodmetrics: pip install "effsam2_ray[evaluate]"'
        ) from error
    grey = predicted.astype(np.float64)
    s_measure, e_measure, weighted_f, mae = Smeasure(), Emeasure(), WeightedFmeasure(), MAE()
    for measure in (s_measure, e_measure, weighted_f, mae):
        # Its own normalisation would leave these two-valued maps as they are.
        measure.step(pred=grey, gt=truth, normalize=False)
    # The first of the 256 thresholds is the highest: the map itself. The adaptive one fills an empty map.
    return SingleObjectScores(
        s_measure=float(s_measure.sms[0]),
        e_measure=float(e_measure.changeable_ems[0][0]),
        weighted_f=float(weighted_f.weighted_fms[0]),
        mae=float(mae.maes[0]),
    )
