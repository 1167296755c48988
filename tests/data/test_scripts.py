"""The scripts of checkpoints/ that are not tested elsewhere, and that all start."""

import os
import subprocess
import sys

import numpy as np
import pytest
import scripts

from vitjax.data import textured_digits


@pytest.fixture(scope="module")
def packing():
    return scripts.load_script("pack_textured_digits")


def test_two_pixels_to_a_byte(packing):
    digits = np.zeros((2, 8, 8))
    digits[0, 0, :4] = (3, 16, 15, 1)
    packed = packing.pack_digits(digits)
    assert packed.shape == (2, 32) and packed.dtype == np.uint8
    assert packed[0, :2].tolist() == [3 + 15 * 16, 15 + 1 * 16]
    assert not packed[0, 2:].any() and not packed[1].any()


def test_the_packed_material_is_what_its_sources_carry(packing, tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    pytest.importorskip("skimage.data")
    packing.main(out=tmp_path / "again.npz")
    with (
        np.load(textured_digits.MATERIAL) as shipped,
        np.load(tmp_path / "again.npz") as again,
    ):
        assert set(shipped) == set(again)
        for name in ("digits", "labels"):
            np.testing.assert_array_equal(shipped[name], again[name])
        # Pillow releases may round a resampled pixel differently.
        difference = shipped["textures"].astype(int) - again["textures"]
        assert np.abs(difference).max() <= 1
        low, high = shipped["digits"] & 15, shipped["digits"] >> 4
    digits = datasets.load_digits()
    unpacked = np.stack([low, high], axis=-1).reshape(-1, 8, 8)
    np.testing.assert_array_equal(unpacked, np.minimum(digits.images, 15))
    assert textured_digits.MATERIAL.stat().st_size < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(scripts.FOLDER.glob("*.py")), ids=str)
def test_every_script_has_help(path):
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, path, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
