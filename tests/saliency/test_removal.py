"""Removal curves: the published hits, shorter sequences, every edge of an order."""

import functools

import jax
import numpy as np
import published
import pytest
import tiny

import vitjax
from vitjax.analysis.interventions import keep_tokens
from vitjax.saliency import removal

MODEL = tiny.make(tiny.CONFIGS["plain"])


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Two lengths a curve are enough to test, and compile in a fourth of the time."""
    monkeypatch.setattr(removal, "BUCKETS", 2)


NAMES = [name for name in published.SMALL_NAMES if name != "gap"]


@pytest.mark.parametrize("kind", ("", "chefer_"))
@pytest.mark.parametrize("order", ("negative", "positive"))
@pytest.mark.parametrize("variant", NAMES)
def test_hits_equal_the_published(variant, order, kind, oracle, published_model):
    source = oracle(variant)
    data = source["removal"]
    stored = data[f"{kind}order_{order}"] - 1  # tokens from 1, [CLS] being 0
    place = np.argsort(stored, axis=1).astype(np.float32)
    # The stored order keeps its first tokens: most important first, or least.
    importance = -place if order == "negative" else place
    counts = tuple(map(int, data["n_kept"]))
    actual = vitjax.removal_curve(
        *(published_model(variant), source.images, source.label, importance),
        keep_counts=counts,
        order=order,
    )
    clear = np.abs(data[f"{kind}margin_{order}"]) > 1e-2
    hits = data[f"{kind}hit_{order}"].astype(bool)
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(np.asarray(actual)[clear], hits[clear])


@pytest.mark.parametrize(
    ("kind", "order", "sign"),
    (("registers", "negative", -1), ("pooled", "positive", 1)),
)
def test_a_step_is_the_model_without_the_other_patches(kind, order, sign):
    model = tiny.make(tiny.KINDS[kind])
    images, patches = tiny.images(model.config), model.config.patches
    importance = np.random.default_rng(1).normal(size=(3, patches)).astype(np.float32)
    counts = (16, 5, 0, 1, 12)
    kept_first = np.argsort(sign * importance, axis=1)
    position = np.argsort(kept_first, axis=1)
    keeps = [keep_tokens(position < count) for count in counts]
    logits = np.stack([vitjax.forward(model, images, edits=e)[0] for e in keeps])
    answer = logits.argmax(-1)
    label = answer[1].astype(np.int32)
    actual = vitjax.removal_curve(
        model, images, label, importance, keep_counts=counts, order=order
    )
    np.testing.assert_array_equal(actual, (answer == label).T)
    assert actual[:, 1].all()


def test_at_most_eight_lengths_that_hold_every_count(monkeypatch):
    monkeypatch.undo()
    groups = removal.buckets(range(1, 50))
    assert len(groups) == 8
    assert sorted(sum(groups, [])) == list(range(1, 50))
    assert all(max(a) < min(b) for a, b in zip(groups, groups[1:]))
    assert removal.buckets((7, 3, 7)) == [[3], [7]]
    # What shorter sequences save, in tokens: 0.62 of full length at most.
    assert sum(len(g) * max(g) for g in groups) < 0.6 * 49 * 49


def test_ties_go_by_position_and_nan_is_least_important():
    values = np.array([[1.0, 2.0, np.nan, 2.0, 1.0]], np.float32)
    most_first = removal.patch_order(values, "negative")
    np.testing.assert_array_equal(most_first, [[1, 3, 0, 4, 2]])
    least_first = removal.patch_order(values, "positive")
    np.testing.assert_array_equal(least_first, [[2, 0, 4, 1, 3]])


def test_no_intermediate_is_longer_than_its_bucket():
    """Shorter sequences really cost less: no attention over all tokens."""
    images = tiny.images(MODEL.config, 1)

    def curve(images, importance):
        return removal.removal_curve(MODEL, images, 0, importance, keep_counts=(3, 6))

    text = str(jax.make_jaxpr(curve)(images, np.zeros((1, 16), np.float32)))
    assert "1,2,7,7]" in text
    assert "17,17]" not in text


@pytest.mark.parametrize("spoil", ("pixels", "head"))
def test_no_prediction_and_ties_are_wrong(spoil):
    """Whatever the label, class 0 too, which argmax would call the largest."""
    images, importance = tiny.images(MODEL.config), np.zeros((3, 16), np.float32)
    params = MODEL.params
    if spoil == "pixels":
        images[:] = np.nan
    else:
        params = params | {"head": jax.tree.map(np.zeros_like, params["head"])}
    model = MODEL.replace(params=params)
    actual = vitjax.removal_curve(
        model, images, [0, 3, 6], importance, keep_counts=[0, 5, 16]
    )
    assert actual.shape == (3, 3) and not actual.any()


def test_no_image_has_no_curve():
    curve = jax.eval_shape(
        functools.partial(vitjax.removal_curve, keep_counts=(1, 3)),
        *(MODEL, tiny.images(MODEL.config)[:0], np.zeros(0, int), np.zeros((0, 16))),
    )
    assert curve.shape == (0, 2)


@pytest.mark.parametrize(
    ("patches", "counts", "value"),
    ((16, (), r"\(\)"), (16, (17,), "17"), (16, (-1,), "-1"), (17, (1,), r"\(3, 17\)")),
)
def test_misuse_is_refused(patches, counts, value):
    importance = np.zeros((3, patches), np.float32)
    with pytest.raises(ValueError, match=value):
        removal.removal_curve(
            MODEL, tiny.images(MODEL.config), 1, importance, keep_counts=counts
        )
