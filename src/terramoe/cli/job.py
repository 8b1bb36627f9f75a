"""The job behind ``demo`` and ``fit``: run a plan, write its folder, say what came out."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from terramoe.cli.progress import LiveProgress
from terramoe.data import Scene
from terramoe.experiments import Plan, audit, check_plan, run_experiment, write_run
from terramoe.reporting import class_colours, print_audit, print_summary, write_overview, write_report
from terramoe.reporting.wording import next_command
from terramoe.storage import RunFolder


def run_job(plan: Plan, scene: Scene, output: str | Path, *, overwrite: bool) -> None:
    """Run, write and print."""
    console = Console()
    check_plan(plan, scene)
    folder = RunFolder.create(output, overwrite=overwrite)
    console.print(
        f"{scene.name}: {scene.bands} bands, {scene.height} x {scene.width} pixels, {scene.classes} classes, "
        f"{int((scene.labels > 0).sum())} labelled pixels",
        highlight=False,
    )
    audits = audit(plan, scene)
    print_audit(audits, console)
    with LiveProgress(console) as progress:
        experiment = run_experiment(plan, scene, folder, audits, progress)
        progress.stage("maps and report")
        write_report(experiment, folder.report)
        if experiment.alignments:
            write_overview(experiment, folder.overview)
        write_run(experiment, folder, class_colours(scene.classes))
    print_summary(experiment, console)
    for title, text in (
        ("\nReport", folder.report),
        ("Model", folder.path / "model.safetensors"),
        ("Next", next_command(experiment, str(folder.path))),
    ):
        console.print(f"{title}: {text}", highlight=False, soft_wrap=True)
