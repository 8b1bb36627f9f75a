"""Holm's correction: many tests, one error rate for all of them together."""

from __future__ import annotations

import numpy as np


def holm(p_values: np.ndarray) -> np.ndarray:
    """(M,) p-values of one family -> (M,) adjusted ones; below 0.05 they reject with at most 5 % family-wise error.

    Valid whatever the dependence between the tests. A simple sequentially rejective multiple test procedure, 1979,
    Scandinavian Journal of Statistics 6, 65-70.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1)
    return adjusted
