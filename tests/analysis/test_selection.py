"""The largest entries without a sort."""

import jax
import numpy as np
import pytest

from vitjax.analysis.selection import first, largest

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


def test_k_out_of_range():
    with pytest.raises(ValueError, match="k=4"):
        largest(np.zeros((2, 3), np.float32), 4)
