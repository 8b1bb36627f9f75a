"""The job behind ``compare`` and ``scale``: run a study, write its folder, say what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console

from terramoe.cli.progress import LiveProgress
from terramoe.data import Scene
from terramoe.experiments import Plan
from terramoe.experiments.study import Variant, run_study
from terramoe.experiments.study_summary import StudySummary, summarise_study
from terramoe.reporting.study_console import print_study
from terramoe.reporting.study_report import write_study_report
from terramoe.storage import write_json, write_text


def run_study_job(
    plan: Plan,
    variants: Sequence[Variant],
    scene: Scene,
    output: str | Path,
    *,
    rope: float,
    as_json: bool,
    every_fold: bool,
) -> StudySummary:
    """Run, write and print; with ``as_json`` only JSON goes to standard output."""
    folder = Path(output)
    console = Console(stderr=as_json)
    with LiveProgress(console) as progress:
        records = run_study(plan, variants, scene, folder, progress, every_fold=every_fold)
        summary = summarise_study(records, rope=rope)
    write_text(folder / "config.yaml", yaml.safe_dump(plan.plain(), sort_keys=False))
    write_json(folder / "comparison.json", summary.plain())
    write_study_report(summary, plan, scene, folder)
    if as_json:
        print(json.dumps(summary.plain(), indent=2))
    else:
        print_study(summary, console)
        for title, name in (("\nReport", "report.html"), ("Runs", "results.csv")):
            console.print(f"{title}: {folder / name}", highlight=False, soft_wrap=True)
    return summary
