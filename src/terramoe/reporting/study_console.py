"""What the terminal shows of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from terramoe.evaluation.family import Family
from terramoe.experiments.claims import Claim, RowsClaim
from terramoe.experiments.reproduce import Result
from terramoe.experiments.study_summary import StudySummary
from terramoe.reporting.console import narrow_table
from terramoe.reporting.wording import percent, percent_interval


def print_study(summary: StudySummary, console: Console) -> None:
    """Scores, effect sizes, tests, and wins, ties and losses."""
    console.print(_scores(summary))
    for system, family in summary.controls.items():
        shown = {b.removeprefix(f"{system}, "): pair for pair in family.comparisons for b in pair[1:]}
        console.print(_effects(family, f"{system} against its controls, points of overall accuracy", shown))
    if summary.systems is not None:
        shown = {" - ".join(pair): pair for pair in summary.systems.comparisons}
        console.print(_effects(summary.systems, "Systems against each other, points of overall accuracy", shown))
    for system, t in summary.tallies.items():
        console.print(
            f"[bold]{system}[/bold] against its controls: {t.wins} wins, {t.ties} ties, {t.losses} losses, "
            f"{t.unknown} that cannot be told.",
            highlight=False,
        )


def _scores(summary: StudySummary) -> Table:
    table = narrow_table("Test pixels: 95 % intervals over blocks, mean ± sd over seeds")
    for column in ("model", "OA %", "seeds", "ECE", "active", "kFLOP/px"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for label, s in summary.scores.items():
        seeds = f"{percent(sum(s.per_seed) / len(s.per_seed))} ± {percent(s.spread)}"
        cost = (f"{s.active:,.0f}", f"{s.flops / 1e3:,.1f}")
        table.add_row(label, percent_interval(s.overall), seeds, f"{s.ece:.3f}", *cost)
    return table


def _effects(family: Family, title: str, shown: Mapping[str, tuple[str, str]]) -> Table:
    """A row for each comparison, under the names of ``shown``."""
    table = narrow_table(title)
    for column in ("against", "difference", "P(better)", "P(equal)", "p (Holm)", "verdict"):
        table.add_column(column, justify="left" if column == "against" else "right", no_wrap=True)
    for name, pair in shown.items():
        c = family.comparisons[pair]
        table.add_row(
            name,
            f"{c.overall.value:+.1f} [{c.overall.low:+.1f}, {c.overall.high:+.1f}]",
            f"{c.above:.2f}",
            f"{c.inside:.2f}",
            f"{family.p_holm[pair]:.3f}",
            c.verdict,
        )
    return table


def print_claim(claim: Claim | RowsClaim, results: Sequence[Result], console: Console) -> None:
    """The verdicts on a system's claim."""
    console.print(f"[bold]{claim.system}[/bold]: {claim.about}", highlight=False)
    for r in results:
        digits = 1 if r.unit == "points" or r.unit.startswith("%") else 3
        unit = r.unit.replace("_", " ")
        value = f"{r.found.value:+.{digits}f} [{r.found.low:+.{digits}f}, {r.found.high:+.{digits}f}] {unit}"
        reported = f"; the paper: {r.reported}" if r.reported else ""
        console.print(f"  [bold]{r.outcome}[/bold]: {r.statement}: {value}, {r.seeds} seeds{reported}", highlight=False)
