"""Write docs/recipes.md, a page for each recipe and docs/properties.md from the recipes and the modules they build.

``--check`` only says whether all are up to date.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import is_dataclass
from pathlib import Path

import torch
from torch import nn

from terramoe.moe import MoELayer
from terramoe.moe.experts import StackedFFN
from terramoe.moe.recipes import RECIPES, Recipe
from terramoe.moe.recipes.properties import PROPERTIES

DOCS = Path(__file__).parent
MADE = "<!-- made by docs/make_recipes.py -->"
SLOTS = ("scorer", "link", "selector", "weigh", "capacity", "bank")
SIZES = {"dim", "num_experts", "hidden"}  # what build() always asks for
# Sizes of parts follow from those, and say nothing about the method.
UNSAID = SIZES | {"dim_out", "rank", "in_shape", "out_shape", "channels", "channels_out", "head_dim", "width"}


def pages() -> dict[Path, str]:
    """Every generated page: its path and its text."""
    made = {DOCS / "recipes.md": index(), DOCS / "properties.md": catalogue()}
    return {**made, **{DOCS / "recipes" / f"{name}.md": page(recipe) for name, recipe in RECIPES.items()}}


def index() -> str:
    """The table of recipes."""
    recipes = sorted(RECIPES.values(), key=lambda r: (r.year, r.name))
    rows = [f"{link(r)} | {r.title} | {r.year} | {source(r)} | {r.oracle} | {r.reconstruction or '-'}" for r in recipes]
    head = ("recipe", "paper", "year", "source", "compared with", "reconstructed")
    return f"""# Recipes

{MADE}

A recipe is a published method as a choice of parts of the routing core. Each is tested to run, to learn (gradients
against finite differences), to give the same values and gradients with every executor, to be deterministic in
evaluation, to keep its state, and for the [properties](properties.md) that its page lists; where one is exempt, the
test says why. "Compared with" names what its output is checked against; "reconstructed" is what the sources leave open
and we filled in.

{table(head, rows)}
"""


def page(recipe: Recipe) -> str:
    """One recipe."""
    torch.manual_seed(0)
    module = recipe.build(dim=16, num_experts=4, hidden=8)
    losses = ", ".join(f"{weight:g} × `{name}`" for name, weight in recipe.objectives.items())
    rows = [*parts(module), f"objectives | {losses or 'none'}", f"between steps | {recipe.control or 'nothing'}"]
    settings = [p for p in inspect.signature(recipe.build).parameters.values() if p.name not in SIZES]
    properties = "\n".join(f"- **{number}** {PROPERTIES[number]}" for number in recipe.invariants)
    return f"""# `{recipe.name}`

{MADE}

{recipe.title}, {recipe.year}, {source(recipe)}

```text
{recipe.equation}
```

{table(("slot", "part"), rows)}

Settings: {", ".join(f"`{p.name}={p.default}`" for p in settings) or "none"} beside `dim`, `num_experts`, `hidden`.
The code: [{code(recipe)}](../../{code(recipe)}).

Filled in by us: {recipe.reconstruction or "nothing"}. Compared with: {recipe.oracle}.

## Properties tested

{properties}

## Use

```python
import torch
from terramoe.moe.recipes import get_recipe

module = get_recipe("{recipe.name}").build(dim=16, num_experts=4, hidden=8)
y, routings = get_recipe("{recipe.name}").call(module, torch.randn(12, 16))
```

[All recipes](../recipes.md)
"""


def catalogue() -> str:
    """The properties, and who is tested for each."""
    rows = []
    for number, text in PROPERTIES.items():
        names = sorted(link(r) for r in RECIPES.values() if number in r.invariants)
        rows.append(f"{number} | {text} | {', '.join(names) or '-'}")
    return f"""# Properties

{MADE}

What the routing core is tested for: every property on the parts that it is about, and on the recipes that declare it. T
items, E experts, C capacity, k chosen experts of an item.

{table(("", "property", "recipes"), rows)}
"""


def parts(module: nn.Module) -> list[str]:
    """Rows slot | part, read off the built module."""
    layers = [part for part in module.modules() if isinstance(part, MoELayer)]
    alike = {tuple(f"{slot} | {describe(getattr(layer, slot))}" for slot in SLOTS): None for layer in layers}
    return [f"module | {describe(module)}", *(row for rows in alike for row in rows)]


def describe(part: object) -> str:
    """A part in a few words: its name, what it was made with, and what it wraps."""
    if isinstance(part, nn.Sequential):
        return " → ".join(map(describe, part))
    if isinstance(part, nn.ModuleList | nn.ModuleDict):
        inside = [f"({one})" if "→" in (one := describe(child)) else one for child in part.children()]
        return f"{len(inside)} × {inside[0]}" if len(set(inside)) == 1 else ", ".join(inside)
    if part is None or inspect.isfunction(part):
        return "none" if part is None else part.__name__
    name = type(part).__name__.lstrip("_")
    if isinstance(part, MoELayer) or not type(part).__module__.startswith("terramoe"):
        return name  # a layer's parts stand in rows of their own
    if isinstance(part, StackedFFN):
        return f"{name}({part.activation_name}{'' if part.b_in_EH is not None else ', no bias'})"
    said = settings_of(part) + (children_of(part) if isinstance(part, nn.Module) else [])
    return f"{name}({', '.join(said)})" if said else name


def settings_of(part: object) -> list[str]:
    """``name=value`` of what the part was made with, sizes left out."""
    said = []
    for name in inspect.signature(type(part)).parameters:
        value = getattr(part, name, None)
        simple = isinstance(value, bool | int | float | str)
        if name not in UNSAID and (simple or is_dataclass(value) or inspect.isfunction(value)):
            said.append(f"{name}={value if simple else describe(value)}")
    return said


def children_of(module: nn.Module) -> list[str]:
    """``name: part`` of the modules inside, where any of them is one of ours."""
    inside = list(module.modules())[1:]
    ours = any(type(child).__module__.startswith("terramoe") for child in inside)
    return [f"{name}: {describe(child)}" for name, child in module.named_children()] if ours else []


def link(recipe: Recipe) -> str:
    """To the recipe's page, from docs/."""
    return f"[`{recipe.name}`](recipes/{recipe.name}.md)"


def source(recipe: Recipe) -> str:
    """The recipe's source as a link."""
    last = recipe.source.split()[-1]
    if recipe.source.startswith("arXiv"):
        return f"[{recipe.source}](https://arxiv.org/abs/{last})"
    if recipe.source.startswith("DOI"):
        return f"[{recipe.source}](https://doi.org/{last})"
    return f"[{recipe.source}](https://openreview.net/forum?id={last})"


def code(recipe: Recipe) -> str:
    """Path of the recipe's file from the repository's root."""
    return f"src/{recipe.build.__module__.replace('.', '/')}.py"


def table(head: tuple[str, ...], rows: list[str]) -> str:
    """A Markdown table of rows whose cells are separated by bars."""
    return "\n".join(f"| {row} |" for row in (" | ".join(head), " | ".join("---" for _ in head), *rows))


def main() -> int:
    """Write all pages and remove those of recipes that are gone; with --check return 1 if any would change."""
    made = pages()
    stale = [path for path in (DOCS / "recipes").glob("*.md") if path not in made]
    changed = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        return int(bool(stale or changed))
    (DOCS / "recipes").mkdir(exist_ok=True)
    for path in changed:
        path.write_text(made[path])
    for path in stale:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
