"""Figures of a run on a table, as PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from terramoe.reporting.figures import GREY, INK, add_legend, new_figure, png_bytes
from terramoe.reporting.palette import expert_colours

LEGEND_LETTERS = 150  # that fit beside each other under a figure
MOST_POINTS = 20_000  # beyond that a figure shows a sample of the rows


def expert_map(places: np.ndarray, expert: np.ndarray, share: np.ndarray, names: Sequence[str], axes: str) -> bytes:
    """Which expert answers where, and its share of the weight; places (N, 2), expert (N,) with -1 for none, share (N,).

    ``axes`` names the two coordinates.
    """
    shown = _sample(np.flatnonzero(expert >= 0))
    colours = expert_colours(len(names))
    figure = new_figure(10.5, 4.6)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    size = float(np.clip(20_000 / max(len(shown), 1), 3, 40))
    x, y = places[shown].T
    left.scatter(x, y, s=size, c=[colours[int(e)] for e in expert[shown]], linewidths=0)
    drawn = right.scatter(x, y, s=size, c=share[shown], cmap="viridis", vmin=1 / len(names), vmax=1, linewidths=0)
    figure.colorbar(drawn, ax=right, shrink=0.8)
    for panel, title in ((left, "most used expert"), (right, "its share of the weight")):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(axes.split(",")[0], fontsize=9)
    left.set_ylabel(axes.split(",")[1].strip(), fontsize=9)
    used = [(names[k], colours[k]) for k in range(len(names)) if (expert == k).any()]
    longest = max((len(name) for name, _ in used), default=1)
    add_legend(figure, used, max(1, min(len(used), LEGEND_LETTERS // (longest + 6))))
    return png_bytes(figure)


def truth_against_prediction(truth: np.ndarray, prediction: np.ndarray, std: np.ndarray, name: str) -> bytes:
    """Test rows of one target (N,): prediction over truth, and how far the errors reach in predicted deviations."""
    known = _sample(np.flatnonzero(np.isfinite(truth) & np.isfinite(prediction)))
    figure = new_figure(9.0, 3.8)
    left, right = figure.subplots(1, 2)
    ends = [min(truth[known].min(), prediction[known].min()), max(truth[known].max(), prediction[known].max())]
    left.scatter(truth[known], prediction[known], s=6, color="#4477aa", alpha=0.5, linewidths=0)
    left.plot(ends, ends, color=INK, linewidth=0.8)
    left.set_xlabel(f"{name}, truth", fontsize=9)
    left.set_ylabel("prediction", fontsize=9)
    score = (prediction[known] - truth[known]) / np.maximum(std[known], 1e-12)
    score = score[np.isfinite(score)]
    if score.size:
        grid = np.linspace(-5, 5, 61)
        right.hist(np.clip(score, -5, 5), grid, density=True, color="#4477aa", alpha=0.6)
        right.plot(grid, np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi), color=INK, linewidth=1)
    right.set_xlabel("error in predicted standard deviations", fontsize=9)
    right.set_title("the line is what honest Gaussian errors would give", fontsize=9, color=INK)
    right.spines[["top", "right"]].set_color(GREY)
    return png_bytes(figure)


def _sample(rows: np.ndarray) -> np.ndarray:
    """At most ``MOST_POINTS`` of the rows."""
    if len(rows) <= MOST_POINTS:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, MOST_POINTS, replace=False))
