import numpy as np
import pytest
from vitjax.data.pack_demo import main, pack_digits

from vitjax.data import textured_digits


def test_two_pixels_to_a_byte():
    digits = np.zeros((2, 8, 8))
    digits[0, 0, :4] = (3, 16, 15, 1)
    packed = pack_digits(digits)
    assert packed.shape == (2, 32) and packed.dtype == np.uint8
    assert packed[0, :2].tolist() == [3 + 15 * 16, 15 + 1 * 16]
    assert not packed[0, 2:].any() and not packed[1].any()


def test_the_packed_material_is_what_its_sources_carry(tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    pytest.importorskip("skimage.data")
    main(out=tmp_path / "again.npz")
    with (
        np.load(textured_digits.MATERIAL) as shipped,
        np.load(tmp_path / "again.npz") as again,
    ):
        assert set(shipped) == set(again)
        for name in ("digits", "labels"):
            np.testing.assert_array_equal(shipped[name], again[name])
        # Pillow releases may round a resampled pixel differently.
        apart = shipped["textures"].astype(int) - again["textures"]
        assert np.abs(apart).max() <= 1
        low, high = shipped["digits"] & 15, shipped["digits"] >> 4
    digits = datasets.load_digits()
    unpacked = np.stack([low, high], axis=-1).reshape(-1, 8, 8)
    np.testing.assert_array_equal(unpacked, np.minimum(digits.images, 15))


def test_the_material_is_small():
    assert textured_digits.MATERIAL.stat().st_size < 1_000_000
