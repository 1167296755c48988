"""Softmax probes: near the optimum where it is known, and no further than they help."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vitjax.analysis.softmax_probes import fit_softmax_probe

CLASSES, DIM = 4, 6


def examples(count, *, spread=1.0, seed=0):
    centres = 3 * np.eye(CLASSES, DIM)
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count).astype(np.int32)
    states = centres[labels] + spread * rng.normal(size=(count, DIM))
    return (states + 5).astype(np.float32), labels


def accuracy(probe, features, labels):
    return (np.asarray(probe.rank(features, labels)) == 0).mean()


def test_it_is_as_good_as_logistic_regression():
    features, labels = examples(400)
    others, truth = examples(400, seed=1)
    probe = fit_softmax_probe(features, labels, classes=CLASSES, seed=3)
    known = LogisticRegression(max_iter=300).fit(features, labels).score(others, truth)
    assert accuracy(probe, others, truth) > known - 0.02 > 0.9


def test_a_seed_decides_all_and_another_cell_nothing():
    features, labels = examples(60)
    pair = np.stack([features, features[::-1]], axis=1)
    alone = fit_softmax_probe(features, labels, classes=CLASSES, epochs=3)
    both = fit_softmax_probe(pair, labels, classes=CLASSES, epochs=3)
    np.testing.assert_array_equal(both.weights[0], alone.weights)
    other = fit_softmax_probe(features, labels, classes=CLASSES, epochs=3, seed=1)
    assert not np.array_equal(other.weights, alone.weights)


def test_it_stops_where_what_was_held_out_gains_nothing():
    features, _ = examples(60)
    noise = np.random.default_rng(5).integers(CLASSES, size=60).astype(np.int32)
    early = fit_softmax_probe(features, noise, classes=CLASSES, patience=2)
    late = fit_softmax_probe(features, noise, classes=CLASSES, patience=200)
    assert np.abs(early.weights).max() < 1.0
    # With patience for all epochs, the best of them is still what is kept.
    np.testing.assert_allclose(late.weights, early.weights, atol=0.5)


def test_padding_and_constant_components_do_no_harm():
    features, labels = examples(60)
    constant = np.concatenate([features, np.full((60, 1), 7.0, np.float32)], axis=1)
    padded = np.concatenate([constant, np.full((3, DIM + 1), np.nan, np.float32)])
    beside = np.concatenate([labels, np.full(3, -1, np.int32)])
    plain = fit_softmax_probe(constant, labels, classes=CLASSES, epochs=2)
    found = fit_softmax_probe(padded, beside, classes=CLASSES, epochs=2)
    np.testing.assert_array_equal(found.weights, plain.weights)
    assert np.isfinite(found.weights).all()


def test_options_that_do_not_fit():
    features, labels = examples(5)
    with pytest.raises(ValueError, match="two examples"):
        fit_softmax_probe(features[:1], labels[:1], classes=CLASSES)
    with pytest.raises(ValueError, match="validation is 1.0"):
        fit_softmax_probe(features, labels, classes=CLASSES, validation=1.0)
    pair = fit_softmax_probe(features[:2], labels[:2], classes=CLASSES, epochs=1)
    assert np.isfinite(pair.scores(features)).all()
