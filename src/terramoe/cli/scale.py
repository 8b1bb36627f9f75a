"""``terramoe scale``: quality and cost of a system over the number of experts and of choices."""

from __future__ import annotations

from terramoe.cli.options import add_data, numbers, parser, plan_of, read_data, with_split_kind


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    from terramoe.experiments import Plan

    options = parser(
        "scale",
        "Train a system with every number of experts and choices, and draw accuracy beside load, entropy, effective "
        "and dead experts, throughput, memory and time. Stopped at any moment, the same command goes on.",
    )
    options.add_argument("system", help="a name, see 'terramoe systems'")
    add_data(options)
    options.add_argument("--experts", default="1,2,4,8", help="numbers of experts (default: %(default)s)")
    options.add_argument("--top-k", default="1,2", help="numbers of choices (default: %(default)s)")
    options.add_argument("-o", "--output", default="scaling", help="folder (default: scaling)")
    options.add_argument("--json", action="store_true", help="print JSON")
    options.add_argument("--config", action="config", help="settings from a config.yaml of another run")
    options.add_class_arguments(Plan, skip={"system", "twin"})
    chosen = options.parse_args(with_split_kind(argv))
    plan, scene = plan_of(options, chosen), read_data(chosen)

    import json
    from dataclasses import asdict
    from pathlib import Path

    from rich.console import Console

    from terramoe.cli.progress import LiveProgress
    from terramoe.experiments.scaling import scaling_csv, scaling_points, scaling_variants
    from terramoe.experiments.study import run_study
    from terramoe.experiments.study_summary import summarise_study
    from terramoe.reporting.scaling import draw_scaling, print_scaling
    from terramoe.storage import write_bytes, write_text

    variants = scaling_variants(
        plan, chosen.system, scene, numbers(chosen.experts, "--experts"), numbers(chosen.top_k, "--top-k")
    )
    folder, console = Path(chosen.output), Console(stderr=chosen.json)
    with LiveProgress(console) as progress:
        records = run_study(plan, variants, scene, folder, progress)
    points = scaling_points(records, summarise_study(records).scores, scene.height * scene.width)
    write_text(folder / "scaling.csv", scaling_csv(list(points.values())))
    write_bytes(folder / "scaling.png", draw_scaling(list(points.values())))
    if chosen.json:
        print(json.dumps({label: asdict(point) for label, point in points.items()}, indent=2))
    else:
        print_scaling(points, console)
        console.print(f"\nCurves: {folder / 'scaling.png'}", highlight=False, soft_wrap=True)
    return 0
