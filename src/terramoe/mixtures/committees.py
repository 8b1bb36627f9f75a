"""Committees of multilayer perceptrons on vectors whose missing components a self-organising map has restored.

Regional Scale Crop Mapping Using Multi-Temporal Satellite Imagery, 2015, DOI 10.5194/isprsarchives-XL-7-W3-45-2015: one
map per spectral band restores, and an average committee classifies (mode "committee"). The survey of remote-sensing
mixtures reads the same group's work otherwise: the map's regions each feed a committee of their own ("partitioned").
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from terramoe.errors import ConfigError, RoutingError
from terramoe.mixtures.fixed_gates import draw_experts
from terramoe.mixtures.gate_record import dense_routing, hard_routing
from terramoe.mixtures.scaling import Scaling
from terramoe.mixtures.som import SelfOrganizingMap
from terramoe.mixtures.som_regions import partition_units, region_logits
from terramoe.moe.routing import Routing

Member = MLPClassifier | DummyClassifier


class SomCommitteeClassifier(ClassifierMixin, BaseEstimator):
    """Restore by self-organising maps, then average the posteriors of bagged multilayer perceptrons.

    Sizes, bootstraps and the regions (k-means of the units) are ours; the sources do not say them.

    Args:
        mode: "committee" (one committee for all; the members are the experts, with equal weight) or "partitioned" (one
            committee per region of the map; the regions are the experts, behind a hard gate).
        groups: columns of each restoring map, such as the dates of one band; None uses one map for all columns.
        n_regions: regions of the map in mode "partitioned", at most one per unit that has won.
        hidden: tanh units of each member; its length is the number of members.
        shape, som_epochs, n_best: see ``SelfOrganizingMap``.
        alpha: weight of half the squared coefficients in a member's loss.
        learning_rate: first step size of Adam.
        max_iter: most epochs of a member; a ConvergenceWarning says when they were not enough.
        random_choice: the control: a hash of the sample draws its region, or in mode "committee" its only member.
        random_state: seed or numpy RandomState of maps, bootstraps and members.

    Attributes:
        classes_: (K,) sorted labels.
        groups_: columns of each map, as arrays.
        restorers_: one fitted ``SelfOrganizingMap`` per group.
        committees_: one tuple of members per committee.
        n_iter_: epochs of the member that took the most.
        gate_map_, unit_region_: in mode "partitioned", the map that routes, and the region of each of its units (M,).
    """

    def __init__(
        self,
        mode: str = "committee",
        *,
        groups: Sequence[Sequence[int]] | None = None,
        n_regions: int = 4,
        hidden: Sequence[int] = (20, 30, 40, 50, 60),
        shape: tuple[int, int] = (10, 10),
        som_epochs: int = 20,
        n_best: int = 1,
        alpha: float = 1e-3,
        learning_rate: float = 5e-3,
        max_iter: int = 300,
        random_choice: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.mode = mode
        self.groups = groups
        self.n_regions = n_regions
        self.hidden = hidden
        self.shape = shape
        self.som_epochs = som_epochs
        self.n_best = n_best
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.random_choice = random_choice
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray) -> SomCommitteeClassifier:
        """Fit to X (n, D), NaN where missing, and labels y (n,).

        Raises:
            ConfigError: a setting that cannot be.
            RoutingError: one class only, or a component that no row has. It is a ValueError.
        """
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite="allow-nan")
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise RoutingError("y has 1 class only", where=type(self).__name__, fix="give samples of two classes")
        random = check_random_state(self.random_state)
        self.groups_ = self._read_groups()
        self.restorers_ = [self._new_map(random).fit(X[:, columns]) for columns in self.groups_]
        restored = self.restore(X)
        self.scaling_ = Scaling.of(restored, np.ones(len(X)))
        if self.random_choice:
            self.draw_seed_ = random.randint(2**31 - 1)
        elif self.mode == "partitioned":
            self.gate_map_ = self.restorers_[0] if len(self.groups_) == 1 else self._new_map(random).fit(restored)
            self.unit_region_ = partition_units(self.gate_map_, self.n_regions, random)
        features, region = self.scaling_.apply(restored), self._region(restored)
        self.committees_ = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said once below
            for r in range(1 if self.mode == "committee" else self._gate_logits(restored[:1]).shape[1]):
                rows = region == r if np.any(region == r) else region >= 0  # a draw may have left a region out
                self.committees_.append(self._fit_committee(features[rows], index[rows], random))
        epochs = [getattr(member, "n_iter_", 1) for committee in self.committees_ for member in committee]
        self.n_iter_ = max(epochs)
        if self.n_iter_ == self.max_iter > 1:
            slow = f"{epochs.count(self.max_iter)} of {len(epochs)} members used all {self.max_iter} epochs"
            warnings.warn(f"{slow}; raise max_iter or learning_rate", ConvergenceWarning, stacklevel=2)
        return self

    def restore(self, X: np.ndarray) -> np.ndarray:
        """(n, D) X with missing components filled by the maps."""
        check_is_fitted(self, "restorers_")
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        restored = X.copy()
        for columns, restorer in zip(self.groups_, self.restorers_, strict=True):
            restored[:, columns] = restorer.transform(X[:, columns])
        return restored

    def member_proba(self, X: np.ndarray) -> np.ndarray:
        """(n, members, K) posteriors of the members that each sample is routed to."""
        check_is_fitted(self, "committees_")
        restored = self.restore(X)
        features, region = self.scaling_.apply(restored), self._region(restored)
        proba = np.zeros((len(features), len(self.hidden), len(self.classes_)))
        for r in np.unique(region):
            rows = np.flatnonzero(region == r)
            for m, member in enumerate(self.committees_[r]):  # a bootstrap may have missed classes
                proba[np.ix_(rows, [m], member.classes_)] = member.predict_proba(features[rows])[:, None]
        return proba

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(n, K) mean posterior of the committee, columns in the order of ``classes_``."""
        proba = self.member_proba(X)
        if self.random_choice and self.mode == "committee":
            return proba[np.arange(len(proba)), self._gate_logits(self.restore(X)).argmax(axis=1)]
        return proba.mean(axis=1)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n,) the most probable class, the first one on ties."""
        proba = self.predict_proba(X)
        return self.classes_[proba.argmax(axis=1)]

    def routing(self, X: np.ndarray) -> Routing:
        """Mode "committee": all members with equal weight. Mode "partitioned": the region of each sample, weight 1.

        A region's logit is minus half the squared distance to the nearest of its units.
        """
        check_is_fitted(self, "committees_")
        logits = self._gate_logits(self.restore(X))
        alone = self.mode == "partitioned" or self.random_choice
        return hard_routing(logits) if alone else dense_routing(logits)

    def _region(self, restored: np.ndarray) -> np.ndarray:
        """(n,) committee that each sample is routed to."""
        partitioned = self.mode == "partitioned"
        return self._gate_logits(restored).argmax(axis=1) if partitioned else np.zeros(len(restored), dtype=np.int64)

    def _gate_logits(self, restored: np.ndarray) -> np.ndarray:
        if self.random_choice:
            experts = self.n_regions if self.mode == "partitioned" else len(self.hidden)
            return np.eye(experts)[draw_experts(self.scaling_.apply(restored), experts, self.draw_seed_)]
        if self.mode == "committee":
            return np.full((len(restored), len(self.hidden)), -np.log(len(self.hidden)))
        return region_logits(self.gate_map_, self.unit_region_, restored)

    def _fit_committee(self, features: np.ndarray, index: np.ndarray, random: np.random.RandomState) -> tuple:
        return tuple(self._fit_member(features, index, units, random) for units in self.hidden)

    def _fit_member(self, features: np.ndarray, index: np.ndarray, units: int, random: np.random.RandomState) -> Member:
        """A perceptron on a bootstrap of the samples; a constant where they have one class only."""
        rows = random.randint(len(features), size=len(features))
        seed = random.randint(2**31 - 1)
        if len(np.unique(index[rows])) == 1:
            return DummyClassifier(strategy="prior").fit(features[rows], index[rows])
        member = MLPClassifier(
            (units,),
            activation="tanh",
            alpha=self.alpha,
            learning_rate_init=self.learning_rate,
            max_iter=self.max_iter,
            random_state=seed,
        )
        member.fit(features[rows], index[rows])
        del member._optimizer  # only training needs it, and a stored model would have to hold it
        return member

    def _new_map(self, random: np.random.RandomState) -> SelfOrganizingMap:
        seed = random.randint(2**31 - 1)
        return SelfOrganizingMap(self.shape, epochs=self.som_epochs, n_best=self.n_best, random_state=seed)

    def _read_groups(self) -> list[np.ndarray]:
        width = self.n_features_in_
        groups = [list(group) for group in self.groups] if self.groups is not None else [list(range(width))]
        if [] in groups or sorted(column for group in groups for column in group) != list(range(width)):
            fix = f"name each of the columns 0 to {width - 1} once, in groups that are not empty"
            raise ConfigError(f"groups are {groups}", where=type(self).__name__, fix=fix)
        return [np.array(group) for group in groups]

    def _check_settings(self) -> None:
        name = type(self).__name__
        for holds, setting, fix in (
            (self.mode in ("committee", "partitioned"), "mode", "use committee or partitioned"),
            (self.n_regions >= 1, "n_regions", "use 1 or more"),
            (len(self.hidden) >= 1 and min(self.hidden) >= 1, "hidden", "give one or more whole numbers >= 1"),
            (self.alpha >= 0, "alpha", "use 0 or more"),
            (self.learning_rate > 0, "learning_rate", "use a number above 0"),
            (self.max_iter >= 1, "max_iter", "use 1 or more"),
        ):
            if not holds:
                raise ConfigError(f"{setting} is {getattr(self, setting)!r}", where=name, fix=fix)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
