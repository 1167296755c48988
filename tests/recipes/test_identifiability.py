"""The steps `identifiability` and `tokens`: against published outputs and directly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import tiny

import vitjax
from vitjax.analysis.class_space import project, rank, take_label, top_k
from vitjax.models.heads import pool
from vitjax.recipes.identifiability import identifiability
from vitjax.recipes.tokens import TOKENS, choose_classes
from vitjax.types import Edits

step, tokens = jax.jit(identifiability), jax.jit(TOKENS.run_step)


@pytest.mark.parametrize("name", published.CONFIGS)
def test_rows_equal_the_published(name, oracle, published_model):
    source = oracle(name)
    rows = step(published_model(name), tiny.batch_of(source.images, source.label))
    stored = source["projections"]
    for stream, key in published.STREAMS.items():
        ours = np.asarray(rows[f"rank_{stream}"])
        margin = stored[f"margin_{key}"]
        assert published.ranks_agree(ours, stored[f"rank_{key}"], margin)
        logits = np.asarray(rows[f"logit_{stream}"])
        np.testing.assert_allclose(logits, stored[f"logit_{key}"], atol=1e-3)
    prediction = np.asarray(rows["prediction"])
    expected = source["base"]["logits"].argmax(-1)
    np.testing.assert_array_equal(prediction, expected)
    np.testing.assert_array_equal(rows["top_classes"][:, -1, 0], expected)
    np.testing.assert_array_equal(prediction == source.label, source["base"]["acc"])
    if name not in ("setA", "plain"):
        return
    last = np.asarray(rows["rank_residual"])[:, -1, 1:]
    stored = source["aggregates"]
    for rate, key in (
        ((last == 0).mean(), "A2_ident_rate_last_block"),
        ((last == 0).any(-1).mean(), "A3_images_with_identifiable_token"),
    ):
        assert 100 * rate == pytest.approx(float(stored[key]), abs=0.03)
    score = 1 - np.asarray(rows["rank_residual"]) / source["base"]["logits"].shape[-1]
    np.testing.assert_allclose(
        score[:, :, 0].mean(0), stored["ident_mean_cls"], atol=1e-4
    )


@jax.jit
def project_all(model, images, label):
    """(logits, {stream: all class logits, the label's, its rank}, top five)."""
    logits, trace = vitjax.forward(model, images, capture=tuple(published.STREAMS))
    direct = {}
    for stream in published.STREAMS:
        projected = vitjax.project_tokens(model, getattr(trace, stream))
        columns = projected, label[:, None]
        direct[stream] = projected, take_label(*columns), rank(*columns)
    answers = logits[None]
    if not model.config.normalizes_first:
        pooled = pool(trace.residual, Edits(), model.config)
        answers = project(model.class_space, pooled)
    return logits, direct, top_k(answers, k=5)


HEADS = tiny.slow_but(tiny.HEADS, "refinement", "siglip", "dinov2")


@pytest.mark.parametrize("name", HEADS)  # to what goes on in a block, rows are blind
def test_rows_equal_projecting_every_stream(name):
    model = tiny.make(tiny.HEADS[name])
    images, label = tiny.images(model.config), np.array([1, 6, 0], np.int32)
    rows = step(model, tiny.batch_of(images, label))
    logits, direct, best = jax.device_get(project_all(model, images, label))
    for stream, (projected, true, expected) in direct.items():
        ours = np.asarray(rows[f"logit_{stream}"]).swapaxes(0, 1)
        np.testing.assert_allclose(ours, true, atol=1e-4)
        nearest = np.sort(np.abs(projected - true[..., None]), -1)[..., 1]
        ranks = np.asarray(rows[f"rank_{stream}"]).swapaxes(0, 1)
        assert (ranks == expected)[nearest > 1e-3].all()
    layers = slice(-len(best.classes), None)  # all, or the last
    for field in ("classes", "logits"):
        ours = np.asarray(rows[f"top_{field}"]).swapaxes(0, 1)[layers]
        np.testing.assert_allclose(ours, getattr(best, field), atol=1e-4)
    np.testing.assert_array_equal(rows["prediction"], np.argmax(logits, -1))


def test_an_unknown_label_changes_nothing_else_and_nan_ranks_last():
    model = tiny.make(tiny.CONFIGS["plain"])
    images = tiny.images(model.config)
    known = step(model, tiny.batch_of(images, [1, 2, 3]))
    unknown = step(model, tiny.batch_of(images, [1, -1, 3]))
    for name in ("rank_residual", "logit_mlp_update"):
        np.testing.assert_array_equal(known[name][::2], unknown[name][::2])
    images[1] = np.nan
    broken = step(model, tiny.batch_of(images, [1, 2, 3]))
    assert (np.asarray(broken["rank_residual"])[1] == 6).all()
    np.testing.assert_array_equal(
        broken["rank_residual"][::2], known["rank_residual"][::2]
    )


def test_the_step_runs_in_bfloat16():
    model = tiny.make(tiny.CONFIGS["plain"])
    batch = tiny.batch_of(tiny.images(model.config), [1, 2, 3])
    exact, rough = step(model, batch), step(model.astype(jnp.bfloat16), batch)
    for name in rough:
        assert rough[name].dtype == exact[name].dtype
    np.testing.assert_allclose(
        rough["logit_residual"], exact["logit_residual"], atol=0.3
    )


LABELS = np.array([1, 2, -1], np.int32)
TOKENS_OF = tiny.slow_but(("one_block", "registers_gap"), "registers_gap")


@pytest.fixture(scope="module", params=TOKENS_OF)
def case(request):
    """(model, batch whose last image has no label, its rows, trace, class logits of
    every token images first); one of few classes.
    """
    few = request.param == "one_block"
    classes = ("a", "b", "c") if few else tiny.CLASSES
    model = tiny.make(tiny.CONFIGS[request.param], classes=classes)
    batch = tiny.batch_of(tiny.images(model.config), LABELS)
    fields = ("residual", "attention_weights")
    _, trace = vitjax.forward(model, batch.images, capture=fields)
    logits = vitjax.project_tokens(model, trace.residual).swapaxes(0, 1)
    return model, batch, tokens(model, batch, ()), trace, logits


def test_every_tokens_classes_and_their_probabilities(case):
    *_, rows, _, logits = case
    expected = np.asarray(jax.nn.softmax(logits))
    order = np.argsort(-expected, axis=-1, kind="stable")[..., :5]
    np.testing.assert_array_equal(rows["token_classes"], order)
    shares = np.take_along_axis(expected, order, -1)
    np.testing.assert_allclose(rows["token_probabilities"], shares, atol=1e-6)


def test_what_is_attended_and_what_would_help(case):
    model, batch, rows, trace, _ = case
    prefix, weights = model.config.prefix, np.asarray(trace.attention_weights)
    if model.config.class_token:
        read = weights[..., 0, prefix:]
    else:
        read = weights[..., prefix:, prefix:].mean(-2)
    np.testing.assert_allclose(rows["attended"], np.moveaxis(read, 0, 1), atol=1e-6)
    target = np.where(LABELS >= 0, LABELS, np.asarray(rows["prediction"]))
    helpful = vitjax.relevancy(model, batch.images, target)[..., prefix:]
    np.testing.assert_allclose(rows["helpful"], np.moveaxis(helpful, 0, 1), atol=1e-6)


def test_chosen_classes_and_attention_of_every_token(case):
    model, _, rows, trace, logits = case
    chosen = np.asarray(rows["chosen_classes"])
    np.testing.assert_array_equal(chosen[:2, 0], LABELS[:2])
    assert chosen[2, 0] == rows["prediction"][2]
    assert (np.sort(chosen) == np.arange(model.num_classes)).all()  # few: all of them
    label = chosen[:, None, None]
    ranks = rank(jnp.repeat(logits[..., None, :], chosen.shape[1], -2), label)
    np.testing.assert_array_equal(rows["chosen_ranks"], ranks)
    expected = np.take_along_axis(np.asarray(logits), label, -1)
    np.testing.assert_allclose(rows["chosen_logits"], expected, atol=1e-5)
    total = jax.nn.logsumexp(logits, -1)
    np.testing.assert_allclose(rows["token_normalizer"], total, atol=1e-5)
    weights = np.asarray(trace.attention_weights).mean(2)[..., model.config.prefix :]
    largest = np.asarray(rows["token_attention_largest"])[..., None]
    steps = np.asarray(rows["token_attention"], np.float32)
    restored = steps / 255 * largest
    error = np.abs(restored - np.moveaxis(weights, 0, 1))
    assert (error <= 0.51 / 255 * largest).all()


def test_of_many_classes_the_label_the_best_and_the_most_probable_are_chosen():
    classes, draw = 60, np.random.default_rng(0)
    logits, mass = draw.normal(size=(2, 2, classes)).astype(np.float32)
    mass = np.exp(mass)
    label = np.array([int(logits[0].argmin()), -1], np.int32)
    chosen = np.asarray(jax.jit(choose_classes)(label, logits, mass))
    best = np.argsort(-logits)[:, :5].tolist()
    first = [[label[0], *best[0]], best[1]]
    for row, start, share in zip(chosen.tolist(), first, mass):
        rest = [n for n in np.argsort(-share).tolist() if n not in start]
        assert row == [*start, *rest][:20]


def test_the_rest_is_identifiability_of_the_label_or_the_prediction(case):
    model, batch, rows, *_ = case
    target = np.where(LABELS >= 0, LABELS, np.asarray(rows["prediction"]))
    plain = step(model, dataclasses.replace(batch, label=target))
    assert set(plain) < set(rows) < set(TOKENS.dims)
    for name, values in plain.items():
        np.testing.assert_allclose(rows[name], values, atol=1e-5)


def test_edits_are_those_of_forward():
    """Also where the residual stream is no longer the sum of its updates."""
    model = tiny.make(tiny.CONFIGS["registers"])
    images, label = tiny.images(model.config), np.array([1, 2, 3])
    edits = vitjax.ablate(model, "residual", layers=[0], tokens=[4], value=0.5)
    edits &= vitjax.ablate(model, "mixed_values", layers=[1], heads=[0])

    @jax.jit
    def both(batch):
        rows = identifiability(model, batch, edits=edits)
        _, trace = vitjax.forward(model, images, capture=("residual",), edits=edits)
        logits = vitjax.project(model.class_space, trace.residual)
        return rows, vitjax.rank(logits, label[:, None])

    rows, ranks = both(tiny.batch_of(images, label))
    np.testing.assert_array_equal(rows["rank_residual"].swapaxes(0, 1), ranks)
