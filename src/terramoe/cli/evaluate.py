"""``terramoe evaluate``: score a trained model on a labelled scene."""

from __future__ import annotations

from terramoe.cli.options import add_scene, parser, read_scene
from terramoe.cli.system_kind import kind_of_model


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    kind = kind_of_model(argv)
    if kind == "rows":
        from terramoe.cli import rows_job

        return rows_job.evaluate(argv)
    if kind == "surfaces":
        from terramoe.cli import surface_job

        return surface_job.evaluate(argv)
    options = parser(
        "evaluate",
        "Score a model on a labelled scene. On the scene it was trained on, only its test pixels count and its "
        "training pixels are hidden; on any other scene all labelled pixels count.",
    )
    options.add_argument("model", help="run folder, or its model.safetensors")
    add_scene(options)
    options.add_argument("--json", action="store_true", help="print JSON")
    chosen = options.parse_args(argv)

    import json

    from rich.console import Console
    from rich.table import Table

    from terramoe.experiments import evaluate_model
    from terramoe.reporting.wording import percent_interval

    found = evaluate_model(chosen.model, read_scene(chosen))
    if chosen.json:
        print(json.dumps(found.plain(), indent=2))
        return 0
    console = Console()
    table = Table(title=f"{found.pixels} test pixels ({found.which})", title_justify="left")
    table.add_column("score")
    table.add_column("value [95 % over blocks]", justify="right")
    table.add_row("overall accuracy %", percent_interval(found.scores.overall))
    table.add_row("average accuracy %", percent_interval(found.scores.average))
    table.add_row("kappa %", percent_interval(found.scores.kappa))
    table.add_row("calibration error", f"{found.scores.reliability.ece:.3f}")
    for name, recall in zip(found.class_names, found.scores.recall, strict=True):
        table.add_row(f"recall % of {name}", percent_interval(recall))
    console.print(table)
    return 0
