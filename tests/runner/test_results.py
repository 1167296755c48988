"""Rows on disk: numpy's slicing, named dimensions, other readers, lost files."""

import json

import numpy as np
import pytest
from small_run import (
    COORDINATES,
    IMAGES,
    LAYERS,
    SPECS,
    TOKENS,
    manifest,
    rows,
    start,
)
from vitjax.runner.folder import start_run
from vitjax.runner.storage import DamageError

from vitjax.runner import folder
from vitjax.runner.results import ArraySpec, Rows, open_results


def test_unwritten_rows_read_as_their_fill_values(tmp_path):
    run = start(tmp_path / "run")
    run.write_rows(4, rows(4, 8) | {"valid": np.zeros(4, bool)})
    results = open_results(tmp_path / "run")
    assert (results["rank"][:4] == -1).all() and (results["rank"][8:] == -1).all()
    assert np.isnan(results["logit"][:4]).all() and not results["valid"][:].any()
    np.testing.assert_array_equal(results["rank"][4:8], rows(4, 8)["rank"])
    np.testing.assert_array_equal(
        run.read("done"), [False] * 4 + [True] * 4 + [False] * 2
    )
    assert results.names == (*SPECS, "done")
    assert results["rank"].dims == ("image", "layer", "token")
    assert results["rank"].shape == (IMAGES, LAYERS, TOKENS)
    assert results["rank"].dtype == np.int32 and results["picture"].dtype == np.uint8
    assert "rank" in results and "nothing" not in results


@pytest.mark.parametrize(
    "key",
    [
        3,
        -1,
        slice(None),
        slice(-3, None),
        slice(None, None, -1),
        slice(8, 1, -3),
        slice(5, 5),
        ...,
        (..., -1),
        (slice(2, 9, 2), slice(None), slice(1, 3)),
        (2, 1, 0),
        [7, 0, 0, -1],
        [],
        np.array([True, False] * 5),
        (slice(None), [0, 2]),
        ([1, 2], [0, 1], [3, 3]),
        (np.arange(3), 1),
        (slice(None, None, -2), np.int64(1), ...),
        (5, slice(3, 0, -1)),
    ],
)
def test_slices_are_numpys(tmp_path, key):
    run = start(tmp_path)
    run.write_rows(0, rows(0, IMAGES))
    expected = rows(0, IMAGES)["rank"][key]
    found = open_results(tmp_path)["rank"][key]
    assert np.shape(found) == expected.shape
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "key", [10, -11, (0, 0, 0, 0), [11], np.ones(9, bool), None, 0.5]
)
def test_a_wrong_index_is_an_index_error(tmp_path, key):
    start(tmp_path)
    with pytest.raises(IndexError):
        open_results(tmp_path)["rank"][key]


def test_numpy_takes_rows_for_an_array(tmp_path):
    start(tmp_path).write_rows(0, rows(0, IMAGES))
    found = open_results(tmp_path)["rank"]
    np.testing.assert_array_equal(np.asarray(found), rows(0, IMAGES)["rank"])
    assert len(found) == IMAGES and found.ndim == 3 and "layer=3" in repr(found)


def test_xarray_sees_dimensions_and_coordinates(tmp_path):
    xarray = pytest.importorskip("xarray")
    run = start(tmp_path / "run")
    run.write_rows(0, rows(0, IMAGES))
    opened = xarray.open_zarr(tmp_path / "run" / "rows.zarr", consolidated=False)
    for dataset in (opened, open_results(tmp_path / "run").to_xarray()):
        assert dataset["rank"].dims == ("image", "layer", "token")
        assert dataset["rank"].dtype == np.int32
        assert "picture" in dataset.data_vars
        assert set(dataset.coords) == {"image", "layer"}
        found = dataset["logit"].sel(layer=1).values
        np.testing.assert_array_equal(found, rows(0, IMAGES)["logit"][:, 1])
    assert json.loads(dataset.attrs["manifest"])["recipe"] == "identifiability"
    chosen = dataset["rank"][[7, 2]].sel(token=[3, 0]).values
    np.testing.assert_array_equal(chosen, rows(0, IMAGES)["rank"][[7, 2]][..., [3, 0]])


def test_xarray_reads_only_what_is_selected(tmp_path, monkeypatch):
    pytest.importorskip("xarray")
    start(tmp_path).write_rows(0, rows(0, IMAGES))
    dataset = open_results(tmp_path).to_xarray()
    read = []
    slices = Rows.__getitem__
    monkeypatch.setattr(
        Rows, "__getitem__", lambda self, key: read.append(key) or slices(self, key)
    )
    found = dataset["rank"].isel(image=slice(4, 6)).max("token").values
    assert len(read) == 1 and read[0][0] == slice(4, 6, 1)
    np.testing.assert_array_equal(found, rows(4, 6)["rank"].max(-1))


def test_missing_and_foreign_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run in"):
        open_results(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "photo-album"}')
    with pytest.raises(ValueError, match="photo-album"):
        open_results(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        open_results(tmp_path)
    with pytest.raises(KeyError, match="it holds"):
        start(tmp_path / "run").results()["nothing"]


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run in chunks of four images; the pictures' file was never written."""
    monkeypatch.setattr(folder, "CHUNK_BYTES", 1)
    specs = SPECS | {"once": ArraySpec(("layer",), (LAYERS,), "float32")}
    specs["picture"] = ArraySpec(("shown", "height"), (IMAGES, 2), "uint8")
    about = manifest(finished="now")
    run = start_run(tmp_path, about, specs, coordinates=COORDINATES, batch_size=4)
    valid = np.arange(IMAGES) < 8
    blank = {"kind": np.full(IMAGES, -1, np.int8), "valid": valid}
    run.write({"once": (..., np.zeros(LAYERS, np.float32))})
    run.write({"picture": (slice(0, 8), np.ones((8, 2), np.uint8))})
    run.write_rows(0, rows(0, IMAGES) | blank)
    return tmp_path


def test_a_finished_run_reads_whole_also_where_it_is_all_fill_values(finished):
    results = open_results(finished)
    assert (results["kind"][:] == -1).all() and not results["valid"][8:].any()
    assert results["picture"][:].sum() == 16  # none of images that are not valid
    assert (results["once"][:] == 0).all()


def test_rows_whose_file_is_gone_are_refused_and_others_read(finished):
    lost = finished / "rows.zarr/rank/c/1/0/0"
    content = lost.read_bytes()
    lost.unlink()
    results = open_results(finished)
    np.testing.assert_array_equal(results["rank"][:4], rows(0, 4)["rank"])
    found = results["rank"][[0, 9, -2]]
    np.testing.assert_array_equal(found, rows(0, IMAGES)["rank"][[0, 9, 8]])
    np.testing.assert_array_equal(results["logit"][:], rows(0, IMAGES)["logit"])
    for key in (..., 4, -3, slice(0, 5), [0, 7], (slice(None, None, -1), 0)):
        with pytest.raises(DamageError, match="of rank in .* gone, .* images 4 to 7. "):
            results["rank"][key]
    lost.write_bytes(content)
    np.testing.assert_array_equal(results["rank"][:], rows(0, IMAGES)["rank"])


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("done/c/2", "done in .* images 8 to 9"),
        ("valid/c/0", "valid in .* images 0 to 3"),
        ("picture/c/1/0", "picture in .* pictures 4 to 7"),
        ("once/c/0", "once in .* layer 0 to 2"),
    ],
)
def test_no_file_of_a_finished_run_is_lost_unsaid(finished, file, said):
    (finished / "rows.zarr" / file).unlink()
    with pytest.raises(DamageError, match=f"{said}. The `vitjax run` command"):
        open_results(finished)[file.partition("/")[0]][:]


def test_of_an_unfinished_run_what_is_done_is_not_lost_unsaid(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "CHUNK_BYTES", 1)
    run = start(tmp_path)
    run.write_rows(0, rows(0, 4))
    run.write_rows(8, rows(8, 10))
    assert (open_results(tmp_path)["rank"][4:8] == -1).all()
    (tmp_path / "rows.zarr/rank/c/2/0/0").unlink()
    with pytest.raises(DamageError, match="images 8 to 9"):
        open_results(tmp_path)["rank"][4:]


def test_files_of_an_array_are_listed_once(finished, monkeypatch):
    results = open_results(finished)
    results["rank"]
    monkeypatch.setattr("vitjax.runner.results.gone_chunks", None)
    assert len(results["rank"]) == IMAGES
