"""Rows in two precisions compared, against loops and scipy."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import stats

from vitjax.recipes import precision_metrics

CONFIG = tiny.CONFIGS["registers"]
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", {"cls": 1, "image": 16}),
        ("registers", {"cls": 1, "register": 3, "image": 16}),
        ("registers_gap", {"register": 2, "image": 16}),
        ("gap", {"image": 16}),
    ],
)
def test_every_token_is_of_one_kind(name, expected):
    config = tiny.CONFIGS[name]
    tokens = np.arange(config.tokens)
    found = {
        kind: tokens[part] for kind, part in precision_metrics.kinds(config).items()
    }
    assert {kind: len(part) for kind, part in found.items()} == expected
    np.testing.assert_array_equal(np.concatenate(list(found.values())), tokens)


def test_ranks_against_loops():
    classes = 250
    fine = RNG.integers(classes, size=(3, 2, CONFIG.tokens)).astype(np.int32)
    moved = RNG.integers(-4, 5, size=fine.shape)
    coarse = np.clip(fine + moved, 0, classes - 1).astype(np.int32)
    rows = precision_metrics.rank_rows(
        *(jnp.asarray(fine), jnp.asarray(coarse)),
        name="x",
        classes=classes,
        config=CONFIG,
    )
    for place, tokens in enumerate((range(1), range(1, 4), range(4, 20))):
        for image, layer in np.ndindex(3, 2):
            pairs = [(fine[image, layer, t], coarse[image, layer, t]) for t in tokens]
            score = [(1 - b / classes) - (1 - a / classes) for a, b in pairs]
            expected = {
                "same_rank_x": np.mean([a == b for a, b in pairs]),
                "near_rank_x": np.mean([abs(a - b) <= 2 for a, b in pairs]),
                "shift_x": np.mean(score),
                "distance_x": np.mean(np.abs(score)),
            }
            for key, value in expected.items():
                found = rows[key][image, layer, place]
                assert found == pytest.approx(value, abs=1e-6), key


def one_pass(images=2, layers=3, classes=4):
    """Rows of `paper.one_pass` that the comparison reads, at random."""
    shape = images, layers, CONFIG.tokens
    streams = precision_metrics.base.STREAMS
    rows = {f"logit_{s}": RNG.normal(size=shape) for s in (*streams, "middle")}
    rows["logit_embedding"] = RNG.normal(size=shape[::2])
    rows |= {f"first_{s}": RNG.integers(classes, size=shape) for s in streams}
    rows["first_embedding"] = RNG.integers(classes, size=shape[::2])
    rows |= {name: RNG.random(shape) < 0.5 for name in precision_metrics.MEMORIES}
    return {
        name: jnp.asarray(
            values.astype(np.float32 if "logit" in name else values.dtype)
        )
        for name, values in rows.items()
    }


def test_changes_and_compositions_by_hand():
    fine, coarse = one_pass(), one_pass()
    changes = precision_metrics.change_rows(fine, coarse, config=CONFIG)
    parts = precision_metrics.composition_rows(fine, coarse)
    memories = precision_metrics.memory_rows(fine, coarse)
    image, layer, patches = 1, 2, slice(4, None)

    def rise(rows):
        after, before = rows["logit_residual"], rows["logit_residual"][:, layer - 1]
        return np.asarray(after[image, layer, patches] > before[image, patches])

    ours, theirs = rise(fine), rise(coarse)
    found = changes["same_change_residual"][image, layer, 2]
    assert found == pytest.approx((ours == theirs).mean())
    found = changes["shift_change_residual"][image, layer, 2]
    assert found == pytest.approx(theirs.mean() - ours.mean(), abs=1e-6)

    def category(rows, token):
        top = int(rows["first_residual"][image, layer, token])
        sources = [rows["first_residual"][image, layer - 1, token]]
        sources += [
            rows[f"first_{s}_update"][image, layer, token] for s in ("attention", "mlp")
        ]
        hits = [int(source) == top for source in sources]
        return 4 if sum(hits) == 0 else 3 if sum(hits) > 1 else hits.index(True)

    both = np.array([[category(r, t) for t in range(20)] for r in (fine, coarse)])
    found = parts["same_composition"][image, layer]
    assert found == pytest.approx((both[0] == both[1]).mean())
    shares = [np.bincount(row, minlength=5) / 20 for row in both]
    np.testing.assert_allclose(
        parts["shift_composition"][image, layer], shares[1] - shares[0], atol=1e-6
    )
    a, b = (np.asarray(r["simple_mlp"])[image, layer] for r in (fine, coarse))
    assert memories["same_simple_mlp"][image, layer] == pytest.approx((a == b).mean())
    found = memories["shift_simple_mlp"][image, layer]
    assert found == pytest.approx(b.mean() - a.mean(), abs=1e-6)


def test_the_first_block_is_compared_with_the_embedding():
    rows = one_pass()
    expected = rows["logit_residual"][:, 0] > rows["logit_embedding"]
    np.testing.assert_array_equal(
        precision_metrics.rises(rows)["residual"][:, 0], expected
    )


@pytest.mark.parametrize("scale", (1.0, 1e-30))
def test_maps_against_scipy(scale):
    """With ties, as half precision makes them."""
    fine = np.round(RNG.normal(size=(4, 25)), 1)
    coarse = np.round(fine + 0.4 * RNG.normal(size=fine.shape), 1)
    arrays = [jnp.asarray(x * scale, jnp.float32) for x in (fine, coarse)]
    rows = precision_metrics.map_rows(*arrays, name="x")
    for image in range(4):
        x, y = fine[image], coarse[image]
        found = {key.removesuffix("_x"): float(v[image]) for key, v in rows.items()}
        assert found["pearson"] == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-5)
        assert found["spearman"] == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-5)
        tops = [set(np.argsort(-v, kind="stable")[:5]) for v in (x, y)]
        assert found["overlap"] == pytest.approx(len(tops[0] & tops[1]) / 5)


def test_maps_that_cannot_be_compared():
    x = jnp.asarray(RNG.normal(size=(4, 9)), jnp.float32)
    y = x.at[1].set(2.5).at[2, 3].set(jnp.nan).at[3, 0].set(jnp.inf)
    rows = {
        k: np.asarray(v) for k, v in precision_metrics.map_rows(x, y, name="x").items()
    }
    assert [rows[f"{key}_x"][0] for key in ("pearson", "spearman", "overlap")] == (
        pytest.approx([1, 1, 1])
    )
    assert np.isnan(rows["pearson_x"][1:]).all()
    assert np.isnan(rows["spearman_x"][1:]).all()
    assert np.isnan(rows["overlap_x"][2:]).all()
    opposite = precision_metrics.map_rows(x, -x, name="x")
    assert opposite["spearman_x"][0] == pytest.approx(-1)


def test_logits_are_measured_in_their_own_spread():
    fine = jnp.asarray([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    rows = precision_metrics.logit_rows(
        fine, fine + jnp.asarray([[0.0, 0.0, -1.5], [0, 0, 0]])
    )
    assert rows["distance_logits"][0] == pytest.approx(1.5 / np.std([0, 1, 2]))
    assert rows["distance_logits"][1] == 0  # without any spread, and equal
    np.testing.assert_array_equal(rows["same_prediction"], [False, True])
    half = precision_metrics.logit_rows(fine, fine.astype(jnp.bfloat16))
    assert half["distance_logits"].dtype == jnp.float32
