"""The largest entries without a sort."""

import jax
import numpy as np
import pytest

from vitjax.analysis.selection import ROUNDS, descending, first, largest

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("entries", [5, 63, 320, 768, 1000])
@pytest.mark.parametrize("k", [1, 5])
def test_largest_is_what_a_sort_puts_first(entries, k):
    x = RNG.normal(size=(3, 4, entries)).astype(np.float32)
    found = jax.jit(largest, static_argnums=1)(x, k)
    np.testing.assert_array_equal(found, np.argsort(-x, axis=-1)[..., :k])
    np.testing.assert_array_equal(first(x), x.argmax(-1))


def test_equal_entries_have_the_values_of_the_largest():
    x = RNG.integers(3, size=(7, 900)).astype(np.float32)
    places = np.asarray(largest(x, 5))
    assert all(len(set(row)) == 5 for row in places.tolist())
    np.testing.assert_array_equal(np.take_along_axis(x, places, -1), 2)
    np.testing.assert_array_equal(first(x), x.argmax(-1))


def test_entries_that_do_not_fill_a_group_and_all_infinite():
    x = np.full((2, 1001), -np.inf, np.float32)
    assert set(np.asarray(largest(x, 5)).ravel()) <= set(range(1001))
    assert first(np.array([np.nan, 1.0], np.float32)) == 0


SPECIAL = (np.nan, np.inf, -np.inf, 0.0, 1.0)


@pytest.mark.parametrize("k", [1, 5, ROUNDS, ROUNDS + 1, 20])
def test_descending_is_a_stable_sort_also_of_what_is_equal_infinite_or_nan(k):
    x = RNG.choice(SPECIAL, size=(6, 5, 20)).astype(np.float32)
    x[0] = -np.inf
    x[1] = np.nan
    expected = np.lexsort((-np.nan_to_num(x, nan=0.0), ~np.isnan(x)), axis=-1)
    found = jax.jit(descending, static_argnums=1)(x, k)
    np.testing.assert_array_equal(found, expected[..., :k])


def test_a_few_largest_are_found_without_a_sort():
    x = np.zeros((2, 900), np.float32)
    few = str(jax.make_jaxpr(lambda x: largest(x, 5))(x))
    many = str(jax.make_jaxpr(lambda x: descending(x, ROUNDS + 1))(x))
    assert "top_k" in many and "top_k" not in few and "= sort[" not in few


def test_k_out_of_range():
    with pytest.raises(ValueError, match="k=4"):
        largest(np.zeros((2, 3), np.float32), 4)
