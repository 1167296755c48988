"""Intervals and tests against exact enumeration, scipy and the published code."""

import numpy as np
import pytest
from scipy import stats

from vitjax.statistics import (
    aucpr,
    aurc,
    benjamini_hochberg,
    bootstrap_mean,
    fit_logistic,
    holm,
    label_permutation_test,
    sign_flip_test,
    vilas2023_accuracy_test,
    vilas2023_permutation_test,
    wilcoxon_test,
    within_image_test,
)


def test_covers_the_true_mean():
    samples = np.random.default_rng(2).normal(0.3, 1, size=(80, 400))
    interval = bootstrap_mean(samples, resamples=500)
    covered = (interval.low <= 0.3) & (interval.high >= 0.3)
    assert 0.90 <= covered.mean() <= 0.99


def test_level_widens_and_seed_decides():
    values = np.random.default_rng(3).normal(size=(30, 2, 4))
    half, most = (bootstrap_mean(values, level=level) for level in (0.5, 0.99))
    np.testing.assert_allclose(half.mean, values.mean(0), rtol=1e-12)
    assert (most.low < half.low).all() and (half.low < half.mean).all()
    assert (half.mean < half.high).all() and (half.high < most.high).all()
    again, other = bootstrap_mean(values, level=0.5), bootstrap_mean(values, seed=1)
    np.testing.assert_array_equal(half.low, again.low)
    assert (other.low != bootstrap_mean(values).low).any()


def test_draws_in_pieces_are_the_same_draws_and_serve_all_quantities():
    # 5,000 images: 419 draws fit together, so that 900 need three pieces.
    values = np.random.default_rng(5).normal(size=(5_000, 1))
    draw, means = np.random.default_rng(0), []
    for _ in range(900):
        means.append(values[draw.integers(5_000, size=5_000), 0].mean())
    pair = bootstrap_mean(np.concatenate([values, 2 * values + 1], 1), resamples=900)
    expected = np.quantile(means, [0.025, 0.975])
    bounds = np.stack([pair.low, pair.high])
    np.testing.assert_allclose(bounds[:, 0], expected, rtol=1e-9)
    np.testing.assert_allclose(bounds[:, 1], 2 * expected + 1, rtol=1e-9)


def test_missing_values_are_left_out():
    values = np.random.default_rng(6).normal(size=(30, 1))
    padded = np.concatenate([values, np.full((1, 1), np.nan)])
    ours = bootstrap_mean(padded)
    np.testing.assert_allclose(ours.mean, values.mean(0))
    assert ours.low < values.mean() < ours.high


@pytest.mark.parametrize("images", [0, 1, 2])
def test_few_images_and_a_quantity_that_no_image_has(images):
    values = np.full((images, 3), 0.25)
    values[:, 2] = np.nan
    interval = bootstrap_mean(values)
    assert np.isnan(interval.mean).tolist() == [images == 0, images == 0, True]
    assert np.isnan(interval.low).tolist() == [images < 2, images < 2, True]


@pytest.mark.parametrize(
    ("function", "option", "value"),
    [
        (bootstrap_mean, "level", 1.0),
        (bootstrap_mean, "level", 0.0),
        (bootstrap_mean, "resamples", 0),
        (sign_flip_test, "resamples", 0),
        (sign_flip_test, "alternative", "more"),
    ],
)
def test_unknown_options_are_refused(function, option, value):
    with pytest.raises((ValueError, TypeError), match=option):
        function(np.ones((3, 1)), **{option: value})


def test_sign_flips_approach_the_exact_test():
    differences = np.array([0.4, 1.2, -0.3, 0.9, 0.2, 0.7, -0.1, 0.5])
    both = np.stack([differences, -differences], axis=1)
    p = sign_flip_test(both, resamples=40_000)
    options = {"permutation_type": "samples", "alternative": "greater"}
    exact = [stats.permutation_test((x,), np.sum, **options).pvalue for x in both.T]
    np.testing.assert_allclose(p, exact, atol=0.01)
    less = sign_flip_test(both, resamples=40_000, alternative="less")
    np.testing.assert_allclose(less, p[::-1], atol=0.01)
    two = sign_flip_test(both, resamples=40_000, alternative="two-sided")
    np.testing.assert_allclose(two, 2 * p[0], atol=0.02)


def test_p_is_never_zero_and_ties_are_not_significant():
    assert sign_flip_test(np.full((60, 1), 1.0), resamples=99)[0] == 0.01
    assert sign_flip_test(np.zeros((60, 1)), resamples=99)[0] == 1.0
    p = sign_flip_test(np.full((5, 2), np.nan), resamples=9)
    assert np.isnan(p).all() and p.shape == (2,)
    # One image cannot say anything: half of all signs are as extreme.
    assert sign_flip_test(np.ones((1, 1)), resamples=999)[0] > 0.4


def test_a_tests_false_alarms_are_as_many_as_it_says():
    noise = np.random.default_rng(0).normal(size=(25, 600))
    p = sign_flip_test(noise, resamples=999)
    assert 0.03 < (p <= 0.05).mean() < 0.07
    group = np.arange(25) < 9
    p = label_permutation_test(noise, group, resamples=999)
    assert 0.03 < (p <= 0.05).mean() < 0.07


def test_images_without_a_difference_count_for_nothing():
    differences = np.random.default_rng(0).normal(0.4, 1, size=(30, 3))
    more = np.concatenate([differences, np.full((10, 3), np.nan)])
    a = sign_flip_test(differences, resamples=20_000)
    b = sign_flip_test(more, resamples=20_000, seed=1)
    np.testing.assert_allclose(a, b, atol=0.01)


def test_permuted_labels_approach_the_exact_test():
    values = np.array([3.0, 1.0, 2.5, 0.5, 1.5, 0.2])
    group = np.array([True, False, True, False, False, False])
    exact = stats.permutation_test(
        (values[group], values[~group]),
        lambda inside, outside: inside.mean() - outside.mean(),
        alternative="greater",
    )
    p = label_permutation_test(values[:, None], group, resamples=30_000)
    np.testing.assert_allclose(p, exact.pvalue, atol=0.01)
    assert np.isnan(label_permutation_test(values[:, None], np.ones(6, bool)))
    with pytest.raises(ValueError, match="every image"):
        label_permutation_test(np.full((6, 1), np.nan), group)


def test_tokens_are_permuted_within_their_image():
    draw = np.random.default_rng(0)
    offset = draw.normal(0, 50, size=(20, 1))  # images differ a lot, tokens little
    member = draw.random((20, 12)) < 0.4
    member[0], member[1] = True, False
    values = offset + draw.normal(size=(20, 12)) + member
    p, images = within_image_test(values, member)
    assert images == 18 and p == 0.001
    p, _ = within_image_test(offset + draw.normal(size=(20, 12)), member)
    assert p > 0.01
    counted = np.ones_like(member)
    counted[:, 6:] = False
    cut = within_image_test(values, member, counted=counted)
    assert cut == within_image_test(values[:, :6], member[:, :6])
    assert cut == within_image_test(np.where(counted, values, np.nan), member)
    nothing = within_image_test(values, np.zeros_like(member))
    assert np.isnan(nothing[0]) and nothing[1] == 0


def test_wilcoxon_is_scipys_and_the_published(shared):
    left, right = np.random.default_rng(0).normal(size=(2, 40, 3))
    pairs = zip(left.T, right.T)
    expected = [stats.wilcoxon(*pair, alternative="greater").pvalue for pair in pairs]
    np.testing.assert_allclose(wilcoxon_test(left, right), expected)
    stored = np.load(shared / "oracle/setA/class_value.npz")
    for key in ("attn", "mlp"):
        ours = wilcoxon_test(stored[f"cva_{key}"].T, stored[f"cva_random_{key}"].T)
        np.testing.assert_allclose(ours, stored[f"wilcoxon_p_{key}"], rtol=1e-3)


def test_the_published_shuffles_can_give_zero():
    draw = np.random.default_rng(0)
    inside, outside = draw.normal(2, 1, 200), draw.normal(0, 1, 300)
    assert vilas2023_permutation_test(inside, outside) == 0.0
    assert vilas2023_permutation_test(outside, inside) == 1.0
    assert vilas2023_permutation_test(np.zeros(9), np.zeros(9)) == 0.0


def test_the_published_test_of_right_and_wrong_images():
    correct = np.arange(40) < 25
    values = np.zeros((40, 4))
    values[:, 1], values[:, 2] = correct, ~correct
    values[:, 3] = np.random.default_rng(0).normal(size=40)
    p = vilas2023_accuracy_test(values, correct)
    # Ties count as significant: its known fault, kept for comparison.
    assert p[:3].tolist() == [0.0, 0.0, 1.0]
    honest = label_permutation_test(values, correct, resamples=4999)
    assert honest[0] == 1.0 and abs(p[3] - honest[3]) < 0.09  # 3 sd of 300 shuffles
    (p,) = vilas2023_accuracy_test(values[:, 3:], correct, resamples=4000, seed=1)
    assert abs(p - honest[3]) < 0.035
    assert np.isnan(vilas2023_accuracy_test(values, np.ones(40, bool))).all()
    assert vilas2023_accuracy_test(values[:, :0], correct).shape == (0,)


def test_corrections_are_those_of_the_books():
    p = np.array([[0.01, 0.04, np.nan], [0.03, 0.005, 0.9]])
    np.testing.assert_allclose(
        holm(p), [[0.04, 0.09, np.nan], [0.09, 0.025, 0.9]], atol=1e-12
    )
    there = np.isfinite(p)
    expected = stats.false_discovery_control(p[there])
    np.testing.assert_allclose(benjamini_hochberg(p)[there], expected)
    assert np.isnan(benjamini_hochberg(p)[0, 2])


def test_nothing_to_test_is_no_result():
    assert sign_flip_test(np.zeros((0, 3)), resamples=9).shape == (3,)
    assert np.isnan(sign_flip_test(np.zeros((0, 3)), resamples=9)).all()
    assert np.isnan(vilas2023_permutation_test(np.zeros(0), np.ones(3)))
    left, right = np.random.default_rng(0).normal(size=(2, 9, 2))
    left[3, 0] = np.nan
    p = wilcoxon_test(left, right)
    there = np.arange(9) != 3
    np.testing.assert_allclose(p[0], wilcoxon_test(left[there], right[there])[0])
    np.testing.assert_array_equal(wilcoxon_test(left, left), 1.0)


def test_small_quantities_beside_large_ones_are_tested_by_themselves():
    values = np.random.default_rng(0).normal(1, 0.1, size=(30, 2)) * [1e-13, 1]
    p = sign_flip_test(values, resamples=999)
    assert p[0] == p[1] == 0.001


@pytest.mark.parametrize("test", ("within", "pooled", "by image", "signs", "pairs"))
def test_values_that_are_missing_are_never_significant(test):
    """One NaN in noise: as without it, not the smallest p."""
    draw = np.random.default_rng(1)
    values, member = draw.normal(size=(12, 9)), draw.random((12, 9)) < 0.4
    member[:, 0], member[:, 1] = True, False
    values[2, 0] = np.nan

    def p(values):
        if test == "within":
            return within_image_test(values, member)[0]
        if test == "pooled":
            return vilas2023_permutation_test(values[member], values[~member])
        if test == "by image":
            return vilas2023_accuracy_test(values[:, :1], np.arange(12) < 6)[0]
        if test == "signs":
            return sign_flip_test(values[:, :1])[0]
        return wilcoxon_test(values[:, :1], values[:, 1:2])[0]

    assert p(values) > 0.01
    assert np.isnan(p(np.full_like(values, np.nan)))


@pytest.mark.parametrize("rate", (0.05, 0.5, 0.97))
def test_intervals_of_rates_hold_them_also_with_few_images(rate):
    draws = (np.random.default_rng(0).random((10, 2000)) < rate).astype(float)
    interval = bootstrap_mean(draws, resamples=9)
    covered = (interval.low <= rate) & (rate <= interval.high)
    assert covered.mean() > 0.9
    assert (interval.low <= interval.mean).all()
    assert (interval.mean <= interval.high).all()
    plain = bootstrap_mean(np.ones((10, 1)), rates=False)
    assert plain.low == plain.high == 1


def test_wilsons_interval_is_scipys():
    values = np.repeat([1.0, 0.0], [7, 23])[:, None]
    expected = stats.binomtest(7, 30).proportion_ci(0.9, method="wilson")
    interval = bootstrap_mean(values, level=0.9)
    np.testing.assert_allclose([interval.low[0], interval.high[0]], expected)


def test_areas_of_errors_are_those_of_repeated_images():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    tied, wrong = rng.integers(5, size=40).astype(float), rng.random(40) < 0.3
    counts = rng.integers(3, size=(4, 40))
    expected = [
        average_precision_score(np.repeat(wrong, n), -np.repeat(tied, n))
        for n in counts
    ]
    np.testing.assert_allclose(aucpr(tied, wrong, counts.astype(float)), expected)
    sure = rng.permutation(40).astype(float)
    risks = np.cumsum(wrong[np.argsort(-sure)]) / np.arange(1, 41)
    np.testing.assert_allclose(aurc(sure, wrong), risks.mean())
    np.testing.assert_allclose(aurc(0 * sure, wrong), wrong.mean())
    assert aucpr(-1.0 * wrong, wrong) == 1 and np.isnan(aucpr(sure, wrong & False))


def test_logistic_regression_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(6)
    features = rng.normal(3.0, [1.0, 20.0, 0.0, 5.0], size=(200, 4))
    right = features[:, 0] + rng.normal(size=200) > 2.5
    weights, bias = fit_logistic(features, right)
    scaled = StandardScaler().fit_transform(features)
    scores = [
        LogisticRegression(C=1 / penalty, tol=1e-8).fit(scaled, right)
        for penalty in 10.0 ** np.arange(-1, 5)
    ]
    gaps = [
        np.abs(each.decision_function(scaled) - features @ weights - bias).max()
        for each in scores
    ]
    assert min(gaps) < 1e-3
