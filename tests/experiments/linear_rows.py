"""A table system whose every answer can be worked out by hand: two least-squares lines, one on each side of a bound."""

import numpy as np
from sklearn.base import RegressorMixin, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from terramoe.errors import ConfigError
from terramoe.mixtures.gate_record import hard_routing
from terramoe.systems.card import Card
from terramoe.systems.table_system import TableSystem


class LinearRows(RegressorMixin, TableSystem):
    """Column 0 chooses the line: below ``bound`` the first, else the second; one line for all with ``dense``."""

    card = Card(
        "Linear", "Lines", "Nobody", 2000, "regression", ("any",), "", 0, ("paper",), (), (), "nothing", doi="x"
    )
    task = "values"
    controls = ("dense",)

    def __init__(self, bound=0.0, dense=False, random_state=None):
        self.bound, self.dense, self.random_state = bound, dense, random_state

    def fit(self, X, y, groups=None):
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        design, side = np.column_stack([X, np.ones(len(X))]), self._side(X)
        self.lines_ = np.stack([np.linalg.lstsq(design[side == k], y[side == k], rcond=None)[0] for k in range(2)])
        self.residual_std_ = float(np.std(self.predict(X) - y)) + 1e-3
        return self

    def predict(self, X):
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        design = np.column_stack([X, np.ones(len(X))])
        return np.einsum("nf,nf...->n...", design, self.lines_[self._side(X)])

    def routing(self, X):
        side = self._side(validate_data(self, X, dtype=np.float64, reset=False))
        return {"line": hard_routing(np.log(np.eye(2)[side] + 1e-9))}

    def expert_names(self, layer):
        return ("low", "high")

    def control(self, name):
        if name not in ("routed", *self.controls):
            raise ConfigError(f"there is no control '{name}'", where="controls", fix="use dense")
        return clone(self).set_params(dense=name == "dense")

    @classmethod
    def tiny(cls):
        return cls()

    @classmethod
    def tiny_table(cls, rows, seed):
        X = np.random.default_rng(seed).normal(size=(rows, 3))
        return X, np.abs(X[:, 0]) + X[:, 1]

    def _side(self, X):
        side = (X[:, 0] >= self.bound).astype(int)
        if self.dense:  # both lines are the same: each is fitted to half of the rows, whatever they are
            side = np.arange(len(X)) % 2
        return side
