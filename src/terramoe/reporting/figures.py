"""Figures of the report, as PNG bytes. matplotlib's object interface only, so that nothing global is touched."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from terramoe.evaluation import Alignment, Reliability
from terramoe.moe import LayerStatistics
from terramoe.reporting.palette import Colour, expert_colours, paint

GREY, INK = "#bbbbbb", "#222222"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def add_legend(figure: Figure, entries: Sequence[tuple[str, object]], columns: int) -> None:
    handles = [Patch(facecolor=colour, edgecolor=GREY, label=name) for name, colour in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def show_image(axes: object, image: np.ndarray, title: str, **options: object) -> object:
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(image, interpolation="nearest", **options)


def prediction_beside_truth(
    truth: np.ndarray, prediction: np.ndarray, test: np.ndarray, names: Sequence[str], colours: list[Colour]
) -> bytes:
    """Truth, prediction, and where the test pixels are right or wrong; all (H, W) with classes 1..K."""
    figure = new_figure(10.5, 4.6)
    left, middle, right = figure.subplots(1, 3)
    show_image(left, paint(truth, colours), "truth (white: unlabelled)")
    show_image(middle, paint(prediction, colours), "prediction of the whole scene")
    outcome = np.where(test, np.where(prediction == truth, 1, 2), 0)
    show_image(right, paint(outcome, [(68, 119, 170), (238, 102, 119)]), "test pixels: blue right, red wrong")
    add_legend(figure, [(n, tuple(v / 255 for v in c)) for n, c in zip(names, colours, strict=True)], 6)
    return png_bytes(figure)


def overview(
    truth: np.ndarray, prediction: np.ndarray, top_expert: np.ndarray, experts: Sequence[str], colours: list[Colour]
) -> bytes:
    """Truth, prediction and who decided, side by side; (H, W) each, experts counted from 0, -1 where none."""
    figure = new_figure(10.5, 4.2)
    left, middle, right = figure.subplots(1, 3)
    show_image(left, paint(truth, colours), "truth (white: unlabelled)")
    show_image(middle, paint(prediction, colours), "prediction")
    painted = expert_colours(len(experts))
    top = np.ma.masked_less(top_expert, 0)
    show_image(
        right, top, "who decided (first level)", cmap=ListedColormap(painted), vmin=-0.5, vmax=len(painted) - 0.5
    )
    add_legend(figure, [(f"expert {i}: {n}", c) for i, (n, c) in enumerate(zip(experts, painted, strict=True))], 4)
    return png_bytes(figure)


def split_map(train: np.ndarray, guard: np.ndarray, test: np.ndarray) -> bytes:
    """Where pixels train, test, or do neither."""
    figure = new_figure(4.2, 4.4)
    kinds = 1 * train + 2 * guard + 3 * test
    colours = [(68, 119, 170), (200, 200, 200), (238, 102, 119)]
    show_image(figure.subplots(), paint(kinds, colours), "split of the first seed")
    add_legend(
        figure, [(n, tuple(v / 255 for v in c)) for n, c in zip(("train", "guard", "test"), colours, strict=True)], 3
    )
    return png_bytes(figure)


def expert_maps(routing: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]]) -> bytes:
    """Top expert of every pixel, a panel per routed layer; routing maps (5, H, W)."""
    most = max(names.values(), key=len)
    colours = expert_colours(len(most))
    figure = new_figure(3.6 * len(routing), 4.3)
    for axes, (layer, maps) in zip(np.atleast_1d(figure.subplots(1, len(routing))), routing.items(), strict=True):
        top = np.ma.masked_less(maps[0], 0)
        show_image(axes, top, layer, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5)
    add_legend(figure, [(f"expert {i}: {n}", c) for i, (n, c) in enumerate(zip(most, colours, strict=True))], 2)
    return png_bytes(figure)


def uncertainty_map(entropy: np.ndarray, valid: np.ndarray) -> bytes:
    """Normalised predictive entropy, (H, W) in 0..1."""
    figure = new_figure(4.4, 3.8)
    axes = figure.subplots()
    image = show_image(axes, np.ma.masked_where(~valid, entropy), "predictive entropy", cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.85)
    return png_bytes(figure)


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> bytes:
    """Rows truth, columns prediction, coloured by the share of the row, numbers in percent where above 0.5 %."""
    size = max(4.5, 0.42 * len(names) + 2)
    figure = new_figure(size + 1, size)
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(share > 0.005):
        colour = "white" if share[row, column] > 0.55 else INK
        axes.text(column, row, f"{100 * share[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(ticks, names, fontsize=7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    return png_bytes(figure)


def load_bars(statistics: Mapping[str, LayerStatistics], names: Mapping[str, Sequence[str]]) -> bytes:
    """Share of routed pairs per expert, a group of bars per layer; the dashed line is perfect balance."""
    figure = new_figure(7.5, 3)
    axes = figure.subplots()
    experts = max(len(s.load) for s in statistics.values())
    width = 0.8 / experts
    for e, colour in enumerate(expert_colours(experts)):
        heights = [s.load[e] if e < len(s.load) else 0 for s in statistics.values()]
        name = next((n[e] for n in names.values() if e < len(n)), "")
        axes.bar(np.arange(len(statistics)) + e * width, heights, width, color=colour, label=f"expert {e}: {name}")
    axes.axhline(1 / experts, color=INK, linestyle="--", linewidth=1)
    axes.set_xticks(np.arange(len(statistics)) + 0.4 - width / 2, list(statistics))
    axes.set_ylabel("share of the load")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    return png_bytes(figure)


def class_expert_table(alignments: Mapping[str, Alignment], classes: Sequence[str]) -> bytes:
    """Which expert the pixels of each class go to first: share of the class, a panel per layer."""
    figure = new_figure(2.6 + 2.1 * len(alignments), max(2.5, 0.26 * len(classes) + 1.2))
    panels = np.atleast_1d(figure.subplots(1, len(alignments), sharey=True))
    for axes, (layer, found) in zip(panels, alignments.items(), strict=True):
        share = found.table / np.maximum(found.table.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(share, cmap="Greens", vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"{layer}: {found.information:.2f} nats", fontsize=9)
        axes.set_xticks(range(share.shape[1]), [f"e{i}" for i in range(share.shape[1])], fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=7)
    figure.colorbar(image, ax=panels, shrink=0.8, label="share of the class")
    return png_bytes(figure)


def reliability_curves(curves: Mapping[str, Reliability]) -> bytes:
    """Accuracy against confidence; the diagonal is honest."""
    figure = new_figure(4.6, 3.8)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    for (name, curve), colour in zip(curves.items(), expert_colours(len(curves)), strict=True):
        filled = curve.count > 0
        axes.plot(
            curve.confidence[filled],
            curve.accuracy[filled],
            "o-",
            color=colour,
            markersize=3,
            label=f"{name}, ECE {curve.ece:.3f}",
        )
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return png_bytes(figure)


def training_curves(histories: Mapping[str, Sequence[Sequence[float]]], steps_per_epoch: int) -> bytes:
    """Total training loss of every run; a colour per model, a line per seed."""
    figure = new_figure(5, 3.8)
    axes = figure.subplots()
    for (name, runs), colour in zip(histories.items(), expert_colours(len(histories)), strict=True):
        for number, losses in enumerate(runs):
            steps = steps_per_epoch * np.arange(1, len(losses) + 1)
            axes.plot(steps, losses, "o-", markersize=3, color=colour, alpha=0.8, label=name if number == 0 else None)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return png_bytes(figure)
