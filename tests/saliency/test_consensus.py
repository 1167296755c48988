"""Consensus: ranks, their mean, and of what."""

import jax
import numpy as np
import tiny
from scipy.stats import rankdata

from vitjax.saliency import consensus
from vitjax.saliency.gradients import chefer
from vitjax.saliency.integrated_presence import integrated_presence

MODEL = tiny.make(tiny.CONFIGS["plain"])
IMAGES = tiny.images(MODEL.config)
TARGET = np.array([1, 4, 2], np.int32)


def test_ranks_are_those_of_scipy_and_ties_go_by_position():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 5, (3, 2, 16)).astype(np.float32)
    expected = (rankdata(maps, method="ordinal", axis=-1) - 1) / 15
    np.testing.assert_allclose(
        consensus.mean_rank(maps), expected.mean(0), rtol=0, atol=1e-6
    )


def test_only_the_order_counts():
    maps = np.random.default_rng(1).normal(size=(2, 3, 9)).astype(np.float32)
    found = consensus.mean_rank(np.stack([np.exp(maps[0]), 5 * maps[1] - 2]))
    np.testing.assert_array_equal(found, consensus.mean_rank(maps))


def test_one_map_has_every_rank_once_and_one_patch_has_none():
    one = np.random.default_rng(2).normal(size=(1, 2, 9)).astype(np.float32)
    np.testing.assert_allclose(
        np.sort(consensus.mean_rank(one)), np.tile(np.arange(9) / 8, (2, 1)), atol=1e-6
    )
    np.testing.assert_array_equal(consensus.mean_rank(one[..., :1]), np.zeros((2, 1)))


def test_nan_is_least_important():
    maps = np.array([[[3, np.nan, 1, 2]]], np.float32)
    np.testing.assert_allclose(
        consensus.mean_rank(maps), [[1, 0, 1 / 3, 2 / 3]], atol=1e-6
    )


def test_the_map_is_the_mean_rank_of_presence_and_chefer():
    found = jax.jit(consensus.consensus)(MODEL, IMAGES, TARGET)
    maps = [np.asarray(f(MODEL, IMAGES, TARGET)) for f in map(jax.jit, MEMBERS)]
    ranks = [(rankdata(m, method="ordinal", axis=-1) - 1) / 15 for m in maps]
    np.testing.assert_allclose(found, np.mean(ranks, axis=0), atol=1e-6)


MEMBERS = (integrated_presence, chefer)
