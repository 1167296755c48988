"""Captured streams, edits and gradients: against the oracle and against properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import tiny

from vitjax import api
from vitjax.analysis import interventions
from vitjax.analysis.class_space import project, rank, take_label, top_k
from vitjax.models import forward as capture
from vitjax.models.heads import pool
from vitjax.types import BLOCK_FIELDS, TRACE_FIELDS, Edits

STREAMS = tuple(published.STREAMS)


@functools.partial(jax.jit, static_argnames="stream")
def read_stream(model, images, label, *, stream):
    def read(params, stream_in, trace):
        logits = project(model.class_space, getattr(trace, stream))
        top = top_k(logits, k=5).classes
        return rank(logits, label[:, None]), take_label(logits, label[:, None]), top

    return capture.scan_blocks(model, images, read)[1]


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", published.CONFIGS)
def test_ranks_and_logits_equal_the_published(name, stream, oracle, published_model):
    source, key = oracle(name), published.STREAMS[stream]
    read = read_stream(
        published_model(name), source.images, source.label, stream=stream
    )
    ranks, logits, top = (np.moveaxis(np.asarray(a), 0, 1) for a in read)
    stored = source["projections"]
    assert published.ranks_agree(ranks, stored[f"rank_{key}"], stored[f"margin_{key}"])
    np.testing.assert_allclose(logits, stored[f"logit_{key}"], atol=1e-3)
    clear = stored[f"top5gap_{key}"].astype(np.float32) > 1e-3
    assert clear.any()
    np.testing.assert_array_equal(top[clear], stored[f"top5_{key}"][clear])


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_the_last_stream_projects_to_the_logits(name):
    model = tiny.make(tiny.CONFIGS[name])
    images = tiny.images(model.config)
    keep = np.arange(model.config.patches)[None] % 3 > np.arange(3)[:, None] % 2
    for edits in (Edits(), Edits(keep=keep)):
        logits, trace = api.forward(model, images, capture=("residual",), edits=edits)
        pooled = pool(trace.residual[-1], edits, model.config)
        np.testing.assert_allclose(
            project(model.class_space, pooled), logits, atol=2e-5, rtol=1e-5
        )


@pytest.mark.parametrize("name", ("plain", "gap", "layer_scale", "post_cls"))
def test_updates_add_up_to_the_stream(name):
    model = tiny.make(tiny.CONFIGS[name])
    _, trace = api.forward(model, tiny.images(model.config), capture=TRACE_FIELDS)
    before = jnp.concatenate([trace.embedding[None], trace.residual[:-1]])
    total = before + trace.attention_update + trace.mlp_update
    np.testing.assert_allclose(total, trace.residual, atol=1e-5)
    np.testing.assert_allclose(trace.attention_weights.sum(-1), 1, atol=1e-5)
    mixed = jnp.einsum("lbhqt,lbthk->lbqhk", trace.attention_weights, trace.values)
    np.testing.assert_allclose(mixed, trace.mixed_values, atol=1e-5)


def test_capture_returns_what_was_asked_for_and_refuses_the_rest():
    model = tiny.make(tiny.CONFIGS["plain"])
    images = tiny.images(model.config)
    _, trace = api.forward(model, images, capture=("values",))
    assert trace.values.shape == (2, 3, 17, 2, 8)
    assert all(getattr(trace, f) is None for f in TRACE_FIELDS if f != "values")
    with pytest.raises(ValueError, match="mlp_hidden"):
        api.forward(model, images, capture=("hidden",))
    with pytest.raises(ValueError, match="32 32 3"):
        api.forward(model, images[:, :16])


@pytest.mark.parametrize("name", ("plain", "gap"))
def test_one_image_equals_its_row_and_vmap_equals_the_batch(name):
    model = tiny.make(tiny.CONFIGS[name])
    images = tiny.images(model.config)
    logits, trace = api.forward(model, images, capture=BLOCK_FIELDS)
    single, alone = api.forward(model, images[1:2], capture=BLOCK_FIELDS)
    np.testing.assert_allclose(single[0], logits[1], atol=1e-5)
    np.testing.assert_allclose(
        alone.attention_weights[:, 0], trace.attention_weights[:, 1], atol=1e-6
    )

    def one(image):
        logits, trace = api.forward(model, image[None], capture=("residual",))
        return logits[0], trace.residual[:, 0]

    mapped, residual = jax.jit(jax.vmap(one, out_axes=(0, 1)))(images)
    np.testing.assert_allclose(mapped, logits, atol=1e-5)
    np.testing.assert_allclose(residual, trace.residual, atol=1e-5)


def test_forward_is_differentiable_and_does_not_retrace():
    model = tiny.make(tiny.CONFIGS["plain"])
    images = tiny.images(model.config)
    gradient = jax.grad(lambda x: api.forward(model, x)[0][:, 0].sum())(images)
    assert gradient.shape == images.shape
    assert np.abs(gradient).max() > 0
    before = api.forward._cache_size()
    for seed in range(3):
        other = tiny.make(tiny.CONFIGS["plain"], seed=seed)
        api.forward(other, tiny.images(model.config, seed=seed), capture=("values",))
    assert api.forward._cache_size() <= before + 1


def test_scan_blocks_carries_a_state():
    model = tiny.make(tiny.CONFIGS["plain"])
    images = tiny.images(model.config)

    def read(total, params, stream_in, trace):
        total = total + trace.attention_update + trace.mlp_update
        return total, total - trace.residual

    _, error = api.scan_blocks(model, images, read, state=start)
    np.testing.assert_allclose(error, 0, atol=1e-5)


def start(embedding):
    return embedding


@pytest.mark.parametrize("name", ("plain", "gap"))
def test_attention_gradients_equal_those_through_a_factor(name):
    model = tiny.make(tiny.CONFIGS[name])
    images, cfg = tiny.images(model.config, 2), model.config
    gradient = api.attention_gradients(model, images, first_class)
    ones = np.ones((cfg.depth, 2, cfg.heads, cfg.tokens, cfg.tokens), np.float32)
    assert gradient.shape == ones.shape

    @jax.jit
    def scalar(scale):
        logits, trace = capture.forward(
            model, images, capture=("attention_weights",), edits=Edits(scale=scale)
        )
        return first_class(logits), trace.attention_weights

    # d/d scale = d/dA . A, where the weights are A . scale.
    by_factor, weights = jax.grad(scalar, has_aux=True)(ones)
    top = np.abs(by_factor).max()
    assert top > 1e-3
    np.testing.assert_allclose(gradient * weights, by_factor, atol=1e-4 * top)


def first_class(logits):
    return logits[:, 1].sum()


def test_attention_gradients_obey_edits():
    model = tiny.make(tiny.CONFIGS["plain"])
    images = tiny.images(model.config, 2)
    keep = np.ones((2, 16), bool)
    keep[:, 3] = False
    edits = Edits(keep=keep)
    masked = api.attention_gradients(model, images, first_class, edits=edits)
    kept = np.flatnonzero(keep[0]).astype(np.int32)
    select = Edits(select=np.stack([kept, kept]))
    short = api.attention_gradients(model, images, first_class, edits=select)
    tokens = np.concatenate([[0], kept + 1])
    rows = np.asarray(masked)[..., tokens, :][..., tokens]
    np.testing.assert_allclose(rows, short, atol=1e-5)


def test_edits_reach_only_the_blocks_and_heads_that_are_named():
    model = tiny.make(tiny.CONFIGS["plain"])
    images = tiny.images(model.config)
    edits = interventions.no_cls(model.config, layers=[-1], heads=[1])
    _, plain = api.forward(model, images, capture=("attention_weights",))
    _, cut = api.forward(model, images, capture=("attention_weights",), edits=edits)
    before, after = (
        np.asarray(plain.attention_weights),
        np.asarray(cut.attention_weights),
    )
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)
    np.testing.assert_allclose(after[1, :, 0], before[1, :, 0], atol=1e-6)
    assert (after[1, :, 1, 1:, 0] == 0).all()
    np.testing.assert_allclose(after[1, :, 1, :, 1:], before[1, :, 1, :, 1:], atol=1e-6)


def test_edits_of_a_wrong_shape_are_refused():
    model = tiny.make(tiny.CONFIGS["plain"])
    images = tiny.images(model.config)
    with pytest.raises(ValueError, match="2 blocks"):
        api.forward(
            model, images, edits=Edits(scale=np.ones((3, 1, 1, 1, 1), "float32"))
        )
    with pytest.raises(ValueError, match="17 tokens"):
        api.forward(
            model, images, edits=Edits(scale=np.ones((1, 1, 1, 5, 1), "float32"))
        )
