"""Label spaces, that those of several data sets fit together, and matching."""

import numpy as np
import pytest

from vitjax.data.labels import (
    cifar100,
    imagenet1k,
    imagenet21k,
    imagenet_s,
    match_label,
)
from vitjax.data.records import SourceError


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


NAMES = ("tench, Tinca tinca", "crane", "great white shark", "crane", "hen")
IDS = ("n01440764", "n02012849", "n01484850", "n03126707", "n01514859")


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
