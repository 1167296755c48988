"""Recipes: what is asked of every image of a data set, by name."""

import difflib

from vitjax.recipes.faithfulness import FAITHFULNESS
from vitjax.recipes.identifiability import IDENTIFIABILITY
from vitjax.recipes.paper import ONE_PASS, PAPER
from vitjax.recipes.precision import PRECISION
from vitjax.recipes.recipe import Recipe
from vitjax.recipes.tokens import TOKENS

ALL = (IDENTIFIABILITY, ONE_PASS, PAPER, FAITHFULNESS, PRECISION, TOKENS)
RECIPES = {recipe.name: recipe for recipe in ALL}


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, (*RECIPES, "probes"), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        if name == "probes":  # the one question with two data sets
            hint = " Call vitjax.runner.probes.run_probes(model, train, data, out)."
        raise ValueError(
            f"There is no recipe {name!r}.{hint} Known: {', '.join(RECIPES)}; and "
            "probes, of two data sets."
        )
    return RECIPES[name]
