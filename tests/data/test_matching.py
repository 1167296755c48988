import numpy as np
import pytest
from vitjax.data.matching import match_label

from vitjax.data.labels import imagenet1k
from vitjax.data.records import SourceError

NAMES = ("tench, Tinca tinca", "crane", "great white shark", "crane", "hen")
IDS = ("n01440764", "n02012849", "n01484850", "n03126707", "n01514859")


class TestLabels:
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
        with pytest.raises(SourceError, match="none of the model's 5 classes"):
            match_label(label, NAMES, IDS)

    def test_a_name_of_two_classes(self):
        with pytest.raises(
            SourceError, match="use their ids .*n02012849 and n03126707"
        ):
            match_label("crane", NAMES, IDS)

    def test_near_ones_are_named(self):
        with pytest.raises(SourceError, match="Near: great white shark"):
            match_label("grate white shark", NAMES, IDS)

    def test_imagenet(self):
        names, ids = imagenet1k()
        for number, wnid in enumerate(ids):
            assert match_label(wnid, names, ids) == number
        once = [n for n, name in enumerate(names) if names.count(name) == 1]
        assert len(once) > 990
        assert [match_label(names[n], names, ids) for n in once] == once
