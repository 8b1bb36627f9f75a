"""Figures of the audit of a split, as PNG bytes: where it lies, and how far test and deployment are from training."""

from __future__ import annotations

import numpy as np

from terramoe.reporting.figures import GREY, add_legend, new_figure, png_bytes, show_image
from terramoe.reporting.palette import paint

COLOURS = {"train": (68, 119, 170), "guard": (200, 200, 200), "test": (238, 102, 119)}
BINS = 30


def kinds_map(train: np.ndarray, guard: np.ndarray, test: np.ndarray, title: str) -> bytes:
    """Pixels (H, W) bool that train, rest or test."""
    height, width = train.shape
    figure = new_figure(5.2, min(max(5.2 * height / width, 2) + 0.6, 12))
    show_image(figure.subplots(), paint(1 * train + 2 * guard + 3 * test, list(COLOURS.values())), title)
    add_legend(figure, [(name, _unit(colour)) for name, colour in COLOURS.items()], 3)
    return png_bytes(figure)


def points_map(coordinates: np.ndarray, kinds: np.ndarray, title: str, degrees: bool) -> bytes:
    """Points (N, 2) of kind 1 train, 2 guard, 3 test; degrees are drawn with the width of the middle latitude."""
    figure = new_figure(6, 5)
    axes = figure.subplots()
    size = float(np.clip(4_000 / len(kinds), 1, 16))
    for number, colour in enumerate(COLOURS.values(), start=1):
        axes.scatter(*coordinates[kinds == number].T, s=size, color=_unit(colour), linewidths=0)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("longitude" if degrees else "x", fontsize=8)
    axes.set_ylabel("latitude" if degrees else "y", fontsize=8)
    axes.tick_params(labelsize=7)
    middle = np.radians(coordinates[:, 1].mean()) if degrees else 0.0
    axes.set_aspect(1 / max(np.cos(middle), 0.05), adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    add_legend(figure, [(name, _unit(colour)) for name, colour in COLOURS.items()], 3)
    return png_bytes(figure)


def distance_histogram(test: np.ndarray, deployment: np.ndarray, unit: str, title: str) -> bytes:
    """Distances from test points to training points, over those from the deployment area to the sample.

    Both as shares, and cumulated below, where the area between the curves is the Wasserstein distance.
    """
    figure = new_figure(6, 5)
    above, below = figure.subplots(2, 1, sharex=True)
    farthest = float(np.quantile(np.concatenate([test, deployment]), 0.995)) or 1.0
    edges = np.linspace(0, farthest, BINS + 1)
    for values, name, colour in (
        (deployment, "deployment area to sample", GREY),
        (test, "test to train", _unit(COLOURS["test"])),
    ):
        inside = np.minimum(values, farthest)  # the last bar takes what lies beyond
        weights = np.full(len(values), 1 / len(values))
        above.hist(inside, edges, weights=weights, color=colour, alpha=0.65, label=name)
        ranked = np.sort(values)
        below.step(ranked, np.arange(1, len(ranked) + 1) / len(ranked), where="post", color=colour, linewidth=2)
    above.set_title(title, fontsize=10)
    above.set_ylabel("share")
    above.legend(fontsize=8, frameon=False)
    below.set_ylabel("share within")
    below.set_xlabel(f"distance to the nearest, {unit}")
    below.set_xlim(0, farthest)
    below.set_ylim(0, 1)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return png_bytes(figure)


def _unit(colour: tuple[int, int, int]) -> tuple[float, ...]:
    """0..255 -> 0..1."""
    return tuple(value / 255 for value in colour)
