"""Write what is generated from the systems: the table in README.md and a page each in docs/systems/ from their cards,
and the claims in evaluation.md and on those pages from claims.json.

``--check`` only says whether they are up to date. claims.json is what ``terramoe reproduce --all`` found.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from terramoe.experiments.claims import CLAIMS as CLAIM_NAMES
from terramoe.experiments.claims import claim_of
from terramoe.experiments.reproduce import controls_table, results_table
from terramoe.moe import MoELayer
from terramoe.systems import SYSTEMS, card, system_class

DOCS = Path(__file__).parent
README, EVALUATION, CLAIMS = DOCS.parent / "README.md", DOCS / "evaluation.md", DOCS / "claims.json"
SYSTEMS_MARKS = "<!-- systems: made by docs/make_tables.py -->", "<!-- end of systems -->"
CONTROLS_MARKS = "<!-- controls: made by docs/make_tables.py from docs/claims.json -->", "<!-- end of controls -->"
CLAIMS_MARKS = "<!-- claims: made by docs/make_tables.py from docs/claims.json -->", "<!-- end of claims -->"


def systems_table() -> str:
    """A Markdown table, one row a system."""
    rows = ["| system | paper | survey | task | sensors | sources | |", "|---|---|---|---|---|---|---|"]
    for name in SYSTEMS:
        c = card(name)
        paper = f"[{c.title}](https://arxiv.org/abs/{c.arxiv}), {c.year}" if c.arxiv else f"{c.title}, {c.year}"
        place = f"{c.survey_section}, [{c.survey_reference}]"
        kind = "reconstruction" if c.reconstruction else "complete"
        link, sensors, sources = f"[`{name}`](docs/systems/{name}.md)", ", ".join(c.sensors), ", ".join(c.provenance)
        cells = (link, paper, place, c.task, sensors, sources, kind)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def system_page(name: str, claims: dict[str, Any]) -> str:
    """The page of a system: source, wiring, what is ours, the paper's figure, and what its claim found."""
    cls, c = system_class(name), card(name)
    names = (f"doi:{c.doi}" if c.doi else "", f"arXiv {c.arxiv}" if c.arxiv else "")
    source = ", ".join(name for name in names if name)
    about = (cls.__doc__ or "").replace("See the module's docstring.", "").strip()
    module = (sys.modules[cls.__module__].__doc__ or "").strip()
    settings = "\n".join(f"| `{f.name}` | {_default(f)} |" for f in dataclasses.fields(cls.Config))
    found = {key: claim for key, claim in claims.items() if claim["system"] == name}
    return f"""# {c.name}

<!-- made by docs/make_tables.py -->

{c.title}. {c.authors}, {c.year}{f" ({source})" if source else ""}. Survey {c.survey_section}, [{c.survey_reference}].
Sources read: {", ".join(c.provenance)}; {"a reconstruction" if c.reconstruction else "complete"}.

| | |
|---|---|
| task | {c.task} |
| sensors | {", ".join(c.sensors)} |
| sees | {f"patches, {cls.tiny().patch} pixels a side in the miniature" if cls.tiny().patch else "crops of any size"} |
| the paper's figure | {c.reported} |

```
{module}
```

{about}

## Routed layers of the miniature

{_layers(cls)}

## Settings

| setting | default |
|---|---|
{settings}

## What we filled in

{_bullets(c.completions)}

## Where paper, released code and we differ

{_bullets(c.differences)}

## Its claim

{_claims(name, found)}
"""


def _layers(cls: type) -> str:
    """A line for each routed layer: experts, their kind, and how one is chosen."""
    rows = ["| layer | experts | bank | scorer | selector |", "|---|---|---|---|---|"]
    for place, layer in cls.tiny().named_modules():
        if isinstance(layer, MoELayer):
            parts = (type(part).__name__ for part in (layer.bank, layer.scorer, layer.selector))
            rows.append(f"| `{place}` | {layer.num_experts} | {' | '.join(parts)} |")
    return "\n".join(rows)


def _claims(name: str, found: dict[str, Any]) -> str:
    """What each claim of the system is, and what it found."""
    parts = []
    for key in (key for key in CLAIM_NAMES if claim_of(key).system == name):
        parts.append(f"{claim_of(key).about} Run it with `terramoe reproduce {key}`.")
        if key not in found:
            parts.append("Not run yet.")
            continue
        parts += [results_table({key: found[key]}), controls_table({key: found[key]})]
        accuracies = found[key]["accuracies"].items()
        parts.append(
            "Accuracy, %, mean ± standard deviation over seeds: "
            + ", ".join(f"{name} {100 * a['mean']:.1f} ± {100 * a['sd']:.1f}" for name, a in accuracies)
            + "."
        )
    return "\n\n".join(parts)


def _default(field: dataclasses.Field) -> str:
    return "given by the data" if field.default is dataclasses.MISSING else f"`{field.default!r}`"


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
    systems = {DOCS / "systems" / f"{name}.md": system_page(name, found) for name in SYSTEMS}
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
