"""Many devices, many processes: the same rows, and nothing is lost with one of them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

import vitjax
from vitjax.checkpoints import loading
from vitjax.data.datasets import open_source
from vitjax.data.textured_digits import CLASSES
from vitjax.recipes.identifiability import STREAMS
from vitjax.runner.results import open_results

pytestmark = pytest.mark.slow

CONFIG = vitjax.Config(64, 16, dim=16, depth=2, heads=2, mlp_dim=32)
IMAGES, BATCH = 181, 8
SECONDS = 120
"""Far above what a lost process may cost; a loaded machine is slow."""

# Some chunks for each, written after every batch; signs of life every few seconds.
PROGRAM = """
import sys, time
from vitjax.cli.main import main
from vitjax.runner import buffer, folder, job, processes
buffer.FLUSH_SECONDS = 0.0
folder.CHUNK_BYTES = 16 * 2 * 17 * 4
processes.HEARTBEAT_SECONDS = 8
pause, step = float(sys.argv[1]), job.Job.step
def slowly(self, batch):
    time.sleep(pause)
    return step(self, batch)
job.Job.step = slowly
sys.exit(main.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def model():
    return vitjax.init(CONFIG, classes=CLASSES)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    loading.save(model, folder)
    return str(folder)


def start(saved, out, *more, devices=1, pause=0.0, data="textured_digits"):
    flags = ["--model", saved, "--data", data, "--out", str(out)]
    size = ["--limit", str(IMAGES), "--batch-size", str(BATCH)]
    forced = f"--xla_force_host_platform_device_count={devices}"
    single = "--xla_cpu_multi_thread_eigen=false"
    command = ["run", "identifiability", *flags, *size, *more]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(pause), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{forced} {single}"},
    )


def start_all(saved, out, *more, count, **options):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = ["--distributed", "--coordinator", f"localhost:{port}"]
    shared += ["--processes", str(count), *more]
    return [
        start(saved, out, *shared, "--process", str(index), **options)
        for index in range(count)
    ]


def finish(members, out):
    for member in members:
        _, error = member.communicate(timeout=300)
        assert member.returncode == 0, error
    found = open_results(out)
    assert found.manifest["finished"] and found["done"][:].all()
    assert not list(out.glob("skipped-*"))
    return found


def work(saved, out, *more, count, **options):
    return finish(start_all(saved, out, *more, count=count, **options), out)


@pytest.fixture(scope="module")
def whole(saved, tmp_path_factory):
    """The rows of one device of one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return finish([start(saved, out)], out)


@pytest.fixture(scope="module")
def margins(model):
    """Stream -> distance of the true class's logit from the nearest other one."""
    source = open_source("textured_digits", classes=CLASSES)
    records = [source[index] for index in range(IMAGES)]
    images = np.stack([model.preprocess(record.image) for record in records])
    label = np.array([record.label for record in records])
    _, trace = vitjax.forward(model, images, capture=STREAMS)
    found = {}
    for name in STREAMS:
        states = np.moveaxis(np.asarray(getattr(trace, name)), 0, 1)
        logits = np.asarray(vitjax.project(model.class_space, states))
        place = label[:, None, None, None]
        gap = np.abs(logits - np.take_along_axis(logits, place, -1))
        np.put_along_axis(gap, np.broadcast_to(place, (*gap.shape[:-1], 1)), 9, -1)
        found[name] = gap.min(-1)
    return found


def assert_close(found, whole, margins):
    for name in ("label", "valid", "patch_label", "picture", "picture_image"):
        np.testing.assert_array_equal(found[name][:], whole[name][:])
    for name in STREAMS:
        left, right = found[f"logit_{name}"][:], whole[f"logit_{name}"][:]
        np.testing.assert_allclose(left, right, atol=2e-4, rtol=0)
        apart = np.abs(found[f"rank_{name}"][:] - whole[f"rank_{name}"][:])
        assert apart[margins[name] > 1e-3].max() == 0
        assert apart.max() <= 1
        assert (margins[name] > 1e-3).mean() > 0.5
    left, right = found["top_logits"][:], whole["top_logits"][:]
    np.testing.assert_allclose(left, right, atol=2e-4, rtol=0)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_change_no_row(saved, whole, margins, tmp_path, devices):
    found = finish([start(saved, tmp_path, devices=devices)], tmp_path)
    assert found.manifest["devices"]["count"] == devices
    assert_close(found, whole, margins)


def test_a_run_goes_on_with_fewer_devices(saved, whole, margins, tmp_path):
    """Begun in batches of 12 over six devices; the same command goes on with one."""
    member = start(saved, tmp_path, devices=6, pause=0.5)
    stop_halfway([member], tmp_path, victim=0)
    found = finish([start(saved, tmp_path)], tmp_path)
    assert found.manifest["batch_size"] == BATCH
    assert found.manifest["resumed"][0]["devices"]["count"] == 1
    assert_close(found, whole, margins)


def test_processes_change_no_row_and_repeat_bit_for_bit(
    saved, whole, margins, tmp_path, same_rows
):
    found = work(saved, tmp_path / "a", count=2, devices=2)
    assert found.manifest["devices"] | {"kind": ""} == {
        **{"platform": "cpu", "kind": "", "count": 4, "processes": 2}
    }
    assert_close(found, whole, margins)
    same_rows(work(saved, tmp_path / "b", count=2, devices=2), found)
    assert_close(work(saved, tmp_path / "c", count=4), whole, margins)


def done(out):
    try:
        return int(open_results(out)["done"][:].sum())
    except (OSError, ValueError):
        return 0


def stop_halfway(members, out, *, victim, number=signal.SIGKILL):
    """One is killed once all write; what the others said, and their statuses."""
    end = time.monotonic() + 300
    while done(out) < IMAGES // 5 and time.monotonic() < end:
        assert all(member.poll() is None for member in members)
        time.sleep(0.05)
    members[victim].send_signal(number)
    said = [member.communicate(timeout=SECONDS)[1] for member in members]
    return said, [member.returncode for member in members]


@pytest.mark.parametrize(
    ("count", "victim", "later"), [(2, 1, 1), (2, 0, 4), (4, 3, 2)]
)
def test_a_killed_process_stops_all_and_any_number_goes_on(
    saved, whole, margins, tmp_path, count, victim, later
):
    members = start_all(saved, tmp_path, count=count, pause=0.5)
    said, statuses = stop_halfway(members, tmp_path, victim=victim)
    kept = done(tmp_path)
    assert 0 < kept < IMAGES and 0 not in statuses
    for index, words in enumerate(said):
        if index != victim:
            assert f"Process {victim} of {count} is gone" in words, words
        assert re.search(rf"\d+ of {IMAGES} images are done and kept in", words)
        assert "the same command goes on from there" in words
    if later == 1:
        found = finish([start(saved, tmp_path)], tmp_path)
    else:
        found = work(saved, tmp_path, count=later)
    assert_close(found, whole, margins)


def test_a_signal_to_one_stops_all_kindly(saved, tmp_path):
    members = start_all(saved, tmp_path, count=2, pause=0.5)
    said, statuses = stop_halfway(members, tmp_path, victim=1, number=signal.SIGTERM)
    assert statuses == [1, 143]
    assert "Process 1 of 2 stopped: told to." in said[0]
    assert all(f"of {IMAGES} images are done" in words for words in said)
    assert "Stopped." in said[1] and "Traceback" not in "".join(said)


def test_what_one_cannot_read_stops_all_or_is_listed(saved, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        place = tmp_path / "photos" / CLASSES[number % 10]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(256, size=(64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number:03d}.png")
    broken = sorted((tmp_path / "photos").glob("*/*.png"))[-3]
    broken.write_bytes(broken.read_bytes()[:100])
    data, out = f"folder:{tmp_path / 'photos'}", tmp_path / "run"
    members = start_all(saved, out, count=2, data=data)
    said = [member.communicate(timeout=SECONDS)[1] for member in members]
    assert [member.returncode for member in members] == [1, 1], said
    assert "Process 1 of 2 stopped: " in said[0] and broken.name in said[0]
    assert broken.name in said[1] and "--on-error skip" in said[1]
    found = work(saved, out, "--on-error", "skip", count=2, data=data)
    (skipped,) = found.manifest["skipped"]
    assert skipped["index"] == IMAGES - 3 and broken.name in skipped["name"]
    assert np.flatnonzero(~found["valid"][:]).tolist() == [IMAGES - 3]


def test_no_device_talks_to_another():
    """No gather, no sum: what is computed of an image stays on its device."""
    from vitjax.runner.job import make_job

    from vitjax.runner import mesh as meshes

    model = vitjax.init(CONFIG, classes=CLASSES)
    for recipe in ("identifiability", "one_pass"):
        job = make_job(
            *(recipe, model, "textured_digits"),
            batch_size=8,
            dtype="float32",
            limit=8,
        )
        batch = meshes.shard(job.blank(), job.mesh)
        lowered = job.program.lower(job.placed, batch, job.prepared.aux)
        text = lowered.compile().as_text()
        assert jax.device_count() == 4 and "dot" in text
        assert not re.search(r"all-gather|all-reduce|all-to-all|permute", text)
