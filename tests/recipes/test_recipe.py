"""Recipes declare what they return, by the names and axes of the schema."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vitjax.recipes import paper, schema
from vitjax.recipes.recipe import Recipe, Setup
from vitjax.recipes.registry import RECIPES, find_recipe
from vitjax.saliency import methods

ONE_SWEEP = [name for name, recipe in RECIPES.items() if recipe.passes is None]


def batch_of(config):
    kinds = np.arange(48).reshape(3, 16).astype(np.int32) % 3 - 1
    return tiny.batch_of(tiny.images(config), [1, 2, 3], kinds)


@pytest.mark.parametrize("name", tiny.slow_but(ONE_SWEEP, "identifiability", "paper"))
def test_recipes_declare_what_they_return(name):
    recipe, returned, static = RECIPES[name], set(), set()
    options = {"one_pass": {"heads": True}, "faithfulness": {"steps": 2}}
    recipe = recipe.with_options(options.get(name, {}))
    for config in (tiny.CONFIGS["plain"], tiny.CONFIGS["refinement"]):
        model = tiny.make(config)
        setup = jax.eval_shape(lambda m: recipe.run_setup(m, 0), model)
        rows = jax.eval_shape(recipe.run_step, model, batch_of(config), setup.carry)
        returned |= set(rows)
        static |= set(setup.static)
        for array, values in rows.items():
            assert values.shape[0] == 3
            assert values.ndim == 1 + len(recipe.dims[array])
        for array, values in setup.static.items():
            assert values.ndim == len(recipe.static[array])
    assert returned == set(recipe.dims) and static == set(recipe.static)


@pytest.mark.parametrize("name", RECIPES)
def test_every_option_is_documented_and_arrays_are_in_the_schema(name):
    recipe = RECIPES[name]
    documented = "".join(kind.__doc__ or "" for kind in type(recipe.options).__mro__)
    assert all(f" {option}: " in documented for option in recipe.keywords)
    for array, axes in recipe.dims.items():
        assert schema.SCHEMA[array].axes == ("image", *axes)
    for array, axes in recipe.static.items():
        assert schema.SCHEMA[array].axes == axes
    labeled = {array for array in recipe.dims if schema.SCHEMA[array].needs_label}
    assert labeled == set(recipe.needs_label)


def test_the_schema_names_every_array_once():
    arrays = [array for family in schema.FAMILIES for array in family]
    assert len(schema.SCHEMA) == len(arrays) > 250
    assert all("{" not in array.name + array.meaning for array in arrays)
    assert schema.RANK("residual") == "rank_residual" == schema.RANK.names[0]
    assert schema.CLASS_VALUE_CONTROL("mlp", "control") == "class_value_mlp_control"
    assert schema.dims(schema.RANK)["rank_mlp_update"] == ("layer", "token")
    assert schema.dims(schema.KEPT) == {"kept": ("step",)}
    fields = schema.rows(schema.TOP_LOGITS, schema.LOGIT_EMBEDDING)
    assert fields["dims"].keys() == {"top_logits", "logit_embedding"}
    assert fields["needs_label"] == ("logit_embedding",)


def test_the_schema_knows_every_method_and_intervention():
    assert {*schema.METHODS, "helpful_minus_attended"} == set(methods.METHODS)
    assert {*paper.ATTENTION_EDITS, *paper.KEPT_PATCH_LABELS} == set(
        schema.INTERVENTIONS
    )


def test_recipes_that_do_not_exist():
    with pytest.raises(ValueError, match="'identifiability'"):
        find_recipe("identifiabilty")
    with pytest.raises(ValueError, match="--dtype float32.*compare_precision.py"):
        find_recipe("precision")


def test_options_are_keywords_of_setup_and_step():
    @dataclasses.dataclass(frozen=True)
    class Options:
        scale: int = 2
        sign: Literal["plus", "minus"] = "plus"

    def setup(model, *, seed, scale, sign):
        return Setup(jnp.int32(seed * scale))

    def step(model, batch, carry, *, scale, sign):
        return {"x": carry + jnp.asarray(batch.label) * (1 if sign == "plus" else -1)}

    recipe = Recipe(
        name="mine", step=step, setup=setup, dims={"x": ()}, options=Options()
    )
    other = recipe.with_options({"scale": 10, "sign": "minus"})
    assert recipe.options == Options() and other.options == Options(10, "minus")
    model = tiny.make(tiny.CONFIGS["plain"])
    carry = other.run_setup(model, 3).carry
    rows = other.run_step(model, batch_of(model.config), carry)
    np.testing.assert_array_equal(rows["x"], [29, 28, 27])
    assert recipe.with_options(Options(5)).keywords == {"scale": 5, "sign": "plus"}
    mapping = Recipe(name="mine", step=step, dims={"x": ()}, options={"scale": 2})
    assert mapping.with_options({"scale": 3}).keywords == {"scale": 3}
    ones = jnp.ones(3)
    plain = Recipe(name="mine", step=lambda model, batch: {"x": ones}, dims={"x": ()})
    assert plain.keywords == {} and plain.run_setup(model, 0) == Setup()
    assert plain.run_step(model, batch_of(model.config), ()) == {"x": ones}
    with pytest.raises(ValueError, match="'scale'"):
        recipe.with_options({"scales": 3})
    with pytest.raises(ValueError, match="sign='times'"):
        recipe.with_options({"sign": "times"})
