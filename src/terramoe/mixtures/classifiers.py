"""Mixtures of experts for a class: flat and two-level."""

from __future__ import annotations

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from terramoe.errors import RoutingError
from terramoe.mixtures.base import MixtureEstimator
from terramoe.mixtures.experts import BernoulliExpert, MultinomialExpert
from terramoe.mixtures.gating import Gate


class _Classifier(ClassifierMixin, MixtureEstimator):
    """Fit and predict of both classifiers."""

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> _Classifier:
        """Fit to X (n, D) and labels y (n,) with case weights (n,).

        Raises:
            ConfigError: a setting that cannot be.
            RoutingError: fewer samples than experts, or one class only. It is a ValueError.
        """
        X, y, weight = self._read(X, y, sample_weight)
        check_classification_targets(y)
        self.classes_, target = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise RoutingError(
                f"y has 1 class only, {self.classes_.tolist()}",
                where=type(self).__name__,
                fix="give samples of at least two classes with a weight above 0",
            )
        columns = np.eye(len(self.classes_))[target]
        columns = columns - weight @ columns / weight.sum()
        self._fit_mixture(X, target.astype(np.float64), columns, weight, self._blank_expert())
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(n, K) class probabilities, columns in the order of ``classes_``."""
        design = self._design(X)
        mean = self.mixture_.mean(design)
        return mean if mean.ndim == 2 else np.column_stack([1 - mean, mean])

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n,) the most probable class, the first one on ties."""
        prob = self.predict_proba(X)
        return self.classes_[prob.argmax(axis=1)]

    def _blank_expert(self) -> BernoulliExpert | MultinomialExpert:
        if len(self.classes_) == 2:
            return BernoulliExpert(self._blank_coef(), self.ridge, self.newton_steps)
        return MultinomialExpert(self._blank_coef(len(self.classes_)), self.ridge, self.newton_steps)

    def _model_target(self, y: object, length: int) -> np.ndarray:
        check_is_fitted(self, "mixture_")
        y = column_or_1d(y, warn=True)
        check_consistent_length(y, np.empty(length))
        known = np.isin(y, self.classes_)
        if not known.all():
            raise RoutingError(
                f"{int((~known).sum())} of {len(y)} labels are of no class seen in fit",
                where=type(self).__name__,
                fix=f"use labels of the {len(self.classes_)} classes in classes_",
            )
        return np.searchsorted(self.classes_, y).astype(np.float64)


class MixtureOfExpertsClassifier(_Classifier):
    """``p(y | x) = sum_i g_i(x) p_i(y | x)`` with logistic experts, fitted by EM.

    The experts are Bernoulli for two classes and multinomial for more. Hierarchical Mixtures of Experts and the EM
    Algorithm, 1994, DOI 10.1162/neco.1994.6.2.181.

    Args:
        n_experts: E.
        gate: "softmax" (linear logits) or "gaussian" (a density of x per expert; EM then raises the likelihood of
            x and y together).
        ridge: weight of half the squared coefficients of softmax gates and experts in the objective, with x
            standardised. 0 gives maximum likelihood, which does not exist where classes can be separated.
        variance_floor: least eigenvalue of a Gaussian gate's covariance, with x standardised.
        newton_steps: Newton steps per M-step where there is no closed form.
        tol: EM stops when an iteration gains less log-likelihood per unit of weight.
        max_iter: most iterations of EM; a ConvergenceWarning says when they were not enough.
        n_init: random starts, of which the best is kept.
        random_state: seed or numpy RandomState of the starts.

    Attributes:
        classes_: (K,) sorted labels.
        mixture_: the fitted ``em.Mixture``, for standardised x.
        objective_trace_: what EM raised, before the first iteration and after each; see ``em.EMResult``.
        n_iter_, converged_: iterations of the best start, and whether the tolerance was met.
    """

    def __init__(
        self,
        n_experts: int = 2,
        *,
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


class HierarchicalMixtureClassifier(_Classifier):
    """``p(y | x) = sum_i g_i(x) sum_j g_{j|i}(x) p_ij(y | x)``: a two-level tree of softmax gates, fitted by EM.

    ``branching=(1, E)`` is the flat mixture. Hierarchical Mixtures of Experts and the EM Algorithm, 1994,
    DOI 10.1162/neco.1994.6.2.181.

    Args:
        branching: (a, b) branches at the top and experts under each; expert ``i * b + j`` is child j of branch i.
        ridge, newton_steps, tol, max_iter, n_init, random_state: see ``MixtureOfExpertsClassifier``, as are the
            attributes.
    """

    def __init__(
        self,
        branching: tuple[int, int] = (2, 2),
        *,
        ridge: float = 1e-2,
        newton_steps: int = 2,
        tol: float = 1e-5,
        max_iter: int = 500,
        n_init: int = 3,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.branching = branching
        self.ridge = ridge
        self.newton_steps = newton_steps
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.random_state = random_state

    def _num_experts(self) -> int:
        return self._tree_size()

    def _blank_gate(self) -> Gate:
        return self._tree_gate()
