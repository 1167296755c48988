"""Data sets by name, their classes, and how labels are matched."""

import json
import os
import re
import types

import numpy as np
import pytest
from photos import Noise
from PIL import Image

import vitjax
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
from vitjax.data.records import Source, SourceError
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

    @pytest.mark.parametrize(
        ("name", "fmt"),
        [
            *(("1.jfif", "jpeg"), ("1.jpe", "jpeg"), ("1.AVIF", "avif")),
            *(("1.pgm", "ppm"), ("1.jp2", "jpeg2000"), ("1.ico", "ico")),
            *(("no_ending", "png"), ("1.jpg_large", "jpeg"), ("1.2", "webp")),
        ],
    )
    def test_what_pillow_opens_is_read(self, tmp_path, name, fmt):
        (tmp_path / "hen").mkdir()
        Image.new("L", (16, 16), 9).save(tmp_path / "hen" / name, fmt)
        source = open_named(tmp_path)
        assert source.name(0) == f"hen/{name}" and source[0].image.size == (16, 16)
        assert source.notes == ()

    def test_what_is_left_out_is_counted_and_named(self, tmp_path):
        save(tmp_path / "hen" / "a.png")
        save(tmp_path / "b.png")
        (tmp_path / "crane").mkdir()
        others = {
            "hen/notes.txt": b"P5 results of the photos",
            "hen/table.csv": b"path,label",
            "hen/words": b"P1 x",
            "x.pdf": b"%PDF-1.4",
            "z.eps": b"%!PS-Adobe",
        }
        for name, content in others.items():
            (tmp_path / name).write_bytes(content)
        os.mkfifo(tmp_path / "hen" / "1.png")
        (tmp_path / "hen" / "loop.png").symlink_to(tmp_path / "hen" / "loop.png")
        (tmp_path / "hen" / ".hidden").write_bytes(b"")
        source = open_named(tmp_path)
        assert len(source) == 2
        unlabeled, left_out, empty = source.notes
        assert "1 of the 2 images" in unlabeled and "b.png" in unlabeled
        assert "7 files" in left_out and "hen/1.png, hen/loop.png" in left_out
        assert "1 folders" in empty and "crane" in empty

    def test_names_of_any_bytes(self, tmp_path):
        folder = os.fsencode(tmp_path) + b"/hen"
        os.mkdir(folder)
        for name in (b"latin1-\xe9.png", "utf8-é.png".encode(), b"new\nline.png"):
            with open(os.path.join(folder, name), "wb") as file:
                Image.new("L", (5, 4)).save(file, "png")
        source = open_named(tmp_path)
        names = [source[i].name for i in range(3)]
        assert names == [source.name(i) for i in range(3)]
        expected = "latin1-\\xe9.png", "utf8-é.png", "new\nline.png"
        assert set(names) == {f"hen/{name}" for name in expected}
        json.dumps(names, ensure_ascii=False).encode()
        (tmp_path / "t.csv").write_bytes(b"path,label\nhen/latin1-\xe9.png,hen\n")
        table = open_named(f"csv:{tmp_path}/t.csv")
        assert table[0].name == "hen/latin1-\\xe9.png" and table.notes == ()

    def test_without_a_model_labels_are_numbered_in_order(self, tmp_path):
        for name in ("b/1.png", "a/1.png", "x/1.png"):
            save(tmp_path / name)
        source = vitjax.open_data(f"folder:{tmp_path}")
        assert source.classes == ("a", "b", "x") and labels(source) == [0, 1, 2]
        assert [record.label for record in source] == [0, 1, 2]
        for name, number in (("b", "7"), ("a", "10"), ("x", "-1")):
            (tmp_path / name).rename(tmp_path / number)
        assert labels(vitjax.open_data(tmp_path)) == [-1, 10, 7]

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
        save(tmp_path / "owl" / "a.png")
        with pytest.raises(SourceError, match="'henn'.*hen.*1 more.*'owl'"):
            open_named(tmp_path)
        with pytest.raises(ValueError, match="is not a Model"):
            vitjax.open_data(tmp_path, "vit_ti16")
        with pytest.raises(SourceError, match="model has none"):
            open_data(tmp_path, classes=())

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

    def test_mask_formats(self, table, tmp_path):
        mask = np.full((4, 6), 255, np.uint8)
        mask[0] = 1
        Image.fromarray(mask).save(tmp_path / "m.png")
        text = "path,mask,mask_format\nb.png,m.png,labels\nb.png,m.png,\nb.png\n"
        spec = table(text)
        ids = set()
        for mask_format, expected in (("auto", 0), ("gray", 0), ("labels", 1)):
            source = open_data(spec, mask_format=mask_format)
            assert source[0].mask[0, 0] == 1 and source[0].mask[1, 0] == 255
            assert source[1].mask[0, 0] == expected and source[2].mask is None
            ids.add(source.id)
        assert len(ids) == 3
        with pytest.raises(ImageError, match="b.png.*values 200"):
            save(tmp_path / "m.png", 200)
            source[0]
        with pytest.raises(SourceError, match="Row 2.*'grey'.*gray"):
            open_data(table(text.replace("labels", "grey")))
        for spec in (tmp_path, "textured_digits", source.source):
            with pytest.raises(ValueError, match="mask_format"):
                open_data(spec, mask_format="gray")
        with pytest.raises((ValueError, TypeError), match="mask_format"):
            open_data(spec, mask_format="grey")

    @pytest.mark.parametrize(
        ("mask_size", "mask_turn", "fits"),
        [
            *(((4, 6), 1, True), ((8, 12), 1, True), ((2, 3), 1, True)),
            *(((6, 4), 6, True), ((6, 4), 1, False), ((4, 6), 6, False)),
            *(((5, 6), 1, False), ((20, 1), 1, False)),
        ],
    )
    def test_sizes_are_compared_upright(
        self, table, tmp_path, mask_size, mask_turn, fits
    ):
        exif = Image.Exif()
        for name, size, turn in (("i", (6, 4), 6), ("m", mask_size, mask_turn)):
            exif[0x0112] = turn
            Image.new("L", size, 255).save(tmp_path / f"{name}.png", exif=exif)
        source = open_data(table("path,mask\ni.png,m.png\n"))
        if fits:
            assert source[0].mask.shape[0] * 2 == source[0].mask.shape[1] * 3
        else:
            with pytest.raises(ImageError, match=r"i.png.*\d+ x \d+.*upright.*4 x 6"):
                source[0]

    @pytest.mark.parametrize(
        "text",
        [
            "Path,Label\nimages/a.png,hen\nb.png,-1\n",
            " PATH , LABEL \r\nimages/a.png, hen\r\nb.png,\r\n",
            "label;path\nhen;images/a.png\n;b.png\n",
            'path\tlabel\n"images/a.png"\then\n\nb.png\n',
            "path,label,extra\nimages/a.png,hen,\nb.png\n",
        ],
    )
    def test_tables_as_programs_write_them(self, table, text):
        source = open_named(table(text))
        assert labels(source) == [4, -1]
        assert re.match("1 of the 2 images have no label.*: b.png", source.notes[0])

    def test_quoted_newlines_and_absolute_paths(self, table, tmp_path):
        save(tmp_path / "two\nlines.png")
        text = f'path,label\n"two\nlines.png",3\n{tmp_path}/b.png,3\n'
        source = open_named(table(text))
        assert labels(source) == [3, 3] and source.notes == ()

    @pytest.mark.parametrize(
        ("text", "note"),
        [
            ("path\nb.png\n", "no column label.*columns are path"),
            ("path,labels\nb.png,hen\n", "no column label.*path, labels"),
            ("path,label,masks\nb.png,hen,b.png\n", "not among.*: masks"),
            ("path,label\nb.png,hen\nc.png,hen\n", "1 files.*do not exist: c.png"),
            ("path,label,mask\nb.png,3,c.png\n", "1 files.*do not exist: c.png"),
            ("path,label\nb.png,hen\nb.png,3\n", "several rows: b.png"),
        ],
    )
    def test_what_is_said_before_a_run(self, table, text, note):
        notes = open_named(table(text)).notes
        assert any(re.search(note, sentence) for sentence in notes)

    def test_errors(self, table, tmp_path):
        for text, match in (
            ("file,label\na.png,hen\n", "t.csv.*path and label"),
            ("path,label\n", "t.csv.*path and label"),
            ("", "t.csv.*path and label"),
            ("path,Path\na.png,b.png\n", "several columns path"),
            ("path,label\na.png,tench, Tinca tinca\n", "Row 2.*3 cells.*quotes"),
            ("path,label\na.png,1\n,2\n", "Row 3"),
        ):
            with pytest.raises(SourceError, match=match):
                open_data(table(text))
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
    assert isinstance(Noise(()), Source)
    source = open_named(Noise(["hen", None, "owl"]))
    assert (source.id, len(source), source.name(1)) == ("noise/0", 3, "1")
    assert [source[0].label, source[1].label] == [4, -1]
    with pytest.raises(SourceError, match="noise/0.*'owl'"):
        source[2]


@pytest.mark.parametrize("classes", [NAMES, None])
@pytest.mark.parametrize("kind", [int, str, np.int8, np.uint8, np.int64])
def test_numbers_are_classes_or_unknown(kind, classes):
    source = open_data(Noise([kind(3), kind(0)]), classes=classes)
    assert labels(source) == [3, 0]
    assert all(type(label) is int for label in labels(source))
    if kind is not np.uint8:
        assert labels(open_data(Noise([kind(-1)]), classes=classes)) == [-1]


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

    @pytest.mark.parametrize(
        "label", ["5", 5, -1, -2, np.uint8(255), True, "n09999999", "", "1.0"]
    )
    def test_anything_else_is_an_error(self, label):
        with pytest.raises(SourceError, match="5 classes"):
            match_label(label, NAMES, IDS)

    def test_a_name_of_two_classes(self):
        with pytest.raises(SourceError, match="n02012849 and n03126707"):
            match_label("crane", NAMES, IDS)

    @pytest.mark.parametrize("ids", [("crane", "hen", "crane"), ("a", "b", "a")])
    def test_a_name_and_id_of_two_classes(self, ids):
        names = ("crane", "hen", "crane")
        with pytest.raises(SourceError, match="numbers instead: 0 and 2"):
            match_label("crane", names, ids)
        assert match_label("2", names, ids) == match_label(2, names, ids) == 2
        assert match_label("hen", names, ids) == 1

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
