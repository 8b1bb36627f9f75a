"""A mixture of multiscale Kalman smoothers under a gate that sees the local texture.

Reading order: ``quad_tree`` (the model and its observations), ``kalman_tree`` (the two sweeps), ``texture_features``,
``kalman_bank`` (candidates and their choice), then this estimator.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from terramoe.errors import ConfigError, DataError
from terramoe.mixtures.gate_fit import fit_gate
from terramoe.mixtures.gate_record import dense_routing, hard_routing
from terramoe.mixtures.gating import gate_log_proba
from terramoe.mixtures.kalman_bank import (
    KalmanExpert,
    MixturePosterior,
    bank_log_density,
    check_scene,
    choose_experts,
    default_bank,
    mixture_moments,
    smooth_with,
)
from terramoe.mixtures.quad_tree import Observation, leaf_shape
from terramoe.mixtures.texture_features import TextureDesign, texture_of
from terramoe.moe.routing import Routing

TEXTURELESS = ("constant", "uniform")
GATES = ("softmax", "hard", *TEXTURELESS)


class KalmanMixture(BaseEstimator):
    """Fuses images of several sensors and scales where no single roughness fits the whole surface.

    K experts are smoothers on a quad-tree; EM fits the gate to the likelihood of each value of one sensor given all
    other values (its leave-one-out density, which the sweeps give exactly). The experts are chosen from a bank, the
    best alone first, so that ``n_experts=1`` is the best single filter. Multiscale Kalman filters and mixture of
    experts for fusing InSAR and laser altimetry (Aggarwal, Nagarajan and Slatton); Multiscale Segmentation of
    Elevation Images Using a Mixture-of-Experts Framework, 2009, DOI 10.1109/LGRS.2009.2027451. Only abstracts could
    be read: bank, choice, features and leave-one-out fit are completions.

    Args:
        n_experts: K.
        gate: "softmax" (of texture); as controls "hard" (the same, then the most probable expert alone), "constant"
            (shares fitted, the same everywhere) and "uniform" (1 / K).
        bank: experts to choose from, at least K; exactly K are taken as they stand. None: 75, after the data.
        target: index of the observation whose values judge the experts; its scale must be 0. The precise sensor.
        texture: index of another observation, whose texture the gate sees. The dense sensor.
        scales: dyadic scales of texture.
        ridge: weight of half the squared coefficients of the gate in the objective, with features standardised.
        newton_steps, tol, max_iter: see ``MixtureOfExpertsRegressor``.

    Attributes:
        experts_: K ``KalmanExpert``, in order of choice.
        mixture_: the fitted ``em.Mixture``.
        objective_trace_: leave-one-out log-likelihood less the ridge term, at the start and after each iteration.
        n_iter_, converged_: iterations of EM, and whether the tolerance was met.
    """

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
        newton_steps: int = 2,
        tol: float = 1e-5,
        max_iter: int = 500,
    ) -> None:
        self.n_experts = n_experts
        self.gate = gate
        self.bank = bank
        self.target = target
        self.texture = texture
        self.scales = scales
        self.ridge = ridge
        self.newton_steps = newton_steps
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, observations: Sequence[Observation], y: None = None) -> KalmanMixture:
        """Choose experts and fit the gate to one scene.

        Args:
            observations: of one scene, in an order that ``predict`` will expect again.
            y: ignored, for scikit-learn.

        Raises:
            ConfigError: a setting that cannot be.
            DataError: observations that do not fit together, or too few values of the target.
        """
        self._check_settings(observations)
        self.scales_in_ = tuple(one.scale for one in observations)
        target = observations[self.target]
        values = target.value[target.seen]
        if len(values) < max(2, self.n_experts):
            raise DataError(
                f"the target has {len(values)} values, for {self.n_experts} experts",
                where="KalmanMixture.fit",
                fix="give more values, or use fewer experts",
            )
        self.root_variance_ = float(values.var()) or 1.0
        bank = default_bank(self.root_variance_**0.5) if self.bank is None else tuple(self.bank)
        log_density = bank_log_density(bank, observations, self.target % len(observations), self.root_variance_)
        chosen = list(range(len(bank)))
        if len(bank) > self.n_experts:
            chosen = choose_experts(log_density, self.n_experts)
        self.experts_ = tuple(bank[index] for index in chosen)
        self._fit_gate(self._texture(observations)[target.seen.ravel()], log_density[:, chosen])
        return self

    def predict(
        self, observations: Sequence[Observation], return_std: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """(H, W) mean of the surface, and its standard deviation (H, W) where asked for."""
        posterior = self.posterior(observations)
        return (posterior.mean, np.sqrt(posterior.variance)) if return_std else posterior.mean

    def posterior(self, observations: Sequence[Observation]) -> MixturePosterior:
        """Mean, variance, weights and experts of a scene seen by the same sensors."""
        log_proba = self._gate_log_proba(observations)
        smoothed = [smooth_with(expert, observations, self.root_variance_) for expert in self.experts_]
        mean = np.stack([one.mean[-1] for one in smoothed], axis=-1)
        variance = np.stack([one.variance[-1] for one in smoothed], axis=-1)
        weight = np.exp(log_proba)
        if self.gate == "hard":
            weight = np.eye(len(self.experts_))[log_proba.argmax(axis=-1)]
        weight = weight.reshape(mean.shape)
        return MixturePosterior(*mixture_moments(weight, mean, variance), weight, mean, variance)

    def routing(self, observations: Sequence[Observation]) -> Routing:
        """The gate's decision for the H * W pixels, row by row; with ``gate="hard"`` one expert each."""
        log_proba = self._gate_log_proba(observations)
        return hard_routing(log_proba) if self.gate == "hard" else dense_routing(log_proba)

    def log_likelihood(self, observations: Sequence[Observation]) -> np.ndarray:
        """(n,) leave-one-out log density of each value of the target under the mixture, whatever the switching."""
        return self.mixture_.log_likelihood(*self._judge(observations))

    def responsibilities(self, observations: Sequence[Observation]) -> np.ndarray:
        """(n, K) posterior of each expert for each value of the target; rows sum to 1."""
        return self.mixture_.responsibilities(*self._judge(observations))

    def _judge(self, observations: Sequence[Observation]) -> tuple[np.ndarray, np.ndarray]:
        """Gate features and log densities at the n values of the target."""
        self._check_scene(observations)
        target = self.target % len(observations)
        design = self.design_.apply(self._texture(observations)[observations[target].seen.ravel()])
        return design, bank_log_density(self.experts_, observations, target, self.root_variance_)

    def _fit_gate(self, texture: np.ndarray, log_density: np.ndarray) -> None:
        self.design_ = TextureDesign.of(texture)
        result = fit_gate(
            self.design_.apply(texture),
            log_density,
            ridge=self.ridge,
            steps=self.newton_steps,
            tol=self.tol,
            max_iter=self.max_iter,
            learned=self.gate != "uniform",
        )
        self.mixture_, self.objective_trace_ = result.mixture, result.trace
        self.n_iter_, self.converged_ = len(result.trace) - 1, result.converged

    def _texture(self, observations: Sequence[Observation]) -> np.ndarray:
        """(H * W, scales), or no columns where the gate does not look."""
        height, width = leaf_shape(observations)
        if self._blind():
            return np.empty((height * width, 0))
        return texture_of(observations[self.texture], (height, width), self.scales).reshape(-1, self.scales)

    def _blind(self) -> bool:
        return self.gate in TEXTURELESS or self.n_experts == 1

    def _gate_log_proba(self, observations: Sequence[Observation]) -> np.ndarray:
        """(H * W, K)."""
        self._check_scene(observations)
        return gate_log_proba(self.mixture_.gate, self.design_.apply(self._texture(observations)))

    def _check_scene(self, observations: Sequence[Observation]) -> None:
        check_is_fitted(self, "mixture_")
        check_scene(observations)
        scales = tuple(one.scale for one in observations)
        if scales != self.scales_in_:
            raise DataError(
                f"observations of scales {scales}, fitted on {self.scales_in_}",
                where="KalmanMixture",
                fix="give the same sensors in the same order, all gaps where one saw nothing",
            )

    def _check_settings(self, observations: Sequence[Observation]) -> None:
        check_scene(observations)
        size = len(observations)
        whole = {"n_experts": 1, "scales": 1, "newton_steps": 1, "max_iter": 1, "target": -size, "texture": -size}
        for name, least in whole.items():
            value = getattr(self, name)
            integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
            self._require(integer and value >= least, name, f"a whole number >= {least}")
        for name in ("ridge", "tol"):
            value = getattr(self, name)
            self._require(isinstance(value, Real) and 0 <= value < np.inf, name, "a number >= 0")
        self._require(self.gate in GATES, "gate", f"one of {', '.join(GATES)}")
        self._require(self.target < size and self.texture < size, "target", f"an index below {size}, as texture")
        differ = (self.target - self.texture) % size != 0
        self._require(differ or self._blind(), "texture", "another observation than the target")
        self._require(observations[self.target].scale == 0, "target", "an observation of scale 0")
        bank = [KalmanExpert(1, 1)] * self.n_experts if self.bank is None else list(self.bank)
        self._require(all(isinstance(one, KalmanExpert) for one in bank), "bank", "a list of KalmanExpert")
        self._require(len(bank) >= self.n_experts, "n_experts", "no more experts than the bank has")

    def _require(self, holds: bool, name: str, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"{name} is {getattr(self, name)!r}", where="KalmanMixture", fix=f"use {wanted}")
