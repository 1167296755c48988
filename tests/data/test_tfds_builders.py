"""Our own builders, prepared and read without TensorFlow."""

import sys

import fabricate
import numpy as np
import pytest
from vitjax.data.tfds_builders import prepare

from vitjax.data.datasets import open_source
from vitjax.data.imagenet_s import open_imagenet_s
from vitjax.data.labels import CIFAR100, imagenet1k, imagenet_s
from vitjax.data.records import SourceError
from vitjax.data.tfds import open_prepared


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Both sets, prepared once: (data_dir, ImageNet-S root, CIFAR content)."""
    data_dir = tmp_path_factory.mktemp("tfds")
    root, archive = (tmp_path_factory.mktemp(name) for name in ("imagenet_s", "cifar"))
    ids = imagenet_s()
    fabricate.imagenet_s(root, {ids[0]: 6, ids[-1]: 2})
    fabricate.imagenet_s(root, {ids[0]: 1}, part="test")
    for path in (root / "ImageNetS919/test-segmentation").rglob("*.png"):
        path.unlink()
    draw = np.random.default_rng(0)
    images = draw.integers(256, size=(40, 32, 32, 3)).astype(np.uint8)
    content = images, np.arange(40) % 6
    fabricate.cifar100(archive, "binary", content)
    for name, path in (("imagenet_s/919", root), ("cifar100", archive)):
        assert prepare(name, path, data_dir=data_dir).startswith("tfds:")
    return data_dir, root, content


def test_imagenet_s_is_the_same_from_files_and_from_records(prepared, monkeypatch):
    data_dir, root, _ = prepared
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(data_dir))
    files = open_imagenet_s(root)
    records = open_prepared("imagenet_s/919:validation", data_dir=data_dir)
    assert len(records) == len(files) == 8
    for index in range(8):
        ours, theirs = records[index], files[index]
        assert (ours.label, ours.name) == (theirs.label, theirs.name)
        np.testing.assert_array_equal(np.asarray(ours.image), np.asarray(theirs.image))
        np.testing.assert_array_equal(ours.mask, theirs.mask)
    assert open_prepared("imagenet_s/919:test", data_dir=data_dir)[0].mask is None
    assert len(open_prepared("imagenet_s/919:validation[:3]", data_dir=data_dir)) == 3
    assert "tensorflow" not in sys.modules


def test_cifar100_keeps_its_pixels_and_the_papers_split(prepared):
    data_dir, _, (images, label) = prepared
    records = open_prepared("vitjax_cifar100:test", data_dir=data_dir)
    assert len(records) == 40
    for index in (0, 39):
        np.testing.assert_array_equal(np.asarray(records[index].image), images[index])
        assert records[index].label == CIFAR100[label[index]]
    paper = open_prepared("vitjax_cifar100:paper", data_dir=data_dir)
    assert len(paper) == 30 and len(open_prepared("vitjax_cifar100", data_dir=data_dir))


def test_labels_become_numbers_of_the_models_classes(prepared):
    names, ids = imagenet1k()
    source = open_prepared("imagenet_s/919:validation", data_dir=prepared[0])
    labelled = open_source(source, classes=names, class_ids=ids)
    assert labelled[0].label == ids.index(imagenet_s()[0])
    assert labelled.name(3) == "3"  # known only after decoding


def test_what_is_wrong_is_said(prepared, tmp_path):
    with pytest.raises(SourceError, match="has no split 'train' but validation"):
        open_prepared("imagenet_s/919:train", data_dir=prepared[0])
    with pytest.raises(
        SourceError, match="vitjax.data.tfds_builders imagenet_s/300 PATH"
    ):
        open_prepared("imagenet_s/300:validation", data_dir=prepared[0])
    with pytest.raises(SourceError, match="none of imagenet_s/919"):
        prepare("imagenet", tmp_path)
    with pytest.raises(SourceError, match="no folder.*CIFAR-100"):
        prepare("cifar100", tmp_path / "none")
