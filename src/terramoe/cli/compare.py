"""``terramoe compare``: systems against their controls and against each other, on the same folds and seeds."""

from __future__ import annotations

from terramoe.cli.options import add_data, parser, plan_of, read_data, with_split_kind


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    from terramoe.experiments import Plan
    from terramoe.systems import CONTROLS

    options = parser(
        "compare",
        "Train systems and their controls on the same folds with the same seeds, and say where routing helps: effect "
        "sizes with intervals, the probability of a practical difference, corrected tests. Stopped at any moment, the "
        "same command goes on with the next run.",
    )
    options.add_argument("systems", nargs="+", help="names, see 'terramoe systems'")
    add_data(options)
    options.add_argument("-o", "--output", default="comparison", help="folder (default: comparison)")
    options.add_argument(
        "--controls", default=",".join(CONTROLS), help="which controls, separated by commas (default: %(default)s)"
    )
    options.add_argument("--ensemble", type=int, default=0, help="also this many dense twins, averaged (default: none)")
    options.add_argument(
        "--every-fold", action="store_true", help="every seed tests every fold: more work, and the sharpest comparison"
    )
    options.add_argument(
        "--rope", type=float, default=0.5, help="points that make no difference (default: %(default)s)"
    )
    options.add_argument("--json", action="store_true", help="print JSON")
    options.add_argument("--config", action="config", help="settings from a config.yaml of another run")
    options.add_class_arguments(Plan, skip={"system", "twin"})
    chosen = options.parse_args(with_split_kind(argv))
    plan = plan_of(options, chosen)

    from terramoe.cli.study_job import run_study_job
    from terramoe.experiments.study import with_controls

    controls = [name for name in chosen.controls.split(",") if name]
    variants = [v for name in chosen.systems for v in with_controls(name, controls, chosen.ensemble)]
    run_study_job(
        plan,
        variants,
        read_data(chosen),
        chosen.output,
        rope=chosen.rope,
        as_json=chosen.json,
        every_fold=chosen.every_fold,
    )
    return 0
