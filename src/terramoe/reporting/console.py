"""What the terminal shows."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from terramoe.data import SplitAudit
from terramoe.experiments import Experiment
from terramoe.reporting.wording import above_baselines, cost_row, mean_and_spread, percent, percent_interval, verdict


def print_audit(audits: Sequence[SplitAudit], console: Console) -> None:
    """The audit, a row a split."""
    table = narrow_table("Audit of the split: first fold of each kind, shares and accuracies in %")
    for column in ("split", "train", "test", "shared", "overlap", "field", "majority", "coordinates", "logistic"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for a in audits:
        counts = (str(a.train), str(a.test), str(a.shared_pixels))
        shares = (a.patch_overlap, a.same_field_share, a.majority, a.coordinates, a.logistic)
        table.add_row(a.name, *counts, *(percent(value) for value in shares))
    console.print(table)
    leak = next((a for a in audits if a.name == "random"), None)
    if leak is not None:
        console.print(
            f"Under a random split the coordinates alone score {percent(leak.coordinates)} %: "
            "such a score says nothing about new places.",
            style="dim",
        )


def print_summary(experiment: Experiment, console: Console) -> None:
    """Scores, cost and verdict."""
    table = narrow_table("Test pixels: 95 % intervals over blocks, mean ± sd over seeds")
    for column in ("model", "OA %", "seeds", "AA %", "ECE", "active"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for name, scores in experiment.scores.items():
        table.add_row(
            name,
            percent_interval(scores.overall),
            mean_and_spread(scores),
            percent_interval(scores.average),
            f"{scores.reliability.ece:.3f}",
            cost_row(experiment, name)["active"],
        )
    console.print(table)
    console.print(f"[bold]{verdict(experiment)}[/bold]", highlight=False)
    console.print(above_baselines(experiment), highlight=False)


def narrow_table(title: str) -> Table:
    """A table that fits 80 columns."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
