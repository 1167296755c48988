"""The recipes of `vitjax run`, by name."""

from vitjax.messages import unknown
from vitjax.recipes.editing import EDITING
from vitjax.recipes.errors import ERRORS
from vitjax.recipes.faithfulness import FAITHFULNESS
from vitjax.recipes.identifiability import IDENTIFIABILITY
from vitjax.recipes.interventions import ABLATION, PATCHING
from vitjax.recipes.lens import LENS
from vitjax.recipes.paper import ONE_PASS, PAPER
from vitjax.recipes.probes import PROBES
from vitjax.recipes.recipe import Recipe
from vitjax.recipes.tokens import TOKENS

RECIPES = {
    recipe.name: recipe
    for recipe in (
        IDENTIFIABILITY,
        ONE_PASS,
        PAPER,
        FAITHFULNESS,
        PROBES,
        TOKENS,
        ABLATION,
        PATCHING,
        EDITING,
        LENS,
        ERRORS,
    )
}


REMOVED = {
    "precision": "The recipe 'precision' is gone: run any recipe twice, with --dtype "
    "float32 and --dtype bfloat16, and compare the rows with the repository's "
    "tests/compare_precision.py; see the guide's page on precision."
}
"""Recipes of earlier versions, and what replaced them."""


def find_recipe(name: str) -> Recipe:
    """Look up a recipe by name; the error lists those there are."""
    if name not in RECIPES:
        raise ValueError(REMOVED.get(name) or unknown("recipe", name, RECIPES))
    return RECIPES[name]
