"""The contract of the systems that fuse what several sensors saw of one surface, such as elevation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator

from terramoe.errors import ConfigError
from terramoe.mixtures.kalman_bank import MixturePosterior
from terramoe.mixtures.quad_tree import Observation
from terramoe.moe import Routing
from terramoe.systems.card import Card


class SurfaceSystem(BaseEstimator, ABC):
    """One published system whose sample is a scene: observations of one surface by several sensors.

    The observations are a list of ``Observation``, each (h, w) with gaps, noise variance and scale; the leaves (H, W)
    are the pixels of the finest grid. A scene to predict has the same sensors in the same order. A subclass sets the
    class attributes, has ``target`` (index of the precise sensor, whose values judge the experts) and ``random_state``
    among its settings and defines the abstract methods; systems never inherit from each other.

    Attributes:
        card: where it comes from.
        controls: the names in ``systems.CONTROLS`` that it has.
        exempt: our checks that do not apply, each with the reason.
    """

    card: ClassVar[Card]
    controls: ClassVar[tuple[str, ...]] = ("dense", "uniform", "random")
    exempt: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def fit(self, observations: Sequence[Observation], y: None = None) -> Self:
        """Choose the experts and fit the gate to one scene; ``y`` is ignored, for scikit-learn."""

    @abstractmethod
    def posterior(self, observations: Sequence[Observation]) -> MixturePosterior:
        """Mean, variance, weights and experts of a scene, for (H, W) leaves."""

    @abstractmethod
    def routing(self, observations: Sequence[Observation]) -> dict[str, Routing]:
        """The record of each gate, by name; items are the H * W leaves, row by row."""

    @abstractmethod
    def expert_names(self, layer: str) -> tuple[str, ...]:
        """A name for each expert of a gate, for legends."""

    @abstractmethod
    def control(self, name: str) -> Self:
        """A new, unfitted system without a learned choice, or for "routed" a copy. ConfigError for another name."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """A miniature that fits within a second."""

    @classmethod
    @abstractmethod
    def tiny_observations(cls, seed: int) -> list[Observation]:
        """A scene for ``tiny()``, which a fit can learn from."""

    def segments(self, observations: Sequence[Observation]) -> np.ndarray | None:
        """(H, W) int regime of each leaf from 0, or None for a system that does not segment."""
        return None

    def predict(self, observations: Sequence[Observation]) -> np.ndarray:
        """(H, W) mean of the surface."""
        return self.posterior(observations).mean

    def predict_std(self, observations: Sequence[Observation]) -> np.ndarray:
        """(H, W) standard deviation of the surface."""
        return np.sqrt(self.posterior(observations).variance)

    def _require_control(self, name: str) -> None:
        if name != "routed" and name not in self.controls:
            fix = f"use routed, {', '.join(self.controls)}"
            raise ConfigError(f"{self.card.name} has no control '{name}'", where="controls", fix=fix)
