"""Safeguarded Newton ascent, the step inside every M-step that has no closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

Value = Callable[[np.ndarray], float]
Derivatives = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

HALVINGS = 40
SUFFICIENT = 1e-4  # share of the linear gain that a step must reach (Armijo)


def newton_ascent(value: Value, derivatives: Derivatives, start: np.ndarray, steps: int) -> np.ndarray:
    """At most ``steps`` Newton steps, each halved until ``value`` rises; ``value`` never decreases.

    An undamped step may overshoot where the probabilities saturate, and then EM loses its monotone likelihood.

    Args:
        value: concave function of (P,).
        derivatives: its gradient (P,) and negative Hessian (P, P), positive semi-definite.
        start: (P,).

    Returns:
        (P,): ``start`` itself where no step raises the value.
    """
    point, height = start, value(start)
    for _ in range(steps):
        gradient, curvature = derivatives(point)
        if not gradient.any():
            return point
        direction = newton_direction(gradient, curvature)
        slope = float(gradient @ direction)
        for halving in range(HALVINGS):
            step = 0.5**halving
            trial = point + step * direction
            trial_height = value(trial)
            if trial_height > height and trial_height >= height + SUFFICIENT * step * slope:
                point, height = trial, trial_height
                break
        else:
            return point
    return point


def newton_direction(gradient: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Solve ``curvature @ d = gradient`` for an ascent direction (P,).

    The curvature of a softmax is singular (a constant added to all logits changes nothing), so a shift far below its
    own scale is added and raised until the factorisation exists.
    """
    diagonal = np.eye(len(gradient))
    shift = 1e-12 * max(np.trace(curvature) / len(gradient), np.finfo(float).tiny)
    for _ in range(30):
        try:
            direction = cho_solve(cho_factor(curvature + shift * diagonal), gradient)
        except LinAlgError:
            shift *= 100
            continue
        if np.isfinite(direction).all() and gradient @ direction > 0:
            return direction
        shift *= 100
    return gradient
