"""The figure of a shift report, as PNG bytes: accuracy against severity."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from terramoe.experiments.perturb import KINDS
from terramoe.experiments.shift import NONE, ShiftRow
from terramoe.reporting.figures import GREY, INK, new_figure, png_bytes
from terramoe.reporting.palette import expert_colours

COLUMNS = 4


def shift_curves(rows: Sequence[ShiftRow]) -> bytes:
    """A panel a kind, since each has its own unit: accuracy with its band of 95 %, dashed what the same pixels score
    unchanged."""
    unchanged = next(row for row in rows if row.kind == NONE)
    kinds = {kind: list(found) for kind, found in groupby(rows, lambda row: row.kind) if kind != NONE}
    lines = -(-max(len(kinds), 1) // COLUMNS)
    figure = new_figure(2.9 * min(max(len(kinds), 1), COLUMNS), 2.6 * lines)
    panels = figure.subplots(lines, min(max(len(kinds), 1), COLUMNS), sharey=True, squeeze=False).ravel()
    for axes in panels[len(kinds) :]:
        axes.set_visible(False)
    for axes, (kind, found), colour in zip(panels, kinds.items(), expert_colours(len(kinds)), strict=False):
        severity = [0.0, *(row.severity for row in found)]
        bands = [unchanged.overall, *(row.overall for row in found)]
        value, low, high = np.array([(b.value, b.low, b.high) for b in bands]).T * 100
        same = value + np.array([0.0, *(row.drop.value for row in found)])
        axes.plot(severity, same, color=GREY, linestyle="--", linewidth=1)
        axes.fill_between(severity, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(severity, value, "o-", color=colour, markersize=3)
        axes.set_title(kind.replace(":", " missing: "), fontsize=9, color=INK)
        axes.set_xlabel(KINDS[kind.partition(":")[0]][0].replace(", ", ",\n"), fontsize=7)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("overall accuracy %", fontsize=8)
    return png_bytes(figure)
