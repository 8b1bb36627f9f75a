"""Multiscale Segmentation of Elevation Images Using a Mixture-of-Experts Framework.

Nagarajan and Slatton, IEEE Geoscience and Remote Sensing Letters, 2009, DOI 10.1109/LGRS.2009.2027451. Elevation seen
at several resolutions becomes one surface with error bars, and a map of regimes. A local fractal analysis, instead of
one power spectrum, gives each pixel a Hurst exponent and a roughness; their clusters are the parameters of the experts,
which are Kalman smoothers on a quad-tree; a gate over the same features fuses what the experts estimate.

    (H, log roughness)(s) -> k-means -> K smoothers;   h_k ~ g_k N(value; x_k, P_k + R);   mean = sum_k g_k x_k
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from scipy.ndimage import uniform_filter
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from terramoe.data.worlds.fields import rough_field, stream
from terramoe.errors import ConfigError, DataError
from terramoe.mixtures.fractal_features import fractal_expert, fractal_features
from terramoe.mixtures.gate_fit import fit_gate
from terramoe.mixtures.gate_record import dense_routing
from terramoe.mixtures.gating import gate_log_proba
from terramoe.mixtures.kalman_bank import MixturePosterior, bank_log_density, check_scene
from terramoe.mixtures.quad_tree import Observation, leaf_shape
from terramoe.mixtures.scaling import Scaling
from terramoe.mixtures.shifted_trees import shifted_posterior
from terramoe.mixtures.texture_features import TextureDesign
from terramoe.moe import Routing
from terramoe.systems.card import Card
from terramoe.systems.surface_system import SurfaceSystem

GATES = ("softmax", "uniform", "random")
SEGMENT_BY = ("gate", "responsibilities")
SAMPLE = 20_000  # leaves that k-means looks at
NEWTON_STEPS = 2  # of the gate in each M-step


class NagarajanSlatton(SurfaceSystem):
    """See the module's docstring.

    Args:
        n_experts: K, at least 1.
        gate: "softmax" (of the features); as controls "uniform" (1 / K) and "random" (the softmax gate's decisions,
            dealt to the pixels at random).
        window: leaves along the side of the window in which the fractal analysis is made.
        lags: dyadic distances of the variogram, 1, 2, 4 ... leaves.
        target: index of the fine sensor, whose values judge the experts; its scale must be 0.
        segment_by: "gate" or "responsibilities": of which the most probable expert names a segment. Responsibilities
            exist where the target has a value; elsewhere the gate's probability stands for them.
        ridge, tol, max_iter: of the gate's fit; see ``KalmanMixture``.
        shifts: displaced quad-trees to average over; 1 is a single tree.
        random_state: of k-means and of the random gate.

    Attributes:
        centres_: (K, 2) Hurst exponent and log roughness of each cluster.
        experts_: K ``KalmanExpert``, one for each cluster, from the least rough to the roughest.
        mixture_: the fitted ``em.Mixture``. n_iter_: iterations of EM.
    """

    card = Card(
        name="Nagarajan & Slatton",
        title="Multiscale Segmentation of Elevation Images Using a Mixture-of-Experts Framework",
        authors="Nagarajan, Slatton",
        year=2009,
        doi="10.1109/LGRS.2009.2027451",
        survey_section="3.1.1",
        survey_reference=102,
        task="fusion and segmentation of elevation models",
        sensors=("airborne laser", "coarser elevation models"),
        provenance=("abstract", "survey"),
        completions=(
            "all equations: only the abstract could be read",
            "the features: slope and level of a local variogram over 5 dyadic distances, less what the noise adds",
            "the experts: one for each of 3 clusters of the features, its step on the tree from the variogram",
            "the gate: a softmax of the features and their squares, fitted by EM to leave-one-out densities",
            "the segments: the most probable expert, smoothed by the majority of 3 x 3 pixels",
            "averaging over displaced trees (shifts), off by default",
        ),
        differences=(
            "the survey says that experts segment and the gate merges their segments; the abstract says that the gate "
            "fuses their estimates, and that is what we do",
        ),
        reported="no figure could be read",
    )

    def __init__(
        self,
        n_experts: int = 3,
        *,
        gate: str = "softmax",
        window: int = 32,
        lags: int = 5,
        target: int = -1,
        segment_by: str = "gate",
        ridge: float = 1e-2,
        tol: float = 1e-5,
        max_iter: int = 500,
        shifts: int = 1,
        random_state: int = 0,
    ) -> None:
        self.n_experts = n_experts
        self.gate = gate
        self.window = window
        self.lags = lags
        self.target = target
        self.segment_by = segment_by
        self.ridge = ridge
        self.tol = tol
        self.max_iter = max_iter
        self.shifts = shifts
        self.random_state = random_state

    def fit(self, observations: Sequence[Observation], y: None = None) -> Self:
        """See ``SurfaceSystem``.

        Raises:
            ConfigError: a setting that cannot be.
            DataError: observations that do not fit together, or too few values of the target.
        """
        self._check_settings(observations)
        self.scales_in_ = tuple(one.scale for one in observations)
        target = observations[self.target]
        if target.seen.sum() < max(2, self.n_experts):
            raise DataError(
                f"the target has {int(target.seen.sum())} values, for {self.n_experts} experts",
                where="NagarajanSlatton.fit",
                fix="give more values, or use fewer experts",
            )
        self.root_variance_ = float(target.value[target.seen].var()) or 1.0
        features = fractal_features(observations, self.window, self.lags).reshape(-1, 2)
        self._cluster(features)
        self.experts_ = tuple(fractal_expert(*centre) for centre in self.centres_)
        seen = features[target.seen.ravel()]
        self.design_ = TextureDesign.of(seen)
        log_density = bank_log_density(
            self.experts_, observations, self.target % len(observations), self.root_variance_
        )
        found = fit_gate(
            self.design_.apply(seen),
            log_density,
            ridge=self.ridge,
            steps=NEWTON_STEPS,
            tol=self.tol,
            max_iter=self.max_iter,
            learned=self.gate != "uniform",
        )
        self.mixture_, self.n_iter_ = found.mixture, len(found.trace) - 1
        return self

    def posterior(self, observations: Sequence[Observation]) -> MixturePosterior:
        """See ``SurfaceSystem``."""
        weight = np.exp(self._log_proba(observations))
        return shifted_posterior(self.experts_, weight, observations, self.root_variance_, self.shifts)

    def routing(self, observations: Sequence[Observation]) -> dict[str, Routing]:
        """See ``SurfaceSystem``; the one gate is called "gate"."""
        return {"gate": dense_routing(self._log_proba(observations))}

    def segments(self, observations: Sequence[Observation]) -> np.ndarray:
        """(H, W) int64: the expert whose regime it is, from the least rough (0) to the roughest."""
        log_proba = self._log_proba(observations)
        if self.segment_by == "responsibilities":
            index = self.target % len(observations)
            seen = observations[index].seen.ravel()
            log_proba[seen] += bank_log_density(self.experts_, observations, index, self.root_variance_)
        return majority(log_proba.argmax(axis=1).reshape(leaf_shape(observations)), len(self.experts_))

    def clusters(self, observations: Sequence[Observation]) -> np.ndarray:
        """(H, W) int64: the nearest centre of k-means, before any gate: what the fractal analysis alone says."""
        check_is_fitted(self, "centres_")
        scaled = self.scaling_.apply(self._features(observations))
        distance = ((scaled[:, None] - self.scaling_.apply(self.centres_)) ** 2).sum(axis=-1)
        return distance.argmin(axis=1).reshape(leaf_shape(observations))

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """See ``SurfaceSystem``: how rough each takes the ground to be."""
        check_is_fitted(self, "experts_")
        return tuple(f"H {expert.hurst:.2g}, step {expert.step:.3g}" for expert in self.experts_)

    def control(self, name: str) -> Self:
        """See ``SurfaceSystem``. "dense" is one smoother with the parameters of the whole scene."""
        self._require_control(name)
        if name == "routed":
            return clone(self)
        return clone(self).set_params(n_experts=1) if name == "dense" else clone(self).set_params(gate=name)

    @classmethod
    def tiny(cls) -> Self:
        """See ``SurfaceSystem``."""
        return cls(2, window=12, lags=3, tol=1e-3)

    @classmethod
    def tiny_observations(cls, seed: int) -> list[Observation]:
        """See ``SurfaceSystem``: 32 x 48 leaves, half of them seen, and means over 4 x 4; smooth beside rough."""
        smooth, rough = (rough_field(48, exponent, stream(seed, exponent))[:32] for exponent in (3.6, 2.6))
        heights = 5 * smooth + np.where(np.arange(48) < 24, 1.0, 15.0) * rough
        noise = stream(seed, "noise")
        fine = heights + noise.standard_normal(heights.shape)
        fine[noise.random(heights.shape) < 0.5] = np.nan
        coarse = heights.reshape(8, 4, 12, 4).mean(axis=(1, 3)) + noise.standard_normal((8, 12))
        return [Observation(coarse, 1.0, 2), Observation(fine, 1.0)]

    # ----------------------------------------------------------------------------------------------------------------

    def _features(self, observations: Sequence[Observation]) -> np.ndarray:
        """(H * W, 2) Hurst exponent and log roughness; of a scene that does not show them, the mean at the fit."""
        return fractal_features(observations, self.window, self.lags, self.scaling_.mean).reshape(-1, 2)

    def _cluster(self, features: np.ndarray) -> None:
        """K-means of the standardised features."""
        some = features[:: -(-len(features) // SAMPLE)]
        self.scaling_ = Scaling.of(some, np.ones(len(some)))
        scaled = self.scaling_.apply(some)
        if len(np.unique(scaled, axis=0)) < self.n_experts:  # a plain: every cluster is the same
            centres = np.repeat(scaled[:1], self.n_experts, axis=0)
        else:
            centres = KMeans(self.n_experts, n_init=10, random_state=self.random_state).fit(scaled).cluster_centers_
        centres = centres * self.scaling_.scale + self.scaling_.mean
        self.centres_ = centres[np.argsort(centres[:, 1], kind="stable")]

    def _log_proba(self, observations: Sequence[Observation]) -> np.ndarray:
        """(H * W, K)."""
        check_is_fitted(self, "mixture_")
        check_scene(observations)
        scales = tuple(one.scale for one in observations)
        if scales != self.scales_in_:
            raise DataError(
                f"observations of scales {scales}, fitted on {self.scales_in_}",
                where="NagarajanSlatton",
                fix="give the same sensors in the same order, all gaps where one saw nothing",
            )
        log_proba = gate_log_proba(self.mixture_.gate, self.design_.apply(self._features(observations)))
        if self.gate == "random":
            log_proba = log_proba[check_random_state(self.random_state).permutation(len(log_proba))]
        return log_proba

    def _check_settings(self, observations: Sequence[Observation]) -> None:
        check_scene(observations)
        size = len(observations)
        whole = isinstance(self.n_experts, int | np.integer) and not isinstance(self.n_experts, bool)
        for holds, name, fix in (
            (whole and self.n_experts >= 1, "n_experts", "use a whole number from 1"),
            (self.gate in GATES, "gate", f"use one of {', '.join(GATES)}"),
            (self.segment_by in SEGMENT_BY, "segment_by", f"use one of {', '.join(SEGMENT_BY)}"),
            (-size <= self.target < size, "target", f"use an index below {size}"),
            (self.max_iter >= 1, "max_iter", "use 1 or more"),
            (min(self.ridge, self.tol) >= 0, "ridge, tol", "use 0 or more"),
        ):
            if not holds:
                value = getattr(self, name, (self.ridge, self.tol))
                raise ConfigError(f"{name} is {value!r}", where="NagarajanSlatton", fix=fix)
        if observations[self.target].scale:
            raise ConfigError("the target is coarse", where="NagarajanSlatton", fix="use an observation of scale 0")


def majority(labels: np.ndarray, kinds: int) -> np.ndarray:
    """(H, W) labels 0..kinds - 1 -> the commonest of each 3 x 3 pixels; a pixel's own on a tie, then the lower."""
    own = np.eye(kinds)[labels]
    votes = np.stack([uniform_filter(own[..., kind], 3, mode="nearest") for kind in range(kinds)], axis=-1)
    return np.argmax(np.round(9 * votes) + 0.5 * own, axis=-1)
