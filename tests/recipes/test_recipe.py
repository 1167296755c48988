"""Recipes declare what they return; microbatches give the rows of the whole batch."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh, PartitionSpec

from vitjax.recipes import paper, schema
from vitjax.recipes import recipe as protocol
from vitjax.recipes.identifiability import identifiability
from vitjax.recipes.recipe import Recipe, Setup
from vitjax.recipes.registry import RECIPES, find_recipe
from vitjax.saliency import methods

ONE_SWEEP = [name for name, recipe in RECIPES.items() if recipe.passes is None]


def masked_batch(config):
    kinds = np.arange(48).reshape(3, 16).astype(np.int32) % 3 - 1
    return tiny.batch_of(tiny.images(config), [1, 2, 3], kinds)


@pytest.mark.parametrize("name", tiny.slow_but(ONE_SWEEP, "identifiability", "paper"))
def test_recipes_declare_what_they_return(name):
    recipe, returned, static = RECIPES[name], set(), set()
    options = {"one_pass": {"heads": True}, "faithfulness": {"steps": 2}}
    recipe = recipe.with_options(options.get(name, {}))
    # LRP has no rules for refined tokens.
    kinds = ("refinement", "plain") if name == "faithfulness" else ("refinement",)
    for config in map(tiny.CONFIGS.get, kinds):
        model = tiny.make(config)
        setup = jax.eval_shape(lambda m: recipe.run_setup(m, 0), model)
        rows = jax.eval_shape(recipe.run_step, model, masked_batch(config), setup.carry)
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
    # Without a label, what `tokens` says is about the prediction.
    assert (set() if name == "tokens" else labeled) == set(recipe.needs_label)


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


@pytest.mark.parametrize(
    ("recipe", "option", "value"),
    [
        ("faithfulness", "methods", ("cheffer",)),
        ("faithfulness", "methods", ("helpful_minus_attended",)),
        ("faithfulness", "methods", ()),
        ("faithfulness", "protocols", ("removal",)),
        ("faithfulness", "protocols", ()),
        ("faithfulness", "steps", 1),
        ("probes", "alpha", 0.0),
        ("probes", "streams", ("mlp_update",)),
        ("probes", "streams", ("residual", "values")),
        ("probes", "probe", "lasso"),
        ("probes", "max_memory", "much"),
        ("probes", "steps", 0),
        ("probes", "shots", 0),
        ("ablation", "ablations", ()),
        ("ablation", "ablations", ("median",)),
        ("ablation", "order_images", 0),
        ("ablation", "draws", -1),
        ("patching", "partners", 0),
        ("editing", "edits", ()),
        ("editing", "edits", ("x",)),
        ("editing", "draws", 0),
        ("errors", "top", 0),
    ],
)
def test_options_out_of_range(recipe, option, value):
    with pytest.raises(ValueError, match=f"{option}="):
        RECIPES[recipe].with_options({option: value})


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
    rows = other.run_step(model, masked_batch(model.config), carry)
    np.testing.assert_array_equal(rows["x"], [29, 28, 27])
    assert recipe.with_options(Options(5)).keywords == {"scale": 5, "sign": "plus"}
    mapping = Recipe(name="mine", step=step, dims={"x": ()}, options={"scale": 2})
    assert mapping.with_options({"scale": 3}).keywords == {"scale": 3}
    ones = jnp.ones(3)
    plain = Recipe(name="mine", step=lambda model, batch: {"x": ones}, dims={"x": ()})
    assert plain.keywords == {} and plain.run_setup(model, 0) == Setup()
    assert plain.run_step(model, masked_batch(model.config), ()) == {"x": ones}
    with pytest.raises(ValueError, match="'scale'"):
        recipe.with_options({"scales": 3})
    with pytest.raises(ValueError, match="sign='times'"):
        recipe.with_options({"sign": "times"})


CLASSES = tuple(f"class {number}" for number in range(23))
LABEL = np.array([1, 22, 0, -1, 7, 13], np.int32)
EDITED = ("no_cls", "random_as_class")  # which patches are kept, the image says


def batch_of(config, label=LABEL):
    kinds = np.random.default_rng(1).integers(-1, 2, (len(label), config.patches))
    images = tiny.images(config, len(label))
    return tiny.batch_of(images, label, kinds.astype(np.int32))


def in_microbatches_of(monkeypatch, model, size, function, *arguments):
    """Rows of a new program under a limit of so many images, and its memory."""
    limit = size * protocol.logit_bytes(model)
    monkeypatch.setattr(protocol, "LOGIT_BYTES", limit)
    program = jax.jit(lambda *arguments: function(*arguments)).lower(*arguments)
    compiled = program.compile()
    return jax.device_get(compiled(*arguments)), compiled.memory_analysis()


def assert_same_rows(rows, expected):
    assert rows.keys() == expected.keys()
    for name, values in expected.items():
        assert rows[name].shape == values.shape and rows[name].dtype == values.dtype
        if values.dtype.kind == "f":
            np.testing.assert_allclose(rows[name], values, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(rows[name], values, err_msg=name)


@pytest.mark.parametrize(
    ("recipe", "config", "options", "size"),
    [
        ("identifiability", "gap", {}, 5),  # 4 and, padded, 3
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("identifiability", "refinement", {}, 5),
                ("tokens", "registers", {"top": 3}, 2),
                ("paper", "registers", {"k": 3, "interventions": EDITED}, 1),
            )
        ),
    ],
)
def test_rows_are_those_of_the_whole_batch(recipe, config, options, size, monkeypatch):
    recipe = find_recipe(recipe).with_options(options)
    model = tiny.make(tiny.CONFIGS[config], classes=CLASSES)
    batch = batch_of(model.config, [*LABEL, 4])
    batch.images[4] = np.nan
    carry = jax.jit(functools.partial(recipe.run_setup, seed=0))(model).carry
    arguments = recipe.run_step, model, batch, carry
    whole, _ = in_microbatches_of(monkeypatch, model, 7, *arguments)
    rows, _ = in_microbatches_of(monkeypatch, model, size, *arguments)
    assert_same_rows(rows, whole)
    assert (rows["rank_residual"][4] == 22).all()


@pytest.mark.slow
def test_every_device_takes_microbatches_of_its_own_images(monkeypatch):
    model = tiny.make(tiny.CONFIGS["gap"], classes=CLASSES)
    whole, split = PartitionSpec(), PartitionSpec("batch")
    step = jax.shard_map(
        identifiability,
        mesh=Mesh(np.asarray(jax.devices()[:2]), ("batch",)),
        in_specs=(whole, split),
        out_specs=split,
        check_vma=False,
    )
    run = functools.partial(in_microbatches_of, monkeypatch, model)
    expected, _ = run(3, step, model, batch_of(model.config))
    rows, _ = run(2, step, model, batch_of(model.config))  # 2 and 1 of 3
    assert_same_rows(rows, expected)


@pytest.mark.slow
def test_memory_is_that_of_a_microbatch(monkeypatch):
    model = tiny.make(tiny.CONFIGS["one_block"], classes=tuple(map(str, range(3000))))
    batch = batch_of(model.config, np.arange(8))
    logits = 8 * protocol.logit_bytes(model)
    assert logits == 8 * 17 * 3000 * 4
    run = functools.partial(in_microbatches_of, monkeypatch, model)
    _, whole = run(8, identifiability, model, batch)
    _, few = run(2, identifiability, model, batch)
    assert whole.temp_size_in_bytes > logits
    assert few.temp_size_in_bytes < 0.5 * whole.temp_size_in_bytes


@pytest.mark.parametrize(
    ("limit", "images", "each", "size"),
    [
        (100, 32, 3, 32),
        (100, 32, 4, 16),
        (100, 32, 8, 11),  # 12 would fit, and need as many microbatches
        (100, 12, 15, 6),
        (100, 7, 20, 4),  # a prime number: 4 and 3
        (100, 1, 1000, 1),  # one image is the least
        (100, 3, 1000, 1),
        (protocol.LOGIT_BYTES, 256, 197 * 1000 * 4, 256),  # B/16, 1,000 classes
        (protocol.LOGIT_BYTES, 16, 197 * 21_843 * 4, 8),
        (protocol.LOGIT_BYTES, 32, 197 * 21_843 * 4, 11),
    ],
)
def test_microbatches_are_few_and_of_about_one_size(
    monkeypatch, limit, images, each, size
):
    monkeypatch.setattr(protocol, "LOGIT_BYTES", limit)
    assert protocol.microbatch_size(images, each) == size


def test_a_batch_that_fits_is_passed_on_as_it_is():
    model = tiny.make(tiny.CONFIGS["plain"], classes=CLASSES)
    batch, calls = batch_of(model.config), []
    step = protocol.microbatched(lambda *a, **k: calls.append((a, k)) or {})
    assert step(model, batch, "carry", top=5) == {}
    ((positional, keywords),) = calls
    assert keywords == {"top": 5}
    assert positional[0] is model and positional[1] is batch
    assert positional[2] == "carry" and identifiability.__doc__
