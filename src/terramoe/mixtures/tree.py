"""The gate of a two-level hierarchy: a tree of softmax gates seen as one gate over its leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terramoe.mixtures.gating import SoftmaxGate


@dataclass(frozen=True)
class TreeGate:
    """``g_i(x) g_{j|i}(x)`` over ``a * b`` leaves, leaf ``i * b + j`` being child j of branch i.

    With responsibilities ``h_ij`` the M-step splits exactly: the top gate is a softmax regression on
    ``h_i = sum_j h_ij``, lower gate i one on ``h_{j|i}`` with case weights ``h_i``. A flat mixture is the tree (1, E).
    Hierarchical Mixtures of Experts and the EM Algorithm, 1994, DOI 10.1162/neco.1994.6.2.181.

    Attributes:
        top: over a branches.
        lower: a gates, each over b children.
    """

    top: SoftmaxGate
    lower: tuple[SoftmaxGate, ...]

    @property
    def num_experts(self) -> int:
        return sum(gate.num_experts for gate in self.lower)

    def log_score(self, X: np.ndarray) -> np.ndarray:
        branch = self.top.log_score(X)
        return np.hstack([branch[:, [i]] + gate.log_score(X) for i, gate in enumerate(self.lower)])

    def penalty(self) -> float:
        return self.top.penalty() + sum(gate.penalty() for gate in self.lower)

    def fit_step(self, X: np.ndarray, responsibility: np.ndarray, weight: np.ndarray) -> TreeGate:
        leaf = responsibility.reshape(len(X), len(self.lower), -1)
        branch = leaf.sum(axis=2)
        uniform = np.full_like(leaf, 1 / leaf.shape[2])  # where a branch has no weight, its target does not matter
        reached = branch[..., None] > np.finfo(float).tiny
        child = np.divide(leaf, branch[..., None], out=uniform, where=np.broadcast_to(reached, leaf.shape))
        lower = (gate.fit_step(X, child[:, i], weight * branch[:, i]) for i, gate in enumerate(self.lower))
        return TreeGate(self.top.fit_step(X, branch, weight), tuple(lower))
