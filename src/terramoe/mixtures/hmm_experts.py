"""Mixture of hidden Markov model experts: a classifier of sequences of different length."""

from __future__ import annotations

import warnings
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from terramoe.errors import ConfigError, RoutingError
from terramoe.mixtures.baum_welch import check_hmm_settings
from terramoe.mixtures.fixed_gates import FixedGate
from terramoe.mixtures.gate_record import dense_routing, hard_routing
from terramoe.mixtures.hmm_clusters import cluster_sequences, start_softmax
from terramoe.mixtures.hmm_softmax import HmmSoftmax
from terramoe.mixtures.scaling import Scaling
from terramoe.mixtures.sequences import Sequences, read_sequences
from terramoe.moe.routing import Routing


@dataclass(frozen=True)
class HmmMixture:
    """``p(c | X) = sum_i g_i(X) P_i(c | X)``: a gate of E HMMs, and E experts of one HMM per class."""

    gate: HmmSoftmax | FixedGate
    experts: tuple[HmmSoftmax, ...]

    def log_joint(self, sequences: Sequences) -> np.ndarray:
        """(S, E, C) ``log g_i(X) + log P_i(c | X)``."""
        experts = np.stack([expert.log_proba(sequences) for expert in self.experts], axis=1)
        return self.gate.log_proba(sequences)[:, :, None] + experts

    def log_proba(self, sequences: Sequences) -> np.ndarray:
        """(S, C) ``log p(c | X)``."""
        return logsumexp(self.log_joint(sequences), axis=1)

    def em_step(self, sequences: Sequences, target: np.ndarray, responsibility: np.ndarray) -> HmmMixture:
        """Gate and experts raised on responsibilities (S, E) and one-hot classes (S, C)."""
        gate = self.gate.fit_step(sequences, responsibility, np.ones(len(sequences)))
        steps = zip(self.experts, responsibility.T, strict=True)
        return HmmMixture(gate, tuple(expert.fit_step(sequences, target, share) for expert, share in steps))


class HmmExpertsClassifier(ClassifierMixin, BaseEstimator):
    """Both gate and experts are HMMs; sequences are routed by context, which nobody labels.

    Context-Based Classification via Mixture of Hidden Markov Model Experts with Applications in Landmine Detection,
    2016. Its abstract says that gate and experts are HMMs learned in one probabilistic
    model. Ours: the softmax form of both, generalised EM with extended Baum-Welch steps on the log-likelihood of the
    classes given the sequences, and the start from clustered sequences.

    Args:
        n_experts: E, each with one HMM per class. 1 is a single HMM per class, trained in the same way.
        n_states: N of every HMM.
        covariance: "diag" or "full".
        topology: "left-right" or "ergodic".
        variance_floor: least variance or eigenvalue, with the features standardised.
        tol: EM stops when an iteration gains less log-likelihood per sequence.
        max_iter: most iterations of EM; a ConvergenceWarning says when they were not enough.
        n_init: starts, of which the one of greatest likelihood is kept.
        start_iter: Baum-Welch iterations of each HMM before EM.
        gate: "hmm"; as controls "uniform" (all experts alike) and "random" (one, drawn by a hash of the sequence).
        random_state: seed or numpy RandomState of the starts.

    Attributes:
        classes_: (C,) sorted labels.
        n_features_in_: D.
        mixture_: the fitted ``HmmMixture``, for standardised sequences.
        objective_trace_: ``sum log p(y | X)`` at the start and after each iteration; it never decreases.
        n_iter_, converged_: iterations of the best start, and whether the tolerance was met.
    """

    def __init__(
        self,
        n_experts: int = 2,
        *,
        n_states: int = 4,
        covariance: str = "diag",
        topology: str = "left-right",
        variance_floor: float = 1e-2,
        tol: float = 1e-3,
        max_iter: int = 50,
        n_init: int = 1,
        start_iter: int = 8,
        gate: str = "hmm",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_experts = n_experts
        self.n_states = n_states
        self.covariance = covariance
        self.topology = topology
        self.variance_floor = variance_floor
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.start_iter = start_iter
        self.gate = gate
        self.random_state = random_state

    def fit(self, sequences: SequenceOf[np.ndarray], y: np.ndarray) -> HmmExpertsClassifier:
        """Fit to S arrays (T_i, D) and labels (S,).

        Raises:
            ConfigError: a setting that cannot be.
            RoutingError: sequences that cannot be read, fewer than experts, labels of another number or one class only.
        """
        self._check_settings()
        data = read_sequences(sequences)
        y = self._read_labels(y, len(data))
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2 or len(data) < self.n_experts:
            raise RoutingError(
                f"{len(data)} sequences of {len(self.classes_)} class(es) for {self.n_experts} experts",
                where=type(self).__name__,
                fix="give sequences of two classes or more, and no fewer sequences than experts",
            )
        self.n_features_in_ = data.values.shape[2]
        self.scaling_ = Scaling.of(data.frames, np.ones(len(data.frames)))
        data, target = data.scaled(self.scaling_), np.eye(len(self.classes_))[index]
        random, best = check_random_state(self.random_state), None
        for _ in range(self.n_init):
            found = self._run_em(self._start(data, target, random), data, target)
            if best is None or found[1][-1] > best[1][-1]:
                best = found
        self.mixture_, self.objective_trace_, self.converged_ = best
        self.n_iter_ = len(self.objective_trace_) - 1
        if not self.converged_:
            what = f"EM did not converge in {self.max_iter} iterations; raise max_iter or tol"
            warnings.warn(what, ConvergenceWarning, stacklevel=2)
        return self

    def predict_proba(self, sequences: SequenceOf[np.ndarray]) -> np.ndarray:
        """(S, C) class probabilities, columns in the order of ``classes_``."""
        data = self._read(sequences)
        return np.exp(self.mixture_.log_proba(data))

    def predict(self, sequences: SequenceOf[np.ndarray]) -> np.ndarray:
        """(S,) the most probable class, the first one on ties."""
        data = self._read(sequences)
        return self.classes_[self.mixture_.log_proba(data).argmax(axis=1)]

    def responsibilities(self, sequences: SequenceOf[np.ndarray], y: np.ndarray) -> np.ndarray:
        """(S, E) posterior of each expert given sequence and label; rows sum to 1."""
        data = self._read(sequences)
        y = self._read_labels(y, len(data))
        if not np.isin(y, self.classes_).all():
            raise RoutingError("labels of no class seen in fit", where=type(self).__name__, fix="use those in classes_")
        return _responsibility(self.mixture_.log_joint(data), np.searchsorted(self.classes_, y))[0]

    def routing(self, sequences: SequenceOf[np.ndarray]) -> Routing:
        """The gate's decision as the record of the routing core: every expert, weighted by its gate probability."""
        data = self._read(sequences)
        log_proba = self.mixture_.gate.log_proba(data)
        return hard_routing(log_proba) if self.gate == "random" else dense_routing(log_proba)

    def _start(self, data: Sequences, target: np.ndarray, random: np.random.RandomState) -> HmmMixture:
        how = {"covariance": self.covariance, "topology": self.topology, "floor": self.variance_floor}
        gate = FixedGate(self.n_experts, random.randint(2**31 - 1) if self.gate == "random" else None)
        if self.gate == "random":
            share = np.exp(gate.log_proba(data))
        else:
            share = cluster_sequences(data, self.n_experts, self.n_states, random, self.start_iter, **how)
        if self.gate == "hmm":
            gate = start_softmax(data, share, self.n_states, random, self.start_iter, **how)
        experts = [
            start_softmax(data, target * column[:, None], self.n_states, random, self.start_iter, **how)
            for column in share.T
        ]
        return HmmMixture(gate, tuple(experts))

    def _run_em(self, mixture: HmmMixture, data: Sequences, target: np.ndarray) -> tuple[HmmMixture, np.ndarray, bool]:
        index = target.argmax(axis=1)
        responsibility, height = _responsibility(mixture.log_joint(data), index)
        trace = [height]
        for _ in range(self.max_iter):
            mixture = mixture.em_step(data, target, responsibility)
            responsibility, height = _responsibility(mixture.log_joint(data), index)
            trace.append(height)
            if trace[-1] - trace[-2] < self.tol * len(data):
                return mixture, np.array(trace), True
        return mixture, np.array(trace), False

    def _read(self, sequences: SequenceOf[np.ndarray]) -> Sequences:
        check_is_fitted(self, "mixture_")
        return read_sequences(sequences, self.n_features_in_).scaled(self.scaling_)

    def _read_labels(self, y: np.ndarray, length: int) -> np.ndarray:
        if y is None or np.shape(y)[:1] != (length,):
            raise RoutingError(
                f"labels of shape {np.shape(y)} for {length} sequences", where="y", fix="give one label per sequence"
            )
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        return y

    def _check_settings(self) -> None:
        name = type(self).__name__
        check_hmm_settings(
            name,
            states=self.n_states,
            covariance=self.covariance,
            topology=self.topology,
            floor=self.variance_floor,
        )
        if self.gate not in ("hmm", "uniform", "random"):
            raise ConfigError(f"gate is {self.gate!r}", where=name, fix="use hmm, uniform or random")
        for setting, least in {"n_experts": 1, "max_iter": 1, "n_init": 1, "start_iter": 1, "tol": 0}.items():
            if not getattr(self, setting) >= least:
                raise ConfigError(f"{setting} is {getattr(self, setting)!r}", where=name, fix=f"use {least} or more")


def _responsibility(log_joint: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, float]:
    """E-step at the true classes (S,): responsibilities (S, E), and ``sum log p(y | X)``."""
    joint = log_joint[np.arange(len(index)), :, index]
    return softmax(joint, axis=1), float(logsumexp(joint, axis=1).sum())
