"""Label spaces, and that those of several data sets fit together."""

import pytest

from vitjax.data.labels import cifar100, imagenet1k, imagenet21k, imagenet_s


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
