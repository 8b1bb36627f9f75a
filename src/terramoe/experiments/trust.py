"""May one trust a trained model? Calibration, sets of classes, risk, weak strata, and what the routing follows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terramoe.data import Scene, Split
from terramoe.errors import SplitError
from terramoe.evaluation import (
    Conformal,
    Factor,
    Probe,
    Reliability,
    RiskCoverage,
    Stratum,
    failure_audit,
    fit_conformal,
    fit_temperature,
    probe_routing,
    reliability,
    risk_coverage,
    soften,
)
from terramoe.inference import Predictor, predict_array

PLACES = 4  # the scene is cut into this many strips along each side, as the factor "place"
TINY = 1e-12


@dataclass(frozen=True)
class Trust:
    """What was found on the test pixels; half of their blocks calibrate, the other half is judged.

    Attributes:
        calibration_pixels, judged_pixels: how many.
        temperature: fitted on the calibration half.
        before, after: reliability of the judged half without and with it.
        conformal: the rule that makes sets. coverage: share of judged pixels whose set holds the truth.
        set_size: mean number of classes in a set.
        risk: of the judged half, after temperature scaling.
        strata: of the judged half, by class and place, the worst first.
        probes: what each routed layer follows, over all test pixels.
    """

    calibration_pixels: int
    judged_pixels: int
    temperature: float
    before: Reliability
    after: Reliability
    conformal: Conformal
    coverage: float
    set_size: float
    risk: RiskCoverage
    strata: list[Stratum]
    probes: dict[str, Probe]


def examine_trust(predictor: Predictor, scene: Scene, split: Split, *, error: float = 0.1, seed: int = 0) -> Trust:
    """Examine a model on the test pixels of a scene.

    Args:
        split: its ``test`` pixels count, its ``train`` pixels are hidden from the network; see ``fair_pixels``.
        error: share of pixels whose set of classes may miss the truth.
        seed: of the halving of the blocks and of all draws.

    Raises:
        SplitError: fewer than two test blocks. ConfigError: an error that is no share.
    """
    blocks = split.blocks[split.test]
    ids = np.random.default_rng(seed).permutation(np.unique(blocks))
    if len(ids) < 2:
        raise SplitError(f"{len(ids)} test blocks", where="trust", fix="use a scene with at least two")
    held = np.isin(blocks, ids[: len(ids) // 2])
    tile = predict_array(predictor, scene.image, scene.valid, available=scene.available, hide=split.train)
    logits = np.log(np.maximum(tile.probability[:, split.test].T, TINY))
    truth = scene.labels[split.test]
    temperature = fit_temperature(logits[held], truth[held])
    probability = soften(logits, temperature)
    conformal = fit_conformal(probability[held], truth[held], error=error, blocks=blocks[held], seed=seed)
    sets, judged = conformal.sets(probability[~held]), truth[~held]
    correct = probability[~held].argmax(1) + 1 == judged
    place = _places(scene.labels.shape)
    return Trust(
        calibration_pixels=int(held.sum()),
        judged_pixels=int((~held).sum()),
        temperature=temperature,
        before=reliability(soften(logits[~held], 1.0), judged),
        after=reliability(probability[~held], judged),
        conformal=conformal,
        coverage=float(sets[np.arange(len(judged)), judged - 1].mean()),
        set_size=float(sets.sum(1).mean()),
        risk=risk_coverage(probability[~held].max(1), correct),
        strata=failure_audit(correct, blocks[~held], {"class": judged, "place": place[split.test][~held]}, seed=seed),
        probes={
            layer: _probe(maps[0], scene, split, place, seed)
            for layer, maps in tile.routing.items()
            if (maps[0][split.test] >= 0).any()
        },
    )


def _places(shape: tuple[int, int]) -> np.ndarray:
    """(H, W) number of the part of the scene, in reading order."""
    rows, columns = (np.arange(size) * PLACES // size for size in shape)
    return rows[:, None] * PLACES + columns


def _probe(experts: np.ndarray, scene: Scene, split: Split, place: np.ndarray, seed: int) -> Probe:
    inside = split.test & (experts >= 0)
    units, positions = split.blocks[inside], np.argwhere(inside)
    factors = {
        "class": Factor(scene.labels[inside], units, positions),
        "place": Factor(place[inside], units, positions),
    }
    return probe_routing(experts[inside].astype(int), factors, draws=199, seed=seed)
