"""The largest entries without a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax.analysis.top_k import (
    GROUP,
    ROUNDS,
    argmax,
    argmax_reduced,
    argmax_two_pass,
    fast_top_k_indices,
    maxima,
    top_k_indices,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("entries", [5, 63, 320, 768, 1000])
@pytest.mark.parametrize("k", [1, 5])
def test_largest_is_what_a_sort_puts_first(entries, k):
    x = RNG.normal(size=(3, 4, entries)).astype(np.float32)
    actual = jax.jit(fast_top_k_indices, static_argnums=1)(x, k)
    np.testing.assert_array_equal(actual, np.argsort(-x, axis=-1)[..., :k])
    np.testing.assert_array_equal(argmax(x), x.argmax(-1))


def test_equal_entries_have_the_values_of_the_largest():
    x = RNG.integers(3, size=(7, 900)).astype(np.float32)
    places = np.asarray(fast_top_k_indices(x, 5))
    assert all(len(set(row)) == 5 for row in places.tolist())
    np.testing.assert_array_equal(np.take_along_axis(x, places, -1), 2)
    np.testing.assert_array_equal(argmax(x), x.argmax(-1))


SPECIAL = (np.nan, np.inf, -np.inf, 0.0, 1.0)


@pytest.mark.parametrize("way", [top_k_indices, maxima])
@pytest.mark.parametrize("k", [1, 5, ROUNDS, ROUNDS + 1, 20])
def test_descending_is_a_stable_sort_also_of_what_is_equal_infinite_or_nan(way, k):
    x = RNG.choice(SPECIAL, size=(6, 5, 20)).astype(np.float32)
    x[0] = -np.inf
    x[1] = np.nan
    expected = np.lexsort((-np.nan_to_num(x, nan=0.0), ~np.isnan(x)), axis=-1)
    actual = jax.jit(way, static_argnums=1)(x, k)
    np.testing.assert_array_equal(actual, expected[..., :k])


@pytest.mark.parametrize("way", [argmax, argmax_reduced, argmax_two_pass])
def test_the_first_of_what_is_equal_infinite_or_nan(way):
    x = RNG.choice(SPECIAL, size=(60, 7)).astype(np.float32)
    x[0] = -np.inf
    expected = np.where(np.isnan(x).any(-1), 0, np.nan_to_num(x, nan=-9).argmax(-1))
    np.testing.assert_array_equal(jax.jit(way)(x), expected)
    np.testing.assert_array_equal(jax.vmap(way)(x), expected)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_few_largest_are_found_without_a_sort_where_sorts_are_slow(platform):
    def program(function):
        traced = jax.jit(function).trace(np.zeros((2, 900), np.float32))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "top_k" in program(lambda x: jax.lax.top_k(x, 5)[1])
    for few in (lambda x: fast_top_k_indices(x, 5), argmax):
        text = program(few)
        assert "top_k" not in text and "stablehlo.sort" not in text


def test_where_nothing_equals_the_maximum_the_largest_is_found_all_the_same(
    monkeypatch,
):
    x = RNG.normal(size=(3, 9)).astype(np.float32)
    calls, where = [], jnp.where

    def mistaken(condition, *values):
        calls.append(condition)
        return where(condition & (len(calls) > 1), *values)

    monkeypatch.setattr(jnp, "where", mistaken)
    np.testing.assert_array_equal(argmax_two_pass(jnp.asarray(x)), x.argmax(-1))
    assert len(calls) == 4


@pytest.mark.parametrize("k", [1, 2, 5])
def test_padding_is_never_found(k):
    x = np.full((3, 4 * k * GROUP + 1), -np.inf, np.float32)
    x[0, -1], x[1, :2] = 1, 1  # in the group that is filled up, elsewhere, nowhere
    actual = np.asarray(fast_top_k_indices(x, k))
    assert actual.max() < x.shape[1]
    assert all(len(set(row)) == k for row in actual.tolist())
    np.testing.assert_array_equal(
        np.take_along_axis(x, actual, -1), -np.sort(-x, -1)[:, :k]
    )


def test_k_out_of_range():
    with pytest.raises(ValueError, match="k=4"):
        fast_top_k_indices(np.zeros((2, 3), np.float32), 4)
