"""Files on disk and in buckets; which of an array's are there, and what that means."""

import http.server
import json
import threading
import urllib.parse

import numpy as np
import pytest
from small_run import IMAGES, rows, start
from vitjax.runner.storage import DamageError, kvstore, ranges, write_bytes

from vitjax.runner.results import open_results


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
        path, query = urllib.parse.urlparse(self.path)[2:5:2]
        name = urllib.parse.unquote(path.partition("/b/bucket/o/")[2])
        if path.endswith("/b/bucket/o"):
            ends = urllib.parse.parse_qs(query)
            first, last = ends["startOffset"][0], ends["endOffset"][0]
            names = [n for n in sorted(self.server.objects) if first <= n < last]
            items = [{"name": name, "size": "1"} for name in names]
            self.reply(200, json.dumps({"items": items}).encode())
        elif name in self.server.objects:
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
    assert results["rank"].gone == frozenset()
    del bucket["some runs/one/rows.zarr/rank/c/0/0/0"]
    with pytest.raises(DamageError, match="are gone"):
        open_results(path)["rank"][3]
    assert "some runs/one/manifest.json" in bucket
    assert "some runs/one/rows.zarr/rank/zarr.json" in bucket
    with pytest.raises(ValueError, match="seed is 0 there and 1 here"):
        start(path, seed=1)
    with pytest.raises(FileNotFoundError, match="gs://bucket/nothing"):
        open_results("gs://bucket/nothing")


def test_many_places_are_said_in_few_words():
    assert ranges([], length=4, stop=9) == ""
    assert ranges([2, 0], length=4, stop=9) == "0 to 3, 8"
    assert ranges({1, 2}, length=4, stop=10) == "4 to 9"
    assert ranges(range(0, 10, 2), length=1, stop=10) == "0, 2, 4 and 2 ranges more"
