"""ImageNet-S and CIFAR-100, from files and from records of TensorFlow Datasets."""

import collections
import pickle
import sys
import tarfile

import fabricate
import numpy as np
import pytest
import scripts
import tensorflow_datasets as tfds
from PIL import Image

from vitjax.data.cifar100 import open_cifar100
from vitjax.data.datasets import open_data, open_spec
from vitjax.data.imagenet_s import MERGED, draw, from_table, open_imagenet_s
from vitjax.data.images import ImageError
from vitjax.data.labels import CIFAR100, imagenet1k, imagenet_s
from vitjax.data.masks import class_mask
from vitjax.data.records import SourceError
from vitjax.data.tfds import open_prepared

FIRST, SECOND = imagenet_s()[:2]


@pytest.mark.parametrize("number", [1, 255, 256, 919])
def test_numbers_above_a_byte_do_not_overflow_and_masks_are_laid_on_the_image(number):
    segmentation = fabricate.segmentation([[number, 0, 1000, 7]])
    mask = class_mask(segmentation, number, image=Image.new("L", (8, 2)))
    assert mask.tolist() == [[1, 1, 0, 0, 255, 255, 0, 0]] * 2


def test_the_official_layout(tmp_path):
    last = imagenet_s()[-1]
    source = open_imagenet_s(fabricate.imagenet_s(tmp_path, {FIRST: 2, last: 1}))
    assert len(source) == 3 and source.label_names == (FIRST, FIRST, last)
    record = source[2]
    assert record.label == last and record.name.startswith(f"validation/{last}/")
    assert record.mask[:, 0].tolist() == [1, 1, 1, 0, 0, 255]
    assert source.names[2] == record.name and None not in source.masks
    assert len(source.id) < 100 and "all" in source.id
    assert source.notes == ()
    (tmp_path / f"ImageNetS919/validation/{last}/list.txt").write_text("")
    masks = tmp_path / f"ImageNetS919/validation-segmentation/{last}"
    next(masks.iterdir()).unlink()
    notes = open_imagenet_s(tmp_path).notes
    assert "1 files" in notes[0] and "list.txt" in notes[0]
    assert "1 images have no mask" in notes[1]
    names, ids = imagenet1k()
    data = open_data(f"imagenet_s:{tmp_path}", classes=names, class_ids=ids)
    assert data[2].label == ids.index(last)


@pytest.mark.parametrize("subset", [300, 50])
def test_smaller_subsets_have_their_own_numbers(tmp_path, subset):
    last = imagenet_s(subset)[-1]
    source = open_imagenet_s(fabricate.imagenet_s(tmp_path, {last: 1}, subset=subset))
    assert source[0].mask[0, 0] == 1 and source.numbers[last] == subset
    assert source.id.startswith(f"imagenet_s{subset}/validation:1 files,all,")


def test_the_papers_selection(tmp_path):
    merged = sorted(MERGED & set(imagenet_s()))[0]
    counts = {FIRST: 7, SECOND: 4, merged: 9, imagenet_s()[2]: 5}
    root = fabricate.imagenet_s(tmp_path, counts)
    source = open_imagenet_s(root, select="paper")
    counts = collections.Counter(source.label_names)
    assert counts == {FIRST: 5, imagenet_s()[2]: 5}
    assert source.names == open_imagenet_s(root, select="paper").names
    other = open_spec(f"imagenet_s:{root}:paper,seed=1")
    assert other.names != source.names and other.id != source.id
    assert len(open_spec(f"imagenet_s:{root}:paper,per_class=4")) == 12
    # Another class's images do not change a class's draw.
    kept = [name for name in source.names if FIRST in name]
    alone = draw([(FIRST, n) for n in names_of(root, FIRST)], 5, seed=0)
    assert kept == [f"validation/{wnid}/{name}" for wnid, name in alone]


def names_of(root, wnid):
    return sorted(p.name for p in (root / "ImageNetS919/validation" / wnid).iterdir())


def test_the_authors_table_decides_where_it_lies(tmp_path):
    root = fabricate.imagenet_s(tmp_path, {FIRST: 3, SECOND: 3})
    name = names_of(root, SECOND)[1]
    table = root / "ImageNetS919" / "validation_stim_info.csv"
    head = ",imagenet_id,index,cat,img_name,img_index\n"
    table.write_text(head + f"0,{SECOND},1,goldfish,{name},1\n")
    source = open_imagenet_s(root, select="paper")
    assert source.names == (f"validation/{SECOND}/{name}",) and "by table" in source.id
    assert len(open_imagenet_s(root)) == 6
    other = tmp_path / "other.csv"
    other.write_text(head + f"0,{FIRST},0,tench,{names_of(root, FIRST)[0]},0\n")
    spec = f"imagenet_s:{root}:paper,csv_file={other}"
    assert open_spec(spec).label_names == (FIRST,)
    other.write_text(head + f"0,{FIRST},0,tench,no_such.JPEG,0\n")
    with pytest.raises(SourceError, match="no_such"):
        open_spec(spec)
    other.write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match="imagenet_id"):
        from_table([], other)


def test_errors_of_imagenet_s(tmp_path):
    """How to get it; options that do not exist or would do nothing."""
    with pytest.raises(SourceError, match=r"\(1\).*\(2\).*\(3\)"):
        open_imagenet_s(tmp_path)
    root = fabricate.imagenet_s(tmp_path, {FIRST: 2})
    for options, match in {
        "paper": "no matching image.*paper",
        "paper,speed=3": "'speed=3'.*validation",
        "paper,seed=x": "'seed=x'",
        "paper,per_class=0": "per_class=0",
        "paper,csv_file=nope.csv": "nope.csv",
        "per_class=1": 'select="paper"',
        "seed=4": 'select="paper"',
        "csv_file=nope.csv": 'select="paper"',
    }.items():
        with pytest.raises(SourceError, match=match):
            open_spec(f"imagenet_s:{root}:{options}")


def test_the_stand_in(shared):
    root = shared / "assets/imagenet_s_standin"
    names, ids = imagenet1k()
    source = open_data(f"imagenet_s:{root}", classes=names, class_ids=ids)
    assert len(source) == 570 and len(set(source.source.label_names)) == 324
    assert None not in source.source.masks
    record = source[17]
    assert record.mask.shape == record.image.size[::-1]
    assert set(np.unique(record.mask)) <= {0, 1, 255} and (record.mask == 1).any()


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


def test_errors_say_how_to_get_cifar100(tmp_path):
    with pytest.raises(SourceError, match=r"holds no CIFAR-100.*\(1\).*\(2\)"):
        open_cifar100(tmp_path)
    path = tmp_path / "cifar-100-binary.tar.gz"
    path.write_bytes(b"not an archive")
    with pytest.raises(SourceError, match="cannot be read"):
        open_cifar100(path)


@pytest.fixture(scope="module")
def script():
    return scripts.load_script("prepare_tfds")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, script):
    """Data sets of somebody's, with names and features of their own."""
    folder = tmp_path_factory.mktemp("tfds")
    label, sound = tfds.features.ClassLabel(num_classes=3), {"audio": np.int32}
    images = [
        {"image": script.png(Image.new("RGB", (5, 4), (9 * n, 0, 0))), "label": n % 3}
        for n in range(6)
    ]
    for name, features, splits in (
        ("images", {"image": tfds.features.Image(), "label": label}, {"train": images}),
        ("sounds", sound, {"train": [{"audio": 3}], "test": [{"audio": 3}]}),
    ):
        builder = script.DatasetBuilder(name, features, splits, data_dir=folder)
        builder.download_and_prepare()
    return folder


def test_any_set_of_images(data_dir):
    source = open_prepared("images:train", data_dir=data_dir)
    assert len(source) == 6 and "images/1.0.0:train,6 records" in source.id
    for index in range(6):
        record = source[index]
        value = np.asarray(record.image)[0, 0, 0]
        assert record.label == str(value // 9 % 3) and record.mask is None
        assert record.name == str(index)
    assert len(open_prepared("images", data_dir=data_dir)) == 6
    assert len(open_prepared("images:1.0.0:train[1:3]", data_dir=data_dir)) == 2


def test_a_broken_image_is_named(data_dir):
    source = open_prepared("images:train", data_dir=data_dir)
    broken = type(source)("id", [{"image": b"?", "label": 0}], ("a",))
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
def prepared(tmp_path_factory, script):
    """Both sets, prepared once: (data_dir, ImageNet-S root, CIFAR content)."""
    data_dir = tmp_path_factory.mktemp("tfds")
    root, archive = (tmp_path_factory.mktemp(name) for name in ("imagenet_s", "cifar"))
    ids = imagenet_s()
    fabricate.imagenet_s(root, {ids[0]: 6, ids[-1]: 2})
    fabricate.imagenet_s(root, {ids[0]: 1}, part="test")
    draw = np.random.default_rng(0)
    images = draw.integers(256, size=(40, 32, 32, 3)).astype(np.uint8)
    content = images, np.arange(40) % 6
    fabricate.cifar100(archive, "binary", content)
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
    for test in (
        open_prepared("imagenet_s/919:test", data_dir=data_dir),
        open_spec(f"imagenet_s:{root}:test"),
    ):
        assert len(test) == 1 and test[0].mask is None
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


def test_errors_say_what_to_do(prepared, tmp_path, script):
    with pytest.raises(SourceError, match="'train'.*validation"):
        open_prepared("imagenet_s/919:train", data_dir=prepared[0])
    with pytest.raises(SourceError, match="prepare_tfds.py imagenet_s/300 PATH"):
        open_prepared("imagenet_s/300:validation", data_dir=prepared[0])
    with pytest.raises(SourceError, match="'imagenet'.*imagenet_s/919"):
        script.prepare("imagenet", tmp_path)
    with pytest.raises(SourceError, match="none.*CIFAR-100"):
        script.prepare("cifar100", tmp_path / "none")
