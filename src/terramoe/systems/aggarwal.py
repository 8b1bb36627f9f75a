"""Multiple-model multiscale data fusion regulated by a mixture-of-experts network.

Aggarwal, Nagarajan and Slatton, IGARSS 2004. A dense, noisy elevation model from radar interferometry and sparse,
precise laser heights become one surface with error bars. Each expert is a Kalman smoother on a quad-tree with its own
1/f spectrum; the gate decides pixel by pixel, from the texture of the dense sensor, how rough the ground is.

    mean(s) = sum_k g_k(texture(s)) x_k(s)
    variance(s) = sum_k g_k (P_k(s) + (x_k(s) - mean(s)) ** 2)

The bank, the choice from it and the gate are ``mixtures.KalmanMixture``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from terramoe.data.simulators.topography import LaserScan, RadarPair, laser_heights, radar_heights
from terramoe.data.worlds.fields import rough_field, stream
from terramoe.errors import ConfigError
from terramoe.mixtures import KalmanExpert, KalmanMixture
from terramoe.mixtures.gate_record import dense_routing, hard_routing
from terramoe.mixtures.kalman_bank import MixturePosterior
from terramoe.mixtures.quad_tree import Observation
from terramoe.mixtures.shifted_trees import shifted_posterior
from terramoe.moe import Routing
from terramoe.systems.card import Card
from terramoe.systems.surface_system import SurfaceSystem

GATES = ("softmax", "hard", "constant", "uniform", "random")


class AggarwalFusion(SurfaceSystem):
    """See the module's docstring.

    Args:
        n_experts: K.
        gate: "softmax" (of texture), "hard" (its most probable expert alone), "constant" (one share for the scene); as
            controls "uniform" (1 / K) and "random" (the softmax gate's decisions, dealt to the pixels at random).
        bank: ``KalmanExpert`` to choose from, at least K; exactly K are taken as they stand. None: 75, after the data.
        target: index of the precise sensor, whose values judge the experts; its scale must be 0.
        texture: index of the dense sensor, whose texture the gate sees.
        scales: dyadic scales of texture.
        ridge, tol, max_iter: of the gate's fit; see ``KalmanMixture``.
        shifts: displaced quad-trees to average over; 1 is the single tree of the paper.
        random_state: of the random gate.

    Attributes:
        model_: the fitted ``KalmanMixture``. experts_: K ``KalmanExpert``; unless ``bank`` held just K, the first is
            the best alone.
    """

    card = Card(
        name="Aggarwal et al.",
        title="Multiple-model multiscale data fusion regulated by a mixture-of-experts network",
        authors="Aggarwal, Nagarajan, Slatton",
        year=2004,
        survey_section="3.4.4",
        survey_reference=1,
        task="fusion of elevation models",
        sensors=("radar interferometry", "airborne laser"),
        provenance=("abstract", "survey"),
        completions=(
            "all equations: only abstracts could be read, and title and year are not checked against the publisher",
            "the experts: the best 4 of a bank of 75 pairs of step and Hurst exponent, taken greedily by likelihood",
            "the gate: a softmax of log detail energies of the dense sensor at 4 dyadic scales and their squares, "
            "fitted by EM to the leave-one-out density of each laser height",
            "averaging over displaced trees (shifts), off by default",
        ),
        differences=(),
        reported="no figure could be read",
    )

    def __init__(
        self,
        n_experts: int = 4,
        *,
        gate: str = "softmax",
        bank: Sequence[KalmanExpert] | None = None,
        target: int = -1,
        texture: int = 0,
        scales: int = 4,
        ridge: float = 1e-2,
        tol: float = 1e-5,
        max_iter: int = 500,
        shifts: int = 1,
        random_state: int = 0,
    ) -> None:
        self.n_experts = n_experts
        self.gate = gate
        self.bank = bank
        self.target = target
        self.texture = texture
        self.scales = scales
        self.ridge = ridge
        self.tol = tol
        self.max_iter = max_iter
        self.shifts = shifts
        self.random_state = random_state

    def fit(self, observations: Sequence[Observation], y: None = None) -> Self:
        """See ``SurfaceSystem``.

        Raises:
            ConfigError: a setting that cannot be.
            DataError: observations that do not fit together, or fewer values of the target than experts.
        """
        if self.gate not in GATES:
            raise ConfigError(f"no gate {self.gate!r}", where="AggarwalFusion", fix=f"use one of {', '.join(GATES)}")
        self.model_ = KalmanMixture(
            self.n_experts,
            gate="softmax" if self.gate == "random" else self.gate,
            bank=self.bank,
            target=self.target,
            texture=self.texture,
            scales=self.scales,
            ridge=self.ridge,
            tol=self.tol,
            max_iter=self.max_iter,
        ).fit(observations)
        self.experts_ = self.model_.experts_
        return self

    def posterior(self, observations: Sequence[Observation]) -> MixturePosterior:
        """See ``SurfaceSystem``."""
        weight = self.routing(observations)["gate"].dense().numpy()
        return shifted_posterior(self.experts_, weight, observations, self.model_.root_variance_, self.shifts)

    def routing(self, observations: Sequence[Observation]) -> dict[str, Routing]:
        """See ``SurfaceSystem``; the one gate is called "gate"."""
        check_is_fitted(self, "model_")
        log_proba = self.model_.routing(observations).logits.numpy()
        if self.gate == "random":
            log_proba = log_proba[check_random_state(self.random_state).permutation(len(log_proba))]
        return {"gate": hard_routing(log_proba) if self.gate == "hard" else dense_routing(log_proba)}

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """See ``SurfaceSystem``: how rough each takes the ground to be."""
        check_is_fitted(self, "experts_")
        return tuple(f"H {expert.hurst:.2g}, step {expert.step:.3g}" for expert in self.experts_)

    def control(self, name: str) -> Self:
        """See ``SurfaceSystem``. Of a fitted system the controls keep the experts: the gate had no part in the choice.

        "dense" is the best single smoother.
        """
        self._require_control(name)
        copy = clone(self)
        if name == "routed":
            return copy
        if hasattr(self, "experts_"):
            copy.set_params(bank=self.experts_)
        return copy.set_params(n_experts=1) if name == "dense" else copy.set_params(gate=name)

    @classmethod
    def tiny(cls) -> Self:
        """See ``SurfaceSystem``."""
        return cls(2, bank=tuple(KalmanExpert(step, 0.9) for step in (1.0, 4.0, 12.0)), scales=3, tol=1e-3)

    @classmethod
    def tiny_observations(cls, seed: int) -> list[Observation]:
        """See ``SurfaceSystem``: 32 x 48 leaves, smooth ground beside rough ground."""
        smooth, rough = (rough_field(48, exponent, stream(seed, exponent))[:32] for exponent in (3.6, 2.6))
        heights = 5 * smooth + np.where(np.arange(48) < 24, 1.0, 15.0) * rough
        radar = radar_heights(heights, 30.0, RadarPair(scale=0), seed)
        laser = laser_heights(heights, 30.0, LaserScan(share=0.2, gap=0), seed)
        return [Observation(one.value, one.variance, one.scale) for one in (radar, laser)]
