"""What the terminal shows."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from terramoe.data import SplitAudit
from terramoe.experiments import Experiment
from terramoe.reporting.wording import above_baselines, cost_row, percent, percent_interval, verdict


def print_audit(audits: Sequence[SplitAudit], console: Console) -> None:
    """The audit, a row a split."""
    table = Table(title="Audit of the split (first fold of each kind; accuracies in %)", title_justify="left")
    for column in (
        "split",
        "train",
        "test",
        "shared",
        "overlap %",
        "same field %",
        "majority",
        "coordinates",
        "logistic",
    ):
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
            "no score on it means anything.",
            style="dim",
        )


def print_summary(experiment: Experiment, console: Console) -> None:
    """Scores, cost and verdict."""
    table = Table(title="Test pixels (95 % intervals over blocks; mean ± sd over seeds)", title_justify="left")
    for column in ("model", "OA %", "seeds", "AA %", "ECE", "active parameters", "train s"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=column.endswith("A %"))
    for name, scores in experiment.scores.items():
        mean, spread = scores.mean_and_spread
        cost = cost_row(experiment, name)
        table.add_row(
            name,
            percent_interval(scores.overall),
            f"{percent(mean)} ± {percent(spread)}",
            percent_interval(scores.average),
            f"{scores.reliability.ece:.3f}",
            cost["active"],
            cost["train"],
        )
    console.print(table)
    console.print(f"[bold]{verdict(experiment)}[/bold]", highlight=False)
    console.print(above_baselines(experiment), highlight=False)
