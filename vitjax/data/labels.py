"""Class names and ids of data sets, and the matching of labels to a model's classes."""

import collections
import functools
import pathlib
import re
from collections.abc import Sequence

from vitjax.data.records import Label, SourceError
from vitjax.messages import did_you_mean

Labels = tuple[tuple[str, ...], tuple[str, ...]]
"""(class names, class ids), in the order of the logits."""

CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge
    bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud
    cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox
    girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
    maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
    pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
    streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
    trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100 = tuple(CIFAR100_NAMES.split())
"""The fine labels, in the order of their numbers (Krizhevsky 2009)."""


def read_table(name: str) -> list[list[str]]:
    """The cells of a table beside this file."""
    text = pathlib.Path(__file__).with_name(name).read_text("utf8")
    return [line.split("\t") for line in text.splitlines()]


def read_classes(name: str) -> Labels:
    """The last two columns of such a table: ids, then names."""
    *_, ids, names = zip(*read_table(name))
    return names, ids


@functools.cache
def imagenet1k() -> Labels:
    """Names and WordNet ids of ImageNet-1k (ILSVRC 2012)."""
    return read_classes("imagenet1k.tsv")


@functools.cache
def imagenet21k() -> Labels:
    """Names and WordNet ids of the 21,843 classes of Google's ImageNet-21k heads.

    The list is that of `imagenet21k_wordnet_ids.txt`, which the BiT and ViT projects
    publish; the names are WordNet 3.0's lemmas.
    """
    return read_classes("imagenet21k.tsv")


@functools.cache
def imagenet_s(classes: int = 919) -> tuple[str, ...]:
    """WordNet ids of ImageNet-S919, 300 or 50; masks number them from 1."""
    column = {919: 0, 300: 1, 50: 2}[classes]  # filled where the class is one of them
    return tuple(row[0] for row in read_table("imagenet_s.tsv") if row[column])


def cifar100() -> Labels:
    """Names of CIFAR-100's fine labels, which are also the ids."""
    return CIFAR100, CIFAR100


def match_label(label: Label, classes: Sequence[str], class_ids: Sequence[str]) -> int:
    """The number of the class that a label means: by id, then name, then number.

    Names match whatever their case and with underscores for spaces; of ImageNet's
    "tench, Tinca tinca" either part will do, if no other class has it.
    """
    ids, names = label_tables(tuple(classes), tuple(class_ids))
    text = str(label)
    if isinstance(label, str):
        numbers = sorted(ids.get(label) or names.get(normalize(label), ()))
        if len(numbers) == 1:
            return numbers[0]
        if numbers:
            own_ids = {class_ids[number] for number in numbers}
            distinct = len(own_ids) == len(numbers)
            others = [class_ids[n] if distinct else str(n) for n in numbers]
            raise SourceError(
                f"The label {label!r} is the name of {len(numbers)} classes; use their "
                f"{'ids' if distinct else 'numbers'} instead: {' and '.join(others)}."
            )
    if re.fullmatch(r"[0-9]{1,9}", text) and int(text) < len(classes):
        return int(text)
    if not classes:
        raise SourceError(f"The label {label!r} has no class: the model has none.")
    hint = did_you_mean(normalize(text), [*map(normalize, ids), *names], n=3)
    examples = ", ".join(dict.fromkeys((*class_ids[:2], *classes[:2])))
    raise SourceError(
        f"The label {label!r} is none of the model's {len(classes)} classes "
        f"({examples}, ...).{hint} Labels are matched against class id, then name, "
        "then number from 0; give one of them, or load the model with the data set's "
        "own classes."
    )


@functools.lru_cache(maxsize=8)
def label_tables(
    classes: tuple[str, ...], class_ids: tuple[str, ...]
) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """(id -> numbers, normalized name -> numbers); whole names override parts."""
    ids, whole, parts = (collections.defaultdict(set) for _ in range(3))
    for number, key in enumerate(class_ids):
        if key:
            ids[key].add(number)
    for number, name in enumerate(classes):
        whole[normalize(name)].add(number)
        for part in name.split(","):
            parts[normalize(part)].add(number)
    return ids, parts | whole


def normalize(name: str) -> str:
    """A class name in the form in which names are compared."""
    return " ".join(name.replace("_", " ").casefold().split())
