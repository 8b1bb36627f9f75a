"""Aggarwal et al.: does a gate over several multiscale Kalman smoothers beat the best one of them?

Real ground: the elevation model of the Jacksboro fault that comes with matplotlib. Five windows of it (they overlap, so
the seeds are less independent than five places would be), each under a radar with 20 m of noise everywhere and a laser
with 0.5 m on 6 % of the pixels. Scored where the laser saw nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from terramoe.data.worlds.fields import stream
from terramoe.errors import DataError
from terramoe.experiments.claims.rows_claim import Above, Compared, RowsClaim
from terramoe.experiments.surface_scores import surface_scores
from terramoe.mixtures.quad_tree import Observation
from terramoe.systems.aggarwal import AggarwalFusion

SIDE = 256
RADAR_NOISE, LASER_NOISE, LASER_SHARE = 20.0, 0.5, 0.06  # metres, metres, share of the pixels
SHIFTS = 8  # displaced trees
SETTINGS = {  # what each variant changes in the control or system it is named after
    "routed": ("routed", {}),
    "dense": ("dense", {}),
    "uniform": ("uniform", {}),
    "random": ("random", {}),
    "hard gate": ("routed", {"gate": "hard"}),
    "constant gate": ("routed", {"gate": "constant"}),
    "routed, shifted trees": ("routed", {"shifts": SHIFTS}),
    "dense, shifted trees": ("dense", {"shifts": SHIFTS}),
}


def jacksboro(seed: int, side: int = SIDE) -> np.ndarray:
    """A window (side, side) of the real elevation model, in metres, drawn by the seed.

    Raises:
        DataError: matplotlib came without its sample data.
    """
    from matplotlib import cbook

    try:
        heights = cbook.get_sample_data("jacksboro_fault_dem.npz")["elevation"].astype(float)
    except (OSError, ValueError) as error:
        raise DataError("matplotlib came without its sample data", where="claim", fix="reinstall it") from error
    row, column = stream(seed, "window").integers(0, np.array(heights.shape) - side + 1)
    return heights[row : row + side, column : column + side]


def observe(truth: np.ndarray, seed: int) -> list[Observation]:
    """A noisy radar everywhere, and a precise laser on a few pixels."""
    noise = stream(seed, "noise")
    radar = truth + RADAR_NOISE * noise.standard_normal(truth.shape)
    laser = truth + LASER_NOISE * noise.standard_normal(truth.shape)
    laser[noise.random(truth.shape) >= LASER_SHARE] = np.nan
    return [Observation(radar, RADAR_NOISE**2), Observation(laser, LASER_NOISE**2)]


@lru_cache(maxsize=1)
def _case(seed: int) -> tuple[np.ndarray, list[Observation], AggarwalFusion]:
    """Truth, observations, and the system fitted to them."""
    truth = jacksboro(seed)
    scene = observe(truth, seed)
    return truth, scene, AggarwalFusion().fit(scene)


def measure(variant: str, seed: int) -> Mapping[str, float]:
    """Scores on the pixels that the laser did not see."""
    truth, scene, fitted = _case(seed)
    control, changes = SETTINGS[variant]
    system = fitted.control(control).set_params(bank=fitted.experts_, **changes).fit(scene)
    found = surface_scores(system.posterior(scene), truth, ~scene[1].seen)
    routing = system.routing(scene)["gate"]
    top = np.bincount(routing.top_expert().numpy(), minlength=1)
    return {**found, "entropy": float(routing.item_entropy().mean()), "other_share": 1 - float(top.max() / top.sum())}


CLAIM = RowsClaim(
    system="aggarwal",
    about="Windows of 256 x 256 pixels of the real Jacksboro elevation model; radar 20 m everywhere, laser 0.5 m on "
    "6 % of the pixels; 4 experts of a bank of 75, chosen and gated by the leave-one-out density of the laser heights; "
    "scored where there is no laser height.",
    variants=tuple(SETTINGS),
    measure=measure,
    statements=(
        Compared("the gated mixture beats the best single smoother", "routed", "dense", "rmse"),
        Compared("the gate beats the plain average of its experts", "routed", "uniform", "rmse"),
        Compared("the gate beats its own decisions at random places", "routed", "random", "rmse"),
        Compared("the gate beats shares that are the same everywhere", "routed", "constant gate", "rmse"),
        Compared("mixing beats taking the most probable expert alone", "routed", "hard gate", "rmse"),
        Compared("its density is better than the best smoother's", "routed", "dense", "nll", rope=0.25),
        Above("its 90 % intervals hold at least 88 %", "routed", "coverage_90", 0.88),
        Compared(
            "with displaced trees, too, the mixture beats the best smoother",
            "routed, shifted trees",
            "dense, shifted trees",
            "rmse",
        ),
        Compared("displaced trees gain one smoother more than the gate", "dense, shifted trees", "routed", "rmse"),
    ),
    metric="rmse",
    unit="m",
    seen="That displaced trees gain more than the gate was known from runs on windows of this model.",
)
