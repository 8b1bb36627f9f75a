"""A multilayer perceptron whose weights are estimated by a Kalman filter that treats each node by itself.

Decoupled extended Kalman filter training of feedforward layered networks, 1991, DOI 10.1109/IJCNN.1991.155276. The
weights are the state of a random walk, each sample is a measurement y = f(x, w) + noise of variance R, and the filter
is linearised anew at each. Covariances between the weights of different nodes are taken as zero:

    h_i = df/dw_i;   A = 1 / (R + sum_i h_i' P_i h_i);   K_i = P_i h_i A
    w_i += K_i (y - f);   P_i += Q I - K_i h_i' P_i

Shapes: n samples, D columns, H tanh nodes. Node i of the hidden layer has D + 1 weights, the output node H + 1, biases
last. Time and memory of a step are H (D + 1)^2; the filter of all weights together would take (H (D + 2) + 1)^2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from terramoe.errors import ConfigError

GROUPS = ("node", "all")


class NDEKFRegressor(RegressorMixin, BaseEstimator):
    """See the module's docstring. Give standardised columns and a standardised target: the noise is in its units.

    The sources fix the equations; the schedules of R and Q and the start are ours.

    Args:
        hidden: tanh nodes; 0 makes the network linear, and the filter recursive least squares.
        epochs: passes over the samples, each in a new random order.
        groups: "node", or "all" for the filter of all weights together (the global one).
        covariance: P is this times the identity at the start.
        noise: R of the first and of the last step; it falls geometrically in between.
        drift: Q, variance that each step adds to each weight.
        start: standard deviation of the hidden weights at the start, divided by sqrt(D + 1); those of the output node
            start at 0 for a linear network, else alike.
        random_state: seed or numpy RandomState of start and order.

    Attributes:
        hidden_: (H, D + 1). output_: (H + 1,), or (D + 1,) for a linear network.
        covariances_: of the hidden nodes (H, D + 1, D + 1) and of the output node (1, H + 1, H + 1); for "all"
            (1, W, W), hidden weights first.
        loss_curve_: (epochs,) mean squared error after each epoch, on the training samples.
    """

    def __init__(
        self,
        hidden: int = 20,
        *,
        epochs: int = 10,
        groups: str = "node",
        covariance: float = 100.0,
        noise: tuple[float, float] = (1.0, 0.1),
        drift: float = 1e-6,
        start: float = 1.0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.hidden = hidden
        self.epochs = epochs
        self.groups = groups
        self.covariance = covariance
        self.noise = noise
        self.drift = drift
        self.start = start
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray) -> NDEKFRegressor:
        """X (n, D) and y (n,).

        Raises:
            ConfigError: a setting that cannot be. ValueError: NaN, or X and y of different length.
        """
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        random = check_random_state(self.random_state)
        X1 = _with_ones(X)
        self._start(X1.shape[1], random)
        noise, step, losses = np.geomspace(*self.noise, max(len(X) * self.epochs, 2)), 0, []
        for _ in range(self.epochs):
            for row in random.permutation(len(X)):
                self._measure(X1[row], float(y[row]), noise[step])
                step += 1
            losses.append(float(np.mean((y - self._answer(X1)) ** 2)))
        self.loss_curve_ = np.array(losses)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n,)."""
        check_is_fitted(self, "output_")
        return self._answer(_with_ones(validate_data(self, X, dtype=np.float64, reset=False)))

    def _start(self, inputs: int, random: np.random.RandomState) -> None:
        """Weights (small, random) and covariances before the first sample."""
        self.hidden_ = self.start / np.sqrt(inputs) * random.standard_normal((self.hidden, inputs))
        width = self.hidden + 1 if self.hidden else inputs
        self.output_ = self.start / np.sqrt(width) * random.standard_normal(width) * (self.hidden > 0)
        stacks = [(self.hidden, inputs), (1, width)] if self.groups == "node" else [(1, self.hidden * inputs + width)]
        self.covariances_ = [self.covariance * np.tile(np.eye(size), (count, 1, 1)) for count, size in stacks]

    def _measure(self, x: np.ndarray, y: float, noise: float) -> None:
        """Update weights and covariances by one sample: x (D + 1,) with its 1, y, and R."""
        if self.hidden:
            node = np.tanh(self.hidden_ @ x)
            basis = np.append(node, 1.0)
            slopes = [(self.output_[:-1] * (1 - node**2))[:, None] * x, basis[None]]
        else:
            basis = x
            slopes = [np.empty((0, len(x))), basis[None]]
        if self.groups == "all":
            slopes = [np.concatenate([part.ravel() for part in slopes])[None]]
        moves = kalman_step(self.covariances_, slopes, y - float(self.output_ @ basis), noise, self.drift)
        move = np.concatenate([part.ravel() for part in moves])
        self.hidden_ += move[: self.hidden_.size].reshape(self.hidden_.shape)
        self.output_ += move[self.hidden_.size :]

    def _answer(self, X1: np.ndarray) -> np.ndarray:
        return (_with_ones(np.tanh(X1 @ self.hidden_.T)) if self.hidden else X1) @ self.output_

    def _check_settings(self) -> None:
        pair = isinstance(self.noise, Sequence) and len(self.noise) == 2
        for holds, name, fix in (
            (self.hidden >= 0, "hidden", "use 0 or more"),
            (self.epochs >= 1, "epochs", "use 1 or more"),
            (self.groups in GROUPS, "groups", f"use one of {', '.join(GROUPS)}"),
            (0 < self.covariance < np.inf, "covariance", "use a number above 0"),
            (pair and all(0 < value < np.inf for value in self.noise), "noise", "give two numbers above 0"),
            (0 <= self.drift < np.inf, "drift", "use 0 or more"),
            (0 < self.start < np.inf, "start", "use a number above 0"),
        ):
            if not holds:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", where="NDEKFRegressor", fix=fix)


def kalman_step(
    covariances: list[np.ndarray], slopes: list[np.ndarray], error: float, noise: float, drift: float
) -> list[np.ndarray]:
    """One measurement of a number, for stacks of groups of weights that are independent of each other.

    Args:
        covariances: per stack (G, m, m), changed in place.
        slopes: per stack (G, m), derivatives of the predicted number.
        error: measured less predicted. noise: R. drift: Q.

    Returns:
        Per stack (G, m), what is to be added to the weights.
    """
    pushes = [(P @ h[..., None])[..., 0] for P, h in zip(covariances, slopes, strict=True)]  # P_i h_i
    scale = 1 / (noise + sum(float((h * push).sum()) for h, push in zip(slopes, pushes, strict=True)))
    for P, push in zip(covariances, pushes, strict=True):
        part = scale**0.5 * push  # so that P stays symmetric to the last bit
        P -= part[..., None] * part[:, None]
        if drift:
            P[:, range(P.shape[1]), range(P.shape[1])] += drift
    return [scale * error * push for push in pushes]


def _with_ones(X: np.ndarray) -> np.ndarray:
    return np.concatenate([X, np.ones((len(X), 1))], axis=1)
