"""Captured states, edits and gradients: against the oracle and against properties."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import tiny

import vitjax
from vitjax.analysis.class_space import project, rank, take_label, top_k
from vitjax.types import TRACE_FIELDS, Edits

MODEL = tiny.make(tiny.CONFIGS["plain"])
IMAGES = tiny.images(MODEL.config)


@jax.jit
def read_logits(logits, label):
    label = label[:, None]
    return rank(logits, label), take_label(logits, label), top_k(logits, k=5).classes


@pytest.mark.parametrize("name", published.CONFIGS)
def test_ranks_and_logits_equal_the_published(name, oracle, published_logits):
    source, count = oracle(name), published.count(name)
    stored = {k: v[:count] for k, v in source["projections"].items() if v.ndim}
    for stream, key in published.STREAMS.items():
        reads = read_logits(published_logits(name)[stream], source.label[:count])
        ranks, logits, top = (np.moveaxis(np.asarray(a), 0, 1) for a in reads)
        margin = stored[f"margin_{key}"]
        assert published.ranks_agree(ranks, stored[f"rank_{key}"], margin)
        np.testing.assert_allclose(logits, stored[f"logit_{key}"], atol=1e-3)
        clear = stored[f"top5gap_{key}"].astype(np.float32) > 1e-3
        assert clear.any()
        np.testing.assert_array_equal(top[clear], stored[f"top5_{key}"][clear])


@pytest.mark.parametrize("name", tiny.KINDS)
def test_updates_add_up_to_the_residual_stream(name):
    _, _, _, trace = tiny.traced(name)
    before = np.concatenate([trace.embedding[None], trace.residual[:-1]])
    total = before + trace.attention_update + trace.mlp_update
    np.testing.assert_allclose(total, trace.residual, atol=1e-5)
    np.testing.assert_allclose(trace.attention_weights.sum(-1), 1, atol=1e-5)
    mixed = np.einsum("lbhqt,lbthk->lbqhk", trace.attention_weights, trace.values)
    np.testing.assert_allclose(mixed, trace.mixed_values, atol=1e-5)


def test_capture_returns_its_fields_and_refuses_the_rest():
    _, trace = vitjax.forward(MODEL, IMAGES, capture=("values",))
    assert trace.values.shape == (2, 3, 17, 2, 8)
    assert all(getattr(trace, f) is None for f in TRACE_FIELDS if f != "values")
    with pytest.raises(ValueError, match="'hidden'"):
        vitjax.forward(MODEL, IMAGES, capture=("hidden",))
    with pytest.raises(ValueError, match="32 32 3"):
        vitjax.forward(MODEL, IMAGES[:, :16])


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


def first_class(logits):
    return logits[:, 1].sum()


@jax.jit
def gradients_of(model, images, edits=None):
    return vitjax.attention_gradients(model, images, first_class, edits=edits)


def test_attention_gradients_equal_those_through_a_factor():
    model, images, *_, trace = tiny.traced("pooled")
    weights = np.eye(7, dtype=np.float32)[[1, 1, 1]]
    gradient = np.asarray(tiny.attention_slopes(model, images, weights))
    ones = np.ones(trace.attention_weights.shape, np.float32)
    assert gradient.shape == ones.shape

    def scalar(scale):
        edits = Edits(scale=scale)
        return first_class(vitjax.forward(model, images, edits=edits)[0])

    # d/d scale = d/dA . A, where the weights are A . scale.
    by_factor = jax.jit(jax.grad(scalar))(ones)
    top = np.abs(by_factor).max()
    assert top > 1e-3
    actual = gradient * trace.attention_weights
    np.testing.assert_allclose(actual, by_factor, atol=1e-4 * top)


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
    capture = ("attention_weights",)
    before = tiny.traced("plain")[3].attention_weights
    _, trace = vitjax.forward(MODEL, IMAGES, capture=capture, edits=edits)
    after = np.asarray(trace.attention_weights)
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)
    np.testing.assert_allclose(after[1, :, 0], before[1, :, 0], atol=1e-6)
    assert (after[1, :, 1, 1:, 0] == 0).all()
    np.testing.assert_allclose(after[1, :, 1, :, 1:], before[1, :, 1, :, 1:], atol=1e-6)


@pytest.mark.parametrize(
    "shape", ((3, 1, 1, 1, 1), (1, 2, 1, 1, 1), (1, 1, 3, 1, 1), (1, 1, 1, 5, 1))
)
def test_edits_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"= \(2, 3, 2, 17, 17\)"):
        vitjax.forward(MODEL, IMAGES, edits=Edits(scale=np.ones(shape, np.float32)))
