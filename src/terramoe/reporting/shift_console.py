"""What the terminal shows of a shift report."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from terramoe.experiments.shift import NONE, ShiftRow
from terramoe.reporting.console import narrow_table
from terramoe.reporting.wording import percent


def print_shift(rows: Sequence[ShiftRow], which: str, console: Console) -> None:
    """A line a kind and severity, and the worst of all in words."""
    console.print(f"Scored: {which}.", highlight=False)
    table = narrow_table("Lost: points against the same pixels unchanged, paired over blocks, 95 %")
    for column in ("shift", "by", "pixels", "OA %", "lost", "ECE", "load", "moved"):
        table.add_column(column, justify="left" if column == "shift" else "right", no_wrap=True)
    last = None
    for row in rows:
        plain, drop = row.plain(), row.drop
        routed = plain["load_change"] is not None
        table.add_row(
            "" if row.kind == last else row.kind,
            f"{row.severity:g}",
            str(row.pixels),
            percent(row.overall.value),
            "" if row.kind == NONE else f"{drop.value:+.1f} [{drop.low:+.1f}, {drop.high:+.1f}]",
            f"{row.ece:.3f}",
            f"{plain['load_change']:.3f}" if routed else "–",
            percent(plain["moved"]) if plain["moved"] is not None else "–",
        )
        last = row.kind
    console.print(table)
    worst = max(rows, key=lambda row: row.drop.value)
    if worst.kind != NONE:
        console.print(
            f"Most is lost under {worst.kind} at {worst.severity:g}: {worst.drop.value:.1f} points of overall accuracy "
            f"[{worst.drop.low:.1f}, {worst.drop.high:.1f}].",
            highlight=False,
        )
