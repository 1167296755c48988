"""Ridge probes: against scikit-learn, and sums that do not mind how they were taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

import vitjax
from vitjax.analysis import probes
from vitjax.analysis.probes import Probe, fit_ridge_probe

CLASSES, DIM = 7, 12


def examples(count=30, *, missing=2, offset=20.0, cells=(), seed=0):
    """States of all but the last classes, far from zero, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES - missing, size=count).astype(np.int32)
    centres = rng.normal(size=(CLASSES, *cells, DIM))
    noise = rng.normal(size=(count, *cells, DIM))
    return (centres[labels] + noise + offset).astype(np.float32), labels


def published(features, labels, *, alpha=1.0):
    """scikit-learn's scores with the published targets, as a function."""
    targets = -np.ones((len(labels), CLASSES))
    targets[np.arange(len(labels)), labels] = 1
    return Ridge(alpha=alpha).fit(features.astype(np.float64), targets).predict


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
@pytest.mark.parametrize(("count", "offset"), [(30, 20.0), (5, -3.0), (30, 1e3)])
def test_scores_are_those_of_scikit_learn(alpha, count, offset):
    features, labels = examples(count, offset=offset)
    others, _ = examples(count, offset=offset, seed=1)
    probe = fit_ridge_probe(features, labels, classes=CLASSES, alpha=alpha)
    predict = published(features, labels, alpha=alpha)
    for states in (features, others):
        np.testing.assert_allclose(probe.scores(states), predict(states), atol=1e-4)


def test_the_intercept_is_not_penalised():
    features, labels = examples()
    heavy = fit_ridge_probe(features, labels, classes=CLASSES, alpha=1e9)
    share = np.bincount(labels, minlength=CLASSES) / len(labels)
    expected = np.broadcast_to(2 * share - 1, (len(labels), CLASSES))
    np.testing.assert_allclose(heavy.scores(features), expected, atol=1e-4)


def test_classes_without_examples_score_minus_one_everywhere():
    features, labels = examples(missing=3)
    probe = fit_ridge_probe(features, labels, classes=CLASSES)
    np.testing.assert_array_equal(probe.scores(10 * features)[:, -3:], -1)
    assert (np.asarray(probe.weights[:-3]) != 0).all()


def test_streamed_is_at_once(monkeypatch):
    features, labels = examples(30)
    once = fit_ridge_probe(features, labels, classes=CLASSES)
    monkeypatch.setattr(probes, "BATCH", 10)
    streamed = fit_ridge_probe(features, labels, classes=CLASSES)
    np.testing.assert_allclose(
        once.scores(features), streamed.scores(features), atol=1e-5
    )
    assert not np.array_equal(once.centre, streamed.centre)


def test_padding_changes_nothing():
    features, labels = examples(30)
    padded = np.concatenate([features, np.full((4, DIM), np.nan, np.float32)])
    beside = np.concatenate([labels, np.full(4, -1, np.int32)])
    plain = fit_ridge_probe(features, labels, classes=CLASSES)
    found = fit_ridge_probe(padded, beside, classes=CLASSES)
    np.testing.assert_allclose(found.weights, plain.weights, atol=1e-6)
    np.testing.assert_allclose(found.bias, plain.bias, atol=1e-6)


def test_many_probes_are_each_by_itself():
    features, labels = examples(cells=(2, 3))
    together = fit_ridge_probe(features, labels, classes=CLASSES)
    assert together.weights.shape == (2, 3, CLASSES, DIM)
    scores = together.scores(features)
    for cell in np.ndindex(2, 3):
        here = (slice(None), *cell)
        alone = fit_ridge_probe(features[here], labels, classes=CLASSES)
        np.testing.assert_allclose(
            scores[here], alone.scores(features[here]), atol=1e-5
        )


def test_a_batchs_sums_under_jit_and_vmap():
    features, labels = examples(30, cells=(3,))
    shift = probes.batch_mean(features, labels)
    direct = probes.batch_sums(features, labels, shift)
    each = jax.vmap(probes.batch_sums, (1, None, 0), probes.BatchSums(0, 1))
    mapped = jax.jit(each)(features, labels, shift)
    for left, right in zip(direct, mapped, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)
    shifted = features.astype(np.float64) - np.asarray(shift)
    expected = np.einsum("nkd,nke->kde", shifted, shifted)
    np.testing.assert_allclose(direct.gram, expected, rtol=1e-5, atol=1e-4)


def test_a_batch_without_labels_has_no_mean_and_no_sums():
    features, labels = examples()
    unknown = np.full_like(labels, -1)
    shift = probes.batch_mean(features, unknown)
    np.testing.assert_array_equal(shift, np.zeros(DIM))
    moments = probes.empty_moments(shift, classes=CLASSES)
    probes.add_batch(moments, probes.batch_sums(features, unknown, shift), unknown)
    assert not moments.gram.any()
    assert not moments.counts.any()


def test_one_class_and_one_example():
    features, _ = examples()
    probe = fit_ridge_probe(features, np.zeros(30, np.int32), classes=1)
    np.testing.assert_allclose(probe.scores(features), np.ones((30, 1)), atol=1e-6)
    single = fit_ridge_probe(features[:1], np.array([2]), classes=CLASSES)
    expected = np.where(np.arange(CLASSES) == 2, 1.0, -1.0)
    np.testing.assert_allclose(single.scores(features[0]), expected, atol=1e-6)


def test_one_example_of_each_class():
    features, _ = examples(CLASSES)
    labels = np.arange(CLASSES, dtype=np.int32)
    probe = fit_ridge_probe(features, labels, classes=CLASSES, alpha=1e-3)
    np.testing.assert_array_equal(probe.rank(features, labels), np.zeros(CLASSES))


def test_rank_counts_larger_scores_under_jit():
    features, labels = examples(30, cells=(2,))
    probe = fit_ridge_probe(features, labels, classes=CLASSES)
    found = jax.jit(lambda p, x, y: p.rank(x, y))(probe, features, labels)
    scores = np.asarray(probe.scores(features))
    true = np.take_along_axis(scores, labels[:, None, None], axis=-1)
    np.testing.assert_array_equal(found, (scores > true).sum(-1))
    assert found.shape == (30, 2)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.inf, np.nan])
def test_alpha_out_of_range(alpha):
    features, labels = examples(5)
    with pytest.raises(ValueError, match="alpha is .* above 0"):
        fit_ridge_probe(features, labels, classes=CLASSES, alpha=alpha)


def test_examples_that_do_not_fit():
    features, labels = examples(5)
    with pytest.raises(ValueError, match="5 states have 4 labels"):
        probes.check_examples(features, labels[:-1], classes=CLASSES)
    with pytest.raises(ValueError, match="do not lie in"):
        fit_ridge_probe(features, labels, classes=1)
    with pytest.raises(ValueError, match="at least one example"):
        fit_ridge_probe(features, np.full(5, -1), classes=CLASSES)
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_ridge_probe(features * np.float32(np.inf), labels, classes=CLASSES)
    probe = fit_ridge_probe(features, labels, classes=CLASSES)
    with pytest.raises(ValueError, match="do not end with"):
        probe.scores(features[:, :-1])


def test_a_probe_is_a_pytree():
    features, labels = examples()
    probe = fit_ridge_probe(features, labels, classes=CLASSES)
    assert len(jax.tree.leaves(probe)) == 3
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), probe)
    assert isinstance(twice, Probe)
    assert twice.scores(features[:, None] * np.ones((1, 2, 1), np.float32)).shape == (
        *(30, 2),
        CLASSES,
    )


@pytest.mark.slow
def test_scores_on_a_real_models_states_are_those_of_scikit_learn(
    published_model, oracle, monkeypatch
):
    monkeypatch.setattr(probes, "BATCH", 8)
    model, images = published_model("setA"), oracle("setA").images
    labels = np.repeat(np.arange(CLASSES), 4)[: len(images)].astype(np.int32)
    _, trace = vitjax.forward(model, images, capture=("residual", "mlp_update"))
    for stream in (trace.residual, trace.mlp_update):
        states = np.asarray(stream)[:, :, [0, 100]].transpose(1, 0, 2, 3)
        probe = fit_ridge_probe(states, labels, classes=CLASSES)
        scores = np.asarray(probe.scores(states))
        for cell in np.ndindex(states.shape[1:3]):
            here = (slice(None), *cell)
            expected = published(states[here], labels)(states[here])
            np.testing.assert_allclose(scores[here], expected, atol=1e-4)
