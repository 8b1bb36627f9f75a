"""Write the table of systems into README.md, from their cards. ``--check`` only says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from terramoe.systems import SYSTEMS, card

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- systems: made by docs/make_tables.py -->", "<!-- end of systems -->"


def systems_table() -> str:
    """A Markdown table, one row a system."""
    rows = ["| system | paper | survey | task | sensors | sources | |", "|---|---|---|---|---|---|---|"]
    for name in SYSTEMS:
        c = card(name)
        paper = f"[{c.title}](https://arxiv.org/abs/{c.arxiv}), {c.year}" if c.arxiv else f"{c.title}, {c.year}"
        place = f"{c.survey_section}, [{c.survey_reference}]"
        kind = "reconstruction" if c.reconstruction else "complete"
        cells = (f"`{name}`", paper, place, c.task, ", ".join(c.sensors), ", ".join(c.provenance), kind)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def with_table(text: str) -> str:
    """The README's text with the table between its marks replaced."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{systems_table()}\n{END}{after}"


def main() -> int:
    """Write, or with --check compare; returns 1 if the table is out of date."""
    text = README.read_text()
    if "--check" in sys.argv:
        return int(with_table(text) != text)
    README.write_text(with_table(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
