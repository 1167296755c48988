"""Rows on disk: numpy's slicing, named dimensions, other readers, clear errors."""

import http.server
import json
import threading
import urllib.parse

import numpy as np
import pytest
from small_run import IMAGES, LAYERS, SPECS, TOKENS, rows, start

from vitjax.results import (
    Rows,
    kvstore,
    open_results,
    write_bytes,
)


def test_unwritten_rows_read_as_their_fill_values(tmp_path):
    run = start(tmp_path / "run")
    run.write_rows(4, rows(4, 8))
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


def test_urls_name_their_bucket():
    assert kvstore("gs://bucket/a/b") == {
        "driver": "gcs",
        "bucket": "bucket",
        "path": "a/b/",
    }
    assert kvstore("s3://bucket")["driver"] == "s3"
    assert kvstore("some/folder")["path"].endswith("/some/folder/")


def test_a_manifest_is_replaced_whole(tmp_path):
    write_bytes(str(tmp_path), "manifest.json", b"x" * 100)
    write_bytes(str(tmp_path), "manifest.json", b"y")
    assert (tmp_path / "manifest.json").read_bytes() == b"y"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


class Bucket(http.server.BaseHTTPRequestHandler):
    """As much of a bucket's HTTP interface as a run needs."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def reply(self, status, body=b"", generation=0):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-goog-generation", str(generation))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        path = urllib.parse.urlparse(self.path).path
        name = urllib.parse.unquote(path.partition("/b/bucket/o/")[2])
        if name in self.server.objects:
            self.reply(200, *self.server.objects[name])
        else:
            self.reply(404)

    def do_POST(self):
        query = urllib.parse.urlparse(self.path).query
        name = urllib.parse.parse_qs(query)["name"][0]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        generation = self.server.objects.get(name, (b"", 0))[1] + 1
        self.server.objects[name] = (body, generation)
        size = {"generation": str(generation), "size": str(len(body))}
        self.reply(200, json.dumps({"name": name, **size}).encode(), generation)


@pytest.fixture
def bucket(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    server.objects = {}
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.objects
    server.shutdown()
    server.server_close()
    thread.join()


def test_runs_live_in_buckets(bucket):
    path = "gs://bucket/some runs/one"
    start(path).write_rows(0, rows(0, 8))
    start(path).write_rows(8, rows(8, IMAGES))
    results = open_results(path + "/")
    np.testing.assert_array_equal(results["rank"][:], rows(0, IMAGES)["rank"])
    assert results["done"][:].all()
    assert "some runs/one/manifest.json" in bucket
    assert "some runs/one/rows.zarr/rank/zarr.json" in bucket
    with pytest.raises(ValueError, match="seed is 0 there and 1 here"):
        start(path, seed=1)
    with pytest.raises(FileNotFoundError, match="gs://bucket/nothing"):
        open_results("gs://bucket/nothing")
