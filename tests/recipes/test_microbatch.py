"""Slices of a batch: the rows of the whole batch, in the memory of a slice."""

import functools

import jax
import numpy as np
import pytest
import tiny

from vitjax.recipes import microbatch, paper
from vitjax.recipes.identifiability import identifiability
from vitjax.recipes.registry import find_recipe
from vitjax.recipes.tokens import tokens
from vitjax.runner import mesh as meshes
from vitjax.types import Batch

CLASSES = tuple(f"class {number}" for number in range(23))
LABEL = np.array([1, 22, 0, -1, 7, 13], np.int32)


def batch_of(config, label=LABEL):
    count = len(label)
    kinds = np.random.default_rng(1).integers(-1, 2, (count, config.patches))
    return Batch(
        images=tiny.images(config, count),
        label=np.asarray(label, np.int32),
        valid=np.ones(count, bool),
        index=np.arange(count, dtype=np.int32),
        patch_label=kinds.astype(np.int32),
    )


def in_slices_of(monkeypatch, model, size, function, *arguments):
    """What a new program says under a limit of so many images, and its plan."""
    limit = size * microbatch.product_bytes(model)
    monkeypatch.setattr(microbatch, "PRODUCT_BYTES", limit)
    program = jax.jit(lambda *arguments: function(*arguments)).lower(*arguments)
    compiled = program.compile()
    return jax.device_get(compiled(*arguments)), compiled.memory_analysis()


def assert_same_rows(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].shape == values.shape and found[name].dtype == values.dtype
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize(
    "name", ("gap", pytest.param("refinement", marks=pytest.mark.slow))
)
def test_identifiability_is_that_of_the_whole_batch(name, monkeypatch):
    model = tiny.make(tiny.CONFIGS[name], classes=CLASSES)
    batch = batch_of(model.config, [*LABEL, 4])
    batch.images[4] = np.nan
    within = functools.partial(in_slices_of, monkeypatch, model)
    whole, _ = within(7, identifiability, model, batch)
    found, _ = within(5, identifiability, model, batch)  # 4 and, filled up, 3
    assert_same_rows(found, whole)
    assert (found["rank_residual"][4] == 22).all()


def test_every_device_takes_slices_of_its_own_images(monkeypatch):
    model = tiny.make(tiny.CONFIGS["gap"], classes=CLASSES)
    mesh = meshes.make_mesh(jax.devices()[:2])

    def rows(model, batch, aux):
        return identifiability(model, batch)

    step = meshes.on_each_device(rows, mesh)
    within = functools.partial(in_slices_of, monkeypatch, model)
    whole, _ = within(3, step, model, batch_of(model.config), ())
    found, _ = within(2, step, model, batch_of(model.config), ())  # 2 and 1 of 3
    assert_same_rows(found, whole)


@pytest.mark.slow
def test_rows_of_tokens_are_those_of_the_whole_batch(monkeypatch):
    model = tiny.make(tiny.CONFIGS["registers"], classes=CLASSES)
    step = functools.partial(tokens, top=3)
    within = functools.partial(in_slices_of, monkeypatch, model)
    whole, _ = within(6, step, model, batch_of(model.config))
    found, _ = within(2, step, model, batch_of(model.config))
    assert_same_rows(found, whole)
    assert found["token_classes"].shape == (6, 2, 20, 3)


def paper_rows(monkeypatch, name, function, options):
    """Rows of `one_pass` or of the whole recipe: of a batch, and of single images."""
    model = tiny.make(tiny.CONFIGS[name], classes=CLASSES)
    aux = jax.jit(functools.partial(paper.prepare, seed=0, **options))(model).aux
    step = functools.partial(function, **options)
    arguments = model, batch_of(model.config), aux
    whole, _ = in_slices_of(monkeypatch, model, 6, step, *arguments)
    found, _ = in_slices_of(monkeypatch, model, 1, step, *arguments)
    return found, whole


def test_one_pass_is_that_of_the_whole_batch(monkeypatch):
    options = {**paper.ONE_PASS.options, "k": 3}
    found, whole = paper_rows(monkeypatch, "registers", paper.one_pass, options)
    assert_same_rows(found, whole)
    assert {"logit_embedding", "logit_middle", "simple_mlp"} <= found.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ("plain", "registers_gap"))
def test_the_papers_rows_are_those_of_the_whole_batch(name, monkeypatch):
    options = {**paper.PAPER.options, "k": 3}
    found, whole = paper_rows(monkeypatch, name, paper.step, options)
    assert_same_rows(found, whole)
    assert {"rank_self_only", "rank_random_as_class"} <= found.keys()


def precision_step(model, **options):
    """The recipe `precision` with its quickest options, and what it prepares."""
    recipe = find_recipe("precision").asked(
        {"methods": ("raw_attention",), "steps": 2, **options}
    )
    return recipe.rows, jax.jit(recipe.make, static_argnames="seed")(model, seed=0).aux


@pytest.mark.slow
def test_rows_of_precision_are_those_of_the_whole_batch(monkeypatch):
    model = tiny.make(tiny.CONFIGS["one_block"], classes=CLASSES)
    step, aux = precision_step(model)
    arguments = model, batch_of(model.config, [*LABEL, 4]), aux
    whole, _ = in_slices_of(monkeypatch, model, 7, step, *arguments)
    found, _ = in_slices_of(monkeypatch, model, 4, step, *arguments)
    assert_same_rows(found, whole)
    assert {"same_rank_self_only", "same_removal_negative"} <= found.keys()


def test_memory_is_that_of_a_slice(monkeypatch):
    model = tiny.make(tiny.CONFIGS["one_block"], classes=tuple(map(str, range(3000))))
    batch = batch_of(model.config, np.arange(8))
    product = 8 * microbatch.product_bytes(model)
    assert product == 8 * 17 * 3000 * 4
    within = functools.partial(in_slices_of, monkeypatch, model)
    _, whole = within(8, identifiability, model, batch)
    _, few = within(2, identifiability, model, batch)
    assert whole.temp_size_in_bytes > product
    assert few.temp_size_in_bytes < 0.5 * whole.temp_size_in_bytes


def test_slices_are_few_and_of_about_one_size(monkeypatch):
    monkeypatch.setattr(microbatch, "PRODUCT_BYTES", 100)
    assert microbatch.slice_size(32, 3) == 32
    assert microbatch.slice_size(32, 4) == 16
    assert microbatch.slice_size(32, 8) == 11  # 12 would fit, and need as many slices
    assert microbatch.slice_size(12, 15) == 6
    assert microbatch.slice_size(7, 20) == 4  # a prime number: 4 and 3
    assert microbatch.slice_size(1, 1000) == 1  # one image is the least
    assert microbatch.slice_size(3, 1000) == 1


def test_ordinary_batches_are_one_slice():
    """1,000 classes of B/16 up to 256 images, and 21,843 from 16 images on not."""
    assert microbatch.slice_size(256, 197 * 1000 * 4) == 256
    assert microbatch.slice_size(16, 197 * 21_843 * 4) == 8
    assert microbatch.slice_size(32, 197 * 21_843 * 4) == 11


def test_a_batch_that_fits_is_handed_on_as_it_is():
    model = tiny.make(tiny.CONFIGS["plain"], classes=CLASSES)
    batch, seen = batch_of(model.config), []
    given = microbatch.microbatched(lambda *a, **k: seen.append((a, k)) or {})
    assert given(model, batch, "aux", top=5) == {}
    (positional, keywords), *rest = seen
    assert not rest and keywords == {"top": 5}
    assert positional[0] is model and positional[1] is batch and positional[2] == "aux"
    assert identifiability.__doc__ and identifiability.__name__ == "identifiability"
