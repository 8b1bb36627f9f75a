"""The audit of splits side by side: as a table in the terminal, and as one HTML page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table

from terramoe._version import __version__
from terramoe.data import SplitAudit, TableAudit
from terramoe.storage import write_text

Audits = Sequence[SplitAudit] | Sequence[TableAudit]


def audit_columns(audits: Audits) -> tuple[list[str], list[list[str]]]:
    """Header and a row of cells for each split; shares and accuracies in %."""
    rows = []
    for a in audits:
        near = (
            {"patch": _percent(a.patch_overlap), "field": _percent(a.same_field_share)}
            if isinstance(a, SplitAudit)
            else {"same place": str(a.shared_places)}
        )
        rows.append(
            {
                "split": a.name,
                "train": str(a.train),
                "guard": str(a.guard),
                "test": str(a.test),
                **near,
                "outside": _percent(a.extrapolation),
                "median": _length(a.test_distances[2]),
                "W": _length(a.wasserstein),
                "place": _percent(a.coordinates),
                "features": _percent(a.logistic),
                "leaks": "yes" if a.leaks else "no",
            }
        )
    return list(rows[0]), [list(row.values()) for row in rows]


def legend(audits: Audits, unit: str) -> str:
    """What the columns mean, and what holds for all rows."""
    first = audits[0]
    near = (
        f"Shares of test pixels in %: patch, with a training pixel within {first.radius} pixels; field, whose own "
        "field trains; outside, beyond"
        if isinstance(first, SplitAudit)
        else "same place: test points at the place of a training point; outside: % of test points beyond"
    )
    return (
        f"{near} the training range of the features. median: distance to the nearest training point, in {unit}; "
        f"W: between all those distances and those of the deployment area to the sample (median "
        f"{_length(first.deployment_distances[2])}, 95 % within {_length(first.deployment_distances[4])} {unit}). "
        "Accuracies in %: place, of the nearest training point's class; features, of logistic regression. "
        f"The labels are autocorrelated up to about {_length(first.label_range)} {unit}."
    )


def print_splits(audits: Audits, chosen: str, unit: str, console: Console) -> None:
    """Table, legend, and the sentences of each split, the chosen one first."""
    table = Table(title=f"Audit of the split; chosen: {chosen}", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    header, rows = audit_columns(audits)
    for name in header:
        table.add_column(name, justify="left" if name == "split" else "right")
    for a, row in zip(audits, rows, strict=True):
        colour = "red" if a.leaks else "green"
        table.add_row(*row[:-1], f"[{colour}]{row[-1]}[/{colour}]", style="bold" if a.name == chosen else "")
    console.print(table)
    console.print(legend(audits, unit), style="dim", highlight=False)
    for a in sorted(audits, key=lambda a: a.name != chosen):
        console.print(f"\n[bold]{a.name}[/bold]: {verdict(a)}", highlight=False)
        for sentence in a.leak_flags:
            console.print("  leak:", sentence, highlight=False, markup=False)
        for sentence in a.warnings:
            console.print("  note:", sentence, highlight=False, markup=False)


def verdict(audit: SplitAudit | TableAudit) -> str:
    """In a word."""
    return "this split leaks" if audit.leaks else "no leak found"


def write_split_page(
    path: str | Path, title: str, audits: Audits, chosen: str, unit: str, figures: Mapping[str, bytes]
) -> None:
    """Write one HTML file that needs neither network nor scripts; figures are PNG by name."""
    environment = Environment(
        loader=PackageLoader("terramoe", "reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    header, rows = audit_columns(audits)
    text = environment.get_template("audit.html.jinja").render(
        title=title,
        chosen=chosen,
        header=header,
        rows=rows,
        legend=legend(audits, unit),
        audits=sorted(audits, key=lambda a: a.name != chosen),
        verdict=verdict,
        figures={name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in figures.items()},
        version=__version__,
    )
    write_text(path, text)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _length(value: float) -> str:
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"
