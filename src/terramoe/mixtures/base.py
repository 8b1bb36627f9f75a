"""What the four estimators share: checks of the input, the fit, and what can be asked of a fitted mixture."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from terramoe.errors import ConfigError, RoutingError
from terramoe.mixtures.em import Mixture, run_restarts
from terramoe.mixtures.experts import Expert
from terramoe.mixtures.gate_record import dense_routing
from terramoe.mixtures.gating import Gate, GaussianGate, SoftmaxGate, gate_log_proba
from terramoe.mixtures.scaling import Scaling
from terramoe.mixtures.tree import TreeGate
from terramoe.moe.routing import Routing


class MixtureEstimator(BaseEstimator, ABC):
    """Base of the estimators. A subclass says which experts it has and how y is read; it has the parameters
    ``ridge``, ``variance_floor``, ``newton_steps``, ``tol``, ``max_iter``, ``n_init`` and ``random_state``.
    """

    def responsibilities(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n, E) posterior of each expert given x and y; rows sum to 1."""
        return self.mixture_.responsibilities(self._design(X), self._model_target(y, len(X)))

    def log_likelihood(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n,) ``log p(y | x)`` of each sample, in the unit of y."""
        target = self._model_target(y, len(X))
        return self.mixture_.log_likelihood(self._design(X), target) - self._log_unit()

    def routing(self, X: np.ndarray) -> Routing:
        """The gate's decision as the record of the routing core: every expert, weighted by its gate probability."""
        return dense_routing(gate_log_proba(self.mixture_.gate, self._design(X)))

    def _fit_mixture(
        self, X: np.ndarray, target: np.ndarray, columns: np.ndarray, weight: np.ndarray, expert: Expert
    ) -> None:
        """Run EM on standardised X (n, D); ``columns`` (n, F) of y take part in the random start."""
        result = run_restarts(
            Mixture(self._blank_gate(), (expert,) * self._num_experts()),
            X,
            target,
            weight,
            np.hstack([X, columns]),
            check_random_state(self.random_state),
            n_init=self.n_init,
            tol=self.tol,
            max_iter=self.max_iter,
        )
        if not result.converged:
            warnings.warn(
                f"EM did not converge in {self.max_iter} iterations; raise max_iter or tol, or use fewer experts",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.mixture_, self.objective_trace_ = result.mixture, result.trace
        self.n_iter_, self.converged_ = len(result.trace) - 1, result.converged

    def _read(self, X: object, y: object, sample_weight: object, **how: object) -> tuple[np.ndarray, ...]:
        """X, y and case weights, checked; samples of weight zero are left out, as if they had never been given."""
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=np.float64, **how)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        used = weight > 0
        experts = self._num_experts()
        if used.sum() < experts:
            raise RoutingError(
                f"n_samples = {used.sum()} with a weight above 0, for {experts} experts",
                where=type(self).__name__,
                fix="use fewer experts or give more samples",
            )
        self.scaling_ = Scaling.of(X[used], weight[used])
        return self.scaling_.apply(X[used]), y[used], weight[used]

    def _check_settings(self) -> None:
        limits = {"ridge": 0, "tol": 0, "newton_steps": 1, "max_iter": 1, "n_init": 1}
        for name, least in limits.items():
            self._check_setting(name, f">= {least}", getattr(self, name) >= least)
        if "variance_floor" in self.get_params():
            self._check_setting("variance_floor", "> 0", self.variance_floor > 0)
        self._check_setting("number of experts", ">= 1", self._num_experts() >= 1)

    def _check_setting(self, name: str, wanted: str, holds: bool) -> None:
        if not holds:
            value = getattr(self, name, self._num_experts())
            raise ConfigError(f"{name} is {value!r}", where=type(self).__name__, fix=f"use {name} {wanted}")

    def _design(self, X: object) -> np.ndarray:
        check_is_fitted(self, "mixture_")
        return self.scaling_.apply(validate_data(self, X, dtype=np.float64, reset=False))

    def _blank_coef(self, *outcomes: int) -> np.ndarray:
        return np.zeros((self.n_features_in_ + 1, *outcomes))

    def _flat_gate(self) -> Gate:
        """The gate that ``self.gate`` names, over ``self.n_experts`` experts, before any fit."""
        if self.gate == "softmax":
            return SoftmaxGate(self._blank_coef(self.n_experts), self.ridge, self.newton_steps)
        if self.gate == "gaussian":
            experts, features = self.n_experts, self.n_features_in_
            mean, covariance = np.zeros((experts, features)), np.tile(np.eye(features), (experts, 1, 1))
            return GaussianGate(np.full(experts, -np.log(experts)), mean, covariance, self.variance_floor)
        raise ConfigError(f"no gate '{self.gate}'", where=type(self).__name__, fix="use softmax or gaussian")

    def _tree_gate(self) -> Gate:
        """A two-level tree of softmax gates with ``self.branching``, before any fit."""
        branches, children = self.branching
        lower = SoftmaxGate(self._blank_coef(children), self.ridge, self.newton_steps)
        top = SoftmaxGate(self._blank_coef(branches), self.ridge, self.newton_steps)
        return TreeGate(top, (lower,) * branches)

    def _tree_size(self) -> int:
        try:
            branches, children = self.branching
        except (TypeError, ValueError):
            branches, children = 0, 0
        if min(branches, children) < 1:
            raise ConfigError(
                f"branching is {self.branching!r}", where=type(self).__name__, fix="give two whole numbers >= 1"
            )
        return branches * children

    @abstractmethod
    def _num_experts(self) -> int:
        """E."""

    @abstractmethod
    def _blank_gate(self) -> Gate:
        """The gate before any fit."""

    @abstractmethod
    def _model_target(self, y: object, length: int) -> np.ndarray:
        """y (n,) as the experts read it."""

    def _log_unit(self) -> float:
        """Log of the unit in which the experts measure y."""
        return 0.0
