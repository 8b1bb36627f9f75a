"""``terramoe fit``: train a system on the user's own data; what kind of data, the system says."""

from __future__ import annotations

from terramoe.cli.options import add_scene, parser, plan_of, read_scene, with_split_kind
from terramoe.cli.system_kind import kind_in


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    kind = kind_in(argv)
    if kind == "rows":
        from terramoe.cli import rows_job

        return rows_job.fit(argv)
    if kind == "surfaces":
        from terramoe.cli import surface_job

        return surface_job.fit(argv)
    from terramoe.experiments import Plan

    options = parser(
        "fit",
        "Train a system on one labelled scene, score it on spatially separate pixels, and write a run folder. (With "
        "--system NAME of a system that works on rows or surfaces, see 'terramoe systems', --help tells its options.) "
        "Killed at any moment, the same command goes on from the last saved step.",
    )
    options.add_argument("--config", action="config", help="settings from a config.yaml of another run")
    add_scene(options)
    options.add_argument("-o", "--output", default="run", help="run folder (default: run)")
    options.add_argument("--overwrite", action="store_true", help="replace a finished run in that folder")
    options.add_class_arguments(Plan)
    chosen = options.parse_args(with_split_kind(argv))
    plan = plan_of(options, chosen)

    from terramoe.cli.job import run_job

    run_job(plan, read_scene(chosen), chosen.output, overwrite=chosen.overwrite)
    return 0
