"""``terramoe reproduce``: run the claim of a system, or of all."""

from __future__ import annotations

from terramoe.cli.options import parser


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser(
        "reproduce",
        "Run a system's smallest honest test: its data, controls and seeds, the paper's own figure beside ours, and a "
        "verdict with its interval. Stopped at any moment, the same command goes on with the next run.",
    )
    options.add_argument("claims", nargs="*", help="a system's name, or that with -real or the like, on benchmark data")
    options.add_argument("--all", action="store_true", help="every claim whose data are there")
    options.add_argument("-o", "--output", default="reproduction", help="folder (default: reproduction)")
    options.add_argument("--json", action="store_true", help="print JSON")
    chosen = options.parse_args(argv)

    import json
    from pathlib import Path

    from rich.console import Console

    from terramoe.cli.progress import LiveProgress
    from terramoe.errors import ConfigError, DataError
    from terramoe.experiments.claims import CLAIMS, RowsClaim, claim_of
    from terramoe.experiments.reproduce import controls_table, plain, reproduce, results_table
    from terramoe.experiments.rows_reproduce import reproduce_rows
    from terramoe.reporting.study_console import print_claim
    from terramoe.storage import write_json, write_text

    names = list(CLAIMS) if chosen.all else chosen.claims
    if not names:
        raise ConfigError("no claim is named", where="reproduce", fix=f"name one of {', '.join(CLAIMS)}, or add --all")
    claims = {name: claim_of(name) for name in names}
    folder, console, found = Path(chosen.output), Console(stderr=chosen.json), {}
    for name, claim in claims.items():
        try:
            with LiveProgress(console) as progress:
                run = reproduce_rows if isinstance(claim, RowsClaim) else reproduce
                reproduction = run(claim, folder / name, progress)
        except DataError as error:
            if not chosen.all:
                raise
            console.print(f"{name} is left out: {error}", highlight=False, markup=False)
            continue
        print_claim(claim, reproduction.results, console)
        found[name] = plain(claim, reproduction)
        write_json(folder / "claims.json", found)
        write_text(folder / "claims.md", f"{results_table(found)}\n\n{controls_table(found)}\n")
    if chosen.json:
        print(json.dumps(found, indent=2))
    else:
        console.print(f"\nTable: {folder / 'claims.md'}", highlight=False, soft_wrap=True)
    return 0
