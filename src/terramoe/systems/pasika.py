"""Pasika et al.: a virtual sensor of cloud base height, from all that a weather station and a satellite measure.

Neural networks for sensor fusion in remote sensing, 1999, International Joint Conference on Neural Networks. Two local
learners (a regularised RBF network, a support vector machine) and two global ones (perceptrons trained by a
node-decoupled extended Kalman filter and by back-propagation), the global ones as committees against local minima.

Here the four form one committee. Out-of-fold predictions, from experts that have not seen the row, decide the weights:

    y = sum_e w_e f_e(x),   var y = sum_e w_e (s_e^2 + (f_e(x) - y)^2)

with s_e the out-of-fold error of expert e.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Self

import numpy as np
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.model_selection import GroupKFold, KFold
from sklearn.neural_network import MLPRegressor
from sklearn.svm import SVR
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from terramoe.errors import ConfigError, RoutingError
from terramoe.mixtures.gate_fit import fit_gate
from terramoe.mixtures.gate_record import dense_routing
from terramoe.mixtures.gating import SoftmaxGate, gate_log_proba
from terramoe.mixtures.kalman_bank import mixture_moments
from terramoe.mixtures.ndekf import NDEKFRegressor
from terramoe.mixtures.rbf_network import RBFNetworkRegressor
from terramoe.mixtures.stacking import AveragedExperts, simplex_weights
from terramoe.moe import Routing
from terramoe.systems.card import Card
from terramoe.systems.table_system import TableSystem

EXPERTS = ("RBF network", "support vector machine", "NDEKF perceptron", "back-propagation perceptron")
COMBINERS = ("nnls", "gate", "uniform", "random", "best")
CONTROLS = {"dense": "best", "uniform": "uniform", "random": "random"}
GATE_TOL, GATE_ROUNDS = 1e-4, 300  # of EM
NEVER = 1e-300  # weight of an expert that is not asked, so that its logarithm is finite; as a float it adds nothing


class PasikaCommittee(RegressorMixin, TableSystem):
    """See the module's docstring. X (n, sensors), NaN where a sensor is silent; y (n,).

    Args:
        combiner: "nnls" (stacking: the non-negative weights, of sum 1, of least squared out-of-fold error) or "gate"
            (our extension: a softmax gate over all sensors, by the likelihood of the out-of-fold errors); as controls
            "uniform", "random" (weights drawn once) and "best" (the expert of least out-of-fold error alone).
        hidden: tanh nodes of each perceptron. networks: perceptrons in each of the two global experts, averaged.
        centres: of the RBF network; None puts one on every row. rbf_ridge: its penalty.
        svr_c, svr_epsilon: of the support vector machine, as in scikit-learn, for a standardised target.
        kalman_epochs, descent_epochs: passes of the two trainers over the rows.
        learning_rate: of gradient descent, with momentum 0.9 and batches of 32.
        folds: of the out-of-fold predictions. gate_ridge: weight of half the squared coefficients of the gate.
        random_state: seed or numpy RandomState.

    Attributes:
        experts_: the four, fitted to all rows. out_of_fold_: (n, 4), and expert_std_ (4,) the root of the mean square
            of their errors.
        weights_: (4,), or None for the gate. gate_: ``SoftmaxGate``, or None.
    """

    card: ClassVar[Card] = Card(
        name="Pasika et al.",
        title="Neural networks for sensor fusion in remote sensing",
        authors="Pasika et al.",
        year=1999,
        survey_section="3.4",
        survey_reference=113,
        task="regression of table rows: cloud base height",
        sensors=("multispectral satellite", "weather station"),
        provenance=("abstract", "survey"),
        completions=(
            "the abstract compares four learners and combines networks of one kind; that the four are experts of one "
            "mixture is the survey's reading, and there is no gate in what could be read",
            "combiner: stacking by non-negative least squares with weights of sum 1 on five-fold out-of-fold "
            "predictions; the least that turns a comparison into one predictor, and it needs no input",
            "gate: an extension of ours, a softmax of all sensors fitted by EM to the out-of-fold errors",
            "sizes: 20 tanh nodes, committees of 5, RBF centres on all rows, penalty 0.1, C 10, epsilon 0.05",
            "trainers: 10 epochs of NDEKF with P 100, R from 1 to 0.1; 200 epochs of gradient descent with momentum",
            "a silent sensor gets the median of the training rows",
            "standard deviation: law of total variance over the experts",
        ),
        differences=(),
        reported="no figures in the abstract; the support vector machine was the method of choice",
    )
    task = "values"
    controls = ("dense", "uniform", "random")
    exempt: ClassVar[dict[str, str]] = {
        "wide": "the experts differ in kind; there is no one network of as many parameters",
        "router": "the combiner is fitted in closed form or by EM, never by gradient descent",
    }

    def __init__(
        self,
        combiner: str = "nnls",
        *,
        hidden: int = 20,
        networks: int = 5,
        centres: int | None = None,
        rbf_ridge: float = 0.1,
        svr_c: float = 10.0,
        svr_epsilon: float = 0.05,
        kalman_epochs: int = 10,
        descent_epochs: int = 200,
        learning_rate: float = 0.01,
        folds: int = 5,
        gate_ridge: float = 1.0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.combiner = combiner
        self.hidden = hidden
        self.networks = networks
        self.centres = centres
        self.rbf_ridge = rbf_ridge
        self.svr_c = svr_c
        self.svr_epsilon = svr_epsilon
        self.kalman_epochs = kalman_epochs
        self.descent_epochs = descent_epochs
        self.learning_rate = learning_rate
        self.folds = folds
        self.gate_ridge = gate_ridge
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> Self:
        """Train on X (n, sensors) and y (n,); rows of one group are in one fold.

        Raises:
            ConfigError: a setting that cannot be. RoutingError: too few rows or groups for two folds.
        """
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_all_finite="allow-nan")
        random = check_random_state(self.random_state)
        blank = AveragedExperts(self._experts(), random.randint(2**31 - 1))
        self.draw_ = random.dirichlet(np.ones(len(EXPERTS)))  # of the control "random"
        self.out_of_fold_ = np.empty((len(X), len(EXPERTS)))
        for train, left in self._split(X, groups, random.randint(2**31 - 1)):
            self.out_of_fold_[left] = clone(blank).fit(X[train], y[train]).predict(X[left])
        self.experts_ = blank.fit(X, y)
        spread = np.sqrt(np.mean((self.out_of_fold_ - y[:, None]) ** 2, axis=0))
        self.expert_std_ = np.maximum(spread, 1e-9 * max(float(y.std()), 1e-9))
        return self._combine(X, y)

    def recombine(self, combiner: str, X: np.ndarray, y: np.ndarray) -> Self:
        """A copy with another combiner and the same fitted experts; X and y as they were given to ``fit``."""
        check_is_fitted(self, "experts_")
        twin = copy.copy(self).set_params(combiner=combiner)
        twin._check_settings()
        return twin._combine(self._read(X), np.asarray(y, dtype=np.float64))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n,)."""
        return self._moments(X)[0]

    def predict_std(self, X: np.ndarray) -> np.ndarray:
        """(n,) standard deviation of the mixture: the experts' own errors, and how far they disagree."""
        return np.sqrt(self._moments(X)[1])

    def predict_experts(self, X: np.ndarray) -> np.ndarray:
        """(n, 4), in the order of EXPERTS."""
        return self.experts_.predict(self._read(X))

    def routing(self, X: np.ndarray) -> dict[str, Routing]:
        """All experts for every row, with the combiner's weights."""
        return {"committee": dense_routing(self._log_weights(self._read(X)))}

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """The four learners."""
        return EXPERTS

    def control(self, name: str) -> Self:
        """See ``TableSystem``; "dense" is the best expert alone."""
        if name != "routed" and name not in CONTROLS:
            raise ConfigError(
                f"{self.card.name} has no control '{name}'", where="controls", fix=f"use {', '.join(self.controls)}"
            )
        return clone(self) if name == "routed" else clone(self).set_params(combiner=CONTROLS[name])

    @classmethod
    def tiny(cls) -> Self:
        """Perceptrons of four nodes, one of each kind, two folds."""
        return cls(hidden=4, networks=1, kalman_epochs=3, descent_epochs=30, folds=2, random_state=0)

    @classmethod
    def tiny_table(cls, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Five sensors of two quantities; the one or the other tells y."""
        random = np.random.default_rng(seed)
        cause = random.normal(size=(rows, 2))
        X = cause @ random.normal(size=(2, 5)) + 0.1 * random.normal(size=(rows, 5))
        return X, np.where(cause[:, 0] > 0, cause[:, 0], np.tanh(cause[:, 1])) + 0.05 * random.normal(size=rows)

    # ----------------------------------------------------------------------------------------------------------------

    def _experts(self) -> list[list[BaseEstimator]]:
        """The members of each expert, unfitted."""
        kalman = NDEKFRegressor(self.hidden, epochs=self.kalman_epochs)
        descent = MLPRegressor(
            hidden_layer_sizes=(self.hidden,), activation="tanh", solver="sgd", learning_rate_init=self.learning_rate,
            batch_size=32, max_iter=self.descent_epochs, tol=0.0, n_iter_no_change=self.descent_epochs,
        )  # fmt: skip
        return [
            [RBFNetworkRegressor(self.centres, ridge=self.rbf_ridge)],
            [SVR(C=self.svr_c, epsilon=self.svr_epsilon)],
            [clone(kalman) for _ in range(self.networks)],
            [clone(descent) for _ in range(self.networks)],
        ]

    def _split(self, X: np.ndarray, groups: np.ndarray | None, seed: int):
        kinds = len(X) if groups is None else len(np.unique(groups))
        if kinds < 2:
            raise RoutingError(
                f"n_samples = {len(X)} in {kinds} groups leave nothing to hold out", where="PasikaCommittee.fit",
                fix="give two or more",
            )  # fmt: skip
        splitter = KFold if groups is None else GroupKFold
        return splitter(min(self.folds, kinds), shuffle=True, random_state=seed).split(X, groups=groups)

    def _combine(self, X: np.ndarray, y: np.ndarray) -> Self:
        self.weights_, self.gate_ = None, None
        if self.combiner == "nnls":
            self.weights_ = simplex_weights(self.out_of_fold_, y)
        elif self.combiner == "uniform":
            self.weights_ = np.full(len(EXPERTS), 1 / len(EXPERTS))
        elif self.combiner == "random":
            self.weights_ = self.draw_
        elif self.combiner == "best":
            self.weights_ = np.eye(len(EXPERTS))[self.expert_std_.argmin()]
        else:
            self.gate_ = self._fit_gate(self.experts_.scale(X), y)
        return self

    def _fit_gate(self, design: np.ndarray, y: np.ndarray) -> SoftmaxGate:
        error, spread = self.out_of_fold_ - y[:, None], self.expert_std_
        log_density = -0.5 * (error / spread) ** 2 - np.log(spread)
        found = fit_gate(design, log_density, ridge=self.gate_ridge, tol=GATE_TOL, max_iter=GATE_ROUNDS)
        return found.mixture.gate

    def _log_weights(self, X: np.ndarray) -> np.ndarray:
        """(n, 4) of read rows; rows of weights sum to 1."""
        if self.gate_ is not None:
            return gate_log_proba(self.gate_, self.experts_.scale(X))
        return np.tile(log_softmax(np.log(np.maximum(self.weights_, NEVER))), (len(X), 1))

    def _moments(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        X = self._read(X)
        means = self.experts_.predict(X)
        return mixture_moments(np.exp(self._log_weights(X)), means, np.broadcast_to(self.expert_std_**2, means.shape))

    def _read(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self, "experts_")
        return validate_data(self, X, dtype=np.float64, reset=False, ensure_all_finite="allow-nan")

    def _check_settings(self) -> None:
        for holds, name, fix in (
            (self.combiner in COMBINERS, "combiner", f"use one of {', '.join(COMBINERS)}"),
            (self.hidden >= 1, "hidden", "use 1 or more"),
            (self.networks >= 1, "networks", "use 1 or more"),
            (self.svr_c > 0, "svr_c", "use a number above 0"),
            (self.svr_epsilon >= 0, "svr_epsilon", "use 0 or more"),
            (self.descent_epochs >= 1, "descent_epochs", "use 1 or more"),
            (self.learning_rate > 0, "learning_rate", "use a number above 0"),
            (self.folds >= 2, "folds", "use 2 or more"),
            (self.gate_ridge >= 0, "gate_ridge", "use 0 or more"),
        ):
            if not holds:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", where="PasikaCommittee", fix=fix)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
