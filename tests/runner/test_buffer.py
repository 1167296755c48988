"""Parts become chunks; nothing is marked done before all of it is on disk."""

import numpy as np
import pytest
from small_run import SPECS, manifest, rows
from vitjax.runner.buffer import Buffer, Part
from vitjax.runner.folder import Run, start_run
from vitjax.runner.storage import StorageError

from vitjax.runner import buffer
from vitjax.runner.results import ArraySpec

SHAPES = SPECS | {
    "picture": ArraySpec(
        ("shown", "height", "width", "channel"), (5, 2, 2, 3), "uint8"
    ),
    "picture_image": ArraySpec(("shown",), (5,), "int32"),
}


def start(path):
    about = manifest(skipped=[])
    run = start_run(path, about, SHAPES, coordinates={}, batch_size=2)
    run.images_per_chunk = 4
    return run


def part(place, *, skipped=(), shown=()):
    values = rows(place, min(place + 2, 10))
    values["valid"] = np.ones(len(values["rank"]), bool)
    pixels = [(i, np.full((2, 2, 3), i, np.uint8)) for i in shown]
    lines = [{"index": i, "name": str(i), "reason": "?"} for i in skipped]
    return Part(start=place, rows=values, skipped=lines, pictures=pixels)


def done(run):
    return np.nonzero(run.read("done"))[0].tolist()


def test_a_full_chunk_is_written(tmp_path):
    run = start(tmp_path)
    waiting = Buffer(run)
    waiting.add(part(0))
    assert done(run) == []
    waiting.add(part(2))
    assert done(run) == [0, 1, 2, 3]
    waiting.add(part(4))
    waiting.flush()
    waiting.flush()
    assert done(run) == list(range(6))
    np.testing.assert_array_equal(run.read("rank")[:6], rows(0, 6)["rank"])


def test_after_a_while_a_chunk_is_written_before_it_is_full(tmp_path, monkeypatch):
    run = start(tmp_path)
    waiting = Buffer(run)
    monkeypatch.setattr(buffer, "FLUSH_SECONDS", 0.0)
    waiting.add(part(0))
    assert done(run) == [0, 1]


def test_parts_that_are_not_neighbours_are_written_apart(tmp_path):
    run = start(tmp_path)
    waiting = Buffer(run)
    waiting.add(part(0))
    waiting.add(part(4))
    assert done(run) == [0, 1]
    waiting.flush()
    assert done(run) == [0, 1, 4, 5]
    assert (run.read("rank")[2:4] == -1).all()


def test_what_could_not_be_written_stays(tmp_path, monkeypatch):
    run = start(tmp_path)
    waiting = Buffer(run)
    write = Run.write_rows

    def full(self, start, values):
        raise StorageError("full")

    waiting.add(part(0, shown=[0]))
    monkeypatch.setattr(Run, "write_rows", full)
    with pytest.raises(StorageError):
        waiting.flush()
    assert done(run) == []
    monkeypatch.setattr(Run, "write_rows", write)
    waiting.add(part(2, shown=[3]))
    assert done(run) == [0, 1, 2, 3]
    assert run.read("picture_image").tolist() == [0, -1, -1, 3, -1]
    assert run.read("picture")[:, 0, 0, 0].tolist() == [0, 0, 0, 3, 0]


def test_a_picture_has_its_images_place_in_whatever_order_they_come(tmp_path):
    run = start(tmp_path)
    waiting = Buffer(run)
    for first in (2, 0, 2):  # the last again, as after damage
        waiting.add(part(first, shown=[first, first + 1]))
        waiting.flush()
    assert run.read("picture_image").tolist() == [0, 1, 2, 3, -1]
    assert run.read("picture")[:4, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_skipped_images_are_listed_once(tmp_path):
    run = start(tmp_path)
    for _ in range(2):
        waiting = Buffer(run)
        waiting.add(part(0, skipped=[1]))
        waiting.flush()
    assert [line["index"] for line in run.manifest["skipped"]] == [1]


def test_batches_need_not_end_where_chunks_do(tmp_path):
    run = start(tmp_path)
    run.images_per_chunk = 3
    waiting = Buffer(run)
    waiting.add(part(0))
    assert done(run) == []
    waiting.add(part(2))  # over the edge at 3
    assert done(run) == [0, 1, 2, 3]


def test_a_blank_batch_leaves_nothing(tmp_path):
    waiting = Buffer(start(tmp_path))
    waiting.add(part(10))
    waiting.flush()
    assert not waiting.parts and done(waiting.run) == []
