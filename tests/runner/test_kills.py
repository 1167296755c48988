"""Processes that are killed at random moments end with the same arrays."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

import vitjax
from vitjax import loading
from vitjax.data.demo import CLASSES
from vitjax.results import open_results

pytestmark = pytest.mark.slow

CONFIG = vitjax.Config(64, 16, dim=16, depth=2, heads=2, mlp_dim=32)
IMAGES = 3000

# Writes after every batch, to chunks of some batches, so that kills hit every stage.
PROGRAM = """
import sys
from vitjax import cli
from vitjax.runner import buffer, folder
buffer.FLUSH_SECONDS = 0.0
folder.CHUNK_BYTES = 40 * 2 * 17 * 4
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    loading.save(vitjax.init(CONFIG, classes=CLASSES), folder)
    return str(folder)


def start(model, out):
    flags = ["--model", model, "--data", "textured_digits", "--out", str(out)]
    size = ["--limit", str(IMAGES), "--batch-size", "8"]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", "identifiability", *flags, *size],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
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
