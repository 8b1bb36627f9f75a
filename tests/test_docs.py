"""The README and the generated pages tell the truth: tables are current and their Python runs."""

import importlib.util
import re
from pathlib import Path

import pytest

from terramoe.moe.recipes import RECIPES
from terramoe.moe.recipes.properties import PROPERTIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def script(name):
    """A program of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECIPE_PAGES = script("make_recipes").pages()


def test_generated_tables_are_current():
    for path, text in script("make_tables").pages().items():
        assert path.read_text() == text, f"{path.name}: run 'make docs'"


@pytest.mark.parametrize("path", RECIPE_PAGES, ids=lambda path: path.stem)
def test_pages_of_recipes_are_current(path):
    assert path.read_text() == RECIPE_PAGES[path], "run 'make docs'"


def test_no_page_is_left_of_a_recipe_that_is_gone():
    assert set((ROOT / "docs" / "recipes").glob("*.md")) == {
        path for path in RECIPE_PAGES if path.parent.name == "recipes"
    }


@pytest.mark.parametrize("name", RECIPES)
def test_the_example_on_a_recipes_page_runs(name):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "recipes" / f"{name}.md").read_text(), re.DOTALL)
    names = {}
    exec(compile(example, f"{name}.md", "exec"), names)
    assert names["y"].shape[0] == 12
    assert all(routing.num_experts >= 1 for routing in names["routings"])


@pytest.mark.parametrize("path", RECIPE_PAGES, ids=lambda path: path.stem)
def test_links_between_pages_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#:]+)\)", RECIPE_PAGES[path])
    assert links
    assert all((path.parent / link).exists() for link in links)


def test_every_property_that_a_recipe_names_is_in_the_catalogue():
    assert list(PROPERTIES) == [f"P{n}" for n in range(1, 31)]
    assert {number for recipe in RECIPES.values() for number in recipe.invariants} <= set(PROPERTIES)


def test_a_page_shows_the_parts_of_the_built_module():
    page = RECIPE_PAGES[ROOT / "docs" / "recipes" / "deepseek-v3.md"]
    for row in ("| scorer | LinearScorer |", "| link | sigmoid |", "Scaled(inner=renormalised, factor=2.5)", "swiglu"):
        assert row in page
    assert "BiasedSelector(inner=GroupLimited(k=2, groups=2, limit=1" in page


@pytest.mark.parametrize("number", range(len(re.findall(r"```python", README))))
def test_python_in_the_readme_runs(number, capsys):
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[number]
    exec(compile(code, "README.md", "exec"), {})
    assert "tensor" in capsys.readouterr().out


def test_every_file_that_the_readme_shows_exists():
    for name in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / name).exists(), name


def test_every_folder_is_in_the_picture_of_the_house():
    folders = {p.name for p in (ROOT / "src" / "terramoe").iterdir() if (p / "__init__.py").exists()}
    assert set(re.findall(r"^\| `(\w+)` \| \w", README, re.MULTILINE)) >= folders
