"""``terramoe systems``: the published systems and their cards."""

from __future__ import annotations

from terramoe.cli.options import parser


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser("systems", "List the published systems, or show the card and the settings of one.")
    options.add_argument("name", nargs="?", help="a system")
    options.add_argument("--json", action="store_true", help="print JSON")
    chosen = options.parse_args(argv)

    import json
    from dataclasses import asdict

    from rich.console import Console

    from terramoe.reporting.console import narrow_table
    from terramoe.systems.catalogue import card_of, catalogue, kind_of_system, settings_of

    names = list(catalogue()) if chosen.name is None else [chosen.name]
    cards = {name: card_of(name) for name in names}
    if chosen.json:
        print(
            json.dumps({name: {**asdict(c), "reconstruction": c.reconstruction} for name, c in cards.items()}, indent=2)
        )
        return 0
    console = Console()
    if chosen.name is None:
        table = narrow_table("")
        table.add_column("name", no_wrap=True)
        for column in ("works on", "year", "task", "paper"):
            table.add_column(column)
        for name, c in cards.items():
            table.add_row(name, kind_of_system(name), str(c.year), c.task, c.title)
        console.print(table)
        return 0
    c = cards[chosen.name]
    console.print(
        f"[bold]{c.name}[/bold]: {c.title}\n{c.authors}, {c.year}; arXiv {c.arxiv or '–'}, doi {c.doi or '–'}"
    )
    console.print(f"Works on {kind_of_system(chosen.name)}. Sources read: {', '.join(c.provenance)}")
    console.print(f"Task: {c.task}; sensors: {', '.join(c.sensors)}")
    console.print(f"Reported: {c.reported}", highlight=False)
    for title, lines in (("Filled in by us", c.completions), ("Differences of paper, code and ours", c.differences)):
        console.print(f"{title}:", *(f"\n  - {line}" for line in lines), highlight=False)
    console.print("Settings (--model.NAME VALUE):")
    for name, default in settings_of(chosen.name).items():
        console.print(f"  {name} = {default}", highlight=False)
    return 0
