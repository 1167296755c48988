"""Interventions: against the published perturbations, and masking against removal."""

import jax
import numpy as np
import published
import pytest
import tiny

import vitjax
from vitjax.analysis.class_space import project, rank
from vitjax.analysis.interventions import keep_tokens, select_tokens
from vitjax.types import Edits

MODEL = tiny.make(tiny.CONFIGS["plain"])
IMAGES = tiny.images(MODEL.config)


@jax.jit
def last_block(model, images, label, edits):
    logits, trace = vitjax.forward(model, images, capture=("residual",), edits=edits)
    states = project(model.class_space, trace.residual[-1])
    return logits, rank(states, label[:, None])


@pytest.mark.parametrize("name", tiny.slow_but(published.CONFIGS, "plain", "gap"))
@pytest.mark.parametrize("kind", ("self_only", "no_cls"))
def test_published_attention_perturbations(name, kind, oracle, published_model):
    source, model, count = oracle(name), published_model(name), published.count(name)
    if kind == "no_cls" and name == "gap":
        pytest.skip("the published code does not define no_cls without [CLS]")
    edits = vitjax.no_cls(model) if kind == "no_cls" else None
    edits = edits or vitjax.self_only(model, convention="vilas2023_code")
    images, label = source.images[:count], source.label[:count]
    logits, ranks = last_block(model, images, label, edits)
    stored = {key: x[:count] for key, x in source["perturbation"].items() if x.ndim}
    np.testing.assert_allclose(logits, stored[f"{kind}_logits"], atol=1e-3)
    difference = np.abs(np.asarray(ranks) - stored[f"{kind}_rank"])
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.998


@pytest.mark.parametrize("name", tiny.slow_but(published.CONFIGS, "plain", "gap"))
def test_published_token_removal_by_mask_and_by_selection(
    name, oracle, published_model
):
    source, model = oracle(name), published_model(name)
    stored, prefix = source["perturbation"], model.config.prefix
    stored = {key: stored[key][:6] for key in ("keep", "drop_logits", "drop_rank")}
    images, label = source.images[:6], source.label[:6]
    for kept in (0, 2) if name in ("plain", "deit") else (2,):
        keep = stored["keep"][:, kept]
        select = np.stack([np.flatnonzero(row) for row in keep]).astype(np.int32)
        masked, ranks = last_block(model, images, label, keep_tokens(keep))
        short, short_ranks = last_block(model, images, label, select_tokens(select))
        expected = stored["drop_logits"][:, kept]
        np.testing.assert_allclose(short, expected, atol=1e-3)
        tolerance = 2e-4 if name == "setA" else 1e-5
        np.testing.assert_allclose(masked, short, atol=tolerance)
        there = stored["drop_rank"][:, kept] >= 0
        assert (there[:, prefix:] == keep).all()
        expected_rank = stored["drop_rank"][:, kept][there]
        for ours in (np.asarray(ranks)[there], np.asarray(short_ranks).reshape(-1)):
            assert np.abs(ours - expected_rank).max() <= 1
            assert (ours == expected_rank).mean() > 0.998


def test_edits_compose_and_commute():
    rng = np.random.default_rng(0)
    edits = [
        vitjax.self_only(MODEL, layers=[0]),
        vitjax.no_cls(MODEL, heads=[1]),
        vitjax.no_cls(MODEL, renormalize=True, layers=[1]),
        Edits(keep=rng.random((3, 16)) < 0.6),
        Edits(select=np.tile(np.arange(12, dtype=np.int32)[::-1], (3, 1))),
        Edits(keep=rng.random((3, 16)) < 0.8),
    ]
    for left in range(6):
        for right in range(left):
            both = edits[left] & edits[right], edits[right] & edits[left]
            jax.tree.map(np.testing.assert_array_equal, *both)
    with pytest.raises(ValueError, match="select"):
        edits[4] & edits[4]


def test_masks_follow_a_selection():
    model, images, *_ = tiny.traced("registers")
    rng = np.random.default_rng(0)
    keep = rng.random((3, 16)) < 0.7
    order = np.stack([rng.permutation(16) for _ in range(3)]).astype(np.int32)
    attend = rng.random((2, 3, 1, 20, 20)).astype(np.float32)
    edits = Edits(keep=keep, attend=attend)
    plain, _ = vitjax.forward(model, images, edits=edits)
    shuffled, _ = vitjax.forward(model, images, edits=edits & Edits(select=order))
    np.testing.assert_allclose(shuffled, plain, atol=2e-5)


@pytest.mark.parametrize("name", ("plain", pytest.param("gap", marks=pytest.mark.slow)))
def test_nothing_kept_is_finite(name):
    model = tiny.make(tiny.CONFIGS[name])
    images, tokens = tiny.images(model.config), model.config.tokens
    edits = Edits(keep=np.zeros((3, 16), bool))
    logits, trace = vitjax.forward(model, images, capture=("residual",), edits=edits)
    assert np.isfinite(logits).all() and np.isfinite(trace.residual).all()

    @jax.jit
    @jax.grad
    def slope(attend):
        return vitjax.forward(model, images, edits=Edits(attend=attend))[0].sum()

    gradient = slope(np.zeros((1, 1, 1, tokens, tokens), np.float32))
    assert np.isfinite(gradient).all()


def test_what_does_not_exist_is_refused():
    model = tiny.make(tiny.CONFIGS["gap"])
    with pytest.raises(ValueError, match="CLS"):
        vitjax.no_cls(model)
    with pytest.raises(ValueError, match=r"layers=\(2,\)"):
        vitjax.self_only(model, layers=[2])
    with pytest.raises((ValueError, TypeError), match="vilas2023_code"):
        vitjax.self_only(model, convention="code")


def test_one_selection_for_all_images_combines_with_masks_of_each():
    attend = np.random.default_rng(0).random((1, 3, 1, 17, 17)).astype(np.float32)
    one = np.array([[2, 7, 11]])
    edits = [Edits(select=s, attend=attend) for s in (one, np.repeat(one, 3, 0))]
    logits = [vitjax.forward(MODEL, IMAGES, edits=each)[0] for each in edits]
    np.testing.assert_allclose(*logits, atol=1e-5)


def test_edits_that_do_not_fit_the_images_are_refused():
    for edits in (
        Edits(keep=np.ones((3, 5), bool)),
        Edits(keep=np.ones((2, 16), bool)),
        Edits(select=np.zeros((2, 4), int)),
    ):
        with pytest.raises(ValueError, match="3 images of 16 patches"):
            vitjax.forward(MODEL, IMAGES, edits=edits)
    with pytest.raises(ValueError, match="-1"):
        select_tokens(np.array([[0, -1]]))


@pytest.mark.parametrize(
    ("cut", "name"),
    (
        (vitjax.self_only, "gap"),
        (vitjax.self_only, "registers"),
        (vitjax.no_cls, "plain"),
    ),
)
def test_links_are_cut_with_and_without_renormalizing(cut, name):
    """An independent formula: the weights themselves, set and divided by hand."""
    model, images, _, plain = tiny.traced(name)
    expected, prefix = plain.attention_weights[0].copy(), model.config.prefix
    if cut is vitjax.no_cls:
        expected[..., prefix:, 0] = 0
    else:
        expected[..., prefix:, prefix:] *= np.eye(model.config.patches)
    ones = np.ones((1, 1, 1, *expected.shape[-2:]), np.float32)
    ones, capture = Edits(attend=ones, scale=ones), ("attention_weights",)
    for renormalize in (False, True):  # by one program
        edits = ones & cut(model, renormalize=renormalize)
        _, trace = vitjax.forward(model, images, capture=capture, edits=edits)
        if renormalize:
            expected = expected / expected.sum(-1, keepdims=True)
        weights = np.asarray(trace.attention_weights[0])
        np.testing.assert_allclose(weights, expected, atol=1e-6)
        assert not weights[expected == 0].any()
