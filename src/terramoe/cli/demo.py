"""``terramoe demo``: the main job on the scene that is installed."""

from __future__ import annotations

from terramoe.cli.options import parser


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser("demo", "Audit, train and compare MambaMoE and its dense twin on Indian Pines, offline.")
    options.add_argument("-o", "--output", default="demo", help="run folder (default: demo)")
    options.add_argument("--seeds", type=int, default=3, help="runs of each model (default: %(default)s)")
    options.add_argument("--overwrite", action="store_true", help="replace a finished run in that folder")
    chosen = options.parse_args(argv)

    from terramoe.cli.job import run_job
    from terramoe.data import indian_pines
    from terramoe.experiments import demo_plan

    run_job(demo_plan(chosen.seeds), indian_pines(), chosen.output, overwrite=chosen.overwrite)
    return 0
