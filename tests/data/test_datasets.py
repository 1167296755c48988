"""Data sets by name, their classes, and how labels are matched."""

import types

import numpy as np
import pytest
from PIL import Image

from vitjax.data.datasets import open_data
from vitjax.data.image_files import open_csv, open_folder
from vitjax.data.images import ImageError
from vitjax.data.labels import (
    cifar100,
    imagenet1k,
    imagenet21k,
    imagenet_s,
    match_label,
)
from vitjax.data.records import Record, Source, SourceError
from vitjax.data.textured_digits import CLASSES

NAMES = ("tench, Tinca tinca", "crane", "great white shark", "crane", "hen")
IDS = ("n01440764", "n02012849", "n01484850", "n03126707", "n01514859")


def save(path, value=0, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def open_named(spec):
    return open_data(spec, classes=NAMES, class_ids=IDS)


def labels(source):
    return [source[i].label for i in range(len(source))]


class TestFolder:
    def test_one_folder_per_class(self, tmp_path):
        for name in ("hen/b.png", "hen/a.JPEG", "n01440764/deep/er.png", "3/x.webp"):
            save(tmp_path / name)
        save(tmp_path / ".cache" / "x.png")
        (tmp_path / "hen" / "notes.txt").write_text("not an image")
        source = open_named(f"folder:{tmp_path}")
        names = [source[i].name for i in range(len(source))]
        assert names == [source.name(i) for i in range(4)]
        assert dict(zip(names, labels(source))) == {
            "3/x.webp": 3,
            "hen/a.JPEG": 4,
            "hen/b.png": 4,
            "n01440764/deep/er.png": 0,
        }
        assert source[0].image.size == (6, 4)

    def test_a_flat_folder(self, tmp_path):
        for name in ("n01514859_hen.JPEG", "n01440764_tench.JPEG", "holiday.jpg"):
            save(tmp_path / name)
        assert labels(open_named(tmp_path)) == [-1, 0, 4]

    def test_links_are_followed_and_circles_end(self, tmp_path):
        save(tmp_path / "real/three/a.png")
        save(tmp_path / "set/one/a.png")
        (tmp_path / "set/three").symlink_to(tmp_path / "real/three")
        (tmp_path / "set/one/again").symlink_to(tmp_path / "set")
        assert open_folder(tmp_path / "set").names == ("one/a.png", "three/a.png")

    def test_the_id_identifies_the_list_of_files(self, tmp_path):
        save(tmp_path / "a" / "hen" / "1.png")
        save(tmp_path / "b" / "hen" / "1.png", value=9)
        first = open_folder(tmp_path / "a").id
        assert open_folder(tmp_path / "b").id == first
        save(tmp_path / "b" / "hen" / "2.png")
        assert open_folder(tmp_path / "b").id != first

    def test_errors(self, tmp_path):
        with pytest.raises(SourceError, match="gone"):
            open_data(f"folder:{tmp_path}/gone")
        with pytest.raises(SourceError, match=".jpeg"):
            open_data(f"folder:{tmp_path}")
        save(tmp_path / "hen" / "a.png")
        (tmp_path / "hen" / "b.png").write_bytes(b"nothing")
        source = open_named(tmp_path)
        assert source[0].label == 4
        with pytest.raises(ImageError, match="hen/b.png"):
            source[1]
        save(tmp_path / "henn" / "a.png")
        with pytest.raises(SourceError, match="'henn'.*hen"):
            open_named(tmp_path)

    def test_real_photos(self, shared):
        names, ids = imagenet1k()
        folder = shared / "oracle/photosA"
        with np.load(shared / "oracle/setA/base.npz") as file:
            expected = file["index"].tolist()
        assert labels(open_data(folder, classes=names, class_ids=ids)) == expected


class TestCsv:
    @pytest.fixture
    def table(self, tmp_path):
        save(tmp_path / "images" / "a.png")
        save(tmp_path / "b.png")

        def write(text):
            (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig")
            return f"csv:{tmp_path}/t.csv"

        return write

    def test_paths_are_relative_to_the_table(self, table):
        text = 'label,path\n"tench, Tinca tinca",images/a.png\n,b.png\n'
        source = open_named(table(text))
        assert labels(source) == [0, -1]
        assert source[1].name == "b.png" and source[1].mask is None
        assert labels(open_data(table("path\nb.png\n"))) == [-1]

    def test_masks(self, table, tmp_path):
        mask = np.array([[0, 255, 255], [0, 0, 255]], np.uint8)
        Image.fromarray(mask).save(tmp_path / "bw.png")
        ids = mask // 255 * np.array([[1, 1, 255]], np.uint8)
        Image.fromarray(ids).save(tmp_path / "ids.png")
        text = "path,label,mask\nb.png,hen,bw.png\nb.png,hen,ids.png\nb.png,hen,\n"
        source = open_csv(table(text).removeprefix("csv:"))
        assert source[0].mask.tolist() == [[0, 1, 1], [0, 0, 1]]
        assert source[1].mask.tolist() == [[0, 1, 255], [0, 0, 255]]
        assert source[2].mask is None

    def test_errors(self, table, tmp_path):
        for text in ("file,label\na.png,hen\n", "path,label\n", ""):
            with pytest.raises(SourceError, match="t.csv.*path and label"):
                open_data(table(text))
        with pytest.raises(SourceError, match="Row 3"):
            open_data(table("path,label\na.png,1\n,2\n"))
        source = open_data(table("path\ngone.png\n"))
        with pytest.raises(ImageError, match="gone.png.*no such file"):
            source[0]
        (tmp_path / "t.csv").write_bytes("path,label\nÄ.png,1\n".encode("latin1"))
        with pytest.raises(SourceError, match="t.csv.*UTF-8"):
            open_csv(tmp_path / "t.csv")
        with pytest.raises(SourceError, match="nowhere.csv"):
            open_data("csv:nowhere.csv")


def test_textured_digits_with_the_classes_of_a_model():
    model = types.SimpleNamespace(classes=CLASSES, class_ids=CLASSES)
    source = open_data("textured_digits:test_1", model)
    record = source[5]
    assert record.label == record.context and source.name(5) == record.name
    assert repr(source) == f"{source.id} (5000 images)"
    with pytest.raises(SourceError, match="'zero'"):
        open_named("textured_digits")


def test_your_own_object():
    class Own:
        id = "own/1"

        def __len__(self):
            return 3

        def __getitem__(self, index):
            pixels = np.full((4, 5, 3), index, np.uint8)
            return Record(pixels, ["hen", None, "owl"][index], f"number {index}")

    assert isinstance(Own(), Source)
    source = open_named(Own())
    assert (source.id, len(source), source.name(1)) == ("own/1", 3, "1")
    assert [source[0].label, source[1].label] == [4, -1]
    with pytest.raises(SourceError, match="own/1.*'owl'"):
        source[2]


@pytest.mark.parametrize("spec", ["cats", "folder:", "csv:"])
def test_an_unknown_spec(spec):
    with pytest.raises(SourceError, match=f"'{spec}'.*textured_digits"):
        open_data(spec)


def test_imagenet_classes_are_in_the_order_of_their_ids():
    names, ids = imagenet1k()
    assert len(names) == len(set(ids)) == 1000
    assert list(ids) == sorted(ids)
    assert (ids[0], names[0]) == ("n01440764", "tench, Tinca tinca")
    assert names[-1].startswith("toilet tissue")
    all_names, all_ids = imagenet21k()
    assert len(all_ids) == len(set(all_ids)) == 21843
    assert list(all_ids) == sorted(all_ids)
    where = {wnid: number for number, wnid in enumerate(all_ids)}
    # One class of ImageNet-1k (teddy bear) is not among the 21,843.
    assert set(ids) - set(all_ids) == {"n04399382"}
    for name, wnid in zip(names, ids):
        assert wnid not in where or all_names[where[wnid]] == name


@pytest.mark.parametrize("classes", (919, 300, 50))
def test_imagenet_s_is_a_sorted_part_of_imagenet(classes, shared):
    ids = imagenet_s(classes)
    assert len(ids) == len(set(ids)) == classes
    assert list(ids) == sorted(ids)
    assert set(ids) <= set(imagenet1k()[1])
    published = shared / f"assets/imagenet_s_{classes}_wnids.txt"
    assert list(ids) == published.read_text().split()


def test_cifar100_is_sorted():
    names, ids = cifar100()
    assert names == ids == tuple(sorted(names)) and len(set(names)) == 100


class TestMatching:
    @pytest.mark.parametrize(
        ("label", "number"),
        [
            ("n01484850", 2),
            ("hen", 4),
            ("Great_White_Shark", 2),
            ("tench, Tinca tinca", 0),
            ("tinca tinca", 0),
            ("3", 3),
            (3, 3),
            (np.int64(1), 1),
        ],
    )
    def test_id_then_name_then_number(self, label, number):
        assert match_label(label, NAMES, IDS) == number

    def test_an_id_goes_before_a_name_and_a_name_before_a_number(self):
        assert match_label("a", ("a", "b"), ("b", "a")) == 1
        assert match_label("1", ("1", "0"), ("x", "y")) == 0

    @pytest.mark.parametrize("label", ["5", 5, -1, "n09999999", "", "1.0"])
    def test_anything_else_is_an_error(self, label):
        with pytest.raises(SourceError, match="5 classes"):
            match_label(label, NAMES, IDS)

    def test_a_name_of_two_classes(self):
        with pytest.raises(SourceError, match="n02012849 and n03126707"):
            match_label("crane", NAMES, IDS)

    def test_near_ones_are_named(self):
        with pytest.raises(SourceError, match="great white shark"):
            match_label("grate white shark", NAMES, IDS)

    def test_imagenet(self):
        names, ids = imagenet1k()
        for number, wnid in enumerate(ids):
            assert match_label(wnid, names, ids) == number
        once = [n for n, name in enumerate(names) if names.count(name) == 1]
        assert len(once) > 990
        assert [match_label(names[n], names, ids) for n in once] == once
