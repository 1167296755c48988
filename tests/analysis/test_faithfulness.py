"""Areas under curves and localisation, against numpy and scikit-learn."""

import jax
import numpy as np
import pytest

from vitjax.analysis.faithfulness import (
    area_under_curve,
    localisation,
    saco,
    salience_groups,
)

measures_of = jax.jit(localisation)  # op by op, each would be a program of its own


def test_the_trapezoid_is_numpys_and_any_order_of_steps_is_the_same():
    rng = np.random.default_rng(0)
    accuracy = rng.random((3, 2, 12)).astype(np.float32)
    kept = np.array([0, 1, 2, 5, 9, 13, 20, 24, 30, 33, 40, 49])
    expected = np.trapezoid(accuracy, kept / 49, axis=-1)
    actual = area_under_curve(accuracy, kept, tokens=49)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    shuffled = rng.permutation(12)
    actual = area_under_curve(accuracy[..., shuffled], kept[shuffled], tokens=49)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_the_published_area_is_the_sum_over_the_largest():
    accuracy = np.linspace(0.1, 0.8, 48)
    kept = tuple(range(1, 49))
    actual = area_under_curve(accuracy, kept, tokens=49, convention="vilas2023_code")
    np.testing.assert_allclose(actual, accuracy.sum() / (0.8 * 49), rtol=1e-6)


def test_the_ends_of_an_area():
    kept = (0, 10, 49)
    assert area_under_curve(np.ones(3, bool), kept, tokens=49) == 1
    for convention in ("paper", "vilas2023_code"):
        zero = np.zeros(3, bool)
        assert area_under_curve(zero, kept, tokens=49, convention=convention) == 0
    with pytest.raises(ValueError, match="3 steps"):
        area_under_curve(np.ones(3), (1, 2), tokens=4)
    with pytest.raises((ValueError, TypeError), match="code"):
        area_under_curve(np.ones(2), (1, 2), tokens=4, convention="code")


def test_the_area_of_a_part_is_over_the_counts_given():
    perfect, kept = np.ones(3), (13, 5, 8)
    assert area_under_curve(perfect, kept, tokens=16) == 1
    half = area_under_curve([0.0, 1.0], [4, 8], tokens=16)
    assert half == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("kept", "value"), (((0, 1, 9), "9"), ((-1, 1, 2), "-1"), ((3, 3, 3), "3, 3"))
)
def test_counts_that_make_no_area_are_refused(kept, value):
    with pytest.raises(ValueError, match=value):
        area_under_curve(np.ones(3), kept, tokens=4)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(3)
    maps = rng.integers(0, 6, (5, 16)).astype(np.float32)  # with ties
    mask = rng.random((5, 16)) < 0.4
    mask[:, 0], mask[:, 1] = True, False
    return maps, mask


def test_average_precision_is_scikit_learns(case):
    metrics = pytest.importorskip("sklearn.metrics")
    maps, mask = case
    actual = measures_of(maps, mask)
    expected = [metrics.average_precision_score(m, r) for m, r in zip(mask, maps)]
    np.testing.assert_allclose(actual["average_precision"], expected, atol=1e-6)
    scaled = (maps - maps.min(1, keepdims=True)) / np.ptp(maps, axis=1, keepdims=True)
    both = [
        metrics.average_precision_score(np.r_[~m, m], np.r_[1 - r, r])
        for m, r in zip(mask, scaled)
    ]
    np.testing.assert_allclose(actual["average_precision_both"], both, atol=1e-6)


def test_pixels_and_unions_are_counted(case):
    maps, mask = case
    actual = measures_of(maps, mask)
    on_object = maps > maps.mean(1, keepdims=True)
    np.testing.assert_allclose(actual["pixel_accuracy"], (on_object == mask).mean(1))
    inside = (on_object & mask).sum(1) / (on_object | mask).sum(1)
    outside = (~on_object & ~mask).sum(1) / (~on_object | ~mask).sum(1)
    np.testing.assert_allclose(actual["mean_iou"], (inside + outside) / 2, rtol=1e-6)
    np.testing.assert_array_equal(actual["true_positives"], (on_object & mask).sum(1))


def test_patches_that_do_not_count_change_nothing(case):
    maps, mask = case
    where = np.arange(16) < 12
    spoiled = np.where(where, maps, 99.0).astype(np.float32)
    actual = measures_of(spoiled, mask, where=np.broadcast_to(where, mask.shape))
    expected = measures_of(maps[:, :12], mask[:, :12])
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, rtol=1e-6, err_msg=name)


def test_a_perfect_map_is_perfect_and_its_contrary_the_contrary(case):
    _, mask = case
    perfect = measures_of(mask.astype(np.float32), mask)
    measures = ("pixel_accuracy", "mean_iou", "average_precision")
    assert all((perfect[name] == 1).all() for name in measures)
    wrong = measures_of(-mask.astype(np.float32), mask)
    assert (wrong["pixel_accuracy"] == 0).all() and (wrong["mean_iou"] == 0).all()


def test_masks_without_an_object_and_maps_without_a_shape():
    actual = measures_of(np.ones((1, 4), np.float32), np.zeros((1, 4), bool))
    assert np.isnan(actual["average_precision"]).all()
    assert np.isnan(actual["mean_iou"]).all()  # no object in either
    assert (actual["pixel_accuracy"] == 1).all()  # a flat map has no object


def test_a_map_that_is_nan_has_no_measure(case):
    maps, mask = case
    maps = np.array(maps)
    maps[1, 3] = maps[2, 15] = np.nan
    where = np.arange(16)[None].repeat(5, 0) < 15
    for name, values in measures_of(maps, mask, where=where).items():
        assert np.isnan(values).tolist() == [False, True, False, False, False], name


@pytest.mark.parametrize("dtype", (np.int8, np.uint8, np.float32))
def test_masks_are_true_or_false(case, dtype):
    maps, mask = case
    with pytest.raises(ValueError, match=f"mask .*{np.dtype(dtype)}"):
        localisation(maps, mask.astype(dtype))
    with pytest.raises(ValueError, match=f"where .*{np.dtype(dtype)}"):
        localisation(maps, mask, where=mask.astype(dtype))
    with pytest.raises((ValueError, TypeError), match=r"one shape|5,15"):
        localisation(maps, mask[:, :15])


def test_saco_by_hand():
    """Pairs of groups by how far apart they are: 2 and 3 agree, 1 does not."""
    salience, drop = np.array([[3, 1, 0], [0.2, 0, 0.1]], np.float32)
    np.testing.assert_allclose(saco(salience, drop), (2 + 3 - 1) / 6, rtol=1e-6)
    assert saco(np.ones(3, np.float32), drop) == 0  # nothing is said


def test_saco_is_1_for_the_drops_themselves_and_0_for_noise():
    rng = np.random.default_rng(0)
    drop = rng.normal(size=(400, 10)).astype(np.float32)
    np.testing.assert_allclose(saco(drop, drop), 1)
    np.testing.assert_allclose(saco(5 * drop - 2, drop), 1)  # no scale, no unit
    np.testing.assert_allclose(saco(-drop, drop), -1)
    noise = np.asarray(saco(rng.normal(size=drop.shape).astype(np.float32), drop))
    assert abs(noise.mean()) < 0.06 and (np.abs(noise) <= 1).all()


def test_groups_are_tenths_by_rank():
    values = np.random.default_rng(0).normal(size=(3, 196)).astype(np.float32)
    group = np.asarray(salience_groups(values, 10))
    sizes = [np.bincount(row, minlength=10) for row in group]
    assert np.isin(sizes, (19, 20)).all()
    for row, own in zip(group, values):
        means = [own[row == number].min() for number in range(9)]
        assert all(low >= own[row == i + 1].max() for i, low in enumerate(means))
