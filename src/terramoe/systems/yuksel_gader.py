"""Mixture of hidden Markov model experts: sequences are classified by context, which nobody labels.

Yuksel and Gader, Context-Based Classification via Mixture of Hidden Markov Model Experts with Applications in Landmine
Detection, 2016, DOI 10.1049/iet-cvi.2016.0138. Both the gate and the experts are hidden Markov models (HMMs):

    p(c | X) = sum_i g_i(X) P_i(c | X)
    g_i(X) = softmax_i(log pi_i + log p(X | gate HMM i)),   P_i(c | X) = softmax_c(log rho_ic + log p(X | HMM i, c))

Shapes: n sequences, T steps, F values a step, E experts, C classes, N states of an HMM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from terramoe.errors import ConfigError, RoutingError
from terramoe.mixtures.hmm_experts import HmmExpertsClassifier
from terramoe.moe import Routing
from terramoe.systems.card import Card
from terramoe.systems.table_system import TableSystem

GATES = {"learned": "hmm", "uniform": "uniform", "random": "random", "none": "hmm"}


class YukselGaderHMM(ClassifierMixin, TableSystem):
    """See the module's docstring.

    X is (n, T * F): the F values of the first step, then those of the second, and so on; steps of NaN at the end make a
    shorter sequence. y is (n,) classes.

    Args:
        features: F, values a step.
        n_experts: E, each with one HMM per class.
        n_states: N of every HMM, of the gate and of the experts.
        covariance: "diag" or "full".
        topology: "left-right" or "ergodic".
        tol, max_iter, n_init, start_iter: of the EM, see ``mixtures.HmmExpertsClassifier``.
        gate: "learned"; the controls are "uniform" (all experts alike), "random" (a hash of the sequence draws its
            only expert) and "none" (one HMM a class, of as many states in all as gate and experts have).
        random_state: seed or numpy RandomState.

    Attributes:
        classes_: (C,) sorted labels.
        estimator_: the fitted ``HmmExpertsClassifier``.
    """

    task = "classes"
    controls = ("dense", "uniform", "random")
    exempt: ClassVar[Mapping[str, str]] = {
        "wide": "gate and experts all read each sequence, so 'dense' has as many parameters and as much compute",
        "router": "nothing is learned by gradient; EM raises the likelihood of the classes, gate and all",
        "check_estimators_pickle": "it strews NaN over the rows, which is refused anywhere but at their end",
    }
    card = Card(
        name="Yuksel-Gader",
        title="Context-Based Classification via Mixture of Hidden Markov Model Experts with Applications in Landmine "
        "Detection",
        authors="Yuksel and Gader",
        year=2016,
        doi="10.1049/iet-cvi.2016.0138",
        survey_section="3.1.1",
        survey_reference=149,
        task="classes of sequences",
        sensors=("ground-penetrating radar",),
        provenance=("abstract", "survey"),
        completions=(
            "gate and experts: HMMs read by Bayes' rule, with learned priors; an expert has one HMM a class",
            "learning: generalised EM, with extended Baum-Welch steps that never lower the likelihood of the classes",
            "start: sequences clustered by their likelihood under E HMMs; without it the experts stay alike",
            "two experts; HMMs of four left-right states, each one Gaussian of diagonal covariance",
            "sensors and features: the landmine data could not be read; ours are alarms of a simulated radar",
        ),
        differences=(
            "no code was released; the survey mentions HMM experts only, the abstract says the gate is one too",
        ),
        reported="no figure could be read; the abstract says superior to the methods compared, on three data sets",
    )

    def __init__(
        self,
        features: int = 1,
        *,
        n_experts: int = 2,
        n_states: int = 4,
        covariance: str = "diag",
        topology: str = "left-right",
        tol: float = 1e-3,
        max_iter: int = 50,
        n_init: int = 1,
        start_iter: int = 8,
        gate: str = "learned",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.features = features
        self.n_experts = n_experts
        self.n_states = n_states
        self.covariance = covariance
        self.topology = topology
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.start_iter = start_iter
        self.gate = gate
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> Self:
        """Train on all rows; none is held out, so ``groups`` is not read.

        Raises:
            ConfigError: a setting that cannot be.
            RoutingError: one class only, fewer rows than experts, NaN before the end of a row, or nothing but NaN.
        """
        if self.gate not in GATES:
            raise ConfigError(f"gate is {self.gate!r}", where="YukselGaderHMM", fix=f"use {', '.join(GATES)}")
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite="allow-nan")
        check_classification_targets(y)
        self.estimator_ = self._estimator(len(np.unique(y))).fit(self._sequences(X), y)
        self.classes_, self.n_iter_ = self.estimator_.classes_, self.estimator_.n_iter_
        self.residual_std_ = np.nan  # of a class
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(n, C) class probabilities, columns in the order of ``classes_``."""
        sequences = self._read(X)
        return self.estimator_.predict_proba(sequences)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n,) the most probable class, the first one on ties."""
        proba = self.predict_proba(X)
        return self.classes_[proba.argmax(axis=1)]

    def routing(self, X: np.ndarray) -> dict[str, Routing]:
        """ "contexts": the gate's decision for each sequence."""
        sequences = self._read(X)
        return {"contexts": self.estimator_.routing(sequences)}

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """Contexts by number: nobody has named them."""
        check_is_fitted(self, "estimator_")
        if layer != "contexts":
            raise ConfigError(f"there is no layer '{layer}'", where="expert_names", fix="use 'contexts'")
        return tuple(f"context {i + 1}" for i in range(self.estimator_.n_experts))

    def control(self, name: str) -> Self:
        """A new system whose gate has learned nothing; "dense" has none, and one HMM a class. See ``gate``."""
        gates: dict[str, dict[str, Any]] = {
            "routed": {},
            "dense": {"gate": "none"},
            "uniform": {"gate": "uniform"},
            "random": {"gate": "random"},
        }
        if name not in gates:
            fix = f"use {', '.join(self.controls)}"
            raise ConfigError(f"Yuksel-Gader has no control '{name}'", where="controls", fix=fix)
        return clone(self).set_params(**gates[name])

    @classmethod
    def tiny(cls) -> Self:
        """Two experts of two states."""
        return cls(n_states=2, max_iter=8, start_iter=3, tol=1e-2, random_state=0)

    @classmethod
    def tiny_table(cls, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Sequences of 5 to 8 steps that rise or fall, over a low or a high level that turns what this means."""
        generator = np.random.default_rng(seed)
        rises, high = generator.integers(0, 2, (2, rows))
        slope = np.linspace(-1, 1, 8) * np.where(rises == high, 1.0, -1.0)[:, None]
        X = 4.0 * high[:, None] + slope + 0.3 * generator.standard_normal((rows, 8))
        X[np.arange(8) >= generator.integers(5, 9, rows)[:, None]] = np.nan
        return X, np.where(rises == 1, "mine", "clutter")

    # ----------------------------------------------------------------------------------------------------------------

    def _estimator(self, classes: int) -> HmmExpertsClassifier:
        experts, states = self.n_experts, self.n_states
        if self.gate == "none":  # E gate HMMs and E C of the experts, shared out among C
            experts, states = 1, max(1, round(experts * (1 + classes) * states / classes))
        return HmmExpertsClassifier(
            experts,
            n_states=states,
            covariance=self.covariance,
            topology=self.topology,
            tol=self.tol,
            max_iter=self.max_iter,
            n_init=self.n_init,
            start_iter=self.start_iter,
            gate=GATES[self.gate],
            random_state=self.random_state,
        )

    def _read(self, X: np.ndarray) -> list[np.ndarray]:
        check_is_fitted(self, "estimator_")
        return self._sequences(validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False))

    def _sequences(self, X: np.ndarray) -> list[np.ndarray]:
        """(n, T * F) -> n arrays (T_i, F)."""
        if self.features < 1 or X.shape[1] % self.features:
            fix = f"use a number that divides the {X.shape[1]} columns"
            raise ConfigError(f"features is {self.features!r}", where="YukselGaderHMM", fix=fix)
        steps = X.reshape(len(X), -1, self.features)
        length = _lengths(steps)
        bad = np.flatnonzero(length == 0)
        if len(bad):
            what = f"{len(bad)} rows have NaN before their end, in a part of a step, or throughout (first: {bad[0]})"
            raise RoutingError(what, where="X", fix="fill these values, or drop the steps")
        return [sequence[:n] for sequence, n in zip(steps, length, strict=True)]

    def readable(self, X: np.ndarray) -> np.ndarray:
        """(n,) bool: the rows that have a first step and, behind their last, NaN alone."""
        return _lengths(X.reshape(len(X), -1, self.features)) > 0

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def _lengths(steps: np.ndarray) -> np.ndarray:
    """(n, T, F) -> (n,) steps before the NaN at the end; 0 if there are none, or if NaN stand elsewhere."""
    gap = np.isnan(steps)
    length = (~gap.any(axis=2)).sum(axis=1)
    ends = np.arange(steps.shape[1]) >= length[:, None]
    return np.where((gap != ends[:, :, None]).any(axis=(1, 2)), 0, length)
