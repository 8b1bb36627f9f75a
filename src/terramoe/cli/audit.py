"""``terramoe audit``: what a split gives away, before anything is trained on it."""

from __future__ import annotations

from terramoe.cli.options import add_scene, parser, with_split_kind


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    from terramoe.experiments import SplitSettings

    options = parser(
        "audit",
        "Audit the split of a labelled scene, or of a table of points (.csv, .tsv, .parquet with --x, --y, --label): "
        "how near test and training lie, beside where the model will be used, and how well the place alone answers.",
    )
    add_scene(options)
    options.add_class_arguments(SplitSettings, "split", skip={"groups", "official"})
    options.add_argument("--groups", help="raster of groups (region, season, sensor) from 1; of a table, the column")
    options.add_argument("--official", help="raster of a prescribed split: 1 train, 2 guard, 3 test")
    options.add_argument(
        "--area",
        default="valid",
        help="where the model will be used: 'valid' or 'unlabelled' pixels, a raster that is above 0 there, or, of a "
        "table, another table with the same coordinates (default: %(default)s; of a table its convex hull)",
    )
    options.add_argument("--fold", type=int, default=0, help="which fold to audit (default: %(default)s)")
    options.add_argument("--radius", type=int, help="patch radius of the model, in pixels (default: --split.guard)")
    options.add_argument(
        "-o", "--output", help="folder for split.tif, split.png, distances.png, audit.json, audit.html"
    )
    options.add_argument("--json", action="store_true", help="print JSON")
    table = options.add_argument_group("tables of points")
    table.add_argument("--x", help="column of x or longitude")
    table.add_argument("--y", help="column of y or latitude")
    table.add_argument("--label", help="column of the class")
    table.add_argument("--features", help="columns of numbers, separated by commas")
    table.add_argument("--time", help="column of the time: numbers or ISO dates")
    table.add_argument("--degrees", type=bool, help="x and y are degrees (default: if the columns are called lon, lat)")
    table.add_argument(
        "--block", type=float, help="side of a block, in metres for degrees (default: the autocorrelation range)"
    )
    table.add_argument("--guard", type=float, help="distance without training, in metres for degrees (default: none)")
    table.add_argument("--time-guard", type=float, help="time without training, in days for dates (default: none)")
    chosen = options.parse_args(with_split_kind(argv))
    settings = options.instantiate(chosen).split

    import json

    from rich.console import Console

    from terramoe.cli.audit_job import audit_image, audit_points, write_audit
    from terramoe.data.point_table import is_table
    from terramoe.reporting.split_page import print_splits

    found = (audit_points if is_table(chosen.image) else audit_image)(chosen, settings)
    if chosen.json:
        print(json.dumps(found.plain(), indent=2))
    else:
        print_splits(found.audits, found.kind, found.unit, Console())
        for kind, reason in found.skipped.items():
            print(f"no {kind} split: {reason}")
        print(", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in found.facts.items()))
    if chosen.output:
        for path in write_audit(found, chosen.output):
            if not chosen.json:
                print(path)
    return 0
