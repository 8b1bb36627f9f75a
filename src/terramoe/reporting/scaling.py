"""Scaling curves, as a table in the terminal and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from terramoe.experiments.scaling import ScalingPoint
from terramoe.reporting.console import narrow_table
from terramoe.reporting.figures import new_figure, png_bytes
from terramoe.reporting.palette import expert_colours
from terramoe.reporting.wording import percent_interval

PANELS = {
    "overall accuracy, %": lambda p: 100 * p.overall.value,
    "effective experts": lambda p: p.effective_experts,
    "dead experts": lambda p: p.dead_experts,
    "largest share of an expert": lambda p: p.largest_load,
    "router entropy, nats": lambda p: p.entropy,
    "active parameters": lambda p: p.active,
    "kFLOP a pixel": lambda p: p.flops / 1e3,
    "pixels a second": lambda p: p.pixels_per_second,
    "training, s": lambda p: p.train_seconds,
    "peak memory, MiB": lambda p: p.peak_mib,
}


def draw_scaling(points: Sequence[ScalingPoint]) -> bytes:
    """A panel for each quantity over the number of experts, a line for each number of choices; PNG."""
    figure = new_figure(13, 5.6)
    choices = sorted({p.top_k for p in points})
    for axes, (title, value) in zip(figure.subplots(2, 5).flat, PANELS.items(), strict=True):
        for k, colour in zip(choices, expert_colours(len(choices)), strict=True):
            line = sorted((p for p in points if p.top_k == k), key=lambda p: p.experts)
            experts = [p.experts for p in line]
            if title.startswith("overall"):
                low, high = ([100 * getattr(p.overall, end) for p in line] for end in ("low", "high"))
                axes.fill_between(experts, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(experts, [value(p) for p in line], "o-", color=colour, markersize=4, label=f"top-{k}")
        axes.set_xscale("log", base=2)
        sizes = sorted({p.experts for p in points})
        axes.set_xticks(sizes, [str(s) for s in sizes])
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("experts", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    return png_bytes(figure)


def print_scaling(points: Mapping[str, ScalingPoint], console: Console) -> None:
    """One row a size."""
    table = narrow_table("Scaling: 95 % intervals over blocks; means over seeds")
    for column in ("E", "k", "OA %", "active", "kFLOP/px", "effective", "dead", "px/s", "train s"):
        table.add_column(column, justify="right")
    for p in points.values():
        table.add_row(
            str(p.experts),
            str(p.top_k),
            percent_interval(p.overall),
            f"{p.active:,.0f}",
            f"{p.flops / 1e3:,.1f}",
            f"{p.effective_experts:.2f}",
            f"{p.dead_experts:.1f}",
            f"{p.pixels_per_second:,.0f}",
            f"{p.train_seconds:.0f}",
        )
    console.print(table)
