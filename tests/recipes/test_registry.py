"""Every recipe says what it returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vitjax.recipes.recipe import Recipe
from vitjax.recipes.registry import RECIPES, find_recipe
from vitjax.types import Batch


def batch_of(config, **fields):
    return Batch(
        images=tiny.images(config),
        label=np.array([1, 2, 3], np.int32),
        valid=np.ones(3, bool),
        index=np.arange(3, dtype=np.int32),
        **fields,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_what_they_return(name):
    recipe, returned, once = RECIPES[name], set(), set()
    declared = set(recipe.dims)
    if name == "precision":  # maps of every method take a minute to trace
        recipe = recipe.asked({"methods": ("random",)})
        of_maps = ("pearson_", "spearman_", "overlap_")
        mine = {name for name in declared if name.endswith("_random")}
        declared = mine | {n for n in declared if not n.startswith(of_maps)}
    for config in (tiny.CONFIGS["plain"], tiny.CONFIGS["refinement"]):
        model = tiny.make(config)
        kinds = np.arange(48).reshape(3, 16).astype(np.int32) % 3 - 1
        batch = batch_of(config, patch_label=kinds)
        prepared = jax.eval_shape(lambda m: recipe.make(m, 0), model)
        rows = jax.eval_shape(recipe.rows, model, batch, prepared.aux)
        returned |= set(rows)
        once |= set(prepared.once)
        for array, values in rows.items():
            assert values.shape[0] == 3
            assert values.ndim == 1 + len(recipe.dims[array])
        for array, values in prepared.once.items():
            assert values.ndim == len(recipe.once[array])
    assert returned == declared and once == set(recipe.once)
    assert set(recipe.labelled) <= set(recipe.dims)


def test_a_recipe_that_does_not_exist():
    with pytest.raises(ValueError, match="Did you mean identifiability"):
        find_recipe("identifiabilty")


def test_a_recipe_of_ones_own_needs_a_step_and_dims():
    step = lambda model, batch: {"x": jnp.asarray(batch.label)}  # noqa: E731
    recipe = Recipe(name="mine", step=step, dims={"x": ()})
    assert recipe.make(tiny.make(tiny.CONFIGS["plain"]), 0) == ((), {})
    batch = batch_of(tiny.CONFIGS["plain"])
    assert set(recipe.rows(tiny.make(tiny.CONFIGS["plain"]), batch, ())) == {"x"}


def test_probes_are_pointed_at():
    with pytest.raises(ValueError, match=r"run_probes\(model, train, data, out\)"):
        find_recipe("probes")
