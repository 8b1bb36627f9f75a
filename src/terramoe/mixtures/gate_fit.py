"""EM of a softmax gate over experts that stay as they are, from what each thinks of each sample."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from terramoe.mixtures.em import EMResult, Mixture, expectation, run_em
from terramoe.mixtures.gating import SoftmaxGate


@dataclass(frozen=True)
class FixedExpert:
    """An expert that EM leaves alone: its log densities are column ``column`` of what stands for y."""

    column: int

    def log_prob(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        return y[:, self.column]

    def penalty(self) -> float:
        return 0.0

    def fit_step(self, X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> FixedExpert:
        return self


def fit_gate(
    design: np.ndarray,
    log_density: np.ndarray,
    *,
    ridge: float,
    tol: float,
    max_iter: int,
    steps: int = 1,
    learned: bool = True,
) -> EMResult:
    """The gate under which fixed experts explain the samples best: the maximum of
    ``sum_n log sum_k g_k(x_n) p_k(n) - ridge / 2 |coef|^2``, from equal shares.

    Args:
        design: (n, D) what the gate sees.
        log_density: (n, K) log p_k(n), of each expert. Of values that the experts were fitted to it must be held out,
            such as leave-one-out or out-of-fold densities, or the expert that fits closest takes all.
        ridge: of the coefficients, the intercepts among them. steps: Newton steps in each M-step.
        tol, max_iter: see ``run_em``; a ConvergenceWarning if they do not agree.
        learned: False leaves equal shares, as a control.
    """
    experts, weight = log_density.shape[1], np.ones(len(design))
    gate = SoftmaxGate(np.zeros((design.shape[1] + 1, experts)), ridge, steps)
    start = Mixture(gate, tuple(FixedExpert(column) for column in range(experts)))
    if not learned:
        return EMResult(start, np.array([expectation(start, design, log_density, weight)[1]]), True)
    result = run_em(start, design, log_density, weight, tol=tol, max_iter=max_iter)
    if not result.converged:
        text = f"EM of the gate did not converge in {max_iter} iterations; raise its number, the tolerance or the ridge"
        warnings.warn(text, ConvergenceWarning, stacklevel=3)
    return result
