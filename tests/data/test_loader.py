import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from photos import Noise
from PIL import Image

from vitjax.data.datasets import open_data
from vitjax.data.images import ImageError, Preprocess
from vitjax.data.loader import ExampleError, batches
from vitjax.data.records import Record, SourceError
from vitjax.data.textured_digits import CLASSES, TexturedDigits
from vitjax.types import Config

CONFIG = Config(64, 8, dim=8, depth=1, heads=1, mlp_dim=8)
FIELDS = ("images", "label", "valid", "index", "patch_label")


def noise(length, broken=(), label=None):
    """Images with the labels 0 to 9 in turn, or this one; some cannot be read."""
    labels = [label or index % 10 for index in range(length)]
    labels = ["broken" if i in broken else label for i, label in enumerate(labels)]
    return open_data(Noise(labels), classes=CLASSES)


def load(source, **options):
    defaults = {"preprocess": Preprocess(8, 8), "local_batch_size": 4, "threads": 0}
    return batches(source, **(defaults | options))


def joined(loaded, field):
    return np.concatenate([getattr(batch, field) for batch, _, _ in loaded])


def assert_equal(loaded, expected):
    for (batch, errors, digest), other in zip(loaded, expected, strict=True):
        for field in FIELDS:
            one, two = getattr(batch, field), getattr(other.batch, field)
            np.testing.assert_array_equal(one, two)
        assert errors == other.errors
        np.testing.assert_array_equal(digest, other.digest)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_in_order_and_padded(threads):
    source = noise(10)
    loaded = list(load(source, threads=threads))
    assert len(loaded) == 3 and all(errors == [] for _, errors, _ in loaded)
    assert joined(loaded, "index").tolist() == list(range(12))
    assert joined(loaded, "valid").tolist() == [True] * 10 + [False] * 2
    assert joined(loaded, "label").tolist() == [*range(10), -1, -1]
    images = joined(loaded, "images")
    assert images.shape == (12, 8, 8, 3) and images.dtype == np.float32
    expected = [Preprocess(8, 8)(record.image) for record in source]
    np.testing.assert_array_equal(images[:10], expected)
    assert not images[10:].any()
    assert loaded[0].batch.patch_label is None
    digest = np.concatenate([one.digest for one in loaded])
    assert digest.dtype == np.uint64 and not digest[10:].any()
    assert len(set(digest[:10].tolist())) == 10 and digest[:10].all()


def test_any_range_and_nothing_else_is_read():
    source = noise(11)
    assert_equal(load(source, start=8, stop=10, threads=2), [*load(noise(10))][2:])
    assert sorted(source.source.read) == [8, 9]
    loaded = list(load(noise(10), start=3))
    assert joined(loaded, "index")[joined(loaded, "valid")].tolist() == [*range(3, 10)]
    for start, stop in ((8, 8), (8, 4), (12, None)):
        assert not list(load(noise(11), start=start, stop=stop))


@pytest.mark.parametrize("threads", [0, 3])
class TestBroken:
    def test_stop_raises_the_first(self, threads):
        loaded = load(noise(12, broken=(5, 6)), threads=threads)
        assert next(loaded).batch.valid.all()
        with pytest.raises(ImageError, match="image 5"):
            next(loaded)

    def test_skip_goes_on(self, threads):
        source = noise(12, broken=(5, 6))
        loaded = list(load(source, on_error="skip", threads=threads))
        assert [len(errors) for _, errors, _ in loaded] == [0, 2, 0]
        errors = [ExampleError(i, f"image {i}", "it is broken") for i in (5, 6)]
        assert loaded[1].errors == errors
        assert loaded[1].batch.valid.tolist() == [True, False, False, True]
        assert loaded[1].batch.label.tolist() == [4, -1, -1, 7]
        assert (loaded[1].digest != 0).tolist() == [True, False, False, True]

    def test_a_wrong_label_is_never_skipped(self, threads):
        with pytest.raises(SourceError, match="owl"):
            list(load(noise(4, label="owl"), on_error="skip", threads=threads))


def test_masks_become_patch_labels():
    source = open_data(TexturedDigits(length=6), classes=CLASSES)
    loaded = list(load(source, preprocess=Preprocess(64, 64), config=CONFIG))
    labels = joined(loaded, "patch_label")
    assert labels.shape == (8, 64)
    tiles = TexturedDigits().compose(np.arange(6)).mask.reshape(6, 8, 8, 8, 8)
    fraction = tiles.mean(axis=(2, 4)).reshape(6, 64)
    np.testing.assert_array_equal(labels[:6], fraction >= 0.5)
    assert (labels[6:] == -1).all()
    ((batch, _, _),) = load(noise(4), preprocess=Preprocess(64, 64), config=CONFIG)
    assert (batch.patch_label == -1).all()  # one structure, whatever has a mask


@pytest.mark.parametrize(
    "mask", [np.ones((3, 5), bool), np.full((64, 64), 7, np.uint8)]
)
def test_a_mask_that_does_not_fit_is_that_images_error(mask):
    class Own(Noise):
        def __getitem__(self, index):
            pixels = np.zeros((64, 64, 3), np.uint8)
            return Record(pixels, 1, f"{index}.png", mask if index == 1 else None)

    source = open_data(Own([1] * 3), classes=CLASSES)
    options = dict(preprocess=Preprocess(64, 64), config=CONFIG)
    ((batch, (error,), _),) = load(source, on_error="skip", **options)
    assert error.name == "1.png" and batch.valid.tolist() == [True, False, True, False]
    with pytest.raises(ImageError, match="1.png.*mask"):
        list(load(source, **options))


def test_the_digest_is_of_every_byte_of_image_and_mask(tmp_path):
    pixels = np.zeros((60, 60, 3), np.uint8)
    table = tmp_path / "t.csv"
    table.write_text("path,mask\n" + "a.png,a.png\n" * 2)

    def digests():
        Image.fromarray(pixels).save(tmp_path / "a.png", compress_level=0)
        ((_, _, digest),) = load(open_data(table), local_batch_size=2)
        return digest

    first = digests()
    assert first[0] == first[1]
    pixels[30, 30, 1] = 1
    assert (digests() != first).all()


def test_reading_ahead_is_bounded_and_ends_with_the_iterator():
    source = noise(10_000)
    before = threading.active_count()
    loaded = load(source, threads=2)
    next(loaded)
    loaded.close()
    assert len(source.source.read) < 40
    assert threading.active_count() == before


def test_images_of_a_batch_are_gone_before_the_next_are_read():
    made, alive = [], []

    class Remembering(Preprocess):
        def __call__(self, image):
            alive.append(sum(pixels() is not None for pixels in made))
            pixels = super().__call__(image)
            made.append(weakref.ref(pixels))
            return pixels

    assert len(list(load(noise(12), preprocess=Remembering(8, 8)))) == 3
    assert max(alive) <= 1


@pytest.mark.slow
def test_workers_make_the_same_batches(tmp_path):
    """In other processes, which start slowly: every case in one run."""
    lines = ["path,label,mask"]
    for number, name in enumerate(CLASSES):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{name}.png")
        Image.new("L", (9, 9), 40 * (number % 2)).save(tmp_path / f"{name}-mask.png")
        lines.append(f"{name}.png,{name},{name}-mask.png")
    (tmp_path / "five.png").write_bytes(b"broken")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    source = open_data(f"csv:{tmp_path / 'table.csv'}", classes=CLASSES)
    options = dict(preprocess=Preprocess(64, 64), config=CONFIG, on_error="skip")
    assert_equal(load(source, workers=2, **options), load(source, **options))
    with pytest.raises(ImageError, match="five.png"):
        list(load(source, workers=1))
    source = noise(12)
    source.source.lock = threading.Lock()
    with pytest.raises(ValueError, match="cannot be sent to worker processes"):
        list(load(source, workers=1))


PROGRAM = r"""
import os, signal, sys, time
from vitjax.data.datasets import open_data
from vitjax.data.images import Preprocess
from vitjax.data.loader import batches
from vitjax.data.textured_digits import TexturedDigits

class Slow(TexturedDigits):
    def __getitem__(self, index):
        os.write(1, b"worker %d\n" % os.getpid())
        time.sleep(0.2)
        return super().__getitem__(index)

if __name__ == "__main__":
    source = open_data(Slow(), classes=Slow().label_names)
    options = dict(preprocess=Preprocess(64, 64), local_batch_size=2, workers=2)
    try:
        for loaded in batches(source, **options):
            os.write(1, b"batch\n")
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture
def program(tmp_path):
    """A running loader of two slow workers: (process, their ids), once one batch came.

    It and its workers are one process group, as in a terminal.
    """
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
    ) as process:
        workers = set()
        for line in process.stdout:
            workers |= {int(line.split()[1])} if "worker" in line else set()
            if "batch" in line and len(workers) == 2:
                break
        assert len(workers) == 2, process.stderr.read()
        yield process, workers
        process.kill()


def assert_gone(workers):
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{worker}") for worker in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "receiver", "status"),
    [
        (signal.SIGKILL, "worker", 1),
        (signal.SIGKILL, "parent", -9),
        (signal.SIGINT, "all", 130),  # as a terminal
        (signal.SIGTERM, "all", -15),  # and a scheduler send them
    ],
)
def test_stopped_processes_leave_nothing_behind(
    program, tmp_path, number, receiver, status
):
    process, workers = program
    targets = {"worker": min(workers), "parent": process.pid, "all": -process.pid}
    os.kill(targets[receiver], number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == status
    assert ("ChildProcessError" in stderr) == (receiver == "worker")
    assert ("Traceback" in stderr) == (receiver == "worker")
    assert_gone(workers)
    assert not list(tmp_path.glob("vitjax-batches-*"))
