"""Targets whose first column is a class and whose others are values."""

from __future__ import annotations

from typing import Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin


class ClassAndValueScaler(TransformerMixin, BaseEstimator):
    """Columns of y: the class -> its number among ``classes``, a value -> its share of the largest size seen.

    Args:
        classes: (K,) ascending, or None if all columns are values.
    """

    def __init__(self, classes: np.ndarray | None = None) -> None:
        self.classes = classes

    def fit(self, y: np.ndarray, _: None = None) -> Self:
        """y (n, targets)."""
        largest = np.abs(y).max(axis=0)
        self.scale_ = np.where(largest > 0, largest, 1.0)
        return self

    def transform(self, y: np.ndarray) -> np.ndarray:
        """y -> scaled, (n, targets)."""
        scaled = y / self.scale_
        if self.classes is not None:
            scaled[:, 0] = np.searchsorted(self.classes, y[:, 0])
        return scaled

    def inverse_transform(self, scaled: np.ndarray) -> np.ndarray:
        """Scaled -> y, (n, targets)."""
        y = scaled * self.scale_
        if self.classes is not None:
            y[:, 0] = self.classes[scaled[:, 0].astype(np.int64)]
        return y
