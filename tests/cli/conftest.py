"""A tiny model as a folder for --model, and images of its classes."""

import pytest
from PIL import Image

import vitjax
from vitjax.checkpoints import loading
from vitjax.data.textured_digits import CLASSES

TINY = vitjax.Config(64, 16, dim=16, depth=2, heads=2, mlp_dim=32)


@pytest.fixture(scope="session")
def tiny():
    return vitjax.init(TINY, classes=CLASSES)


@pytest.fixture(scope="session")
def converted(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    loading.save(tiny, folder)
    return str(folder)


@pytest.fixture
def images(tmp_path):
    """A folder with one image of every class."""
    for number, name in enumerate(CLASSES):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64), (20 * number, 0, 0)).save(folder / "a.png")
    return tmp_path / "images"
