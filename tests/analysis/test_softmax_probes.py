"""Softmax probes: near the optimum where it is known, and no further than they help."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vitjax.analysis.softmax_probes import fit_softmax_probe

CLASSES, DIM, COUNT = 4, 6, 60


def examples(*, seed=0):
    centres = 3 * np.eye(CLASSES, DIM)
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=COUNT).astype(np.int32)
    states = centres[labels] + rng.normal(size=(COUNT, DIM))
    return (states + 5).astype(np.float32), labels


def accuracy(probe, features, labels):
    return (np.asarray(probe.rank(features, labels)) == 0).mean()


def test_it_is_as_good_as_logistic_regression():
    features, labels = examples()
    others = [examples(seed=seed) for seed in range(1, 9)]
    probe = fit_softmax_probe(features, labels, classes=CLASSES, seed=3)
    known = LogisticRegression(max_iter=300).fit(features, labels)
    found = np.mean([accuracy(probe, *pair) for pair in others])
    assert found > np.mean([known.score(*pair) for pair in others]) - 0.04 > 0.8


def test_a_seed_decides_all_and_another_cell_nothing():
    features, labels = examples()
    pair = np.stack([features, features[::-1]], axis=1)
    alone = fit_softmax_probe(features, labels, classes=CLASSES, epochs=3)
    both = fit_softmax_probe(pair, labels, classes=CLASSES, epochs=3)
    assert both.weights.shape == (2, CLASSES, DIM)
    np.testing.assert_array_equal(both.weights[0], alone.weights)
    other = fit_softmax_probe(features, labels, classes=CLASSES, epochs=3, seed=1)
    assert not np.array_equal(other.weights, alone.weights)


def held_out_loss(probe, features, labels, *, seed):
    """What chooses the epoch: the loss on the tenth that the seed holds out."""
    held = np.random.default_rng(seed).permutation(COUNT)[: COUNT // 10]
    logits = np.asarray(probe.scores(features[held]), np.float64)
    true = np.take_along_axis(logits, labels[held, None], 1)[:, 0]
    return (np.log(np.exp(logits).sum(1)) - true).mean()


def test_patience_ends_training_and_the_best_epoch_is_kept():
    features, _ = examples()
    noise = np.random.default_rng(5).integers(CLASSES, size=COUNT).astype(np.int32)

    def loss(**options):
        probe = fit_softmax_probe(features, noise, classes=CLASSES, **options)
        return held_out_loss(probe, features, noise, seed=0), probe

    (few, early), (most, late) = loss(patience=1), loss(patience=200)
    (forty, _), (none, untrained) = loss(patience=40, epochs=40), loss(epochs=0)
    assert not np.asarray(untrained.weights).any()
    np.testing.assert_allclose(none, np.log(CLASSES), atol=1e-6)
    assert most <= forty + 1e-6
    assert most <= few + 1e-6 <= none + 2e-6
    assert np.abs(early.weights).max() <= np.abs(late.weights).max()


def test_padding_and_constant_components_do_no_harm():
    features, labels = examples()
    features[:, -1] = 7.0
    padded = np.concatenate([features, np.full((3, DIM), np.nan, np.float32)])
    beside = np.concatenate([labels, np.full(3, -1, np.int32)])
    plain = fit_softmax_probe(features, labels, classes=CLASSES, epochs=2)
    found = fit_softmax_probe(padded, beside, classes=CLASSES, epochs=2)
    np.testing.assert_array_equal(found.weights, plain.weights)
    assert np.isfinite(found.weights).all()


def test_options_that_do_not_fit():
    features, labels = examples()
    with pytest.raises(ValueError, match="two examples"):
        fit_softmax_probe(features[:1], labels[:1], classes=CLASSES)
    with pytest.raises(ValueError, match="validation is 1.0"):
        fit_softmax_probe(features, labels, classes=CLASSES, validation=1.0)
