"""The figure of an explanation, as PNG bytes: what counts in bands and in places, beside who decided there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from terramoe.experiments.explain import Explanation
from terramoe.reporting.figures import GREY, INK, add_legend, new_figure, png_bytes, show_image
from terramoe.reporting.palette import expert_colours

FOR, AGAINST = "#4477aa", "#ee6677"
MOST_NAMES = 16  # bands whose names fit under their bars


def explanation_figure(
    explanation: Explanation, title: str, bands: Sequence[str], experts: Mapping[str, Sequence[str]]
) -> bytes:
    """Bars of the bands, the map of attributions, and the map of experts of every layer, all of one window.

    Args:
        title: says what is explained. bands: a name for each. experts: by layer, a name for each.
    """
    by_band, layers = explanation.by_band, list(explanation.routing)
    figure = new_figure(3.4 * (1 + len(layers)) + (0.4 if by_band is None else 4.4), 4.2)
    figure.suptitle(title, fontsize=11, color=INK)
    widths = [] if by_band is None else [1.3]
    panels = figure.subplots(1, len(widths) + 1 + len(layers), width_ratios=[*widths, *[1] * (1 + len(layers))])
    panels = list(np.atleast_1d(panels))
    if by_band is not None:
        _bars(panels.pop(0), by_band, bands)
    _places(panels[0], explanation)
    most = max(experts.values(), key=len, default=())
    colours = expert_colours(len(most))
    for axes, layer in zip(panels[1:], layers, strict=True):
        top = np.ma.masked_less(explanation.routing[layer][0], 0)
        limits = {"vmin": -0.5, "vmax": len(colours) - 0.5}
        show_image(axes, top, f"experts of {layer}", cmap=ListedColormap(colours), **limits)
        _mark(axes, explanation)
    if layers:
        add_legend(figure, [(f"expert {i}: {n}", c) for i, (n, c) in enumerate(zip(most, colours, strict=True))], 4)
    return png_bytes(figure)


def _bars(axes: Axes, by_band: np.ndarray, bands: Sequence[str]) -> None:
    number = np.arange(1, len(by_band) + 1)
    axes.bar(number, by_band, color=[FOR if value >= 0 else AGAINST for value in by_band])
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set_title("by band", fontsize=10)
    axes.tick_params(labelsize=7)
    if len(bands) <= MOST_NAMES:
        axes.set_xticks(number, bands, rotation=60, ha="right", fontsize=7)
    else:
        axes.set_xlabel("band", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _places(axes: Axes, explanation: Explanation) -> None:
    values = np.ma.masked_where(~explanation.valid, explanation.by_pixel)
    limit = float(np.percentile(np.abs(values.compressed()), 99.5)) or 1.0
    signed = bool((values < 0).any())
    colours = {"cmap": "RdBu", "vmin": -limit, "vmax": limit} if signed else {"cmap": "viridis", "vmax": limit}
    image = show_image(axes, values, "by pixel", **colours)
    axes.figure.colorbar(image, ax=axes, shrink=0.7).ax.tick_params(labelsize=7)
    _mark(axes, explanation)


def _mark(axes: Axes, explanation: Explanation) -> None:
    """A cross on the explained pixel, or a line around the explained region."""
    if explanation.row is not None:
        at = (explanation.column - explanation.box.column, explanation.row - explanation.box.row)
        axes.plot(*at, "+", color=INK, markersize=10, markeredgewidth=1.5)
    elif not explanation.region.all():
        axes.contour(explanation.region, levels=[0.5], colors=INK, linewidths=0.8)
