"""Microbatches: the rows of the whole batch, in the memory of a microbatch."""

import functools

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh, PartitionSpec

from vitjax.recipes import microbatch
from vitjax.recipes.identifiability import identifiability
from vitjax.recipes.registry import find_recipe

CLASSES = tuple(f"class {number}" for number in range(23))
LABEL = np.array([1, 22, 0, -1, 7, 13], np.int32)
RANDOM = ("self_only", "random_as_class")  # which patches are kept, the image says


def batch_of(config, label=LABEL):
    kinds = np.random.default_rng(1).integers(-1, 2, (len(label), config.patches))
    images = tiny.images(config, len(label))
    return tiny.batch_of(images, label, kinds.astype(np.int32))


def in_microbatches_of(monkeypatch, model, size, function, *arguments):
    """Rows of a new program under a limit of so many images, and its memory."""
    limit = size * microbatch.logit_bytes(model)
    monkeypatch.setattr(microbatch, "LOGIT_BYTES", limit)
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
                ("one_pass", "registers", {"k": 3}, 1),
                ("identifiability", "refinement", {}, 5),
                ("tokens", "registers", {"top": 3}, 2),
                ("paper", "plain", {"k": 3, "interventions": ("no_cls",)}, 1),
                ("paper", "registers_gap", {"k": 3, "interventions": RANDOM}, 1),
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


def test_memory_is_that_of_a_microbatch(monkeypatch):
    model = tiny.make(tiny.CONFIGS["one_block"], classes=tuple(map(str, range(3000))))
    batch = batch_of(model.config, np.arange(8))
    logits = 8 * microbatch.logit_bytes(model)
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
        (microbatch.LOGIT_BYTES, 256, 197 * 1000 * 4, 256),  # B/16, 1,000 classes
        (microbatch.LOGIT_BYTES, 16, 197 * 21_843 * 4, 8),
        (microbatch.LOGIT_BYTES, 32, 197 * 21_843 * 4, 11),
    ],
)
def test_microbatches_are_few_and_of_about_one_size(
    monkeypatch, limit, images, each, size
):
    monkeypatch.setattr(microbatch, "LOGIT_BYTES", limit)
    assert microbatch.microbatch_size(images, each) == size


def test_a_batch_that_fits_is_passed_on_as_it_is():
    model = tiny.make(tiny.CONFIGS["plain"], classes=CLASSES)
    batch, calls = batch_of(model.config), []
    step = microbatch.microbatched(lambda *a, **k: calls.append((a, k)) or {})
    assert step(model, batch, "carry", top=5) == {}
    ((positional, keywords),) = calls
    assert keywords == {"top": 5}
    assert positional[0] is model and positional[1] is batch
    assert positional[2] == "carry" and identifiability.__doc__
