"""The report of a study: one HTML file that needs neither network nor scripts."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from terramoe._version import __version__
from terramoe.data import Scene
from terramoe.evaluation.family import Family
from terramoe.experiments import Plan
from terramoe.experiments.study_summary import StudySummary
from terramoe.reporting import compare_figures
from terramoe.reporting.wording import percent, percent_interval
from terramoe.storage import write_text


def write_study_report(summary: StudySummary, plan: Plan, scene: Scene, folder: Path) -> None:
    """Draw the figures and write them and ``report.html``, which holds them too, into a folder."""
    environment = Environment(
        loader=PackageLoader("terramoe", "reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": percent, "interval": percent_interval}
    families = dict(summary.controls)
    if summary.systems is not None:
        families["systems"] = summary.systems
    text = environment.get_template("study.html.jinja").render(
        title=", ".join(summary.controls) or next(iter(summary.scores)),
        summary=summary,
        families=families,
        measures=list(dict.fromkeys(name for s in summary.scores.values() for name in s.measures)),
        plan=plan,
        scene=scene,
        version=__version__,
        figures=_figures(summary, families, folder),
        config=yaml.safe_dump(plan.plain(), sort_keys=False),
    )
    write_text(folder / "report.html", text)


def _figures(summary: StudySummary, families: Mapping[str, Family], folder: Path) -> dict[str, str]:
    """Data addresses by name of the figures, which are drawn into the folder."""
    found = {}
    differences = {f"{a}\n− {b}": c.overall for family in families.values() for (a, b), c in family.comparisons.items()}
    if differences:
        compare_figures.forest(folder / "forest.png", differences, summary.rope)
        found["forest"] = folder / "forest.png"
    accuracy = {label: s.overall for label, s in summary.scores.items()}
    flops = {label: s.flops for label, s in summary.scores.items()}
    compare_figures.quality_against_cost(folder / "quality.png", accuracy, flops)
    found["quality against cost"] = folder / "quality.png"
    ranks = summary.ranks
    if ranks is not None:
        compare_figures.critical_difference(folder / "ranks.png", ranks)
        found["average ranks over blocks"] = folder / "ranks.png"
    return {name: "data:image/png;base64," + base64.b64encode(p.read_bytes()).decode() for name, p in found.items()}
