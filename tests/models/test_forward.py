"""Captured states, edits and gradients: against the oracle and against properties."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import tiny

import vitjax
from vitjax.analysis.class_space import project, rank, take_label, top_k
from vitjax.models.heads import pool
from vitjax.types import BLOCK_FIELDS, TRACE_FIELDS, Edits

MODEL = tiny.make(tiny.CONFIGS["plain"])
IMAGES = tiny.images(MODEL.config)


@jax.jit
def read_streams(model, images, label):
    def read(params, stream_in, trace, label):
        reads = {}
        for stream in published.STREAMS:
            logits = project(model.class_space, getattr(trace, stream))
            top = top_k(logits, k=5).classes
            logit = take_label(logits, label[:, None])
            reads[stream] = rank(logits, label[:, None]), logit, top
        return reads

    return vitjax.scan_blocks(model, images, read, args=label)[1]


@pytest.mark.parametrize("name", published.CONFIGS)
def test_ranks_and_logits_equal_the_published(name, oracle, published_model):
    source = oracle(name)
    model, stored = published_model(name), source["projections"]
    count = 8 if name == "setA" else None
    stored = {k: v[:count] for k, v in stored.items() if v.ndim}
    reads = read_streams(model, source.images[:count], source.label[:count])
    for stream, key in published.STREAMS.items():
        ranks, logits, top = (np.moveaxis(np.asarray(a), 0, 1) for a in reads[stream])
        margin = stored[f"margin_{key}"]
        assert published.ranks_agree(ranks, stored[f"rank_{key}"], margin)
        np.testing.assert_allclose(logits, stored[f"logit_{key}"], atol=1e-3)
        clear = stored[f"top5gap_{key}"].astype(np.float32) > 1e-3
        assert clear.any()
        np.testing.assert_array_equal(top[clear], stored[f"top5_{key}"][clear])


@pytest.mark.parametrize("name", sorted({*tiny.CONFIGS} - {"distilled"}))
def test_the_final_residual_projects_to_the_logits(name):
    model = tiny.make(tiny.CONFIGS[name])
    images = tiny.images(model.config)
    keep = np.arange(model.config.patches)[None] % 3 > np.arange(3)[:, None] % 2

    @jax.jit
    def both(model, edits):
        capture = ("residual",)
        logits, trace = vitjax.forward(model, images, capture=capture, edits=edits)
        pooled = pool(trace.residual[-1], edits, model.config)
        return project(model.class_space, pooled), logits

    for edits in (Edits(), Edits(keep=keep)):
        projected, logits = both(model, edits)
        np.testing.assert_allclose(projected, logits, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ("plain", "gap", "layer_scale", "post_cls"))
def test_updates_add_up_to_the_residual_stream(name):
    model = tiny.make(tiny.CONFIGS[name])
    _, trace = vitjax.forward(model, tiny.images(model.config), capture=TRACE_FIELDS)
    before = jnp.concatenate([trace.embedding[None], trace.residual[:-1]])
    total = before + trace.attention_update + trace.mlp_update
    np.testing.assert_allclose(total, trace.residual, atol=1e-5)
    np.testing.assert_allclose(trace.attention_weights.sum(-1), 1, atol=1e-5)
    mixed = jnp.einsum("lbhqt,lbthk->lbqhk", trace.attention_weights, trace.values)
    np.testing.assert_allclose(mixed, trace.mixed_values, atol=1e-5)


def test_capture_returns_its_fields_and_refuses_the_rest():
    _, trace = vitjax.forward(MODEL, IMAGES, capture=("values",))
    assert trace.values.shape == (2, 3, 17, 2, 8)
    assert all(getattr(trace, f) is None for f in TRACE_FIELDS if f != "values")
    with pytest.raises(ValueError, match="'hidden'"):
        vitjax.forward(MODEL, IMAGES, capture=("hidden",))
    with pytest.raises(ValueError, match="32 32 3"):
        vitjax.forward(MODEL, IMAGES[:, :16])


@pytest.mark.parametrize("name", ("plain", "gap"))
def test_one_image_equals_its_row_and_vmap_equals_the_batch(name):
    model = tiny.make(tiny.CONFIGS[name])
    images = tiny.images(model.config)
    logits, trace = vitjax.forward(model, images, capture=BLOCK_FIELDS)
    single, alone = vitjax.forward(model, images[1:2], capture=BLOCK_FIELDS)
    np.testing.assert_allclose(single[0], logits[1], atol=1e-5)
    weights = trace.attention_weights[:, 1]
    np.testing.assert_allclose(alone.attention_weights[:, 0], weights, atol=1e-6)

    def one(image):
        logits, trace = vitjax.forward(model, image[None], capture=("residual",))
        return logits[0], trace.residual[:, 0]

    mapped, residual = jax.jit(jax.vmap(one, out_axes=(0, 1)))(images)
    np.testing.assert_allclose(mapped, logits, atol=1e-5)
    np.testing.assert_allclose(residual, trace.residual, atol=1e-5)


def test_forward_does_not_retrace():
    before = vitjax.forward._cache_size()
    for seed in range(3):
        other = tiny.make(tiny.CONFIGS["plain"], seed=seed)
        vitjax.forward(other, tiny.images(MODEL.config, seed=seed), capture=("values",))
    assert vitjax.forward._cache_size() <= before + 1


def test_scan_blocks_carries_a_state():
    def read(total, params, stream_in, trace, factor):
        total = total + trace.attention_update + trace.mlp_update
        return total, factor * (total - trace.residual)

    start = lambda embedding: embedding  # noqa: E731
    _, error = vitjax.scan_blocks(MODEL, IMAGES, read, state=start, args=jnp.float32(2))
    np.testing.assert_allclose(error, 0, atol=2e-5)


def residual_logit(params, stream_in, trace, label):
    logits = project(MODEL.class_space, trace.residual)
    return take_label(logits, label[:, None])


LABELS = np.array([[1, 2, 3], [4, 0, 6]], np.int32)


@pytest.mark.slow
def test_two_closures_over_changing_data_give_two_results():
    """The same function object, with other data behind it."""
    box = {}

    def read(params, stream_in, trace):
        return residual_logit(params, stream_in, trace, box["label"])

    def scalar(logits):
        return take_label(logits, box["label"]).sum()

    for box["label"] in LABELS:
        _, actual = vitjax.scan_blocks(MODEL, IMAGES, read)
        args = box["label"]
        _, expected = vitjax.scan_blocks(MODEL, IMAGES, residual_logit, args=args)
        np.testing.assert_allclose(actual, expected, atol=1e-5)
        gradients = vitjax.attention_gradients(MODEL, IMAGES, scalar)
        last = np.asarray(gradients)[-1, :, :, 0]
        loss = vitjax.relevancy(MODEL, IMAGES, args, loss="negative_logit")[-1]
        np.testing.assert_allclose(last, loss, atol=1e-5)


def test_args_reach_read_under_jit_and_vmap_by_one_program():
    traces = []

    @jax.jit
    def run(model, images, label):
        traces.append(label.shape)
        return vitjax.scan_blocks(model, images, residual_logit, args=label)[1]

    actual = np.stack([run(MODEL, IMAGES, label) for label in LABELS])
    assert len(traces) == 1
    assert np.abs(actual[0] - actual[1]).max() > 1e-2
    mapped = jax.jit(jax.vmap(run, (None, None, 0)))(MODEL, IMAGES, LABELS)
    np.testing.assert_allclose(mapped, actual, atol=1e-5)


def first_class(logits):
    return logits[:, 1].sum()


@jax.jit
def gradients_of(model, images, edits=None):
    return vitjax.attention_gradients(model, images, first_class, edits=edits)


@pytest.mark.parametrize("name", ("plain", "gap"))
def test_attention_gradients_equal_those_through_a_factor(name):
    model = tiny.make(tiny.CONFIGS[name])
    images, cfg = tiny.images(model.config, 2), model.config
    gradient = gradients_of(model, images)
    ones = np.ones((cfg.depth, 2, cfg.heads, cfg.tokens, cfg.tokens), np.float32)
    assert gradient.shape == ones.shape

    def scalar(scale):
        edits = Edits(scale=scale)
        capture = ("attention_weights",)
        logits, trace = vitjax.forward(model, images, capture=capture, edits=edits)
        return first_class(logits), trace.attention_weights

    # d/d scale = d/dA . A, where the weights are A . scale.
    by_factor, weights = jax.jit(jax.grad(scalar, has_aux=True))(ones)
    top = np.abs(by_factor).max()
    assert top > 1e-3
    np.testing.assert_allclose(gradient * weights, by_factor, atol=1e-4 * top)


def test_attention_gradients_obey_edits():
    images, keep = IMAGES[:2], np.ones((2, 16), bool)
    keep[:, 3] = False
    masked = np.asarray(gradients_of(MODEL, images, Edits(keep=keep)))
    kept = np.flatnonzero(keep[0]).astype(np.int32)
    short = gradients_of(MODEL, images, Edits(select=np.stack([kept, kept])))
    tokens = np.concatenate([[0], kept + 1])
    rows = masked[..., tokens, :][..., tokens]
    np.testing.assert_allclose(rows, short, atol=1e-5)


def test_edits_reach_only_the_given_blocks_and_heads():
    edits = vitjax.no_cls(MODEL, layers=[-1], heads=[1])
    before, after = (
        np.asarray(
            vitjax.forward(MODEL, IMAGES, capture=("attention_weights",), edits=each)[
                1
            ].attention_weights
        )
        for each in (None, edits)
    )
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)
    np.testing.assert_allclose(after[1, :, 0], before[1, :, 0], atol=1e-6)
    assert (after[1, :, 1, 1:, 0] == 0).all()
    np.testing.assert_allclose(after[1, :, 1, :, 1:], before[1, :, 1, :, 1:], atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "message"),
    (((3, 1, 1, 1, 1), "2 blocks"), ((1, 1, 1, 5, 1), "17 tokens")),
)
def test_edits_of_a_wrong_shape_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        vitjax.forward(MODEL, IMAGES, edits=Edits(scale=np.ones(shape, np.float32)))
