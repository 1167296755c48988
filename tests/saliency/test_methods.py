"""The one call: what it chooses, what it refuses, how it batches."""

import functools
import itertools

import jax
import numpy as np
import pytest
import tiny

import vitjax
from vitjax.saliency import methods

TARGET = np.array([1, 4, 2], np.int32)
MODEL = tiny.make(tiny.CONFIGS["plain"])
IMAGES = tiny.images(MODEL.config)
SLOW = pytest.mark.slow
FEW = ("relevancy", "chefer", "integrated_presence")
EVERY = [
    name if name in FEW else pytest.param(name, marks=SLOW) for name in methods.METHODS
]


def tolerance(method):
    """Chefer's LRP divides by sums that nearly cancel: last bits count there."""
    return 5e-4 if method == "lrp" else 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("method", methods.METHODS)
def test_one_block_in_half_precision(method):
    model = tiny.make(tiny.CONFIGS["one_block"]).astype("bfloat16")
    actual = vitjax.explain(model, IMAGES, TARGET, method=method)
    assert actual.shape == (3, 16) and np.isfinite(actual.astype(float)).all()


KEPT = np.arange(16) % 3 != 0


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        pytest.param(name, kind, marks=() if name in ("relevancy", "legrad") else SLOW)
        for name, kind in zip(methods.METHODS, itertools.cycle(("pooled", "plain")))
    ],
)
def test_a_patch_that_is_masked_is_as_if_it_were_not_there(method, kind):
    """In a batch, and of one image alone without those patches."""
    model, *_ = tiny.traced(kind)
    explain = functools.partial(vitjax.explain, method=method)
    edits = vitjax.keep_tokens(np.tile(KEPT, (3, 1)))
    masked = np.asarray(explain(model, IMAGES, TARGET, edits=edits))
    edits = vitjax.select_tokens(np.flatnonzero(KEPT)[None].astype(np.int32))
    alone = np.asarray(explain(model, IMAGES[1:2], TARGET[1:2], edits=edits))
    assert alone.shape == (1, KEPT.sum()) and np.isfinite(alone).all()
    assert (masked[:, ~KEPT] == 0).all() and np.isfinite(masked).all()
    top = np.abs(alone).max()
    np.testing.assert_allclose(masked[1, KEPT], alone[0], atol=tolerance(method) * top)


def test_relevancy_of_removed_tokens_is_zero():
    edits = vitjax.keep_tokens(KEPT[None])
    row = np.asarray(vitjax.relevancy(MODEL, IMAGES, TARGET, edits=edits))
    every = np.asarray(
        vitjax.relevancy(MODEL, IMAGES, TARGET, query="all", edits=edits)
    )
    exists = np.r_[True, KEPT]
    assert not row[..., ~exists].any() and row[..., exists].all()
    assert not every[..., ~exists].any() and not every[..., ~exists, :].any()
    np.testing.assert_allclose(every[:, :, :, 0], row, atol=1e-6)


@pytest.mark.parametrize("method", EVERY)
def test_methods_whose_maps_are_from_0_are_declared(method):
    """A figure has the colors of the method, whatever a single map holds."""
    maps = vitjax.explain(MODEL, IMAGES, TARGET, method=method)
    assert method in methods.SIGNED_METHODS or maps.min() >= 0


@pytest.mark.parametrize("method", EVERY)
def test_no_image_has_no_map(method):
    explain = functools.partial(vitjax.explain, method=method)
    maps = jax.eval_shape(explain, MODEL, IMAGES[:0], np.zeros(0, int))
    assert maps.shape == (0, 16)


def test_blocks_and_heads_are_chosen_and_added():
    parts = np.asarray(vitjax.relevancy(MODEL, IMAGES, TARGET))[..., 1:]
    options = {"method": "relevancy", "layers": (-1,), "heads": (0, 1)}
    actual = vitjax.explain(MODEL, IMAGES, TARGET, **options)
    np.testing.assert_allclose(actual, parts[-1].sum(1), rtol=1e-4, atol=1e-5)
    actual = vitjax.explain(MODEL, IMAGES, TARGET, method="relevancy")
    np.testing.assert_allclose(actual, parts.sum((0, 2)), rtol=1e-4, atol=1e-5)


def test_raw_attention_is_the_last_blocks_by_default():
    *_, trace = tiny.traced("plain")
    last = trace.attention_weights[-1, :, :, 0, 1:].sum(1)
    actual = vitjax.explain(MODEL, IMAGES, TARGET, method="raw_attention")
    np.testing.assert_allclose(actual, last, rtol=1e-5)


def test_the_target_may_be_one_for_all():
    every = vitjax.explain(MODEL, IMAGES, np.full(3, 5), method="chefer")
    one = vitjax.explain(MODEL, IMAGES, 5, method="chefer")
    np.testing.assert_array_equal(one, every)


@pytest.mark.parametrize(
    "options, message",
    (
        ({"method": "rolout"}, "'rolout'.*Did you mean 'rollout'"),
        ({"method": "chefer", "layers": (0,)}, "'chefer'"),
        ({"method": "relevancy", "layers": (2,)}, r"layers=\(2,\)"),
        ({"method": "relevancy", "heads": (-3,)}, r"heads=\(-3,\)"),
        ({"method": "relevancy", "heads": ()}, r"heads=\(\)"),
        ({"method": "chefer", "loss": "nonsense"}, "'chefer'.*loss"),
        ({"method": "relevancy", "loss": "nonsense"}, "nonsense"),
        ({"method": "rollout", "steps": 3}, "'rollout'.*steps"),
        ({"method": "legrad", "seed": 0}, "'legrad'.*seed"),
        ({"method": "random", "of": "residual"}, "'random'.*of"),
    ),
)
def test_what_does_not_exist_is_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        vitjax.explain(MODEL, IMAGES, TARGET, **options)


def test_a_seed_is_data_and_lists_are_tuples():
    options = {"method": "random"}
    maps = [vitjax.explain(MODEL, IMAGES, TARGET, **options, seed=0)]
    programs = vitjax.explain._cache_size()
    maps += [vitjax.explain(MODEL, IMAGES, TARGET, **options, seed=n) for n in (1, 2)]
    assert vitjax.explain._cache_size() == programs
    assert len(np.unique(maps)) == 3 * 48
    explain = functools.partial(vitjax.explain, MODEL, IMAGES, TARGET)
    expected = explain(method="relevancy", layers=(0,), heads=(1, 0))
    for layers, heads in (([0], [1, 0]), (np.array([0]), range(1, -1, -1))):
        actual = explain(method="relevancy", layers=layers, heads=heads)
        np.testing.assert_array_equal(actual, expected)
