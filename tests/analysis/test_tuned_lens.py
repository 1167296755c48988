"""Tuned lenses: identity is the plain projection; losses, gradients and the fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from fake_context import FakeContext
from photos import Noise

import vitjax
from vitjax.analysis import tuned_lens
from vitjax.analysis.tuned_lens import TunedLens, identity_lens, lens_losses
from vitjax.recipes import lens as recipe
from vitjax.types import Config

DISTILLED = Config(**tiny.SHAPE, registers=1, distilled=True)
KINDS = {"distilled": DISTILLED, "gap": tiny.POOLED} | {
    name: tiny.ENCODERS[name] for name in ("dinov2", "siglip", "mean_of_norms")
}
NAMES = tiny.slow_but(KINDS, "gap", "dinov2")


def examples_of(config, tokens, count=3):
    model = tiny.make(config)
    batch = tiny.batch_of(tiny.images(config, count), [1] * count)
    batch.valid[-1] = False
    return model, recipe.jitted_examples(model, batch, tokens)


def random_lens(config, seed=0):
    rng = np.random.default_rng(seed)
    shape = config.depth, config.dim, config.dim
    return TunedLens(
        weights=rng.normal(0, 0.1, shape).astype(np.float32),
        bias=rng.normal(0, 0.1, shape[:2]).astype(np.float32),
    )


def test_a_lens_is_affine_for_every_block():
    lens, states = random_lens(tiny.CONFIGS["plain"]), np.ones((2, 3, 5, 16))
    states = np.random.default_rng(1).normal(size=states.shape).astype(np.float32)
    moved = np.einsum("lbtd,led->lbte", states, lens.weights)
    expected = states + moved + lens.bias[:, None, None]
    actual = vitjax.apply_lens(lens, states)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    same = vitjax.apply_lens(identity_lens(tiny.CONFIGS["plain"]), states)
    np.testing.assert_array_equal(same, states)
    for wrong in (states[:1], states[..., :8]):
        with pytest.raises(ValueError, match="of 2 blocks of width 16"):
            vitjax.apply_lens(lens, wrong)


@pytest.mark.parametrize("kind", NAMES)
def test_identity_reads_as_the_head_and_is_the_answer_at_the_end(kind):
    config = KINDS[kind]
    model, examples = examples_of(config, "pooled")
    lens = identity_lens(config)
    read = tuned_lens.read_blocks(lens, model, examples, tuned_lens.read_pooled)
    np.testing.assert_allclose(read[-1], examples.logits, rtol=1e-4, atol=1e-4)
    losses = recipe.jitted_losses(lens, model, examples, "pooled")
    assert abs(losses[-1]) < 1e-6 < losses[0]


def test_losses_are_the_mean_divergence_of_tokens_that_exist():
    config = tiny.POOLED
    model, examples = examples_of(config, "all")
    lens = random_lens(config)
    losses = recipe.jitted_losses(lens, model, examples, "all")
    states = np.moveaxis(np.asarray(examples.states), 1, 0)
    logits = vitjax.project_tokens(model, vitjax.apply_lens(lens, states))
    p, q = (jax.nn.log_softmax(x) for x in (examples.logits[None, :, None], logits))
    p, q = np.asarray(p), np.asarray(q)
    expected = (np.exp(p) * (p - q)).sum(-1)[:, :2].mean((1, 2))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    # Lenses are affine: the lens of the mean patch is the mean of the lenses.
    _, pooled = examples_of(config, "pooled")
    of_mean, of_all = (
        tuned_lens.read_blocks(lens, model, each, tuned_lens.read_pooled)
        for each in (pooled, examples)
    )
    np.testing.assert_allclose(of_mean, of_all, rtol=1e-3, atol=1e-4)


def test_gradients_are_slopes_and_vmap_is_a_loop():
    config = tiny.POOLED
    model, examples = examples_of(config, "pooled")
    with jax.enable_x64(True):
        model, examples, lens, direction = jax.tree.map(
            lambda x: jnp.asarray(x, np.float64) if x.dtype == np.float32 else x,
            (model, examples, random_lens(config), random_lens(config, 1)),
        )
        moved = [
            jax.tree.map(lambda x, d, s=s: x + s * d, lens, direction)
            for s in (-1e-5, 0, 1e-5)
        ]
        both = jax.tree.map(lambda *x: jnp.stack(x), *moved)

        def loss(lens):
            return lens_losses(lens, model, examples, "pooled").sum()

        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(loss)))(both)
        alone = float(jax.jit(loss)(moved[0]))
        terms = jax.tree.map(lambda g, d: (g[1] * d).sum(), slopes, direction)
        values, slope = np.asarray(values), float(sum(jax.tree.leaves(terms)))
    np.testing.assert_allclose(values[0], alone, rtol=1e-9)
    np.testing.assert_allclose(slope, (values[2] - values[0]) / 2e-5, rtol=1e-4)


DATA = [None] * 70
FIT = {"steps": 12, "learning_rate": 1e-2}


def test_a_fit_lowers_every_loss_and_does_not_depend_on_what_is_kept():
    model = tiny.make(tiny.CONFIGS["plain"])
    lens = vitjax.fit_tuned_lens(model, Noise(DATA), **FIT)
    streamed = vitjax.fit_tuned_lens(model, Noise(DATA), **FIT, max_memory="1kB")
    np.testing.assert_allclose(streamed.weights, lens.weights, atol=1e-5)
    assert lens.weights.dtype == np.float32 and lens.weights[0].any()
    assert not lens.weights[-1].any() and not lens.bias[-1].any()  # it was exact
    context = FakeContext(model, Noise(DATA), batch_size=len(DATA))
    (batch,) = context.batches(context.source, 0, len(DATA))
    examples = recipe.jitted_examples(model, batch, "pooled")
    plain, fitted = (
        recipe.jitted_losses(each, model, examples, "pooled")
        for each in (identity_lens(model.config), lens)
    )
    assert fitted[0] < plain[0] and fitted[-1] == plain[-1]


def test_a_fit_that_is_worse_is_the_identity():
    model = tiny.make(tiny.CONFIGS["plain"])
    options = FIT | {"learning_rate": 100.0}
    lens = vitjax.fit_tuned_lens(model, Noise(DATA), **options)
    assert not lens.weights.any() and not lens.bias.any()


def test_options_out_of_range():
    model = tiny.make(tiny.CONFIGS["plain"])
    for options in ({"tokens": "some"}, {"steps": 0}, {"learning_rate": 0.0}):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name}="):
            recipe.LENS.with_options(options)
    with pytest.raises(ValueError, match="no image"):
        vitjax.fit_tuned_lens(model, Noise([]))
    with pytest.raises(ValueError, match="no classes"):
        vitjax.fit_tuned_lens(tiny.make(model.config, classes=()), Noise(DATA))
