"""Land cover from satellite series with gaps: self-organising maps restore, committees of perceptrons classify.

Kussul et al., Regional Scale Crop Mapping Using Multi-Temporal Satellite Imagery, 2015,
DOI 10.5194/isprsarchives-XL-7-W3-45-2015. One map for each spectral band learns from the dates that were seen; a
missing date takes the value of the best matching unit. The posteriors of several perceptrons are averaged:

    p(k | x) = 1/M sum_m p_m(k | restored x)

The survey reads the same group's work as a partition: each region of the map has a committee of its own, which alone is
asked. Where there are several sensors, a committee reads each of them and one reads all, weighted by their accuracy.

Shapes: n pixels, D columns (bands x dates, NaN where a cloud hid the ground), K classes, M members, S sensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import ClassifierMixin, clone
from sklearn.model_selection import GroupShuffleSplit
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from terramoe.errors import ConfigError
from terramoe.mixtures.committees import SomCommitteeClassifier
from terramoe.mixtures.gate_record import dense_routing
from terramoe.moe import Routing
from terramoe.systems.card import Card
from terramoe.systems.table_system import TableSystem

Columns = Sequence[Sequence[int]]
LEAST = 1e-3  # a committee that is always wrong keeps this share of a right one's weight


class KussulCommittee(ClassifierMixin, TableSystem):
    """See the module's docstring.

    X is (n, D) with NaN where a value is missing; columns of one band are named by ``bands``, say band after band, each
    with its dates in order. y is (n,) classes.

    Args:
        mode: "committee" (the paper) or "partitioned" (the survey's reading).
        bands: columns of each band, which get a map of their own; None: one map for each sensor.
        sensors: columns of each sensor, each made of whole bands; None: one committee for all columns.
        regions: of the map in mode "partitioned".
        hidden: tanh units of each member.
        shape, som_epochs, n_best: of the maps, see ``mixtures.SelfOrganizingMap``.
        alpha, learning_rate, max_iter: of the perceptrons, see ``mixtures.SomCommitteeClassifier``.
        validation: share of the rows, or of the groups, that weighs the committees of several sensors.
        gate: "learned"; "random" is the control: a hash of the row draws the region, or the only member.
        random_state: seed or numpy RandomState.

    Attributes:
        classes_: (K,) sorted labels.
        parts_: columns that each committee reads: of all if there is one sensor, else of each sensor and of all.
        committees_: the fitted ``SomCommitteeClassifier`` of each part.
        weight_: (parts,) shares in the prediction; they sum to 1.
        n_iter_: epochs of the perceptron that took the most.
    """

    task = "classes"
    controls = ("dense", "random")
    exempt: ClassVar[Mapping[str, str]] = {
        "wide": "all members answer for each row, so 'dense' has as many parameters and as much compute",
        "uniform": "members weigh alike already; the committee is what mode 'partitioned' has for this control",
        "router": "nothing is routed by gradient: the maps learn without labels",
    }
    card = Card(
        name="Kussul",
        title="Regional Scale Crop Mapping Using Multi-Temporal Satellite Imagery",
        authors="Kussul et al.",
        year=2015,
        doi="10.5194/isprsarchives-XL-7-W3-45-2015",
        survey_section="3.1.1",
        survey_reference=70,
        task="classes of series with gaps",
        sensors=("optical series", "radar series"),
        provenance=("abstract", "survey"),
        completions=(
            "the survey's reference could not be read: this is a paper of the same group, of the same year and method",
            "maps: 10 x 10 units, distances over the dates that both have, scaled up to all; batch training, 20 epochs",
            "five members of 20 to 60 tanh units, each on a bootstrap; Adam, a penalty on the weights, no early stop",
            "sensors: a committee for each and one for all, weighted by accuracy on rows held out",
            "mode 'partitioned': k-means of the map's units into 4 regions, a committee each, behind a hard gate",
        ),
        differences=(
            "the survey says that each partition of the map feeds its own committee; the abstract averages one "
            "committee, which is the default here",
        ),
        reported="no figure could be read",
    )

    def __init__(
        self,
        mode: str = "committee",
        *,
        bands: Columns | None = None,
        sensors: Columns | None = None,
        regions: int = 4,
        hidden: Sequence[int] = (20, 30, 40, 50, 60),
        shape: tuple[int, int] = (10, 10),
        som_epochs: int = 20,
        n_best: int = 1,
        alpha: float = 1e-3,
        learning_rate: float = 5e-3,
        max_iter: int = 300,
        validation: float = 0.2,
        gate: str = "learned",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.mode = mode
        self.bands = bands
        self.sensors = sensors
        self.regions = regions
        self.hidden = hidden
        self.shape = shape
        self.som_epochs = som_epochs
        self.n_best = n_best
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.validation = validation
        self.gate = gate
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> Self:
        """Restore and train; of several sensors, rows (or groups) are held out to weigh the committees.

        Raises:
            ConfigError: a setting that cannot be. RoutingError: one class only, or a column without any value.
        """
        if self.gate not in ("learned", "random"):
            raise ConfigError(f"gate is {self.gate!r}", where="KussulCommittee", fix="use learned or random")
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite="allow-nan")
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        random = check_random_state(self.random_state)
        self.parts_ = self._read_parts()
        train, held = self._hold_out(len(X), groups, random)
        self.committees_ = [self._committee(part, random).fit(X[train][:, part], y[train]) for part in self.parts_]
        right = np.array([LEAST + np.mean(self.classes_[p.argmax(1)] == y[held]) for p in self._each_proba(X[held])])
        self.weight_ = right / right.sum()
        self.n_iter_ = max(one.n_iter_ for one in self.committees_)
        self.residual_std_ = np.nan  # of a class
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(n, K) posteriors, columns in the order of ``classes_``."""
        proba = self._each_proba(self._read(X))
        return np.einsum("p,pnk->nk", self.weight_, proba)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n,) the most probable class, the first one on ties."""
        proba = self.predict_proba(X)
        return self.classes_[proba.argmax(axis=1)]

    def member_proba(self, X: np.ndarray) -> np.ndarray:
        """(n, members, K) posteriors of the members that are asked for each row; of the committee for all columns."""
        X = self._read(X)
        return self.committees_[-1].member_proba(X)

    def restore(self, X: np.ndarray) -> np.ndarray:
        """(n, D) X with its gaps filled by the maps."""
        X = self._read(X)
        return self.committees_[-1].restore(X)

    def routing(self, X: np.ndarray) -> dict[str, Routing]:
        """ "members" or "regions", of the committee that reads all columns; "sensors" if there are several."""
        X = self._read(X)
        found = {self._layer(): self.committees_[-1].routing(X)}
        if self.sensors is not None:
            found["sensors"] = dense_routing(np.tile(np.log(self.weight_), (len(X), 1)))
        return found

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """Members by their units, regions and sensors by number."""
        check_is_fitted(self, "committees_")
        if layer == "sensors" and self.sensors is not None:
            return (*(f"sensor {i + 1}" for i in range(len(self.sensors))), "all sensors")
        if layer != self._layer():
            raise ConfigError(f"there is no layer '{layer}'", where="expert_names", fix=f"use '{self._layer()}'")
        if layer == "members":
            return tuple(f"{units} units, {i + 1}" for i, units in enumerate(self.hidden))
        return tuple(f"region {i + 1}" for i in range(len(self.committees_[-1].committees_)))

    def control(self, name: str) -> Self:
        """ "dense": one perceptron, of as many units as the members that answer for a row. "random": see ``gate``."""
        settings: dict[str, dict[str, Any]] = {
            "routed": {},
            "dense": {"mode": "committee", "hidden": (sum(self.hidden),)},
            "random": {"gate": "random"},
        }
        if name not in settings:
            raise ConfigError(
                f"Kussul has no control '{name}'", where="controls", fix=f"use {', '.join(self.controls)}"
            )
        return clone(self).set_params(**settings[name])

    @classmethod
    def tiny(cls) -> Self:
        """Two members of 6 and 8 units, a map of 3 x 3 units."""
        return cls(hidden=(6, 8), shape=(3, 3), som_epochs=2, learning_rate=0.05, max_iter=40, random_state=0)

    @classmethod
    def tiny_table(cls, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Six dates of one index of three crops that are green early, in the middle or late; a fifth is missing."""
        generator = np.random.default_rng(seed)
        crop = generator.integers(0, 3, rows)
        peak = np.array([1.0, 2.5, 4.0])[crop] + 0.2 * generator.standard_normal(rows)
        X = np.exp(-0.5 * (np.arange(6) - peak[:, None]) ** 2) + 0.1 * generator.standard_normal((rows, 6))
        return np.where(generator.random(X.shape) < 0.2, np.nan, X), np.array(["early", "late", "middle"])[crop]

    # ----------------------------------------------------------------------------------------------------------------

    def _layer(self) -> str:
        return "regions" if self.mode == "partitioned" else "members"

    def _read(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self, "committees_")
        return validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)

    def _read_parts(self) -> list[np.ndarray]:
        """Columns of each sensor and of all; ConfigError unless each sensor is made of whole bands."""
        every = np.arange(self.n_features_in_)
        if self.sensors is None:
            return [every]
        named = sorted(column for sensor in self.sensors for column in sensor)
        if named != every.tolist() or min(map(len, self.sensors)) == 0 or len(self.sensors) < 2:
            fix = f"give two or more, which name each of the columns 0 to {len(every) - 1} once"
            raise ConfigError(f"sensors are {self.sensors}", where="KussulCommittee", fix=fix)
        if not 0 < self.validation < 1:
            raise ConfigError(f"validation is {self.validation!r}", where="KussulCommittee", fix="use a share, 0 to 1")
        for band in self.bands or ():
            if sum(bool(set(band) & set(sensor)) for sensor in self.sensors) > 1:
                raise ConfigError(f"band {band} is of two sensors", where="bands", fix="part it by sensor")
        return [np.sort(sensor) for sensor in self.sensors] + [every]

    def _hold_out(
        self, rows: int, groups: np.ndarray | None, random: np.random.RandomState
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows that train and rows that weigh the committees; all of them train where there is nothing to weigh."""
        every = np.arange(rows)
        if self.sensors is None:
            return every, every[:1]
        split = GroupShuffleSplit(1, test_size=self.validation, random_state=random)
        return next(split.split(every, groups=every if groups is None else groups))

    def _each_proba(self, X: np.ndarray) -> np.ndarray:
        """(parts, n, K) posteriors of each part's committee; 0 for a class that its training rows lacked."""
        proba = np.zeros((len(self.parts_), len(X), len(self.classes_)))
        for p, (part, one) in enumerate(zip(self.parts_, self.committees_, strict=True)):
            proba[p][:, np.searchsorted(self.classes_, one.classes_)] = one.predict_proba(X[:, part])
        return proba

    def _committee(self, part: np.ndarray, random: np.random.RandomState) -> SomCommitteeClassifier:
        bands = self.bands if self.bands is not None else self.sensors
        mine = None if bands is None else [band for band in bands if set(band) <= set(part.tolist())]
        return SomCommitteeClassifier(
            self.mode,
            groups=None if mine is None else [np.searchsorted(part, band).tolist() for band in mine],
            n_regions=self.regions,
            hidden=self.hidden,
            shape=self.shape,
            som_epochs=self.som_epochs,
            n_best=self.n_best,
            alpha=self.alpha,
            learning_rate=self.learning_rate,
            max_iter=self.max_iter,
            random_choice=self.gate == "random",
            random_state=random.randint(2**31 - 1),
        )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
