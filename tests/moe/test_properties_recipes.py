"""Property catalogue, on whole recipes: what a recipe declares in ``invariants`` is run on it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import property_cases
import pytest
import recipe_expert_checks
import recipe_routing_checks
import test_properties_objectives
from hypothesis import given
from hypothesis import strategies as st
from property_cases import few, seeds
from recipe_cases import fixed_experts

from terramoe.moe.recipes import RECIPES

# Properties of parts, not of recipes: the test of the catalogue that holds for the parts.
OF_PARTS = {"P17": "test_p17_em_never_lowers_the_likelihood", "P18": "test_p18_the_mixture_is_a_density"}
CHECKS = {
    f"P{int(name.removeprefix('check_p'))}": check
    for module in (recipe_routing_checks, recipe_expert_checks)
    for name, check in vars(module).items()
    if name.startswith("check_p")
}
DECLARED = [(name, number) for name, recipe in RECIPES.items() for number in recipe.invariants]


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, i in DECLARED if i not in OF_PARTS])
@few
@given(items=st.integers(2, 12), seed=seeds)
def test_a_recipe_has_the_properties_that_it_declares(name, number, items, seed):
    """A declared number without a check is a failure too."""
    assert number in CHECKS, f"{name} declares {number}, which nothing checks on a recipe"
    CHECKS[number](RECIPES[name], items, seed)


def test_numbers_of_parts_name_a_test_that_exists():
    """P17 and P18 are about EM and densities: the recipe's parts have them, by the tests named here."""
    assert not set(OF_PARTS) & set(CHECKS)
    for number, test in OF_PARTS.items():
        assert test.startswith(f"test_p{int(number[1:]):02d}_")
        assert callable(getattr(test_properties_objectives, test))


def test_every_number_of_the_catalogue_has_a_test():
    """P1 to P30 are each found by name in the files of the catalogue, and every recipe declares at least one."""
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_properties_*.py"))
    missing = [n for n in range(1, 31) if f"def test_p{n:02d}_" not in text]
    assert not missing
    assert all(recipe.invariants for recipe in RECIPES.values())
    assert {number for _, number in DECLARED} <= {f"P{n}" for n in range(1, 31)}


def test_p22_fixed_choices_are_the_same_in_every_process():
    """Under another salt of Python's own hash: tables, hashes of items, random controls, and recipes made of them."""
    here = fixed_choices()
    code = "import json, test_properties_recipes as t; print(json.dumps(t.fixed_choices()))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == here
    assert all(len(set(choice)) > 2 for choices in here.values() for choice in choices)


def fixed_choices():
    """Choices that no process may make differently."""
    recipes = {name: fixed_experts(RECIPES[name]) for name, number in DECLARED if number == "P22"}
    return {"parts": property_cases.fixed_choices(), **recipes}
