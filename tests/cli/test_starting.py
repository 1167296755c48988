import pathlib
import signal
import subprocess
import sys

import pytest

from vitjax.cli.main import starting

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def interrupted(tmp_path):
    """Start Python with a JAX whose import is when Ctrl-C is pressed."""
    text = "import signal\nsignal.raise_signal(signal.SIGINT)\nraise SystemExit(77)\n"
    (tmp_path / "jax.py").write_text(text)
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda *words: subprocess.run(
        [sys.executable, *words], env=path, cwd=tmp_path, capture_output=True, text=True
    )
    signal.signal(signal.SIGINT, before)


def test_a_command_stops_in_one_word_while_its_imports_run(interrupted):
    done = interrupted("-m", "vitjax", "list")
    assert (done.returncode, done.stderr, done.stdout) == (130, "Stopped.\n", "")


def test_a_program_that_imports_vitjax_keeps_pythons_way(interrupted):
    done = interrupted("-c", "import vitjax")
    assert done.returncode == -signal.SIGINT and "KeyboardInterrupt" in done.stderr


@pytest.mark.parametrize(
    ("argv", "original", "ours"),
    [
        (["/venv/bin/vitjax", "list"], ["python", "/venv/bin/vitjax", "list"], True),
        (["-m", "list"], ["python", "-m", "vitjax", "list"], True),
        (["/lib/vitjax/__main__.py"], ["python", "-c", "spawned"], True),
        (["-m"], ["python", "-X", "dev", "-m", "vitjax"], True),
        (["-m"], ["python", "-um", "vitjax"], True),
        (["-m"], ["python", "-mvitjax", "list"], True),
        (["-m"], ["python", "-Im", "vitjax.study"], False),
        (["-m"], [], False),
        (["-m", "vitjax"], ["python", "-m", "pytest", "vitjax"], False),
        (["-c", "vitjax"], ["python", "-c", "import vitjax", "vitjax"], False),
        (["study.py"], ["python", "study.py"], False),
        ([""], ["python"], False),
    ],
)
def test_who_is_a_command(argv, original, ours):
    assert starting.is_command(argv, original) is ours


def test_a_command_that_has_started_handles_it_itself(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(sys, "argv", ["vitjax"])
        starting.watch()
        assert signal.getsignal(signal.SIGINT) is starting.stop
        starting.over()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with monkeypatch.context() as patch:  # a worker, which has the command's argv
            words = ["python", "-c", "spawned", "--multiprocessing-fork"]
            patch.setattr(sys, "orig_argv", words)
            starting.watch()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        monkeypatch.setattr(sys, "argv", ["pytest"])
        starting.watch()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
