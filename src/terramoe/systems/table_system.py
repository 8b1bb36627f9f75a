"""The contract of the systems that answer for the rows of a table: scikit-learn's, and what TerraMoE adds to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import get_tags

from terramoe.moe import Routing
from terramoe.systems.card import Card

Task = Literal["classes", "values", "class and values"]


class TableSystem(BaseEstimator, ABC):
    """One published system whose samples are rows.

    X is (n, columns) float64. A system of series, traces or sequences reads them from the columns, in an order that its
    docstring gives. y is (n,) classes, (n,) or (n, targets) values, or (n, 1 + values) with the class first. A subclass
    sets the class attributes, has ``random_state`` among its settings and defines the abstract methods; systems never
    inherit from each other.

    Attributes:
        card: where it comes from.
        task: what it predicts.
        controls: the names in ``systems.CONTROLS`` that it has.
        exempt: scikit-learn's checks and ours that do not apply, each with the reason.
    """

    card: ClassVar[Card]
    task: ClassVar[Task]
    controls: ClassVar[tuple[str, ...]] = ("dense", "wide", "uniform", "random")
    exempt: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> Self:
        """Train; rows of one of ``groups`` (n,) are never parted where a share of them is held out."""

    def readable(self, X: np.ndarray) -> np.ndarray:
        """(n,) bool: the rows that can be predicted: of finite values, or, if NaN is allowed, with one at least."""
        known = np.isfinite(X)
        return known.any(axis=1) if get_tags(self).input_tags.allow_nan else known.all(axis=1)

    @abstractmethod
    def predict(self, X: np.ndarray) -> np.ndarray:
        """In the shape of y."""

    def predict_std(self, X: np.ndarray) -> np.ndarray:
        """Standard deviation of the predicted values, in the shape of y; NaN for a class.

        Unless a system knows better, that of its errors on the rows that ``fit`` held out: ``residual_std_``.
        """
        return np.zeros_like(self.predict(X), dtype=np.float64) + self.residual_std_

    @abstractmethod
    def routing(self, X: np.ndarray) -> dict[str, Routing]:
        """The record of each routed layer, by name; items are the rows, or (row, step) with the step running faster."""

    @abstractmethod
    def expert_names(self, layer: str) -> tuple[str, ...]:
        """A name for each expert of a layer, for legends."""

    @abstractmethod
    def control(self, name: str) -> Self:
        """A new, unfitted system without a learned choice, or for "routed" a copy. ConfigError for another name."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """A miniature that fits within a second or two."""

    @classmethod
    @abstractmethod
    def tiny_table(cls, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """X and y for ``tiny()``, which a fit can learn from."""
