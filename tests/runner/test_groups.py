"""Groups of probes, amounts of memory, and images to fit on."""

import numpy as np
import pytest
from vitjax.runner.groups import Selected, first_of_each_class, make_groups, parse_bytes

from vitjax.data.datasets import open_source
from vitjax.data.images import ImageError
from vitjax.data.records import Record
from vitjax.runner import groups

STREAMS = ("residual", "attention_update", "mlp_update")


@pytest.mark.parametrize("most", [1, 2, 3, 5, 6, 7, 11, 12, 29, 60, 1000])
def test_groups_hold_every_probe_once_and_fit(most):
    found = make_groups(STREAMS, depth=2, tokens=5, most=most)
    counts = np.zeros((3, 2, 5), int)
    for group in found:
        first = STREAMS.index(group.streams[0])
        counts[(slice(first, first + len(group.streams)), *group.place)] += 1
        assert np.prod(group.shape) <= most
    assert (counts == 1).all()
    assert (len(found) == 1) == (most >= 30)


def test_tokens_are_split_first_and_evenly():
    found = make_groups(STREAMS, depth=2, tokens=5, most=20)
    assert [group.shape for group in found] == [(3, 2, 2), (3, 2, 3)]


def test_amounts_of_memory():
    sizes = {"2GiB": 2**31, "500MB": 5 * 10**8, "1.5k": 1500, 77: 77, "3 Mi": 3 * 2**20}
    assert {size: parse_bytes(size) for size in sizes} == sizes
    for wrong in ("", "much", "0", "-1GB", "1.2.3", "2XiB"):
        with pytest.raises(ValueError, match="no amount of memory"):
            parse_bytes(wrong)


def test_softmax_keeps_states_and_ridge_sums():
    sizes = dict(dim=768, classes=1000, batch_size=32)
    few = groups.bytes_per_probe("ridge", examples=10, **sizes)
    assert few == groups.bytes_per_probe("ridge", examples=9090, **sizes)
    assert few > 8 * 768 * 1768
    kept = [groups.bytes_per_probe("softmax", examples=n, **sizes) for n in (10, 9090)]
    assert kept[1] - kept[0] == 2 * 4 * 9080 * 768


class Pictures:
    """A data set that only decoding tells the labels of."""

    id = "pictures/1"

    def __init__(self, labels, *, names=None):
        self.labels, self.read = labels, []
        if names:
            self.label_names = names

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.read.append(index)
        if self.labels[index] == "broken":
            raise ImageError(str(index), "broken")
        pixels = np.zeros((4, 4, 3), np.uint8)
        return Record(image=pixels, label=self.labels[index], name=f"picture {index}")


def test_the_first_of_each_class_are_chosen():
    labels = ["a", "a", "b", "a", None, "b", "broken", "b", "c"]
    source = open_source(Pictures(labels), classes=("a", "b", "c"))
    chosen = first_of_each_class(source, shots=2, classes=3)
    assert chosen.indices == (0, 1, 2, 5, 8)
    assert len(chosen) == 5
    assert chosen.name(3) == "5"
    assert (chosen[3].label, chosen[3].name) == (1, "picture 5")
    one = first_of_each_class(source, shots=1, classes=3)
    assert one.id != chosen.id


def test_nothing_is_decoded_that_need_not_be():
    labels = ["a", "b", "a", "b"]
    told = Pictures(labels, names=tuple(labels))
    source = open_source(told, classes=("a", "b"))
    assert first_of_each_class(source, shots=1, classes=2).indices == (0, 1)
    assert told.read == []
    untold = Pictures(labels)
    source = open_source(untold, classes=("a", "b"))
    assert first_of_each_class(source, shots=1, classes=2).indices == (0, 1)
    assert untold.read == [0, 1]


def test_images_that_cannot_be_chosen():
    source = open_source(Pictures([None, None]), classes=("a",))
    with pytest.raises(ValueError, match="no labelled image"):
        first_of_each_class(source, shots=1, classes=1)
    with pytest.raises(ValueError, match="shots is 0"):
        first_of_each_class(source, shots=0, classes=1)
    assert Selected(source, (1,), 1).name(0) == "1"
