"""Class-similarity change and residual composition, against the published outputs."""

import jax
import numpy as np
import published
import pytest

from vitjax.analysis.residual_stream import residual_composition, similarity_change

RNG = np.random.default_rng(0)
change_of = jax.jit(similarity_change)
composition_of = jax.jit(residual_composition, static_argnames="convention")


@pytest.mark.parametrize("name", published.SMALL_NAMES)
def test_change_rates_equal_the_published(name, published_logits, oracle):
    logits, source = published_logits(name), oracle(name)
    label = source.label[:, None]
    stored, prefix = source["aggregates"], published.CONFIGS[name].prefix
    before = logits["residual"][:-1]
    for stream, key in (("attention_update", "attn"), ("mlp_update", "mlp")):
        change = np.asarray(change_of(before, logits[stream][1:], label))
        rate = change[..., prefix:].mean((1, 2))
        np.testing.assert_allclose(rate, stored[f"B1_{key}_image"], atol=1e-6)
        if prefix:
            rate = change[..., 0].mean(1)
            np.testing.assert_allclose(rate, stored[f"B1_{key}_cls"], atol=1e-6)
    change = np.asarray(change_of(before, logits["residual"][1:], label))
    np.testing.assert_allclose(  # the published slice drops a patch of GAP
        change[..., 1:].mean((1, 2)), stored["A7_change_rate"], atol=1e-6
    )


@pytest.mark.parametrize("name", published.SMALL_NAMES)
def test_composition_equals_the_published(name, published_logits, oracle):
    tops = {key: x.argmax(-1) for key, x in published_logits(name).items()}
    stored = oracle(name)["aggregates"]
    options = dict(
        before=tops["residual"][:-1],
        attention=tops["attention_update"][1:],
        mlp=tops["mlp_update"][1:],
    )
    after = tops["residual"][1:]
    ours = composition_of(after, **options)
    theirs = composition_of(after, **options, convention="vilas2023_code")
    keys = ("previous", "prev"), ("attention", "attn"), ("mlp", "mlp")
    columns = [(ours[key], f"resid_only_{short}") for key, short in keys]
    columns += [(theirs[key], f"resid_published_{short}") for key, short in keys]
    columns += [
        (ours["several"], "resid_several"),
        (ours["composed"], "resid_excl_comp"),
    ]
    columns += [(theirs["composed"], "resid_published_comp")]
    for actual, column in columns:
        rate = 100 * np.asarray(actual).mean((1, 2))
        np.testing.assert_allclose(rate, stored[column], atol=1e-3, err_msg=column)


def test_categories_exclude_each_other_and_add_to_one():
    ids = RNG.integers(3, size=(4, 5, 200))
    actual = composition_of(ids[0], before=ids[1], attention=ids[2], mlp=ids[3])
    total = sum(np.asarray(one).astype(int) for one in actual.values())
    np.testing.assert_array_equal(total, 1)
    assert all(np.asarray(one).any() for one in actual.values())


def test_permuted_classes_change_nothing():
    logits = RNG.normal(size=(2, 3, 4, 9)).astype(np.float32)
    order = RNG.permutation(9)
    label = RNG.integers(9, size=(3, 1))
    inverse = np.argsort(order)
    np.testing.assert_array_equal(
        similarity_change(*logits[..., order], inverse[label]),
        similarity_change(*logits, label),
    )


def test_misuse_is_refused():
    logits = np.zeros((2, 3), np.float32)
    with pytest.raises((ValueError, TypeError), match=r"one shape|\(1, 3\)|1,3"):
        similarity_change(logits, logits[:1], 0)
    ids = dict.fromkeys(("before", "attention", "mlp"), np.zeros(3, int))
    with pytest.raises((ValueError, TypeError), match="vilas2023_code"):
        residual_composition(np.zeros(3, int), **ids, convention="code")
