"""The report of a run on a table: one HTML file that needs neither network nor scripts, and a summary for terminals."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console

from terramoe._version import __version__
from terramoe.data.row_table import RowTable
from terramoe.evaluation import Comparison, Interval
from terramoe.evaluation.row_scores import ValueComparison
from terramoe.experiments.row_split import kind_of
from terramoe.experiments.row_study import RowStudy
from terramoe.inference.row_predictor import RowPrediction
from terramoe.reporting import row_figures
from terramoe.reporting.console import narrow_table
from terramoe.reporting.wording import percent_interval
from terramoe.storage import write_bytes, write_text
from terramoe.systems import ROUTED

MOST_SHOWN = 6  # targets in the terminal; the report has all


def sentence(study: RowStudy, control: str) -> str:
    """A comparison for people."""
    found = study.comparisons[control]
    if isinstance(found, Comparison):
        return found.sentence
    one = (
        " One seed: this holds for these two trained models, not for new trainings." if len(found.per_seed) == 1 else ""
    )
    return value_sentence(found, study.plan.system, control) + one


def value_sentence(found: ValueComparison, system: str, control: str) -> str:
    """A comparison of errors for people."""
    d = found.difference
    ends = {
        "better": f"{system} errs less than {control} by more than {found.rope:g} %.",
        "worse": f"{system} errs more than {control} by more than {found.rope:g} %.",
        "tie": f"{system} and {control} are equal for practical purposes (within {found.rope:g} %).",
        "cannot tell": f"too uncertain to call {system} better, equal or worse than {control}.",
    }
    numbers = f"{d.value:+.1f} % of the root mean squared error [{d.low:+.1f}, {d.high:+.1f}]"
    return f"{found.verdict.capitalize()}: {numbers}; {ends[found.verdict]}"


def print_rows(study: RowStudy, console: Console) -> None:
    """Scores and comparisons."""
    kind = kind_of(study.plan.split, study.table)
    title = f"{len(study.table)} rows, split by {kind}"
    labels = {name: study.plan.system if name == ROUTED else name for name in study.scores}
    if study.table.class_names:
        table = narrow_table(title)
        for column in ("model", f"{study.table.target_names[0]}, % right [95 %]", "fit, s"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for name, found in study.scores.items():
            table.add_row(labels[name], percent_interval(found.accuracy), f"{found.seconds:.1f}")
        console.print(table)
        title = ""
    if any(found.values for found in study.scores.values()):
        table = narrow_table(title)
        for column in ("model", "target", "RMSE [95 %]", "bias", "R²", "in 90 %"):
            table.add_column(column, justify="left" if column in ("model", "target") else "right")
        for name, found in study.scores.items():
            shown = list(found.values.items())
            for target, s in shown[:MOST_SHOWN]:
                error = f"{s.rmse.value:.3g} [{s.rmse.low:.3g}, {s.rmse.high:.3g}]"
                table.add_row(labels[name], target, error, f"{s.bias:+.2g}", f"{s.r2:.3f}", f"{s.coverage:.2f}")
            if len(shown) > MOST_SHOWN:
                table.add_row(labels[name], f"... {len(shown) - MOST_SHOWN} more", "", "", "", "")
        console.print(table)
    for control in study.comparisons:
        console.print(sentence(study, control), highlight=False)


def write_row_report(study: RowStudy, everywhere: RowPrediction, folder: Path) -> None:
    """Write ``report.html``, and ``experts-LAYER.png`` where the rows have places.

    Args:
        everywhere: the model's prediction of all rows of the study's table.
    """
    environment = Environment(
        loader=PackageLoader("terramoe", "reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["interval"] = percent_interval
    figures = _maps(study, everywhere, folder) | _errors(study)
    text = environment.get_template("rows.html.jinja").render(
        study=study,
        kind=kind_of(study.plan.split, study.table),
        sentences=[sentence(study, control) for control in study.comparisons],
        loads=_loads(study, everywhere),
        differences={
            n: c.difference if isinstance(c, ValueComparison) else c.overall for n, c in study.comparisons.items()
        },
        figures={name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in figures.items()},
        config=yaml.safe_dump(study.plan.plain(), sort_keys=False),
        version=__version__,
    )
    write_text(folder / "report.html", text)


def _difference(found: ValueComparison | Comparison) -> Interval:
    return found.difference if isinstance(found, ValueComparison) else found.overall


def _axes(table: RowTable) -> str:
    return "longitude, latitude" if table.degrees else "x, y"


def _maps(study: RowStudy, everywhere: RowPrediction, folder: Path) -> dict[str, bytes]:
    found = {}
    if study.table.places is None:
        return found
    for layer, values in everywhere.experts.items():
        names = study.predictor.system.expert_names(layer)
        png = row_figures.expert_map(study.table.places, values[:, 0], values[:, 1], names, _axes(study.table))
        write_bytes(folder / f"experts-{layer}.png", png)
        found[f"Map of experts, {layer}"] = png
    return found


def _errors(study: RowStudy) -> dict[str, bytes]:
    test, found = study.table.at(study.fold.test), {}
    start = 1 if study.table.class_names else 0
    for number in range(start, min(len(study.table.target_names), start + 4)):
        name = study.table.target_names[number]
        columns = (test.targets[:, number], study.prediction.values[:, number], study.prediction.std[:, number])
        found[f"Test rows of the first seed: {name}"] = row_figures.truth_against_prediction(*columns, name)
    return found


def _loads(study: RowStudy, everywhere: RowPrediction) -> dict[str, list[tuple[str, float]]]:
    """Share of the rows in which an expert is the most used, by layer."""
    found = {}
    for layer, values in everywhere.experts.items():
        names = study.predictor.system.expert_names(layer)
        top = values[values[:, 0] >= 0, 0].astype(int)
        shares = np.bincount(top, minlength=len(names)) / max(len(top), 1)
        found[layer] = list(zip(names, shares.tolist(), strict=True))
    return found
