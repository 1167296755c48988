"""Each map against its formula, written another way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import tiny
from scipy.stats import rankdata

import vitjax
from vitjax.analysis.class_space import take_label
from vitjax.analysis.interventions import keep_tokens, select_tokens
from vitjax.saliency import attention, attribution, gradients, libragrad, presence
from vitjax.saliency.passes import read_map
from vitjax.types import Edits, TapEdit

TARGET = np.array([1, 4, 2], np.int32)
ROWS = np.arange(3), TARGET


def logit(logits):
    return take_label(logits, TARGET).sum()


def target_logits(model, images, edits=None):
    return np.asarray(vitjax.forward(model, images, edits=edits)[0])[ROWS]


def setting(name):
    model, images, _, trace = tiny.traced(name)
    return model, images, model.config.prefix, trace


def rows_read(model):
    return slice(0, 1) if model.config.class_token else slice(model.config.prefix, None)


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", ("registers", "pooled"))
def test_raw_attention_is_the_row_of_cls(name):
    model, images, prefix, trace = setting(name)
    rows = trace.attention_weights[..., rows_read(model), :]
    read = functools.partial(read_map, attention.raw_attention)
    actual = jax.jit(read)(model, images, TARGET, Edits())
    np.testing.assert_allclose(actual, rows.mean(-2)[..., prefix:], atol=1e-6)


@pytest.mark.parametrize("name", ("registers", "pooled"))
def test_rollout_is_the_product_of_matrices(name):
    model, images, prefix, trace = setting(name)
    mixed = trace.attention_weights.mean(2)
    product = np.eye(mixed.shape[-1])[None]
    for block in mixed:
        product = (block + np.eye(mixed.shape[-1])) / 2 @ product
    expected = product[:, rows_read(model)].mean(1)[:, prefix:]
    actual = vitjax.explain(model, images, TARGET, method="rollout")
    assert_close(actual, expected)


@pytest.mark.parametrize("target", tiny.slow_but(("true", "other"), "true"))
@pytest.mark.parametrize("variant", published.CONFIGS)
def test_chefer_equals_the_published(variant, target, oracle, published_model):
    source = oracle(variant)
    label = source.label if target == "true" else source["base"]["other_class"]
    data, count = source["chefer"], 6 if variant == "setA" else None
    images, label = source.images[:count], label[:count].astype(np.int32)
    actual = vitjax.explain(published_model(variant), images, label, method="chefer")
    gap = variant == "gap"  # the whole of R there
    theirs = data[f"R_{target}"].mean(1) if gap else data[f"relevance_{target}"]
    theirs = theirs[:count]
    top = np.abs(theirs).max(-1, keepdims=True)
    assert (np.abs(np.asarray(actual) - theirs) <= 1e-4 * top).all()


def test_chefer_is_its_matrix_recursion():
    model, images, prefix, trace = setting("pooled")
    slopes = tiny.attention_slopes(model, images, np.eye(7, dtype=np.float32)[TARGET])
    mixed = np.maximum(slopes * trace.attention_weights, 0).mean(2)
    relevance = np.broadcast_to(np.eye(mixed.shape[-1]), mixed.shape[1:])
    for block in mixed:
        relevance = relevance + block @ relevance
    expected = relevance[:, rows_read(model)].mean(1)[:, prefix:]
    assert_close(vitjax.explain(model, images, TARGET, method="chefer"), expected)


@pytest.mark.slow
def test_gradcam_weighs_channels_by_their_mean_gradient():
    model, images, prefix, trace = setting("registers")

    def moved(zeros):
        edits = Edits(taps={"residual": TapEdit(add=zeros)})
        return logit(vitjax.forward(model, images, edits=edits)[0])

    gradient = jax.jit(jax.grad(moved))(jnp.zeros((2, 3, 20, 16)))[0, :, prefix:]
    states = trace.residual[0, :, prefix:]
    expected = np.maximum((states * gradient.mean(1, keepdims=True)).sum(-1), 0)
    assert_close(vitjax.explain(model, images, TARGET, method="gradcam"), expected)


def test_integrated_gradients_are_complete_through_heads_of_several_blocks():
    model, images, logits, _ = tiny.traced("dinov2")
    expected = logits[ROWS] - target_logits(model, 0 * images)
    actual = vitjax.explain(
        model, images, TARGET, method="integrated_gradients", steps=48
    )
    atol = 5e-3 * np.abs(logits).max()
    np.testing.assert_allclose(actual.sum(1), expected, atol=atol)


def test_integrated_gradients_are_sums_over_pixels():
    model = tiny.make(tiny.CONFIGS["wide"])  # 2 x 5 patches
    images = tiny.images(model.config)
    slope = jax.jit(jax.grad(lambda x: logit(vitjax.forward(model, x)[0])))
    total = 0
    for n, w in zip(*np.polynomial.legendre.leggauss(3)):
        gradient = np.asarray(slope(images * np.float32((n + 1) ** 2 / 4)))
        total += w * (n + 1) / 2 * images * gradient
    expected = total.reshape(3, 2, 8, 5, 8, 3).sum((2, 4, 5))
    actual = vitjax.explain(
        model, images, TARGET, method="integrated_gradients", steps=3
    )
    assert_close(actual, expected.reshape(3, 10), 1e-4)


@pytest.mark.parametrize("name", ("layer_scale", "pooled"))
def test_class_projection_is_what_each_token_writes(name):
    """Vectors written by token, through norms held fixed, in numpy."""
    model, images, prefix, trace = setting(name)
    cfg, space, rows = model.config, model.class_space, rows_read(model)
    block = jax.tree.map(np.asarray, model.block_params)
    out = block["MultiHeadDotProductAttention_0"]["out"]
    weights, values = trace.attention_weights[..., rows, :], trace.values
    written = np.einsum("lbhqt,lbthk,lhkd->lbhqtd", weights, values, out["kernel"])
    constant = out["bias"][:, None, None]
    if cfg.norm == "residual_post":
        update, norm = written.sum((2, 4)) + constant, block["LayerNorm_0"]
        sigma = np.sqrt(update.var(-1, keepdims=True) + cfg.epsilon)
        scale = norm["scale"][:, None, None]
        written = (written - written.mean(-1, keepdims=True)) * scale[:, :, None, None]
        written = written / sigma[:, :, None, :, None]
        constant = (constant - constant.mean(-1, keepdims=True)) * scale / sigma
        constant = constant + norm["bias"][:, None, None]
    if cfg.layer_scale:
        gamma = block["LayerScale_0"]["gamma"][:, None, None]
        written, constant = written * gamma[:, :, None, None], constant * gamma
    # The vectors and the constant are the update: nothing was forgotten.
    assert_close(written.sum((2, 4)) + constant, trace.attention_update[:, :, rows])
    state = np.asarray(trace.residual)[-1][:, rows].mean(1)
    sigma = np.sqrt(state.var(-1) + cfg.epsilon)
    direction = np.asarray(space.embedding)[TARGET] * np.asarray(space.norm_scale)
    direction = (direction - direction.mean(-1, keepdims=True)) / sigma[:, None]
    expected = np.einsum("lbhqtd,bd->lbht", written, direction) / written.shape[3]
    actual = jax.jit(attribution.class_projection)(model, images, TARGET, Edits())
    assert_close(actual, expected[..., prefix:])


@pytest.mark.parametrize("name", tiny.slow_but(("plain", "gap"), "gap"))
def test_occlusion_is_the_model_without_the_token(name):
    model, images, logits, _ = tiny.traced(name)
    actual = vitjax.explain(model, images, TARGET, method="occlusion")
    for patch in (0, 7, 15):
        others = np.delete(np.arange(16, dtype=np.int32), patch)
        edits = select_tokens(np.tile(others, (3, 1)))
        expected = logits[ROWS] - target_logits(model, images, edits)
        np.testing.assert_allclose(actual[:, patch], expected, atol=2e-5)


def test_random_maps_belong_to_the_image():
    model, images, *_ = setting("plain")
    random = jax.jit(gradients.random)
    actual = random(model, images, TARGET, Edits())
    turned = random(model, images[::-1], TARGET, Edits())
    np.testing.assert_array_equal(turned, actual[::-1])
    assert len(np.unique(actual)) == actual.size
    other = random(model, images, TARGET, Edits(), seed=1)
    assert (np.asarray(other) != np.asarray(actual)).all()
    assert abs(float(np.mean(actual)) - 0.5) < 0.15


@pytest.mark.parametrize("name", ("plain", "map_linear", "gap"))
def test_integrated_presence_adds_up_to_what_all_patches_bring(name):
    """Without prefix tokens, presence counts only against that of other patches."""
    model, images, logits, _ = tiny.traced(name)
    actual = np.asarray(
        vitjax.explain(model, images, TARGET, method="integrated_presence", steps=32)
    )
    top, expected, tolerance = np.abs(actual).max(), np.zeros(3), 1e-4
    if model.config.prefix:
        nothing = keep_tokens(np.zeros((3, 16), bool))
        expected = logits[ROWS] - target_logits(model, images, nothing)
        tolerance = 5e-3
    assert top > 1e-3
    np.testing.assert_allclose(actual.sum(1), expected, atol=tolerance * top)


def test_integrated_presence_is_the_derivative_of_the_mask():
    model, images, prefix, _ = setting("registers")

    def edits(mask):
        attend = jnp.concatenate([jnp.ones((3, prefix)), mask], 1)
        return Edits(attend=attend[None, :, None, None])

    def score(mask):
        return logit(vitjax.forward(model, images, edits=edits(mask))[0])

    slope = jax.jit(jax.grad(score))(np.full((3, 16), 0.4, np.float32))
    actual = vitjax.explain(model, images, TARGET, method="presence", at=0.4)
    np.testing.assert_allclose(actual, 0.4 * slope, atol=1e-5)


def test_no_step_is_refused():
    model, images, *_ = setting("plain")
    for method in ("integrated_gradients", "integrated_presence"):
        with pytest.raises(ValueError, match="steps=0"):
            vitjax.explain(model, images, TARGET, method=method, steps=0)


def ordinal(maps):
    return (rankdata(maps, method="ordinal", axis=-1) - 1) / (maps.shape[-1] - 1)


def test_ranks_are_those_of_scipy_and_only_the_order_counts():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 5, (3, 2, 16)).astype(np.float32)  # ties go by position
    mean_rank = jax.jit(presence.mean_rank)
    actual = mean_rank(maps)
    np.testing.assert_allclose(actual, ordinal(maps).mean(0), rtol=0, atol=1e-6)
    moved = np.stack([np.exp(maps[0]), 5 * maps[1] - 2, maps[2]])
    np.testing.assert_array_equal(mean_rank(moved), actual)
    np.testing.assert_array_equal(mean_rank(maps[..., :1]), np.zeros((2, 1)))
    keep = np.array([True, False, True, True])
    edits = Edits(keep=np.tile(keep, (2, 1)))
    kept = np.asarray(mean_rank(maps[..., :4], edits=edits))
    np.testing.assert_allclose(kept[:, keep], ordinal(maps[..., :4][..., keep]).mean(0))
    assert not kept[:, ~keep].any()
    last = mean_rank(np.array([[[3, np.nan, 1, 2]]], np.float32))
    np.testing.assert_allclose(last, [[1, 0, 1 / 3, 2 / 3]], atol=1e-6)


def test_consensus_is_the_mean_rank_of_presence_and_chefer():
    model, images, *_ = setting("plain")
    explain = functools.partial(vitjax.explain, model, images, TARGET)
    names = "integrated_presence", "chefer"
    maps = np.stack([explain(method=name) for name in names])
    actual = explain(method="consensus")
    np.testing.assert_allclose(actual, ordinal(maps).mean(0), atol=1e-6)


def test_quick_forms_are_of_the_model_with_patches_there_in_part():
    model, images, *_ = setting("plain")
    attend = np.where(np.arange(17) < 1, 1, 0.4).astype(np.float32)
    edits = Edits(attend=attend[None, None, None, None])
    explain = functools.partial(vitjax.explain, model, images, TARGET)
    half = functools.partial(libragrad.libragrad, blocks=1)
    read = jax.jit(functools.partial(read_map, half))
    partly = read(model, images, TARGET, edits)
    assert_close(explain(method="half_libragrad", at=0.4), partly)
    maps = explain(method="presence", at=0.4), explain(method="chefer", edits=edits)
    actual = explain(method="quick_consensus", at=0.4)
    expected = ordinal(np.stack([*maps, partly, partly])).mean(0)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
