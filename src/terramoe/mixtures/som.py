"""Self-organising map that learns from vectors with missing components, and fills them.

Self-Organized Formation of Topologically Correct Feature Maps, 1982, DOI 10.1007/BF00337288; with missing components:
Self-Organization with Partial Data, 1992, DOI 10.1088/0954-898X_3_2_008. Restoration of cloudy pixels: Regional Scale
Crop Mapping Using Multi-Temporal Satellite Imagery, 2015, DOI 10.5194/isprsarchives-XL-7-W3-45-2015.

Shapes: n vectors, D components, M units on a grid of rows x columns. ``present`` (n, D) is False where X is missing.
"""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from terramoe.errors import ConfigError, RoutingError
from terramoe.mixtures.scaling import Scaling

CHUNK = 4096  # vectors whose distances to all units are held at once


class SelfOrganizingMap(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """A map whose units are prototypes; ``transform`` fills NaN from the best matching units.

    Distances are over the present components, times D over their number; only present components are learned.

    Args:
        shape: rows and columns of units.
        method: "batch" (all vectors at once, each epoch) or "online" (one after another, in random order).
        epochs: passes over the vectors.
        learning_rate: first and last rate of the online method, falling geometrically.
        radius: first and last standard deviation of the neighbourhood in units, falling geometrically; None starts at
            half the longer side (1 at least) and ends at 0.5.
        n_best: best matching units whose mean fills a gap.
        random_state: seed or numpy RandomState of first codebook and order.

    Attributes:
        codebook_: (M, D) prototypes in the unit of X, row after row of the grid.
        hits_: (M,) training vectors of each unit.
        scaling_: mean and spread of the present values of each component; distances are measured in spreads.
    """

    def __init__(
        self,
        shape: tuple[int, int] = (10, 10),
        *,
        method: str = "batch",
        epochs: int = 20,
        learning_rate: tuple[float, float] = (0.5, 0.01),
        radius: tuple[float, float] | None = None,
        n_best: int = 1,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.shape = shape
        self.method = method
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.radius = radius
        self.n_best = n_best
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: None = None) -> SelfOrganizingMap:
        """Learn from X (n, D) with NaN where missing; rows without any value teach nothing.

        Raises:
            ConfigError: a setting that cannot be.
            RoutingError: a component that no row has. It is a ValueError.
        """
        self._check_settings()
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan")
        present = ~np.isnan(X)
        empty = np.flatnonzero(~present.any(axis=0))
        if len(empty):
            raise RoutingError(
                f"component {empty[0]} is missing in all {len(X)} vectors ({len(empty)} such components)",
                where=type(self).__name__,
                fix="drop it: there is nothing to fill it from",
            )
        self.scaling_ = _present_scaling(X, present)
        values = np.where(present, self.scaling_.apply(X), 0.0)
        random = check_random_state(self.random_state)
        units = self.shape[0] * self.shape[1]
        codebook = values[random.randint(len(X), size=units)] + 0.1 * random.normal(size=(units, X.shape[1]))
        radius = np.geomspace(*(self.radius or (max(1.0, max(self.shape) / 2), 0.5)), self.epochs)
        if self.method == "batch":
            codebook = train_batch(codebook, self.shape, values, present, radius)
        else:
            order = np.concatenate([random.permutation(len(X)) for _ in range(self.epochs)])
            rate = np.geomspace(*self.learning_rate, self.epochs)
            codebook = train_online(
                codebook, self.shape, values, present, order, np.repeat(rate, len(X)), np.repeat(radius, len(X))
            )
        self.codebook_ = codebook * self.scaling_.scale + self.scaling_.mean
        best = self._distances(values, present).argmin(axis=1)[present.any(axis=1)]
        self.hits_ = np.bincount(best, minlength=units)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """(n, D): X with each NaN replaced by the mean of the best units; a row of NaN alone by the training mean."""
        X, values, present = self._read(X)
        best = np.argsort(self._distances(values, present), axis=1, kind="stable")[:, : self.n_best]
        filled = np.where(present, X, self.codebook_[best].mean(axis=1))
        return np.where(present.any(axis=1)[:, None], filled, self.scaling_.mean)

    def distances(self, X: np.ndarray) -> np.ndarray:
        """(n, M) squared distances to all units, in spreads, over present components; 0 for a row of NaN alone."""
        return self._distances(*self._read(X)[1:])

    def winners(self, X: np.ndarray) -> np.ndarray:
        """(n,) best matching unit, the lower index on ties; the unit nearest the training mean for a row of NaN."""
        _, values, present = self._read(X)
        present = present | ~present.any(axis=1, keepdims=True)  # values are 0 there, which is the mean
        return self._distances(values, present).argmin(axis=1)

    def _read(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        check_is_fitted(self, "codebook_")
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        present = ~np.isnan(X)
        return X, np.where(present, self.scaling_.apply(X), 0.0), present

    def _distances(self, values: np.ndarray, present: np.ndarray) -> np.ndarray:
        return masked_distances(self.scaling_.apply(self.codebook_), values, present)

    def _check_settings(self) -> None:
        name = type(self).__name__
        for holds, setting, fix in (
            (np.shape(self.shape) == (2,) and min(self.shape) >= 1, "shape", "give two whole numbers >= 1"),
            (self.method in ("batch", "online"), "method", "use batch or online"),
            (self.epochs >= 1, "epochs", "use 1 or more"),
            (_is_falling(self.learning_rate, 1.0), "learning_rate", "give first >= last, both in (0, 1]"),
            (self.radius is None or _is_falling(self.radius, np.inf), "radius", "give first >= last > 0"),
        ):
            if not holds:
                raise ConfigError(f"{setting} is {getattr(self, setting)!r}", where=name, fix=fix)
        if not 1 <= self.n_best <= self.shape[0] * self.shape[1]:
            raise ConfigError(f"n_best is {self.n_best!r}", where=name, fix="use 1 or more, up to the number of units")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def masked_distances(codebook: np.ndarray, values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(n, M) squared distances over present components, times D over their number; 0 where there is none."""
    parts = []
    for start in range(0, len(values), CHUNK):
        seen = present[start : start + CHUNK].astype(np.float64)
        x = np.where(seen > 0, values[start : start + CHUNK], 0.0)
        square = (x**2).sum(axis=1)[:, None] - 2 * x @ codebook.T + seen @ (codebook**2).T
        parts.append(np.maximum(square, 0.0) * (seen.shape[1] / np.maximum(seen.sum(axis=1), 1.0))[:, None])
    return np.concatenate(parts)


def neighbourhood(shape: tuple[int, int], radius: float) -> np.ndarray:
    """(M, M) Gaussian of the distance on the grid, 1 on the diagonal."""
    place = np.stack(np.unravel_index(np.arange(shape[0] * shape[1]), shape), axis=1)
    square = ((place[:, None] - place[None]) ** 2).sum(axis=2)
    return np.exp(-square / (2 * radius**2))


def train_online(
    codebook: np.ndarray,
    shape: tuple[int, int],
    values: np.ndarray,
    present: np.ndarray,
    order: np.ndarray,
    rate: np.ndarray,
    radius: np.ndarray,
) -> np.ndarray:
    """(M, D) codebook after one update per entry of ``order``, with learning rate and radius of each, all (steps,)."""
    codebook, near, last = codebook.copy(), None, None
    for i, eta, sigma in zip(order, rate, radius, strict=True):
        if sigma != last:
            near, last = neighbourhood(shape, sigma), sigma
        difference = np.where(present[i], values[i] - codebook, 0.0)
        if present[i].any():
            codebook += eta * near[(difference**2).sum(axis=1).argmin()][:, None] * difference
    return codebook


def train_batch(
    codebook: np.ndarray, shape: tuple[int, int], values: np.ndarray, present: np.ndarray, radius: np.ndarray
) -> np.ndarray:
    """(M, D) codebook after one batch update per entry of ``radius`` (epochs,): weighted means of what is present."""
    taught = present.any(axis=1)
    values, present = np.where(present, values, 0.0)[taught], present[taught].astype(np.float64)
    for sigma in radius:
        best = masked_distances(codebook, values, present > 0).argmin(axis=1)
        sums, counts = np.zeros_like(codebook), np.zeros_like(codebook)
        np.add.at(sums, best, values)
        np.add.at(counts, best, present)
        near = neighbourhood(shape, sigma)
        weight = near @ counts
        learned = weight > np.finfo(float).tiny
        codebook = np.where(learned, near @ sums / np.where(learned, weight, 1.0), codebook)
    return codebook


def _present_scaling(X: np.ndarray, present: np.ndarray) -> Scaling:
    """Mean and spread of the present values by component."""
    columns = [Scaling.of(X[seen, d : d + 1], np.ones(seen.sum())) for d, seen in enumerate(present.T)]
    return Scaling(np.concatenate([c.mean for c in columns]), np.concatenate([c.scale for c in columns]))


def _is_falling(pair: object, most: float) -> bool:
    return np.shape(pair) == (2,) and most >= pair[0] >= pair[1] > 0
