"""Weighted standardisation, so that ridge, floors and starting points mean the same in any unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FAR = 1e100  # squares of it are finite; no measured value is so many standard deviations away


@dataclass(frozen=True)
class Scaling:
    """``(values - mean) / scale`` by column; a constant column has scale 1.

    Attributes:
        mean, scale: (D,).
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, weight: np.ndarray) -> Scaling:
        """From values (n, D) with case weights (n,)."""
        mean = weight @ values / weight.sum()
        scale = np.sqrt(weight @ (values - mean) ** 2 / weight.sum())
        constant = scale <= 1e-12 * np.maximum(np.abs(mean), np.finfo(float).tiny)
        return cls(mean, np.where(constant, 1.0, scale))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """(n, D) standardised, cut at ``FAR`` so that a prediction for an absurd input stays finite."""
        with np.errstate(over="ignore"):
            return np.clip((values - self.mean) / self.scale, -FAR, FAR)

    def undo(self, coef: np.ndarray) -> np.ndarray:
        """Coefficients (D + 1, ...) for standardised columns -> for columns in their own unit, intercept last."""
        slope = (coef[:-1].T / self.scale).T
        return np.concatenate([slope, (coef[-1] - self.mean @ slope)[None]])
