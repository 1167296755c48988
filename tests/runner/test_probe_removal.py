"""Orders of removal; the rows that come of them are in `test_probes`."""

import jax.numpy as jnp
import numpy as np

from vitjax.runner import probe_removal


def test_small_ranks_in_any_block_are_important():
    ranks = np.array([[[0, 5, 2], [0, 1, 2]]], np.int32)
    importance = probe_removal.importance_of(ranks)
    np.testing.assert_array_equal(np.argsort(-importance[0]), [0, 2, 1])
    huge = np.full((1, 24, 1), 21_000, np.int16)
    assert probe_removal.importance_of(huge)[0, 0] == -24 * 21_000


def test_random_orders_are_those_of_the_image_not_of_its_batch():
    draw = probe_removal.random_importance
    together = draw(jnp.int32(7), np.arange(6, dtype=np.int32), 16)
    later = draw(jnp.int32(7), np.arange(3, 6, dtype=np.int32), 16)
    np.testing.assert_array_equal(together[3:], later)
    assert len({tuple(np.argsort(row)) for row in np.asarray(together)}) == 6
    assert not np.array_equal(draw(jnp.int32(8), jnp.arange(6), 16), together)
