"""A tiny model, a folder of pictures, and how to compare two runs."""

import numpy as np
import pytest
from PIL import Image
from vitjax.runner.stream import run

import vitjax
from vitjax.checkpoints.loading import init

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")
TINY = vitjax.Config(32, 8, dim=16, depth=2, heads=2, mlp_dim=32)


@pytest.fixture(scope="session")
def tiny() -> vitjax.Model:
    return init(TINY, classes=CLASSES)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """29 pictures of six classes: at batch size 8, the last batch holds five."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(29):
        place = folder / CLASSES[number % 6]
        place.mkdir(exist_ok=True)
        pixels = rng.integers(256, size=(40, 36, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def whole(tiny, photos, tmp_path_factory):
    """The uninterrupted run that others are compared with."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return run("identifiability", tiny, f"folder:{photos}", out, batch_size=8)


def assert_same_rows(found, expected):
    assert found.names == expected.names
    for name in expected.names:
        left, right = found[name][:], expected[name][:]
        assert left.dtype == right.dtype
        assert left.tobytes() == right.tobytes(), name


@pytest.fixture
def same_rows():
    return assert_same_rows
