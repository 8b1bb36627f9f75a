"""What the terminal shows of a study."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from terramoe.evaluation.family import Family
from terramoe.experiments.claims import Claim
from terramoe.experiments.reproduce import Result
from terramoe.experiments.study_summary import StudySummary
from terramoe.reporting.console import narrow_table
from terramoe.reporting.wording import percent, percent_interval


def print_study(summary: StudySummary, console: Console) -> None:
    """Scores, effect sizes, tests, and wins, ties and losses."""
    console.print(_scores(summary))
    for system, family in summary.controls.items():
        console.print(_effects(family, f"{system} against its controls, points of overall accuracy"))
    if summary.systems is not None:
        console.print(_effects(summary.systems, "Systems against each other, points of overall accuracy"))
    for system, t in summary.tallies.items():
        console.print(
            f"[bold]{system}[/bold] against its controls: {t.wins} wins, {t.ties} ties, {t.losses} losses, "
            f"{t.unknown} that cannot be told.",
            highlight=False,
        )


def _scores(summary: StudySummary) -> Table:
    table = narrow_table("Test pixels: 95 % intervals over blocks, mean ± sd over seeds")
    for column in ("model", "OA %", "seeds", "AA %", "ECE", "active", "kFLOP/px"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for label, s in summary.scores.items():
        seeds = f"{percent(sum(s.per_seed) / len(s.per_seed))} ± {percent(s.spread)}"
        row = (percent_interval(s.overall), seeds, percent_interval(s.average), f"{s.ece:.3f}")
        table.add_row(label, *row, f"{s.active:,.0f}", f"{s.flops / 1e3:,.1f}")
    return table


def _effects(family: Family, title: str) -> Table:
    table = narrow_table(title)
    for column in ("A", "B", "A - B", "P(A better)", "P(equal)", "p (Holm)", "verdict"):
        table.add_column(column, justify="left" if column in "AB" else "right")
    for (a, b), c in family.comparisons.items():
        table.add_row(
            a,
            b,
            f"{c.overall.value:+.1f} [{c.overall.low:+.1f}, {c.overall.high:+.1f}]",
            f"{c.above:.2f}",
            f"{c.inside:.2f}",
            f"{family.p_holm[a, b]:.3f}",
            c.verdict,
        )
    return table


def print_claim(claim: Claim, results: Sequence[Result], console: Console) -> None:
    """The verdicts on a system's claim."""
    table = narrow_table(f"{claim.system}. {claim.about}")
    for column in ("statement", "found, 95 %", "seeds", "reported", "verdict"):
        table.add_column(column, justify="left")
    for r in results:
        digits, unit = (1, "points") if r.unit == "points" else (3, r.unit.replace("_", " "))
        value = f"{r.found.value:+.{digits}f} [{r.found.low:+.{digits}f}, {r.found.high:+.{digits}f}] {unit}"
        table.add_row(r.statement, value, str(r.seeds), r.reported or "–", r.outcome)
    console.print(table)
