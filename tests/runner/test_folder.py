"""Run directories are created, gone on with, or refused; rows come before done."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_run import IMAGES, SPECS, manifest, rows, start
from vitjax.runner.folder import images_per_chunk, join_run, start_run
from vitjax.runner.storage import StorageError

from vitjax.runner.results import ArraySpec, open_results


def test_opening_the_same_run_again_keeps_its_rows(tmp_path):
    start(tmp_path).write_rows(0, rows(0, 8))
    moved = manifest()["model"] | {"checkpoint": "/elsewhere"}
    again = start(tmp_path, model=moved)
    assert again.read("done").tolist() == [True] * 8 + [False] * 2
    assert again.manifest["model"]["checkpoint"] == "/a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "probe"}, 'recipe is "identifiability" there and "probe" here'),
        ({"batch_size": 8}, "batch_size is 4 there and 8 here"),
        ({"recipe_options": {"top": 3}}, "recipe_options.top is 5 there and 3 here"),
        ({"dtype": "bfloat16"}, "dtype"),
        (
            {"model": {"name": "tiny", "sha256": "2", "classes": ["a"] * 100}},
            'model.sha256 is "1" there and "2" here; model.classes differs',
        ),
        ({"data": {"id": "folder/2", "images": IMAGES}}, "data.id"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, changes, message):
    start(tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="holds another run") as caught:
        start(tmp_path, **changes)
    assert message in str(caught.value)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_kill_between_manifest_and_arrays_is_healed(tmp_path):
    start(tmp_path / "whole")
    start(tmp_path / "killed")
    (tmp_path / "killed/rows.zarr/rank/zarr.json").unlink()
    (tmp_path / "killed/rows.zarr/zarr.json").unlink()
    start(tmp_path / "killed").write_rows(0, rows(0, IMAGES))
    found = open_results(tmp_path / "killed")["rank"][:]
    np.testing.assert_array_equal(found, rows(0, IMAGES)["rank"])


def test_chunks_hold_whole_batches(tmp_path):
    wide = ArraySpec(("image", "token"), (5000, 9000), "int32")
    run = start_run(
        tmp_path,
        manifest(data={"images": 5000}),
        {"wide": wide, **SPECS},
        coordinates={},
        batch_size=32,
    )
    assert run.images_per_chunk == 96  # 4 MiB hold 116 rows of 36,000 bytes
    for name in ("wide", "rank", "done"):
        text = (tmp_path / "rows.zarr" / name / "zarr.json").read_text()
        chunk = json.loads(text)["chunk_grid"]["configuration"]["chunk_shape"]
        assert chunk[0] == 96


def test_every_process_has_as_many_chunks():
    chunk = images_per_chunk(SPECS.values(), batch_size=2, processes=2)
    assert chunk == 6  # ten images, five batches: three and two
    many = {"rank": ArraySpec(("image", "token"), (5000, 9000), "int32")}
    assert images_per_chunk(many.values(), batch_size=8, processes=64) == 80
    assert images_per_chunk(many.values(), batch_size=8, processes=4) == 112


def test_a_run_keeps_its_chunks_with_other_batches(tmp_path):
    begun = start(tmp_path)
    begun.write_rows(0, rows(0, 4))
    again = start_run(
        tmp_path, manifest(), SPECS, coordinates={}, batch_size=3, processes=2
    )
    assert again.images_per_chunk == begun.images_per_chunk == 12
    assert again.read("done").sum() == 4


def test_another_process_joins_the_run_of_the_first(tmp_path):
    with pytest.raises(ValueError, match="on storage that all processes share"):
        join_run(tmp_path, manifest(), SPECS, process=1)
    first = start(tmp_path, skipped=[])
    with pytest.raises(ValueError, match="dtype"):
        join_run(tmp_path, manifest(dtype="bfloat16"), SPECS, process=1)
    second = join_run(tmp_path, manifest(), SPECS, process=1)
    assert second.images_per_chunk == first.images_per_chunk
    second.write_rows(0, rows(0, 10))
    assert first.read("done").all()


def test_what_others_could_not_read_comes_into_the_manifest(tmp_path):
    first = start(tmp_path, skipped=[])
    for process, index in ((2, 9), (1, 5), (1, 6)):
        other = join_run(tmp_path, manifest(), SPECS, process=process)
        other.manifest["skipped"] += [{"index": index, "name": "?", "reason": "!"}]
        other.save_skipped()
        if index == 5:  # killed; the next session begins
            first.collect_skipped()
    first.collect_skipped()
    first.collect_skipped()
    assert [line["index"] for line in first.manifest["skipped"]] == [5, 6, 9]
    assert open_results(tmp_path).manifest["skipped"] == first.manifest["skipped"]
    assert not list(tmp_path.glob("skipped-*"))
    assert other.results().manifest["skipped"] == first.manifest["skipped"]


def test_a_path_below_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="Not a directory.*may write there"):
        start(tmp_path / "file" / "run")


FULL_DISK = """
import resource, sys
import numpy as np
sys.path.insert(0, {tests!r})
import small_run
run = small_run.start({path!r})
run.write_rows(0, small_run.rows(0, 4))
resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))
try:
    run.write_rows(4, small_run.rows(4, 8))
except OSError as error:
    print(error.errno, error)
"""


def test_a_full_disk_says_so_and_marks_nothing_done(tmp_path):
    tests = str(pathlib.Path(__file__).parents[1])
    code = FULL_DISK.format(tests=tests, path=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Make room" in done.stdout, done.stderr
    again = start(tmp_path / "run")
    np.testing.assert_array_equal(np.nonzero(again.read("done"))[0], np.arange(4))
    again.write_rows(4, rows(4, 8))
    found = open_results(tmp_path / "run")["rank"][:8]
    np.testing.assert_array_equal(found, rows(0, 8)["rank"])


def test_finished_images_that_lost_an_array_are_not_made_up(tmp_path):
    start(tmp_path).write_rows(0, rows(0, 4))
    shutil.rmtree(tmp_path / "rows.zarr/rank")
    with pytest.raises(ValueError, match="has lost rank, which its finished images"):
        start(tmp_path)


def test_an_empty_path_is_refused():
    with pytest.raises(ValueError, match="path is empty"):
        start("")
    with pytest.raises(ValueError, match="path is empty"):
        open_results("")
