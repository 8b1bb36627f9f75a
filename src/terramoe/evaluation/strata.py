"""Where does a model fail? Accuracy by class, region, season, sensor or any other division, the worst first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from terramoe.evaluation.intervals import Interval, interval

SMALL = 5  # blocks; below, an interval over blocks is too short to be trusted


@dataclass(frozen=True)
class Stratum:
    """One part of the test pixels.

    Attributes:
        division: "class", "season" ... value: which one.
        pixels, blocks: how many.
        accuracy: share correct, with 95 % interval over blocks.
        small: fewer than ``SMALL`` blocks: read neither the accuracy nor the interval as a finding.
        rest: share correct of all other pixels; NaN if there are none.
    """

    division: str
    value: int
    pixels: int
    blocks: int
    accuracy: Interval
    small: bool
    rest: float


def failure_audit(
    correct: np.ndarray,
    blocks: np.ndarray,
    divisions: Mapping[str, np.ndarray],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> list[Stratum]:
    """Accuracy of every stratum, lowest first; small strata come last, whatever their accuracy.

    Looking for the worst of many strata finds a low one by luck too: an interval that stays below ``rest`` in one of
    twenty strata is what chance gives.

    Args:
        correct: (N,) bool, whether a test pixel is right.
        blocks: (N,) spatial block of each; the same for all seeds that test it.
        divisions: name -> (N,) integer of each pixel.
    """
    strata = [
        _stratum(name, int(value), correct, blocks, division == value, draws, seed)
        for name, division in divisions.items()
        for value in np.unique(division)
    ]
    return sorted(strata, key=lambda stratum: (stratum.small, stratum.accuracy.value))


def _stratum(
    name: str, value: int, correct: np.ndarray, blocks: np.ndarray, inside: np.ndarray, draws: int, seed: int
) -> Stratum:
    _, block = np.unique(blocks[inside], return_inverse=True)
    counts = np.stack([np.bincount(block, correct[inside]), np.bincount(block)], axis=1)  # right, all
    return Stratum(
        division=name,
        value=value,
        pixels=int(inside.sum()),
        blocks=len(counts),
        accuracy=interval(lambda sums: sums[..., 0] / sums[..., 1], counts, draws=draws, seed=seed),
        small=len(counts) < SMALL,
        rest=float(correct[~inside].mean()) if not inside.all() else float("nan"),
    )
