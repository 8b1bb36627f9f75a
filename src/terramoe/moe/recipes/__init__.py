"""Recipes: the methods of the literature, each a few lines over the same parts.

``RECIPES[name].build(dim, num_experts, hidden)`` gives the module; the functions themselves can be imported from here.
"""

from terramoe.moe.recipes import adapters, conversion, organisation, sparse, training
from terramoe.moe.recipes.recipe import RECIPES, Recipe, get_recipe

__all__ = ["RECIPES", "Recipe", "adapters", "conversion", "get_recipe", "organisation", "sparse", "training"]
