"""Compositions and their chance level, against loops over pairs of tokens."""

import numpy as np
import pytest

import vitjax
from vitjax.report.composition import (
    chance_compositions,
    composition,
    published_composition,
)

STREAMS = ("residual", "attention_update", "mlp_update")


def draw(images=3, depth=2, tokens=5, classes=4, seed=0):
    """Top classes in which every category occurs."""
    shape = (4, images, depth, tokens)
    values = np.random.default_rng(seed).integers(classes, size=shape, dtype=np.int32)
    return dict(zip(STREAMS, values[:3])), values[3]


def by_pairs(tops, came, convention):
    """Mean over ordered pairs of different tokens, through the public function."""
    tokens, total = came.shape[-1], {}
    for one in range(tokens):
        for other in set(range(tokens)) - {one}:
            found = vitjax.residual_composition(
                tops["residual"][..., one],
                before=came[..., other],
                attention=tops["attention_update"][..., other],
                mlp=tops["mlp_update"][..., other],
                convention=convention,
            )
            for name, hits in found.items():
                total[name] = total.get(name, 0) + np.asarray(hits, float)
    return {name: each / (tokens * (tokens - 1)) for name, each in total.items()}


@pytest.mark.parametrize(
    "key, convention, observed",
    [
        ("composition_chance", "paper", composition),
        ("published_composition_chance", "vilas2023_code", published_composition),
    ],
)
def test_chance_is_the_mean_over_pairs_of_tokens(key, convention, observed):
    tops, came = draw()
    found = chance_compositions(tops, came)[key]
    expected = by_pairs(tops, came, convention)
    assert list(found) == list(observed(tops, came))
    for name, share in found.items():
        np.testing.assert_allclose(share, expected[name], atol=1e-12)
        assert share.shape == (3, 2) and 0 < share.mean() < 1


def test_tokens_that_always_agree_agree_by_chance_too():
    tops, came = draw()
    one = np.ones_like(came)
    same = dict.fromkeys(STREAMS, one)
    assert (chance_compositions(same, one)["composition_chance"]["several"] == 1).all()
    # Own classes for every token: agreement is all the token's own.
    own = np.broadcast_to(np.arange(5, dtype=np.int32), came.shape)
    found = chance_compositions(dict.fromkeys(STREAMS, own), own)
    assert (composition(dict.fromkeys(STREAMS, own), own)["several"] == 1).all()
    assert (found["composition_chance"]["composed"] == 1).all()
    assert (found["published_composition_chance"]["previous"] == 0).all()


def test_shares_add_to_one():
    tops, came = draw(tokens=40, classes=3)
    for found in (
        composition(tops, came),
        chance_compositions(tops, came)["composition_chance"],
    ):
        np.testing.assert_allclose(sum(found.values()), 1)


def test_a_single_token_has_no_chance_level():
    tops, came = draw(tokens=1)
    for found in chance_compositions(tops, came).values():
        assert all(np.isnan(share).all() for share in found.values())
