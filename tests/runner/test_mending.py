"""A file of rows that is damaged or gone is noticed, and its images run again."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from small_run import IMAGES, manifest, rows
from vitjax.runner.folder import start_run
from vitjax.runner.storage import DamageError

from vitjax.runner import folder, mending, stream
from vitjax.runner.results import ArraySpec, open_results


def cut(path, size=9):
    path.write_bytes(path.read_bytes()[:size])


@pytest.fixture
def copy(whole, tmp_path):
    """A finished run to be damaged."""
    shutil.copytree(whole.path, tmp_path / "run")
    return tmp_path / "run"


def unfinish(path, done):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["finished"] = None
    (path / "manifest.json").write_text(json.dumps(manifest))
    open_results(path)["done"].store[done:].write(False).result()


def go(tiny, photos, out, **options):
    source = f"folder:{photos}"
    return stream.run("identifiability", tiny, source, out, batch_size=8, **options)


@pytest.mark.parametrize(
    "name", ["rank_residual/c/0/0/0", "done/c/0", "picture/c/0/0/0/0", "valid/c/0"]
)
def test_a_truncated_file_is_run_again(
    tiny, photos, whole, copy, same_rows, capsys, name
):
    unfinish(copy, 16)
    cut(copy / "rows.zarr" / name)
    array = name.partition("/")[0]
    with pytest.raises(DamageError, match="damaged: remove it, and the `vitjax run`"):
        open_results(copy)[array][:]
    same_rows(go(tiny, photos, copy), whole)
    assert f"Files of {array} in {copy} are damaged or gone" in capsys.readouterr().err


def test_a_file_that_a_finished_run_lost_is_run_again(
    tiny, photos, whole, copy, same_rows, capsys
):
    for name in ("logit_mlp_update/c/0/0/0", "picture_image/c/0", "done/c/0"):
        (copy / "rows.zarr" / name).unlink()
        with pytest.raises(DamageError, match="are gone"):
            open_results(copy)[name.partition("/")[0]][:]
        found = go(tiny, photos, copy)
        same_rows(found, whole)
        assert found.manifest["finished"]
        assert f"Files of {name.partition('/')[0]} in" in capsys.readouterr().err


SHAPES = {
    "rank": ArraySpec(("image", "layer", "token"), (IMAGES, 3, 4), "int32"),
    "logit": ArraySpec(("image", "layer"), (IMAGES, 3), "float32"),
    "valid": ArraySpec(("image",), (IMAGES,), "bool"),
    "picture": ArraySpec(("shown", "height"), (2, 6), "uint8"),
    "picture_image": ArraySpec(("shown",), (2,), "int32"),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Ten images in chunks of four, all done but the last two; none valid."""
    monkeypatch.setattr(folder, "CHUNK_BYTES", 1)
    about = manifest(finished=None)
    run = start_run(tmp_path, about, SHAPES, coordinates={}, batch_size=4)
    run.write_rows(0, rows(0, 8) | {"valid": np.zeros(8, bool)})
    return run


def test_what_is_whole_stays(run):
    assert mending.mend(run) == []
    assert run.read("done").sum() == 8


def test_only_the_images_of_that_file_are_undone(run):
    cut(mending_path(run, "rank/c/1/0/0"))
    (said,) = mending.mend(run)
    assert "Files of rank in" in said and "the 4 images" in said
    assert np.flatnonzero(run.read("done")).tolist() == [0, 1, 2, 3]
    assert not mending_path(run, "rank/c/1/0/0").exists()
    np.testing.assert_array_equal(run.read("rank")[:4], rows(0, 4)["rank"])
    assert mending.mend(run) == []


def test_an_array_that_is_not_of_images_is_written_again(tmp_path):
    shapes = SHAPES | {"kept": ArraySpec(("step",), (3,), "float32")}
    about = manifest(finished="now")
    run = start_run(tmp_path, about, shapes, coordinates={}, batch_size=4)
    run.write_rows(0, rows(0, 10) | {"valid": np.zeros(10, bool)})
    (said,) = mending.mend(run)
    assert "Files of kept in" in said and said.endswith("they are written again.")
    assert run.manifest["finished"] is None and run.read("done").all()


def test_rows_of_nothing_but_fill_values_are_not_taken_for_lost(run):
    blank = {"logit": np.full((4, 3), np.nan, np.float32)}
    run.write_rows(4, rows(4, 8) | blank | {"valid": np.zeros(4, bool)})
    assert mending_path(run, "logit/c/1/0").exists()
    assert mending.mend(run) == []


def test_a_file_that_was_not_done_is_removed(run):
    run.write({"rank": (slice(8, 10), rows(8, 10)["rank"])})
    cut(mending_path(run, "rank/c/2/0/0"))
    assert mending.mend(run)
    assert run.read("done").sum() == 8
    run.write_rows(8, rows(8, 10))
    np.testing.assert_array_equal(run.read("rank"), rows(0, 10)["rank"])


def mending_path(run, name):
    return pathlib.Path(run.path) / "rows.zarr" / name


@pytest.fixture
def illustrated(tmp_path, monkeypatch):
    """The same with a picture of every image but the last, in chunks of four too."""
    monkeypatch.setattr(folder, "CHUNK_BYTES", 1)
    shapes = SHAPES | {
        "picture": ArraySpec(("shown", "height"), (9, 6), "uint8"),
        "picture_image": ArraySpec(("shown",), (9,), "int32"),
    }
    about = manifest(finished="now")
    run = start_run(tmp_path, about, shapes, coordinates={}, batch_size=4)
    run.write(
        {
            "picture": (slice(0, 9), np.ones((9, 6), np.uint8)),
            "picture_image": (slice(0, 9), np.arange(9, dtype=np.int32)),
        }
    )
    run.write_rows(0, rows(0, 10) | {"valid": np.ones(10, bool)})
    return run


@pytest.mark.parametrize("name", ["picture/c/1/0", "picture_image/c/1"])
@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_of_many_pictures_only_those_of_that_file_are_kept_again(
    illustrated, name, how
):
    assert mending.mend(illustrated) == []
    path = mending_path(illustrated, name)
    if how == "gone":
        path.unlink()
    else:
        illustrated.manifest["finished"] = None
        cut(path)
    (said,) = mending.mend(illustrated)
    assert f"Files of {name.partition('/')[0]} in" in said and "4 images" in said
    assert np.flatnonzero(~illustrated.read("done")).tolist() == [4, 5, 6, 7]
    assert not path.exists() and illustrated.manifest["finished"] is None
    assert illustrated.read("picture_image")[[3, 8]].tolist() == [3, 8]
    assert mending.mend(illustrated) == []
