"""Mixtures of experts for a number: flat and two-level."""

from __future__ import annotations

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import Tags, check_array, check_consistent_length, column_or_1d
from sklearn.utils.validation import check_is_fitted

from terramoe.errors import ConfigError, RoutingError
from terramoe.mixtures.base import MixtureEstimator
from terramoe.mixtures.experts import GaussianExpert, PoissonExpert
from terramoe.mixtures.gating import Gate, SoftmaxGate


class _Regressor(RegressorMixin, MixtureEstimator):
    """Fit and predict of both regressors."""

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> _Regressor:
        """Fit to X (n, D) and y (n,) with case weights (n,).

        Raises:
            ConfigError: a setting that cannot be.
            RoutingError: fewer samples than experts, or a negative count for Poisson experts. It is a ValueError.
        """
        if self.expert not in ("gaussian", "poisson"):
            fix = "use gaussian or poisson"
            raise ConfigError(f"no expert '{self.expert}'", where=type(self).__name__, fix=fix)
        X, y, weight = self._read(X, y, sample_weight, y_numeric=True)
        y = y.astype(np.float64)
        centre = weight @ y / weight.sum()
        spread = float(np.sqrt(weight @ (y - centre) ** 2 / weight.sum()))
        spread = spread if spread > 1e-12 * max(abs(centre), np.finfo(float).tiny) else 1.0
        gaussian = self.expert == "gaussian"
        self.target_mean_, self.target_scale_ = (centre, spread) if gaussian else (0.0, 1.0)
        if gaussian:
            expert = GaussianExpert(self._blank_coef(), floor=self.variance_floor, ridge=self.ridge)
        else:
            self._check_counts(y)
            expert = PoissonExpert(self._blank_coef(), self.ridge, self.newton_steps)
        target = (y - self.target_mean_) / self.target_scale_
        self._fit_mixture(X, target, ((y - centre) / spread)[:, None], weight, expert)
        self._describe()
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n,) expectation of y given x."""
        design = self._design(X)
        return self.target_mean_ + self.target_scale_ * self.mixture_.mean(design)

    def _describe(self) -> None:
        """Coefficients in the units of X and y."""
        coef = np.stack([self.scaling_.undo(expert.coef) for expert in self.mixture_.experts]) * self.target_scale_
        self.coef_, self.intercept_ = coef[:, :-1], coef[:, -1] + self.target_mean_
        if self.expert == "gaussian":
            self.variance_ = self.target_scale_**2 * np.array([expert.variance for expert in self.mixture_.experts])
        if isinstance(self.mixture_.gate, SoftmaxGate):
            gate = self.scaling_.undo(self.mixture_.gate.coef).T
            self.gate_coef_, self.gate_intercept_ = gate[:, :-1], gate[:, -1]

    def _model_target(self, y: object, length: int) -> np.ndarray:
        check_is_fitted(self, "mixture_")
        y = column_or_1d(check_array(y, ensure_2d=False, dtype=np.float64), warn=True)
        check_consistent_length(y, np.empty(length))
        if self.expert == "poisson":
            self._check_counts(y)
        return (y - self.target_mean_) / self.target_scale_

    def _check_counts(self, y: np.ndarray) -> None:
        if (y < 0).any():
            raise RoutingError(
                f"{int((y < 0).sum())} of {len(y)} counts are negative",
                where=type(self).__name__,
                fix="use expert='gaussian', or counts >= 0",
            )

    def _log_unit(self) -> float:
        return float(np.log(self.target_scale_))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = self.expert == "poisson"
        return tags


class MixtureOfExpertsRegressor(_Regressor):
    """``p(y | x) = sum_i g_i(x) p_i(y | x)`` with generalised linear experts, fitted by EM.

    Identified only up to the order of the experts and one vector added to all rows of a softmax gate. EM finds a
    local maximum, so ``n_init`` matters. Hierarchical Mixtures of Experts and the EM Algorithm, 1994,
    DOI 10.1162/neco.1994.6.2.181.

    Args:
        n_experts: E.
        expert: "gaussian" (each with its own variance) or "poisson" (log rate linear in x).
        gate: "softmax" (linear logits) or "gaussian" (a density of x per expert; EM then raises the likelihood of
            x and y together).
        ridge: weight of half the squared coefficients of experts and softmax gates in the objective, with x (and y of
            Gaussian experts) standardised. 0 gives maximum likelihood, which may not exist where groups can be
            separated.
        variance_floor: least variance of an expert as a share of the variance of y, and least eigenvalue of a
            Gaussian gate's covariance with x standardised.
        newton_steps: Newton steps per M-step where there is no closed form.
        tol: EM stops when an iteration gains less log-likelihood per unit of weight.
        max_iter: most iterations of EM; a ConvergenceWarning says when they were not enough.
        n_init: random starts, of which the best is kept.
        random_state: seed or numpy RandomState of the starts.

    Attributes:
        coef_, intercept_, variance_: (E, D), (E,), (E,) of the experts in the units of X and y.
        gate_coef_, gate_intercept_: (E, D), (E,) of a softmax gate.
        mixture_: the fitted ``em.Mixture``, in standardised units.
        objective_trace_: what EM raised, before the first iteration and after each; see ``em.EMResult``.
        n_iter_, converged_: iterations of the best start, and whether the tolerance was met.
    """

    def __init__(
        self,
        n_experts: int = 2,
        *,
        expert: str = "gaussian",
        gate: str = "softmax",
        ridge: float = 1e-2,
        variance_floor: float = 1e-4,
        newton_steps: int = 2,
        tol: float = 1e-5,
        max_iter: int = 500,
        n_init: int = 3,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_experts = n_experts
        self.expert = expert
        self.gate = gate
        self.ridge = ridge
        self.variance_floor = variance_floor
        self.newton_steps = newton_steps
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.random_state = random_state

    def _num_experts(self) -> int:
        return self.n_experts

    def _blank_gate(self) -> Gate:
        return self._flat_gate()


class HierarchicalMixtureRegressor(_Regressor):
    """``p(y | x) = sum_i g_i(x) sum_j g_{j|i}(x) p_ij(y | x)``: a two-level tree of softmax gates, fitted by EM.

    ``branching=(1, E)`` is the flat mixture. Hierarchical Mixtures of Experts and the EM Algorithm, 1994,
    DOI 10.1162/neco.1994.6.2.181.

    Args:
        branching: (a, b) branches at the top and experts under each; expert ``i * b + j`` is child j of branch i.
        expert, ridge, variance_floor, newton_steps, tol, max_iter, n_init, random_state: see
            ``MixtureOfExpertsRegressor``, as are the attributes.
    """

    def __init__(
        self,
        branching: tuple[int, int] = (2, 2),
        *,
        expert: str = "gaussian",
        ridge: float = 1e-2,
        variance_floor: float = 1e-4,
        newton_steps: int = 2,
        tol: float = 1e-5,
        max_iter: int = 500,
        n_init: int = 3,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.branching = branching
        self.expert = expert
        self.ridge = ridge
        self.variance_floor = variance_floor
        self.newton_steps = newton_steps
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.random_state = random_state

    def _num_experts(self) -> int:
        return self._tree_size()

    def _blank_gate(self) -> Gate:
        return self._tree_gate()
