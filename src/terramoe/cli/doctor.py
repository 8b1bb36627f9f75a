"""``terramoe doctor``: does this installation work?"""

from __future__ import annotations

from terramoe.cli.options import parser


def run(argv: list[str]) -> int:
    """Run the verb; returns 0 if every check passed, else 1."""
    options = parser("doctor", "Check this installation: versions, devices, formats, and a small routed layer.")
    options.add_argument("--json", action="store_true", help="print JSON")
    chosen = options.parse_args(argv)

    import json

    from rich.console import Console
    from rich.table import Table

    from terramoe.checks import examine_installation

    findings = examine_installation()
    healthy = all(f.ok for f in findings)
    if chosen.json:
        print(json.dumps({"healthy": healthy, "checks": [vars(f) for f in findings]}, indent=2))
        return 0 if healthy else 1
    table = Table()
    for column in ("check", "", "found"):
        table.add_column(column)
    for f in findings:
        table.add_row(f.name, "[green]ok[/green]" if f.ok else "[red]FAILS[/red]", f.found)
    console = Console()
    console.print(table)
    console.print(
        "All is well. Next: terramoe demo" if healthy else "Mend what fails: pip install --force-reinstall terramoe"
    )
    return 0 if healthy else 1
