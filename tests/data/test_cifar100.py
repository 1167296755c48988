"""CIFAR-100 from archives such as its authors publish, fabricated."""

import pickle
import tarfile

import fabricate
import numpy as np
import pytest

from vitjax.data.cifar100 import open_cifar100
from vitjax.data.datasets import open_data, open_spec
from vitjax.data.labels import CIFAR100
from vitjax.data.records import SourceError

COUNT = 230


@pytest.fixture(scope="module")
def content():
    draw = np.random.default_rng(0)
    images = draw.integers(256, size=(COUNT, 32, 32, 3)).astype(np.uint8)
    return images, np.arange(COUNT) * 7 % 100 % 33


@pytest.mark.parametrize("version", ("binary", "python"))
@pytest.mark.parametrize("given", ("archive", "folder", "unpacked"))
def test_every_form_of_the_archive(tmp_path, content, version, given):
    path = fabricate.cifar100(tmp_path, version, content)
    if given == "folder":
        path = tmp_path
    if given == "unpacked":
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "out", filter="data")
        path = tmp_path / "out" / f"cifar-100-{version}"
    source = open_cifar100(path)
    images, label = content
    assert len(source) == COUNT and len(open_cifar100(path, part="train")) == 10
    record = source[123]
    np.testing.assert_array_equal(record.image, images[123])
    assert record.label == CIFAR100[label[123]] and record.name == "test/00123"
    assert source.names[123] == record.name and source.label_names[123] == record.label


def test_the_papers_selection_is_the_first_five_of_each_class(tmp_path, content):
    fabricate.cifar100(tmp_path, "binary", content)
    source = open_data(f"cifar100:{tmp_path}:paper", classes=CIFAR100)
    label = content[1]
    expected = [i for i in range(COUNT) if (label[:i] == label[i]).sum() < 5]
    assert len(expected) < COUNT
    assert [int(name[-5:]) for name in source.source.names] == expected
    assert [source[i].label for i in range(9)] == label[expected[:9]].tolist()
    whole = open_spec(f"cifar100:{tmp_path}")
    assert whole.id != source.id
    assert whole.id == open_spec(f"cifar100:{tmp_path}:test").id
    assert len(open_spec(f"cifar100:{tmp_path}:train")) == 10


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()

    class Evil:
        def __reduce__(self):
            return eval, ("1 + 1",)

    (folder / "test").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(SourceError, match="builtins.eval"):
        open_cifar100(tmp_path)


def test_errors_say_how_to_get_it(tmp_path):
    with pytest.raises(SourceError, match=r"holds no CIFAR-100.*\(1\).*\(2\)"):
        open_cifar100(tmp_path)
    path = tmp_path / "cifar-100-binary.tar.gz"
    path.write_bytes(b"not an archive")
    with pytest.raises(SourceError, match="cannot be read"):
        open_cifar100(path)
