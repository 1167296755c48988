"""A tiny model, a folder of images, and runs of them."""

import pytest
from photos import BATCH, CLASSES, TINY, make_photos

import vitjax


@pytest.fixture(scope="session")
def tiny():
    return vitjax.init(TINY, classes=CLASSES)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def own_photos(tmp_path):
    """The same images, to be changed."""
    folder = tmp_path / "photos"
    folder.mkdir()
    return make_photos(folder)


@pytest.fixture(scope="session")
def run_tiny(tiny, photos):
    """(out, data, recipe, options) -> the results of a silent run."""

    def start(out, data=f"folder:{photos}", recipe="identifiability", **options):
        options = {"batch_size": BATCH, "show_progress": False, **options}
        return vitjax.run(recipe, tiny, data, out, **options)

    return start


@pytest.fixture(scope="session")
def whole(run_tiny, tmp_path_factory):
    """The uninterrupted run that others are compared with: four chunks."""
    return run_tiny(tmp_path_factory.mktemp("whole") / "run")
