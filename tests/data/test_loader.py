import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from PIL import Image

from vitjax.data.datasets import open_source
from vitjax.data.images import ImageError, Preprocess
from vitjax.data.loader import (
    Item,
    Made,
    RecordError,
    batches,
    deaf_children,
    gather,
)
from vitjax.data.records import Record, SourceError
from vitjax.data.textured_digits import CLASSES, TexturedDigits
from vitjax.types import Config

CONFIG = Config(64, 8, dim=8, depth=1, heads=1, mlp_dim=8)
PREPROCESS = Preprocess(8, 8)


class Numbers:
    """Picture i is of the colour i; some are broken; remembers what was read."""

    id = "numbers/1"

    def __init__(self, length, broken=(), label=None):
        self.length, self.broken, self.label = length, broken, label
        self.read, self.lock = [], threading.Lock()

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        with self.lock:
            self.read.append(index)
        if index in self.broken:
            raise ImageError(f"{index}.png", "it is broken")
        pixels = np.full((8, 8, 3), index, np.uint8)
        return Record(pixels, self.label or index % 10, f"{index}.png")


def opened(*args, **kwargs):
    return open_source(Numbers(*args, **kwargs), classes=CLASSES)


def read(source, **options):
    options = {"preprocess": PREPROCESS, "batch_size": 4, "threads": 0} | options
    return list(batches(source, **options))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_in_order_padded_and_masked(threads):
    found = read(opened(10), threads=threads)
    assert len(found) == 3 and all(errors == [] for _, errors in found)
    index = np.concatenate([batch.index for batch, _ in found])
    valid = np.concatenate([batch.valid for batch, _ in found])
    label = np.concatenate([batch.label for batch, _ in found])
    images = np.concatenate([batch.images for batch, _ in found])
    assert index.tolist() == list(range(12))
    assert valid.tolist() == [True] * 10 + [False] * 2
    assert label.tolist() == [*range(10), -1, -1]
    assert images.shape == (12, 8, 8, 3) and images.dtype == np.float32
    grey = PREPROCESS.normalise(np.arange(10, dtype=np.uint8)[:, None].repeat(3, 1))
    np.testing.assert_array_equal(images[:10, 0, 0], grey)
    assert not images[10:].any()
    assert found[0][0].patch_label is None


def test_start_reads_nothing_before_it():
    source = opened(11)
    found = read(source, start=8, stop=10, threads=2)
    assert sorted(source.source.read) == [8, 9]
    (batch, _), (expected, _) = found[0], read(opened(11), stop=10)[2]
    for field in ("images", "label", "valid", "index"):
        np.testing.assert_array_equal(getattr(batch, field), getattr(expected, field))


def test_batches_may_start_anywhere():
    found = read(opened(10), start=3)
    indices = [batch.index[batch.valid].tolist() for batch, _ in found]
    assert indices == [[3, 4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize(("start", "stop"), [(8, 8), (8, 4), (12, None)])
def test_nothing_left(start, stop):
    assert read(opened(11), start=start, stop=stop) == []


def test_shards_are_the_parts_of_every_batch():
    whole = read(opened(10))
    shards = [read(opened(10), shard=(process, 2)) for process in range(2)]
    assert [len(shard) for shard in shards] == [3, 3]
    for number, (batch, _) in enumerate(whole):
        parts = [shard[number][0] for shard in shards]
        for field in ("images", "label", "valid", "index"):
            joined = np.concatenate([getattr(part, field) for part in parts])
            np.testing.assert_array_equal(joined, getattr(batch, field))


def test_misfits():
    with pytest.raises(ValueError, match="number of processes 3"):
        read(opened(10), shard=(0, 3))


@pytest.mark.parametrize("threads", [0, 3])
class TestBroken:
    def test_stop_raises_the_first(self, threads):
        found = batches(
            opened(12, broken=(5, 6)),
            preprocess=PREPROCESS,
            batch_size=4,
            threads=threads,
        )
        assert next(found)[0].valid.all()
        with pytest.raises(ImageError, match="5.png cannot be read: it is broken"):
            next(found)

    def test_skip_goes_on(self, threads):
        found = read(opened(12, broken=(5, 6)), on_error="skip", threads=threads)
        assert [len(errors) for _, errors in found] == [0, 2, 0]
        assert found[1][1] == [
            RecordError(5, "5.png", "it is broken"),
            RecordError(6, "6.png", "it is broken"),
        ]
        assert found[1][0].valid.tolist() == [True, False, False, True]
        assert found[1][0].label.tolist() == [4, -1, -1, 7]

    def test_a_wrong_label_is_never_skipped(self, threads):
        with pytest.raises(SourceError, match="none of the model's 10 classes"):
            read(opened(4, label="owl"), on_error="skip", threads=threads)


def test_masks_become_token_classes():
    source = open_source(TexturedDigits(length=6), classes=CLASSES)
    found = read(source, preprocess=Preprocess(64, 64), config=CONFIG)
    tokens = np.concatenate([batch.patch_label for batch, _ in found])
    assert tokens.shape == (8, 64)
    tiles = TexturedDigits().compose(np.arange(6)).mask.reshape(6, 8, 8, 8, 8)
    share = tiles.mean(axis=(2, 4)).reshape(6, 64)
    np.testing.assert_array_equal(tokens[:6], share >= 0.5)
    assert (tokens[6:] == -1).all()


def test_reading_ahead_is_bounded_and_ends_with_the_iterator():
    source = opened(10_000)
    before = threading.active_count()
    found = batches(source, preprocess=PREPROCESS, batch_size=4, threads=2)
    next(found)
    found.close()
    assert len(source.source.read) < 40
    assert threading.active_count() <= before + 4


def test_workers_make_the_same_batches(tmp_path):
    """In other processes, which start slowly: every case in one run."""
    source = open_source(TexturedDigits(length=11), classes=CLASSES)
    options = dict(preprocess=Preprocess(64, 64), config=CONFIG)
    for (batch, _), (expected, _) in zip(
        read(source, workers=2, **options), read(source, **options), strict=True
    ):
        for field in ("images", "label", "valid", "index", "patch_label"):
            np.testing.assert_array_equal(
                getattr(batch, field), getattr(expected, field)
            )
    for number in range(12):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "05.png").write_bytes(b"broken")
    folder = open_source(f"folder:{tmp_path}", classes=CLASSES)
    found = read(folder, on_error="skip", workers=1)
    assert [[e.name for e in errors] for _, errors in found] == [[], ["05.png"], []]
    assert found[1][0].valid.tolist() == [True, False, True, True]
    with pytest.raises(ImageError, match="05.png cannot be read"):
        read(folder, workers=1)
    with pytest.raises(ValueError, match="cannot be sent to other processes"):
        read(opened(12), workers=1)


def test_pictures_of_a_batch_are_gone_before_the_next_are_read():
    before = []

    def items():
        pixels = None
        for number in range(6):
            before.append([number % 2, *(kept() is not None for kept in seen)])
            pixels = np.zeros((8, 8, 3), np.float32)
            seen.append(weakref.ref(pixels))
            yield Item(number, 0, pixels)

    seen = []
    assert len(list(gather(items(), 3, 2, PREPROCESS))) == 3
    # The one that the generator itself still has is the last.
    assert all(not any(kept[:-1]) for row, *kept in before if row == 0)


def test_a_batch_that_nobody_wants_travels_empty(tmp_path):
    ((batch, _),) = read(opened(4))
    wanted = tmp_path / "wanted"
    wanted.mkdir()
    made = Made(batch, [], str(wanted))
    found = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(found.batch.images, batch.images)
    wanted.rmdir()
    assert len(pickle.dumps(made)) < 100
    assert pickle.loads(pickle.dumps(made)).batch is None


def test_children_are_deaf_to_a_terminal_and_this_process_is_not():
    program = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('alive')"
    with deaf_children():
        done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.stdout.split() == [b"alive"] and done.returncode == 0
    with pytest.raises(KeyboardInterrupt), deaf_children():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
