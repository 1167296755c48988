import numpy as np
import pytest

from vitjax.statistics import bootstrap_mean


def test_mean_and_shapes():
    values = np.random.default_rng(0).normal(size=(40, 3, 5))
    interval = bootstrap_mean(values)
    assert interval.mean.shape == interval.low.shape == interval.high.shape == (3, 5)
    np.testing.assert_allclose(interval.mean, values.mean(0), rtol=1e-12)
    assert (interval.low < interval.mean).all() and (
        interval.mean < interval.high
    ).all()


def test_agrees_with_scipy():
    from scipy import stats

    values = np.random.default_rng(1).exponential(size=60)
    ours = bootstrap_mean(values, resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", random_state=3
    ).confidence_interval
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.03 * width
    assert abs(ours.high - theirs.high) < 0.03 * width


def test_covers_the_true_mean():
    samples = np.random.default_rng(2).normal(0.3, 1, size=(80, 400))
    interval = bootstrap_mean(samples, resamples=500)
    covered = (interval.low <= 0.3) & (interval.high >= 0.3)
    assert 0.90 <= covered.mean() <= 0.99


def test_level_widens_and_seed_decides():
    values = np.random.default_rng(3).normal(size=(30, 4))
    half, most = (bootstrap_mean(values, level=level) for level in (0.5, 0.99))
    assert (most.low < half.low).all() and (half.high < most.high).all()
    again, other = bootstrap_mean(values, level=0.5), bootstrap_mean(values, seed=1)
    np.testing.assert_array_equal(half.low, again.low)
    assert (other.low != bootstrap_mean(values).low).any()


def test_one_draw_serves_all_quantities():
    values = np.random.default_rng(4).normal(size=(25, 1))
    pair = bootstrap_mean(np.concatenate([values, 2 * values + 1], axis=1))
    np.testing.assert_allclose(pair.low[1], 2 * pair.low[0] + 1, rtol=1e-12)


def test_draws_in_pieces_are_the_same_draws():
    # 5,000 images: 419 draws fit together, so that 900 need three pieces.
    values = np.random.default_rng(5).normal(size=(5_000, 1))
    draw, means = np.random.default_rng(0), []
    for _ in range(900):
        means.append(values[draw.integers(5_000, size=5_000), 0].mean())
    ours = bootstrap_mean(values, resamples=900)
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose([ours.low[0], ours.high[0]], expected, rtol=1e-9)


def test_missing_values_are_left_out():
    values = np.random.default_rng(6).normal(size=(30, 1))
    padded = np.concatenate([values, np.full((1, 1), np.nan)])
    ours = bootstrap_mean(padded)
    np.testing.assert_allclose(ours.mean, values.mean(0))
    assert ours.low < values.mean() < ours.high


@pytest.mark.parametrize("images", [0, 1, 2])
def test_few_images(images):
    interval = bootstrap_mean(np.full((images, 2), 0.25))
    assert np.isnan(interval.mean).all() == (images == 0)
    assert np.isnan(interval.low).all() == (images < 2)


def test_a_quantity_that_no_image_has():
    values = np.stack([np.arange(4.0), np.full(4, np.nan)], axis=1)
    interval = bootstrap_mean(values)
    assert np.isnan([part[1] for part in interval]).all()
    assert np.isfinite([part[0] for part in interval]).all()


@pytest.mark.parametrize("wrong", [{"level": 1.0}, {"level": 0.0}, {"resamples": 0}])
def test_refuses(wrong):
    with pytest.raises(ValueError, match="level in"):
        bootstrap_mean(np.zeros((3, 1)), **wrong)
