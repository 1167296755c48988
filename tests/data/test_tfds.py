"""Data sets that others prepared: only pictures with one label, only array_record."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vitjax.data.images import ImageError
from vitjax.data.records import SourceError
from vitjax.data.tfds import open_prepared

FEATURES = {
    "pictures": {
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


def picture(value, fmt="png"):
    content = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 0, 0)).save(content, fmt)
    content.seek(0)
    return content


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    pictures = [{"image": picture(9 * n), "label": n % 3} for n in range(6)]
    make("pictures", folder, ["train"], pictures)
    make("sounds", folder, ["train", "test"], [{"audio": 3}])
    return folder


def test_any_set_of_pictures(data_dir):
    source = open_prepared("pictures:train", data_dir=data_dir)
    assert len(source) == 6 and "pictures/2.0.1:train,6 records" in source.id
    for index in range(6):
        record = source[index]
        value = np.asarray(record.image)[0, 0, 0]
        assert record.label == str(value // 9 % 3) and record.mask is None
        assert record.name == str(index)
    assert len(open_prepared("pictures", data_dir=data_dir)) == 6
    assert len(open_prepared("pictures:2.0.1:train[1:3]", data_dir=data_dir)) == 2


def test_a_broken_picture_is_named(data_dir):
    source = open_prepared("pictures:train", data_dir=data_dir)
    broken = type(source)("n", "s", [{"image": b"?", "label": 0}], ("a",))
    with pytest.raises(ImageError, match="The image 0 cannot be read"):
        broken[0]


def test_what_is_no_picture(data_dir):
    with pytest.raises(SourceError, match="no feature `image` but audio"):
        open_prepared("sounds:test", data_dir=data_dir)


def test_what_is_missing_comes_with_the_command_that_prepares_it(tmp_path):
    with pytest.raises(SourceError, match="tfds build imagenet2012 --file_format="):
        open_prepared("imagenet2012:validation", data_dir=tmp_path)
    with pytest.raises(SourceError, match="form tfds:NAME"):
        open_prepared(":validation", data_dir=tmp_path)
