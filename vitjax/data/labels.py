"""Label spaces: names and ids of classes, in the order of the logits."""

import functools
import pathlib

Labels = tuple[tuple[str, ...], tuple[str, ...]]
"""(class names, class ids)."""

HERE = pathlib.Path(__file__).parent

CIFAR100 = (
    *("apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle"),
    *("bicycle", "bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel"),
    *("can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock"),
    *("cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur"),
    *("dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster"),
    *("house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion"),
    *("lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse"),
    *("mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear"),
    *("pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine"),
    *("possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea"),
    *("seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider"),
    *("squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank"),
    *("telephone", "television", "tiger", "tractor", "train", "trout", "tulip"),
    *("turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm"),
)
"""The fine labels, in the order of their numbers (Krizhevsky 2009)."""


def rows(name: str) -> list[list[str]]:
    """The cells of a table beside this file."""
    text = (HERE / name).read_text("utf8")
    return [line.split("\t") for line in text.splitlines()]


@functools.cache
def imagenet1k() -> Labels:
    """Names and WordNet ids of ImageNet-1k (ILSVRC 2012)."""
    table = rows("imagenet1k.tsv")
    return tuple(name for _, _, name in table), tuple(wnid for _, wnid, _ in table)


@functools.cache
def imagenet21k() -> Labels:
    """Names and WordNet ids of the 21,843 classes of Google's ImageNet-21k heads.

    The list is that of `imagenet21k_wordnet_ids.txt`, which the BiT and ViT projects
    publish; the names are WordNet 3.0's lemmas.
    """
    table = rows("imagenet21k.tsv")
    return tuple(name for _, name in table), tuple(wnid for wnid, _ in table)


@functools.cache
def imagenet_s(classes: int = 919) -> tuple[str, ...]:
    """WordNet ids of an ImageNet-S subset; a mask's class is the place, from 1.

    Args:
        classes: 919, 300 or 50.
    """
    wanted = {919: lambda row: True, 300: lambda row: row[1], 50: lambda row: row[2]}
    return tuple(row[0] for row in rows("imagenet_s.tsv") if wanted[classes](row))


def cifar100() -> Labels:
    """Names of CIFAR-100's fine labels, which are also the ids."""
    return CIFAR100, CIFAR100
