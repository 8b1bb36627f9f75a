"""Figures of a comparison of several systems, each from arrays to one file; the suffix of the path is the format."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from terramoe.evaluation import Interval, Ranks, Reliability, RiskCoverage
from terramoe.reporting.figures import GREY, INK
from terramoe.reporting.palette import expert_colours
from terramoe.storage import atomic_path

Path = str | PathLike[str]


def critical_difference(path: Path, ranks: Ranks) -> Figure:
    """Average ranks on a line, best at the left; a bar joins systems that cannot be told apart at 5 %.

    Statistical Comparisons of Classifiers over Multiple Data Sets, 2006, Journal of Machine Learning Research 7, 1-30.
    """
    order = np.argsort(ranks.average, kind="stable")
    places, names = ranks.average[order], [ranks.names[i] for i in order]
    systems, groups = len(names), _cliques(places, ranks.distance)
    half = (systems + 1) // 2
    figure, axes = _figure(7.5, 1.4 + 0.28 * (half + len(groups)))
    axes.axis("off")
    axes.plot([1, systems], [0, 0], color=INK, linewidth=1)
    for tick in range(1, systems + 1):
        axes.plot([tick, tick], [0, 0.15], color=INK, linewidth=1)
        axes.text(tick, 0.25, str(tick), ha="center", va="bottom", fontsize=9)
    axes.plot([1, 1 + ranks.distance], [1.3, 1.3], color=INK, linewidth=2)
    axes.text(1, 1.4, f"critical difference {ranks.distance:.2f}", ha="left", va="bottom", fontsize=9)
    for number, (first, last) in enumerate(groups):
        height = -0.25 - 0.3 * number
        axes.plot([places[first] - 0.03, places[last] + 0.03], [height, height], color=INK, linewidth=4)
    below = -0.5 - 0.3 * len(groups)
    for number, (place, name) in enumerate(zip(places, names, strict=True)):
        left = number < half
        height = below - 0.45 * (number if left else systems - 1 - number)
        end = 0.9 if left else systems + 0.1
        axes.plot([place, place, end], [0, height, height], color=GREY, linewidth=1)
        label = f"{name} {place:.2f}"
        axes.text(end, height, f"{label} " if left else f" {label}", ha="right" if left else "left", va="center")
    axes.set_xlim(0.9, systems + 0.1)
    return _saved(figure, path)


def forest(path: Path, differences: Mapping[str, Interval], rope: float, *, unit: str = "points of accuracy") -> Figure:
    """Differences with their intervals, one a row, over the region of practical equivalence (-rope .. rope).

    Filled markers have their whole interval outside the region or inside it: those are the ones that say something.
    """
    figure, axes = _figure(6.5, 1.1 + 0.32 * len(differences))
    axes.axvspan(-rope, rope, color=GREY, alpha=0.35, linewidth=0)
    axes.axvline(0, color=INK, linewidth=1)
    for row, found in enumerate(differences.values()):
        settled = found.low > rope or found.high < -rope or (-rope <= found.low and found.high <= rope)
        axes.plot([found.low, found.high], [row, row], color="#4477aa", linewidth=2)
        axes.plot(found.value, row, "o", color="#4477aa", markerfacecolor="#4477aa" if settled else "white")
    axes.set_yticks(range(len(differences)), list(differences))
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.set_xlabel(f"difference, {unit}, with 95 % interval")
    axes.set_title(f"grey: no practical difference (±{rope:g})", fontsize=9)
    return _saved(figure, path)


def quality_against_cost(
    path: Path, quality: Mapping[str, Interval], cost: Mapping[str, float], *, cost_name: str = "active FLOPs per pixel"
) -> Figure:
    """Accuracy with its interval against active FLOPs or active parameters.

    The line joins the systems that no other one beats at equal or lower cost.

    Args:
        quality: shares, by name. cost: above 0, by the same names.
    """
    figure, axes = _figure(5.6, 4)
    best = -np.inf
    frontier = []
    for name in sorted(quality, key=lambda n: (cost[n], -quality[n].value)):
        if quality[name].value > best:
            best = quality[name].value
            frontier.append(name)
    axes.plot([cost[n] for n in frontier], [100 * quality[n].value for n in frontier], color=GREY, linestyle="--")
    for (name, found), colour in zip(quality.items(), expert_colours(len(quality)), strict=True):
        low, middle, high = (100 * value for value in (found.low, found.value, found.high))
        axes.plot([cost[name]] * 2, [low, high], color=colour, linewidth=1.5)
        axes.plot(cost[name], middle, "o", color=colour, label=name)
    if max(cost.values()) > 3 * min(cost.values()):  # ticks of a short logarithmic axis run into each other
        axes.set_xscale("log")
    axes.set_xlabel(cost_name)
    axes.set_ylabel("overall accuracy in %, with 95 % interval")
    _legend_beside(axes)
    return _saved(figure, path)


def risk_against_coverage(path: Path, curves: Mapping[str, RiskCoverage]) -> Figure:
    """Share of errors among the answers, against the share of items answered, the surest first."""
    figure, axes = _figure(5.6, 3.8)
    for (name, curve), colour in zip(curves.items(), expert_colours(len(curves)), strict=True):
        axes.plot(100 * curve.coverage, 100 * curve.risk, color=colour, label=f"{name}, AURC {curve.aurc:.3f}")
    axes.set_xlabel("answered in %")
    axes.set_ylabel("errors among the answers in %")
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    _legend_beside(axes)
    return _saved(figure, path)


def reliability_diagram(path: Path, curve: Reliability) -> Figure:
    """Accuracy in bins of confidence as bars, the gap to honest confidence on top, and how many items each bin has."""
    figure = _canvas(4.4, 4.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = len(curve.count)
    width, middles = 1 / bins, (np.arange(bins) + 0.5) / bins
    filled = curve.count > 0
    above.bar(middles[filled], curve.accuracy[filled], width, color="#4477aa", edgecolor="white", label="accuracy")
    gap = curve.confidence - curve.accuracy
    above.bar(
        middles[filled],
        gap[filled],
        width,
        bottom=curve.accuracy[filled],
        color="#ee6677",
        alpha=0.5,
        edgecolor="white",
        label="gap to the confidence",
    )
    above.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
    above.set_ylabel("accuracy")
    above.set_title(f"ECE {curve.ece:.3f}, Brier score {curve.brier:.3f}", fontsize=10)
    above.legend(fontsize=8, frameon=False, loc="upper left")
    below.bar(middles, curve.count / max(curve.count.sum(), 1), width, color=GREY, edgecolor="white")
    below.set_ylabel("share of items")
    below.set_xlabel("confidence")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def _cliques(places: np.ndarray, distance: float) -> list[tuple[int, int]]:
    """(first, last) of the longest runs of sorted average ranks within the critical difference; no run within another.

    Systems exactly that far apart count as different.
    """
    runs = []
    for first, place in enumerate(places):
        last = int(np.searchsorted(places, place + distance)) - 1
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs


def _canvas(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = _canvas(width, height)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend_beside(axes: Axes) -> None:
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _saved(figure: Figure, path: Path) -> Figure:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return figure
