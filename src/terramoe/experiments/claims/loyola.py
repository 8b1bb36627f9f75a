"""Loyola: are twelve small networks under a fixed, overlapping gate worth their boxes?

Simulated ultraviolet radiances over ozone as a polar orbiter meets it. All networks take equally many steps with
equally many rows; what differs is which rows a network sees and which it answers for.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from terramoe.data.simulators.ozone import n_values, noisy, ozone_scenes, radiance
from terramoe.experiments.claims.rows_claim import Compared, RowsClaim
from terramoe.moe.scorers.boxes import box_weights
from terramoe.systems.loyola import OZONE_AXES, LoyolaOzone

TRAIN, TEST, STEPS = 6000, 2000, 6000
Z90 = 1.6449  # half of the 90 % interval, in standard deviations
VARIANTS = {
    "routed": {},
    "hard": {"gate": "hard"},
    "few steps": {"steps": STEPS // 8},  # as many passes over the rows as one network takes on all of them
}


@lru_cache(maxsize=1)
def ozone_rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """X (n, 15) in the order of ``systems.loyola.COLUMNS`` and the column of ozone y (n,), training rows first."""
    scenes = ozone_scenes(TRAIN + TEST, seed)
    spectra = n_values(noisy(radiance(scenes), seed), scenes.sun)
    others = (scenes.sun, scenes.view, scenes.azimuth, scenes.albedo, np.abs(scenes.latitude), scenes.aerosol)
    return np.column_stack([spectra, *others]), scenes.ozone


def measure(variant: str, seed: int) -> dict[str, float]:
    """Errors in DU on new scenes: of all, and where boxes overlap; and how often the 90 % interval holds."""
    X, y = ozone_rows(seed)
    system = LoyolaOzone(steps=STEPS, random_state=seed)
    system = system.set_params(**VARIANTS[variant]) if variant in VARIANTS else system.control(variant)
    system.fit(X[:TRAIN], y[:TRAIN])
    X, y = X[TRAIN:], y[TRAIN:]
    error = system.predict(X) - y
    shared = (box_weights(torch.from_numpy(X), OZONE_AXES) > 0).sum(dim=1).numpy() > 1
    return {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "rmse in overlaps": float(np.sqrt(np.mean(error[shared] ** 2))),
        "mae": float(np.abs(error).mean()),
        "r2": float(1 - np.mean(error**2) / y.var()),
        "coverage": float((np.abs(error) <= Z90 * system.predict_std(X)).mean()),
        "rows in overlaps": float(shared.mean()),
    }


CLAIM = RowsClaim(
    system="loyola",
    about="Simulated N-values at nine wavelengths with 0.2 % noise, 6000 training and 2000 test scenes, new ones for "
    "each seed; 6000 steps with 64 rows for every network, so that twelve see twelve times as many as one.",
    variants=(*VARIANTS, "dense", "wide", "uniform", "random"),
    measure=measure,
    statements=(
        Compared("the overlapping gate beats a hard switch between the same networks", "routed", "hard", "rmse"),
        Compared("it does so where boxes overlap", "routed", "hard", "rmse in overlaps"),
        Compared("twelve small networks beat one small network", "routed", "dense", "rmse", rope=2.0),
        Compared("one network as large as all twelve beats them", "wide", "routed", "rmse", rope=2.0),
        Compared(
            "the gain is specialisation: boxes beat the mean of twelve networks that see all", "routed", "uniform",
            "rmse", rope=2.0,
        ),
        Compared("boxes beat subsets drawn by a hash of the row", "routed", "random", "rmse", rope=2.0),
        Compared(
            "with equal passes over the rows instead of equal steps, one small network wins", "dense", "few steps",
            "rmse", rope=2.0,
        ),
    ),
    metric="rmse",
    unit="DU",
)  # fmt: skip
