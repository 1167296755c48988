"""Probes against scikit-learn, and sums that do not depend on batches."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

import vitjax
from vitjax.analysis import probes
from vitjax.analysis.probes import fit_ridge_probe, fit_softmax_probe

CLASSES, DIM = 7, 12
rank_by = jax.jit(lambda probe, states, label: probe.rank(states, label))


def examples(count=30, *, missing=2, offset=20.0, cells=(), seed=0):
    """States of all but the last classes, far from zero, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES - missing, size=count).astype(np.int32)
    centers = rng.normal(size=(CLASSES, *cells, DIM))
    noise = rng.normal(size=(count, *cells, DIM))
    return (centers[labels] + noise + offset).astype(np.float32), labels


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


def test_the_intercept_is_not_penalized():
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
    same = streamed.scores(features)
    np.testing.assert_allclose(once.scores(features), same, atol=1e-5)
    assert not np.array_equal(once.centre, streamed.centre)


def test_padding_changes_nothing():
    features, labels = examples(30)
    padded = np.concatenate([features, np.full((4, DIM), np.nan, np.float32)])
    beside = np.concatenate([labels, np.full(4, -1, np.int32)])
    plain = fit_ridge_probe(features, labels, classes=CLASSES)
    actual = fit_ridge_probe(padded, beside, classes=CLASSES)
    np.testing.assert_allclose(actual.weights, plain.weights, atol=1e-6)
    np.testing.assert_allclose(actual.bias, plain.bias, atol=1e-6)


def test_many_probes_are_each_by_itself():
    features, labels = examples(cells=(2, 3))
    together = fit_ridge_probe(features, labels, classes=CLASSES)
    assert together.weights.shape == (2, 3, CLASSES, DIM)
    scores = together.scores(features)
    for cell in np.ndindex(2, 3):
        index = (slice(None), *cell)
        alone = fit_ridge_probe(features[index], labels, classes=CLASSES)
        expected = alone.scores(features[index])
        np.testing.assert_allclose(scores[index], expected, atol=1e-5)


def test_a_batchs_sums_under_jit_and_vmap():
    features, labels = examples(30, cells=(3,))
    offset = probes.batch_mean(features, labels)
    direct = probes.batch_sums(features, labels, offset)
    each = jax.vmap(probes.batch_sums, (1, None, 0), probes.BatchSums(0, 1))
    mapped = jax.jit(each)(features, labels, offset)
    for left, right in zip(direct, mapped, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)
    shifted = features.astype(np.float64) - np.asarray(offset)
    expected = np.einsum("nkd,nke->kde", shifted, shifted)
    np.testing.assert_allclose(direct.gram, expected, rtol=1e-5, atol=1e-4)


def test_a_batch_without_labels_has_no_mean_and_no_sums():
    features, labels = examples()
    unknown = np.full_like(labels, -1)
    offset = probes.batch_mean(features, unknown)
    np.testing.assert_array_equal(offset, np.zeros(DIM))
    statistics = probes.empty_statistics(offset, classes=CLASSES)
    probes.add_batch(statistics, probes.batch_sums(features, unknown, offset), unknown)
    assert not statistics.gram.any()
    assert not statistics.counts.any()


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
    np.testing.assert_array_equal(rank_by(probe, features, labels), np.zeros(CLASSES))


def test_rank_counts_larger_scores_under_jit():
    features, labels = examples(30, cells=(2,))
    probe = fit_ridge_probe(features, labels, classes=CLASSES)
    actual = rank_by(probe, features, labels)
    scores = np.asarray(probe.scores(features))
    true = np.take_along_axis(scores, labels[:, None, None], axis=-1)
    np.testing.assert_array_equal(actual, (scores > true).sum(-1))
    assert actual.shape == (30, 2)


def test_fewer_examples_than_dimensions_and_hardly_a_penalty():
    """Sums in float32 are not positive definite there."""
    rng = np.random.default_rng(0)
    states = (300 * rng.normal(size=(20, 64)) + 1e3).astype(np.float32)
    labels = np.arange(20) % CLASSES
    probe = fit_ridge_probe(states, labels, classes=CLASSES, alpha=1e-3)
    assert (rank_by(probe, states, labels) == 0).all()
    scores = np.asarray(probe.scores(states))
    np.testing.assert_allclose(scores[np.arange(20), labels], 1, atol=0.05)
    with pytest.raises(ValueError, match="alpha=1e-30"):
        fit_ridge_probe(states, labels, classes=CLASSES, alpha=1e-30)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.inf, np.nan])
def test_alpha_out_of_range(alpha):
    features, labels = examples(5)
    with pytest.raises(ValueError, match="alpha="):
        fit_ridge_probe(features, labels, classes=CLASSES, alpha=alpha)


def test_examples_that_do_not_fit():
    features, labels = examples(5)
    with pytest.raises(ValueError, match="5 states have 4 labels"):
        probes.check_examples(features, labels[:-1])
    with pytest.raises(ValueError, match=r"labels=\d is out of range \[-1, 0\]"):
        fit_ridge_probe(features, labels, classes=1)
    with pytest.raises(ValueError, match="at least one example"):
        fit_ridge_probe(features, np.full(5, -1), classes=CLASSES)
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_ridge_probe(features * np.float32(np.inf), labels, classes=CLASSES)
    features[2, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_softmax_probe(features, labels, classes=CLASSES)
    features[2, 3] = 0
    probe = fit_ridge_probe(features, labels, classes=CLASSES)
    with pytest.raises(ValueError, match="do not end with"):
        probe.scores(features[:, :-1])


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
            index = (slice(None), *cell)
            expected = published(states[index], labels)(states[index])
            np.testing.assert_allclose(scores[index], expected, atol=1e-4)


FEW, WIDTH, COUNT = 4, 6, 60


def blobs(*, seed=0):
    centers = 3 * np.eye(FEW, WIDTH)
    rng = np.random.default_rng(seed)
    labels = rng.integers(FEW, size=COUNT).astype(np.int32)
    states = centers[labels] + rng.normal(size=(COUNT, WIDTH))
    return (states + 5).astype(np.float32), labels


def test_softmax_is_as_good_as_logistic_regression():
    features, labels = blobs()
    others = zip(*(blobs(seed=seed) for seed in range(1, 9)))
    states, expected = map(np.concatenate, others)
    probe = fit_softmax_probe(features, labels, classes=FEW, seed=3)
    known = LogisticRegression(max_iter=300).fit(features, labels)
    actual = (rank_by(probe, states, expected) == 0).mean()
    assert actual > known.score(states, expected) - 0.04 > 0.8


def test_a_seed_decides_all_and_another_cell_nothing():
    features, labels = blobs()
    pair = np.stack([features, features[::-1]], axis=1)
    alone = fit_softmax_probe(features, labels, classes=FEW, epochs=3)
    both = fit_softmax_probe(pair, labels, classes=FEW, epochs=3)
    assert both.weights.shape == (2, FEW, WIDTH)
    np.testing.assert_array_equal(both.weights[0], alone.weights)
    other = fit_softmax_probe(features, labels, classes=FEW, epochs=3, seed=1)
    assert not np.array_equal(other.weights, alone.weights)


def held_out_loss(probe, features, labels, *, seed):
    """What chooses the epoch: the loss on the tenth that the seed holds out."""
    held = np.random.default_rng(seed).permutation(COUNT)[: COUNT // 10]
    logits = np.asarray(probe.scores(features[held]), np.float64)
    true = np.take_along_axis(logits, labels[held, None], 1)[:, 0]
    return (np.log(np.exp(logits).sum(1)) - true).mean()


def test_patience_ends_training_and_the_best_epoch_is_kept():
    features, _ = blobs()
    noise = np.random.default_rng(5).integers(FEW, size=COUNT).astype(np.int32)

    def loss(**options):
        probe = fit_softmax_probe(features, noise, classes=FEW, **options)
        return held_out_loss(probe, features, noise, seed=0), probe

    (few, early), (most, late) = loss(patience=1), loss(patience=200)
    (forty, _), (none, untrained) = loss(patience=40, epochs=40), loss(epochs=0)
    assert not np.asarray(untrained.weights).any()
    np.testing.assert_allclose(none, np.log(FEW), atol=1e-6)
    assert most <= forty + 1e-6
    assert most <= few + 1e-6 <= none + 2e-6
    assert np.abs(early.weights).max() <= np.abs(late.weights).max()


def test_softmax_padding_and_constant_components_do_no_harm():
    features, labels = blobs()
    features[:, -1] = 7.0
    padded = np.concatenate([features, np.full((3, WIDTH), np.nan, np.float32)])
    beside = np.concatenate([labels, np.full(3, -1, np.int32)])
    plain = fit_softmax_probe(features, labels, classes=FEW, epochs=2)
    actual = fit_softmax_probe(padded, beside, classes=FEW, epochs=2)
    np.testing.assert_array_equal(actual.weights, plain.weights)
    assert np.isfinite(actual.weights).all()


def test_softmax_options_that_do_not_fit():
    features, labels = blobs()
    with pytest.raises(ValueError, match="two examples"):
        fit_softmax_probe(features[:1], labels[:1], classes=FEW)
    with pytest.raises(ValueError, match="validation=1.0"):
        fit_softmax_probe(features, labels, classes=FEW, validation=1.0)
