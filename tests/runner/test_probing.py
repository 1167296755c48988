"""States of a group of probes, and the fits that take them batch by batch."""

import jax.numpy as jnp
import numpy as np
import tiny as miniatures

import vitjax
from vitjax.runner import probing

STREAMS = ("residual", "mlp_update")


def test_states_are_slices_of_the_trace():
    model = miniatures.make(miniatures.CONFIGS["registers_gap"])
    images = miniatures.images(model.config)
    first, layers = model.config.depth - 1, 1
    starts = jnp.int32(first), jnp.int32(3)
    found = probing.states_of(
        model, images, starts, streams=STREAMS, layers=layers, tokens=5
    )
    _, trace = vitjax.forward(model, images, capture=STREAMS)
    for place, stream in enumerate(STREAMS):
        expected = getattr(trace, stream)[first, :, 3:8]
        np.testing.assert_allclose(found[:, place, 0], expected, atol=1e-5)
    assert found.shape == (3, 2, 1, 5, 16)


def examples(count=24):
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 3, size=count).astype(np.int32)
    return rng.normal(size=(count, 2, 4)).astype(np.float32), labels


def test_a_ridge_fit_of_batches_is_that_of_all():
    states, labels = examples()
    fit = probing.RidgeFit(classes=3, alpha=0.5)
    for rows in (slice(0, 8), slice(8, 16), slice(16, 24)):
        fit.add(jnp.asarray(states[rows]), labels[rows])
    together = vitjax.fit_ridge_probe(states, labels, classes=3, alpha=0.5)
    found = fit.probe().scores(states)
    np.testing.assert_allclose(found, together.scores(states), atol=1e-5)


def test_a_softmax_fit_of_batches_is_that_of_all(monkeypatch):
    states, labels = examples()
    handed = {}

    def fit_softmax_probe(features, labels, **more):
        handed.update(features=features, labels=labels)
        return vitjax.fit_ridge_probe(features, labels, classes=3)

    monkeypatch.setattr(probing, "fit_softmax_probe", fit_softmax_probe)
    fit = probing.SoftmaxFit(classes=3, seed=1)
    for rows in (slice(0, 16), slice(16, 24)):
        fit.add(jnp.asarray(states[rows]), labels[rows])
    fit.probe()
    np.testing.assert_array_equal(handed["features"], states[labels >= 0])
    np.testing.assert_array_equal(handed["labels"], labels[labels >= 0])
