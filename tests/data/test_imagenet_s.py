"""ImageNet-S in its official layout, fabricated; and the real stand-in."""

import collections

import fabricate
import numpy as np
import pytest
from PIL import Image

from vitjax.data.datasets import open_data, open_spec
from vitjax.data.imagenet_s import MERGED, draw, from_table, open_imagenet_s
from vitjax.data.labels import imagenet1k, imagenet_s
from vitjax.data.masks import class_mask
from vitjax.data.records import SourceError

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


def test_the_test_part_has_no_masks(tmp_path):
    root = fabricate.imagenet_s(tmp_path, {FIRST: 1}, part="test")
    for path in (root / "ImageNetS919/test-segmentation").rglob("*.png"):
        path.unlink()
    source = open_spec(f"imagenet_s:{tmp_path}:test")
    assert source[0].mask is None and source.masks == (None,)


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


def test_errors_say_how_to_get_it(tmp_path):
    with pytest.raises(SourceError, match=r"\(1\).*\(2\).*\(3\)"):
        open_imagenet_s(tmp_path)
    root = fabricate.imagenet_s(tmp_path, {FIRST: 2})
    with pytest.raises(SourceError, match="paper"):
        open_imagenet_s(root, select="paper")
    with pytest.raises(SourceError, match="'speed=3'.*validation"):
        open_spec(f"imagenet_s:{root}:paper,speed=3")
    with pytest.raises(SourceError, match="'seed=x'"):
        open_spec(f"imagenet_s:{root}:paper,seed=x")


def test_the_stand_in(shared):
    root = shared / "assets/imagenet_s_standin"
    names, ids = imagenet1k()
    source = open_data(f"imagenet_s:{root}", classes=names, class_ids=ids)
    assert len(source) == 570 and len(set(source.source.label_names)) == 324
    assert None not in source.source.masks
    record = source[17]
    assert record.mask.shape == record.image.size[::-1]
    assert set(np.unique(record.mask)) <= {0, 1, 255} and (record.mask == 1).any()


def test_options_that_would_do_nothing_are_refused(tmp_path):
    root = fabricate.imagenet_s(tmp_path, {FIRST: 6})
    for option in ("per_class=1", "seed=4", "csv_file=nope.csv"):
        with pytest.raises(SourceError, match='select="paper"'):
            open_spec(f"imagenet_s:{root}:{option}")
    with pytest.raises(SourceError, match="per_class=0"):
        open_spec(f"imagenet_s:{root}:paper,per_class=0")
    with pytest.raises(SourceError, match="nope.csv"):
        open_spec(f"imagenet_s:{root}:paper,csv_file=nope.csv")
