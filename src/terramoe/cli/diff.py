"""``terramoe diff``: what differs between two runs."""

from __future__ import annotations

from terramoe.cli.options import parser


def run(argv: list[str]) -> int:
    """Run the verb; returns 0 if nothing that decides results differs, else 1."""
    options = parser(
        "diff",
        "Name what differs between two runs or studies: data, split, tiling, normalisation, routing, model, training, "
        "seeds, versions, machine, results. Exit code 0 if nothing that may change results differs, 1 if something "
        "does, 2 for errors.",
    )
    options.add_argument("a", help="folder of a run or study, or its card")
    options.add_argument("b", help="another")
    options.add_argument("--json", action="store_true", help="print JSON")
    chosen = options.parse_args(argv)

    import json
    from itertools import groupby

    from rich.console import Console
    from rich.text import Text

    from terramoe.experiments.diff import diff_cards, read_card
    from terramoe.reporting.console import narrow_table

    changes = diff_cards(read_card(chosen.a), read_card(chosen.b))
    deciding = [change for change in changes if change.decides]
    if chosen.json:
        print(json.dumps({"same": not deciding, "changes": [vars(change) for change in changes]}, indent=2))
        return 1 if deciding else 0
    console = Console()
    if not changes:
        console.print("The two are the same in every entry.")
        return 0
    table = narrow_table(f"A: {chosen.a}, B: {chosen.b}; * may change results")
    for column in ("", "what", "A", "B"):
        table.add_column(column, overflow="fold")
    for group, members in groupby(changes, key=lambda change: change.group):
        table.add_row("", Text(group, style="bold"))
        for change in members:
            row = (change.key.removeprefix("facts."), *change.summary())
            table.add_row("*" if change.decides else "", *map(Text, row))
    console.print(table)
    if deciding:
        groups = ", ".join(dict.fromkeys(change.group for change in deciding))
        console.print(f"What may change results: {groups}.", highlight=False)
    elif any(change.group == "results" for change in changes):
        console.print("The results differ although nothing that decides them does: this run cannot be repeated.")
    else:
        console.print("Nothing that may change results differs.")
    return 1 if deciding else 0
