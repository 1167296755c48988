"""Files that change between two sessions of a run are named."""

import shutil

import numpy as np
import pytest
from PIL import Image
from small_run import manifest
from vitjax.runner.content import DIGESTS, PIECE, check_content, digest
from vitjax.runner.folder import start_run

from vitjax.data.datasets import open_source
from vitjax.data.textured_digits import CLASSES
from vitjax.runner.results import ArraySpec

SPECS = {"valid": ArraySpec(("image",), (3,), "bool")}


@pytest.fixture
def pictures(tmp_path):
    """Three of one colour each, so that their files are of one size."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.bmp")
    return folder


@pytest.fixture
def run(tmp_path):
    """The first was run, the second could not be read, the third is still to do."""
    about = manifest(data={"images": 3}, finished=None)
    run = start_run(tmp_path / "run", about, SPECS, coordinates={}, batch_size=1)
    run.write_rows(0, {"valid": np.array([True, False])})
    return run


def check(run, pictures):
    check_content(run, open_source(f"folder:{pictures}"))


def repaint(pictures, number):
    Image.new("RGB", (8, 8), (99, 0, 0)).save(pictures / f"{number}.bmp")


def test_an_image_that_was_run_must_be_what_it_was(run, pictures, tmp_path):
    check(run, pictures)
    check(run, shutil.copytree(pictures, tmp_path / "copy", copy_function=shutil.copy))
    repaint(pictures, 0)
    with pytest.raises(ValueError, match="1 of the images .* changed since: 0.bmp. R"):
        check(run, pictures)


def test_others_may_be_repaired(run, pictures, tmp_path):
    check(run, pictures)
    before = (tmp_path / "run" / DIGESTS).read_text()
    repaint(pictures, 1)
    repaint(pictures, 2)
    check(run, pictures)
    after = (tmp_path / "run" / DIGESTS).read_text()
    same = [a == b for a, b in zip(before.split(), after.split(), strict=True)]
    assert same == [True, False, False]


def test_data_sets_without_files_are_not_looked_at(run, tmp_path):
    check_content(run, open_source("textured_digits", classes=CLASSES))
    assert not (tmp_path / "run" / DIGESTS).exists()


@pytest.mark.parametrize("place", [0, 3 * PIECE // 2, 3 * PIECE - 1])
def test_all_of_a_small_file_counts(tmp_path, place):
    path, content = tmp_path / "a", bytearray(3 * PIECE)
    path.write_bytes(content)
    before = digest((path,))
    content[place] = 1
    path.write_bytes(content)
    assert digest((path,)) != before
    assert digest((path, path)) != digest((path,)) != digest((tmp_path / "none",))
