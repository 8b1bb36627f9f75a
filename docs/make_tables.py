"""Write the generated tables: systems into README.md from their cards, claims into evaluation.md from claims.json.

``--check`` only says whether they are up to date. claims.json is what ``terramoe reproduce --all`` found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from terramoe.experiments.reproduce import results_table
from terramoe.systems import SYSTEMS, card

DOCS = Path(__file__).parent
README, EVALUATION, CLAIMS = DOCS.parent / "README.md", DOCS / "evaluation.md", DOCS / "claims.json"
SYSTEMS_MARKS = "<!-- systems: made by docs/make_tables.py -->", "<!-- end of systems -->"
CLAIMS_MARKS = "<!-- claims: made by docs/make_tables.py from docs/claims.json -->", "<!-- end of claims -->"


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


def with_table(text: str, marks: tuple[str, str], table: str) -> str:
    """A page's text with the table between its marks replaced."""
    start, end = marks
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{table}\n{end}{after}"


def pages() -> dict[Path, str]:
    """What every page with a generated table should hold."""
    claims = results_table(json.loads(CLAIMS.read_text()))
    return {
        README: with_table(README.read_text(), SYSTEMS_MARKS, systems_table()),
        EVALUATION: with_table(EVALUATION.read_text(), CLAIMS_MARKS, claims),
    }


def main() -> int:
    """Write, or with --check compare; returns 1 if a table is out of date."""
    made = pages()
    if "--check" in sys.argv:
        return int(any(path.read_text() != text for path, text in made.items()))
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
