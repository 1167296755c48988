"""A process that is ended at once is still spoken for."""

import io
import subprocess
import sys

import numpy as np
import pytest
from small_run import rows, start

from vitjax.runner import last_words

PARENT = """
import sys, time
from vitjax.runner.last_words import LastWords
words = LastWords(sys.argv[1], 0, 2, "localhost:1")
if sys.argv[2] == "farewell":
    words.withdraw()
"""


@pytest.mark.slow
@pytest.mark.parametrize("farewell", [True, False])
def test_it_speaks_where_its_parent_said_no_farewell(tmp_path, farewell):
    start(tmp_path).write_rows(0, rows(0, 4))
    way = "farewell" if farewell else "none"
    ended = subprocess.run(
        [sys.executable, "-c", PARENT, str(tmp_path), way],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = "Process 0 of 2 was ended. 4 of 10 images are done and kept in"
    assert (said in ended.stderr) is not farewell, ended.stderr


@pytest.mark.parametrize(
    ("index", "address", "message"),
    [
        ("1", "localhost:1", "Process 0 of 2 is gone; process 1 ends with it."),
        ("0", "localhost:1", "Process 0 of 2 was ended."),
        ("1", "?", "Process 0 of 2 is gone"),
    ],
)
def test_who_is_gone(tmp_path, monkeypatch, capsys, index, address, message):
    start(tmp_path).write({"done": (slice(0, 3), np.ones(3, bool))})
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    last_words.main(str(tmp_path), index, "2", address)
    said = capsys.readouterr().err
    assert message in said and "3 of 10 images are done and kept in" in said


def test_a_farewell_is_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("farewell"))
    last_words.main(str(tmp_path / "nothing"), "1", "2", "localhost:1")
    assert capsys.readouterr().err == ""


def test_without_a_run_there_is_no_count(tmp_path):
    assert "is kept; the same command" in last_words.note(str(tmp_path))
