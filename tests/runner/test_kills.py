"""Processes that are killed at random moments end with the same arrays."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

import vitjax
from vitjax.checkpoints import loading
from vitjax.data.textured_digits import CLASSES
from vitjax.runner.results import open_results

CONFIG = vitjax.Config(64, 16, dim=16, depth=2, heads=2, mlp_dim=32)
IMAGES = 3000

# Writes after every batch, to chunks of some batches, so that kills hit every stage.
PROGRAM = """
import sys
from vitjax.cli.main import main
from vitjax.runner import buffer, folder
buffer.FLUSH_SECONDS = 0.0
folder.CHUNK_BYTES = 40 * 2 * 17 * 4
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    loading.save(vitjax.init(CONFIG, classes=CLASSES), folder)
    return str(folder)


# Children of one process, which has imported everything once, are killed one after the
# other; the last two end by themselves, one of them in a folder of its own.
THREE = """
import os, pathlib, random, signal, sys, time
out, whole, *arguments = sys.argv[1:]
from vitjax.cli.main import main
from vitjax.runner import buffer, folder
buffer.FLUSH_SECONDS = 0.0
folder.CHUNK_BYTES = 8 * 2 * 17 * 4
draw = random.Random(0)
for enough in (20, 40, 60, None, None):
    child = os.fork()
    if not child:
        os._exit(main.main([*arguments, "--out", out]))
    if enough is None:
        assert os.waitpid(child, 0)[1] == 0
        out = whole
        continue
    done = pathlib.Path(out, "rows.zarr/done/c")
    while not done.is_dir() or len(os.listdir(done)) < enough:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before"
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
"""


def arguments(model, images=IMAGES):
    flags = ["--model", model, "--data", "textured_digits"]
    return [
        "run",
        "identifiability",
        *flags,
        "--limit",
        str(images),
        "--batch-size",
        "8",
    ]


def start(model, out, *flags, group=False):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments(model), "--out", str(out), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        start_new_session=group,
    )


def finish(process):
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(model, out))
    return open_results(out)


def done(out):
    try:
        return int(open_results(out)["done"][:].sum())
    except (OSError, ValueError):
        return 0


def wait_for_progress(process, out, before):
    """Until this session wrote rows, or ended."""
    while process.poll() is None and done(out) <= before:
        time.sleep(0.05)


def test_three_kills_end_with_the_same_arrays(model, tmp_path, same_rows):
    outs = [str(tmp_path / name) for name in ("run", "whole")]
    command = [sys.executable, "-c", THREE, *outs, *arguments(model, 800)]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | cache
    options: dict = dict(capture_output=True, text=True, env=environment, timeout=300)
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiling") == 5, done.stderr
    found, whole = map(open_results, outs)
    assert found.manifest["finished"] and found["done"][:].all()
    same_rows(found, whole)


@pytest.mark.slow
def test_twenty_kills_end_with_the_same_arrays(model, whole, tmp_path, same_rows):
    draw = random.Random(0)
    out = tmp_path / "run"
    history = []
    for kill in range(20):
        process = start(model, out)
        if kill % 2:  # while it writes; otherwise at any moment, also while it starts
            wait_for_progress(process, out, done(out))
            time.sleep(draw.uniform(0, 0.15))
        else:
            time.sleep(draw.uniform(0, 6))
        process.kill()
        process.communicate()
        history.append(done(out))
    assert history == sorted(history) and len(set(history)) > 5, history
    finish(start(model, out))
    found = open_results(out)
    assert found.manifest["finished"]
    same_rows(found, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_stops_kindly(model, whole, tmp_path, same_rows, number, status):
    out = tmp_path / "run"
    process = start(model, out)
    wait_for_progress(process, out, 0)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Stopped." in error and "Traceback" not in error
    kept = done(out)
    assert f"{kept} of {IMAGES} images are done" in error and 0 < kept < IMAGES
    assert f"  vitjax run identifiability --model {model}" in error
    finish(start(model, out))
    same_rows(open_results(out), whole)


def living(group):
    """Numbers of the processes of a group that run."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, _, of, *_ = path.read_text().rpartition(")")[2].split()
            found += (
                [int(path.parent.name)] if int(of) == group and state != "Z" else []
            )
    return found


def wait_until(reached, seconds):
    end = time.monotonic() + seconds
    while not reached() and time.monotonic() < end:
        time.sleep(0.02)
    assert reached()


@pytest.fixture
def working(model, tmp_path):
    """A run with two workers, in a group of processes as a terminal makes one."""
    if not pathlib.Path("/proc/self/stat").exists():
        pytest.skip("/proc tells of processes; there is none")
    process = start(model, tmp_path / "run", "--workers", "2", group=True)
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
@pytest.mark.parametrize("when", ["starting", "at work"])
def test_a_signal_to_all_stops_workers_without_a_word(
    working, tmp_path, number, status, when
):
    if when == "starting":  # itself, a helper of multiprocessing's, and a worker
        wait_until(lambda: len(living(working.pid)) > 2, 60)
    else:
        wait_for_progress(working, tmp_path / "run", 0)
    os.killpg(working.pid, number)
    _, error = working.communicate(timeout=20)
    assert working.returncode == status
    assert error.count("Stopped.") == 1 and "Traceback" not in error
    last = error[error.index("Stopped.") :].splitlines()
    assert len(last) == 2 and last[1].startswith("  vitjax run identifiability")
    wait_until(lambda: not living(working.pid), 10)


@pytest.mark.slow
def test_workers_do_not_outlive_a_kill(working, tmp_path):
    wait_for_progress(working, tmp_path / "run", 0)
    assert len(living(working.pid)) > 2
    working.kill()
    wait_until(lambda: not living(working.pid), 10)
