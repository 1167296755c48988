"""Which probes are fitted at once, and on which images.

A probe's sums take some megabytes, and there are thousands of probes: they are fitted
in groups that fit a given memory, with one pass over the training images for each.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from vitjax.data.images import ImageError
from vitjax.data.records import Record

Kind = Literal["ridge", "softmax"]

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(size: str | int) -> int:
    """Bytes of a size such as "2GiB", "500MB" or a number.

    Raises:
        ValueError: it is no size above 0.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?i?)b?\s*", str(size).lower())
    try:
        count = int(float(found[1]) * UNITS[found[2]]) if found else 0
    except (KeyError, ValueError):
        count = 0
    if count < 1:
        raise ValueError(f"{size!r} is no amount of memory; give one such as 2GiB.")
    return count


class Group(NamedTuple):
    """Probes that are fitted in one pass: some streams, times a range of blocks, times
    a range of tokens.
    """

    streams: tuple[str, ...]
    layers: range
    tokens: range

    @property
    def place(self) -> tuple[slice, slice]:
        """Where its blocks and tokens stand in arrays [... layer token]."""
        layers, tokens = self.layers, self.tokens
        return slice(layers.start, layers.stop), slice(tokens.start, tokens.stop)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of streams, blocks and tokens."""
        return len(self.streams), len(self.layers), len(self.tokens)


def make_groups(
    streams: Sequence[str], *, depth: int, tokens: int, most: int
) -> list[Group]:
    """All probes of a model in groups of at most `most`, of nearly equal size.

    Tokens are split first: a pass over the images computes all blocks anyway.
    """
    size = len(streams)
    return [
        Group(tuple(streams[some.start : some.stop]), layers, range_)
        for some in parts(size, most)
        for layers in parts(depth, most // size)
        for range_ in parts(tokens, most // (size * depth))
    ]


def parts(count: int, most: int) -> list[range]:
    """0 to count - 1 in as few ranges of at most `most` as there can be."""
    number = -(-count // max(1, most))
    ends = [count * i // number for i in range(number + 1)]
    return [range(start, stop) for start, stop in zip(ends, ends[1:])]


def bytes_per_probe(
    kind: Kind, *, dim: int, classes: int, batch_size: int, examples: int
) -> int:
    """What one probe takes while it is fitted and used, on the host or a device."""
    weights = 4 * classes * (dim + 1) + 4 * dim
    states = 2 * 4 * batch_size * dim
    if kind == "softmax":  # all states; trained one probe at a time
        return weights + states + 2 * 4 * examples * dim
    return weights + states + 8 * (dim + classes) * dim + 4 * dim * dim


@dataclasses.dataclass(frozen=True)
class Selected:
    """Some pictures of an opened source.

    Args:
        whole: the source.
        indices: which, in order.
        shots: how many of each class at most.
    """

    whole: Any
    indices: tuple[int, ...]
    shots: int

    @property
    def id(self) -> str:
        """That of the source, and what was chosen."""
        return f"{self.whole.id}; first {self.shots} of each class, {len(self)} images"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.whole[self.indices[index]]

    def name(self, index: int) -> str:
        """What the data set calls a picture."""
        return self.whole.name(self.indices[index])


def first_of_each_class(source: Any, *, shots: int, classes: int) -> Selected:
    """The first `shots` labelled pictures of each class, in the source's order.

    Args:
        source: as `open_source` returns it.
        shots: at least 1.
        classes: how many there are; once all are full, nothing more is read.

    Raises:
        ValueError: `shots` is below 1, or no picture has a label.
    """
    if shots < 1:
        raise ValueError(f"shots is {shots}; it must be at least 1.")
    counts, chosen = np.zeros(classes, int), []
    for index, label in enumerate(labels_of(source)):
        if label >= 0 and counts[label] < shots:
            counts[label] += 1
            chosen.append(index)
        if (counts == shots).all():
            break
    if not chosen:
        raise ValueError(f"The data set {source.id} holds no labelled image to fit on.")
    return Selected(source, tuple(chosen), shots)


def labels_of(source: Any) -> Iterator[int]:
    """The label of every picture; decodes only where the source cannot tell."""
    known = getattr(source.source, "label_names", ())
    if len(known) == len(source):
        yield from map(source.number, known)
        return
    for index in range(len(source)):
        try:
            yield source[index].label
        except ImageError:  # told, or refused, when the picture is fitted on
            yield -1
