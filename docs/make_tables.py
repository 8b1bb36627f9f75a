"""Write what is generated from the systems: the table in README.md and a page each in docs/systems/ from their cards,
and the claims in evaluation.md and on those pages from claims.json.

``--check`` only says whether they are up to date. claims.json is what ``terramoe reproduce --all`` found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from terramoe.experiments.claims import CLAIMS as CLAIM_NAMES
from terramoe.experiments.claims import claim_of
from terramoe.experiments.reproduce import controls_table, results_table, score_text
from terramoe.moe import MoELayer
from terramoe.systems.catalogue import FROM_DATA, card_of, catalogue, class_of, kind_of_system, settings_of

DOCS = Path(__file__).parent
README, EVALUATION, CLAIMS = DOCS.parent / "README.md", DOCS / "evaluation.md", DOCS / "claims.json"
MAPS = {
    "aggarwal": "terramoe fit surface:jacksboro --system aggarwal",
    "loyola": "terramoe fit table:ozone --system loyola",
    "stf-moe": "terramoe fit table:counties --system stf-moe",
}
SYSTEMS_MARKS = "<!-- systems: made by docs/make_tables.py -->", "<!-- end of systems -->"
CONTROLS_MARKS = "<!-- controls: made by docs/make_tables.py from docs/claims.json -->", "<!-- end of controls -->"
CLAIMS_MARKS = "<!-- claims: made by docs/make_tables.py from docs/claims.json -->", "<!-- end of claims -->"


def systems_table() -> str:
    """A Markdown table, one row a system."""
    rows = ["| system | works on | paper | survey | task | sensors | sources | |", "|---|---|---|---|---|---|---|---|"]
    for name, works_on in catalogue().items():
        c = card_of(name)
        paper = f"[{c.title}](https://arxiv.org/abs/{c.arxiv}), {c.year}" if c.arxiv else f"{c.title}, {c.year}"
        place = f"{c.survey_section}, [{c.survey_reference}]"
        kind = "reconstruction" if c.reconstruction else "complete"
        link, sensors, sources = f"[`{name}`](docs/systems/{name}.md)", ", ".join(c.sensors), ", ".join(c.provenance)
        cells = (link, works_on, paper, place, c.task, sensors, sources, kind)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def system_page(name: str, claims: dict[str, Any]) -> str:
    """The page of a system: source, wiring, what is ours, the paper's figure, and what its claim found."""
    cls, c = class_of(name), card_of(name)
    names = (f"doi:{c.doi}" if c.doi else "", f"arXiv {c.arxiv}" if c.arxiv else "")
    source = ", ".join(name for name in names if name)
    about = (cls.__doc__ or "").replace("See the module's docstring.", "").strip()
    module = (sys.modules[cls.__module__].__doc__ or "").strip()
    settings = "\n".join(f"| `{key}` | {_default(value)} |" for key, value in settings_of(name).items())
    found = {key: claim for key, claim in claims.items() if claim["system"] == name}
    return f"""# {c.name}

<!-- made by docs/make_tables.py -->

{c.title}. {c.authors}, {c.year}{f" ({source})" if source else ""}. Survey {c.survey_section}, [{c.survey_reference}].
Sources read: {", ".join(c.provenance)}; {"a reconstruction" if c.reconstruction else "complete"}.

| | |
|---|---|
| task | {c.task} |
| sensors | {", ".join(c.sensors)} |
| works on | {_works_on(name, cls)} |
| the paper's figure | {c.reported} |

```
{module}
```

{about}

{_layers(name, cls)}## Settings

| setting | default |
|---|---|
{settings}

## What we filled in

{_bullets(c.completions)}

## Where paper, released code and we differ

{_bullets(c.differences)}

{_map(name)}## Its claim

{_claims(name, found)}
"""


def _works_on(name: str, cls: type) -> str:
    if kind_of_system(name) != "scenes":
        return {"rows": "rows of a table", "surfaces": "surfaces that several sensors have seen"}[kind_of_system(name)]
    patch = cls.tiny().patch
    return f"scenes, in patches of {patch} pixels a side in the miniature" if patch else "scenes, in crops of any size"


def _layers(name: str, cls: type) -> str:
    """A line for each routed layer of a network over scenes: experts, their kind, and how one is chosen."""
    if kind_of_system(name) != "scenes":
        return ""
    rows = [
        "## Routed layers of the miniature\n",
        "| layer | experts | bank | scorer | selector |",
        "|---|---|---|---|---|",
    ]
    for place, layer in cls.tiny().named_modules():
        if isinstance(layer, MoELayer):
            parts = (type(part).__name__ for part in (layer.bank, layer.scorer, layer.selector))
            rows.append(f"| `{place}` | {layer.num_experts} | {' | '.join(parts)} |")
    return "\n".join(rows) + "\n\n"


def _map(name: str) -> str:
    """Who answers where, if there is a picture, and the command that draws it."""
    if name not in MAPS:
        return ""
    return f"## Map of experts\n\n![Who answers where](../maps/{name}.png)\n\nDrawn by `{MAPS[name]}`.\n\n"


def _claims(name: str, found: dict[str, Any]) -> str:
    """What each claim of the system is, and what it found."""
    parts = []
    for key in (key for key in CLAIM_NAMES if claim_of(key).system == name):
        parts.append(f"{claim_of(key).about} Run it with `terramoe reproduce {key}`.")
        if claim_of(key).seen:
            parts.append(f"Seen before it was as it is: {claim_of(key).seen}")
        if key not in found:
            parts.append("Not run yet.")
            continue
        parts += [results_table({key: found[key]}), controls_table({key: found[key]})]
        texts = ", ".join(f"{variant} {score_text(found[key], variant)}" for variant in found[key]["scores"])
        measure = found[key]["metric"].replace("_", " ") + (f", {found[key]['unit']}" if found[key]["unit"] else "")
        parts.append(f"{measure[0].upper()}{measure[1:]}, mean ± standard deviation over seeds: {texts}.")
    return "\n\n".join(parts)


def _default(value: Any) -> str:
    return "given by the data" if value is FROM_DATA else f"`{value!r}`"


def _bullets(lines: tuple[str, ...]) -> str:
    return "\n".join(f"- {line}" for line in lines) or "Nothing."


def with_table(text: str, marks: tuple[str, str], table: str) -> str:
    """A page's text with the table between its marks replaced."""
    start, end = marks
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{table}\n{end}{after}"


def pages() -> dict[Path, str]:
    """What every page with a generated table should hold."""
    found = json.loads(CLAIMS.read_text())
    claims = results_table(found)
    systems = {DOCS / "systems" / f"{name}.md": system_page(name, found) for name in catalogue()}
    return systems | {
        README: with_table(README.read_text(), SYSTEMS_MARKS, systems_table()),
        EVALUATION: with_table(
            with_table(EVALUATION.read_text(), CLAIMS_MARKS, claims), CONTROLS_MARKS, controls_table(found)
        ),
    }


def main() -> int:
    """Write, or with --check compare; returns 1 if a table is out of date."""
    made = pages()
    if "--check" in sys.argv:
        return int(any(not path.exists() or path.read_text() != text for path, text in made.items()))
    for path, text in made.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
