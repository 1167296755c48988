"""Prepared data sets: those of others, and those of our script, without TensorFlow."""

import io
import sys

import fabricate
import numpy as np
import pytest
import scripts
import tensorflow_datasets as tfds
from PIL import Image

from vitjax.data.datasets import open_data
from vitjax.data.imagenet_s import open_imagenet_s
from vitjax.data.images import ImageError
from vitjax.data.labels import CIFAR100, imagenet1k, imagenet_s
from vitjax.data.records import SourceError
from vitjax.data.tfds import open_prepared

FEATURES = {
    "images": {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=3),
    },
    "sounds": {"audio": tfds.features.Scalar(np.int32)},
}


def make(name, data_dir, splits, examples, file_format="array_record"):
    """A data set of somebody's, by their own builder."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("2.0.1")
        pkg_dir_path = None

        def _info(self):
            features = tfds.features.FeaturesDict(FEATURES[name])
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self):
            for key, example in enumerate(examples):
                yield str(key), example

    Builder.name = name
    builder = Builder(data_dir=str(data_dir), file_format=file_format)
    builder.download_and_prepare()


def encoded(value, fmt="png"):
    content = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 0, 0)).save(content, fmt)
    content.seek(0)
    return content


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    images = [{"image": encoded(9 * n), "label": n % 3} for n in range(6)]
    make("images", folder, ["train"], images)
    make("sounds", folder, ["train", "test"], [{"audio": 3}])
    return folder


def test_any_set_of_images(data_dir):
    source = open_prepared("images:train", data_dir=data_dir)
    assert len(source) == 6 and "images/2.0.1:train,6 records" in source.id
    for index in range(6):
        record = source[index]
        value = np.asarray(record.image)[0, 0, 0]
        assert record.label == str(value // 9 % 3) and record.mask is None
        assert record.name == str(index)
    assert len(open_prepared("images", data_dir=data_dir)) == 6
    assert len(open_prepared("images:2.0.1:train[1:3]", data_dir=data_dir)) == 2


def test_a_broken_image_is_named(data_dir):
    source = open_prepared("images:train", data_dir=data_dir)
    broken = type(source)("n", "s", [{"image": b"?", "label": 0}], ("a",))
    with pytest.raises(ImageError, match="0"):
        broken[0]


def test_a_set_without_images(data_dir):
    with pytest.raises(SourceError, match="audio"):
        open_prepared("sounds:test", data_dir=data_dir)


def test_what_is_missing_comes_with_the_command_that_prepares_it(tmp_path):
    with pytest.raises(SourceError, match="tfds build imagenet2012"):
        open_prepared("imagenet2012:validation", data_dir=tmp_path)
    with pytest.raises(SourceError, match="tfds::validation"):
        open_prepared(":validation", data_dir=tmp_path)


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
    script = scripts.load_script("prepare_tfds")
    for name, path in (("imagenet_s/919", root), ("cifar100", archive)):
        assert script.prepare(name, path, data_dir=data_dir).startswith("tfds:")
    return data_dir, root, content


def test_imagenet_s_is_the_same_from_files_and_from_records(prepared, monkeypatch):
    data_dir, root, _ = prepared
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(data_dir))
    files = open_imagenet_s(root)
    records = open_prepared("imagenet_s/919:validation", data_dir=data_dir)
    assert len(records) == len(files) == 8
    for index in range(8):
        record, file = records[index], files[index]
        assert (record.label, record.name) == (file.label, file.name)
        np.testing.assert_array_equal(np.asarray(record.image), np.asarray(file.image))
        np.testing.assert_array_equal(record.mask, file.mask)
        assert record.digest == file.digest
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
    data = open_data(source, classes=names, class_ids=ids)
    assert data[0].label == ids.index(imagenet_s()[0])
    assert data.name(3) == "3"  # known only after decoding


def test_errors_say_what_to_do(prepared, tmp_path):
    with pytest.raises(SourceError, match="'train'.*validation"):
        open_prepared("imagenet_s/919:train", data_dir=prepared[0])
    with pytest.raises(SourceError, match="prepare_tfds.py imagenet_s/300 PATH"):
        open_prepared("imagenet_s/300:validation", data_dir=prepared[0])
    script = sys.modules["prepare_tfds"]
    with pytest.raises(SourceError, match="'imagenet'.*imagenet_s/919"):
        script.prepare("imagenet", tmp_path)
    with pytest.raises(SourceError, match="none.*CIFAR-100"):
        script.prepare("cifar100", tmp_path / "none")
