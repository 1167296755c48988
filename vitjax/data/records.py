"""Records and the data-set protocol: what a data set is and what it returns."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from vitjax.data.images import Pixels
from vitjax.data.masks import Mask


class SourceError(ValueError):
    """A data set that cannot be opened, or a label that is none of the classes."""


Label = str | int | np.integer
"""What a data set may call a class."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One image of a data set.

    Args:
        image: decoded.
        label: as the data set has it: an id, a name, a number; None or -1 where
            unknown. From `open_data`: the class's number, -1 where unknown.
        name: of the image, relative to the data set.
        mask: on the image: True or 1 object, False or 0 context, 255 neither. Upright,
            as the image is once it is turned as its EXIF tag says, and of its size or
            of the same aspect.
        context: number of the context, where the data set knows it.
        digest: `content_digest` of the files it was decoded from; None where it was
            decoded from none, then the loader takes that of the pixels.
    """

    image: Pixels
    label: Label | None
    name: str
    mask: Mask | None = None
    context: int | None = None
    digest: int | None = None


@runtime_checkable
class Source(Protocol):
    """A data set: `id`, `len` and `getitem`, which is all that yours needs.

    `id` identifies the content: another list of images has another id. `getitem` raises
    `ImageError` for an image that cannot be read. Optional attributes: `names`, one per
    image, `label_names`, all labels that occur, `masks`, one entry per image and None
    where there is no mask, and `notes`, sentences that a person should read before a
    run; they are known before anything is decoded.
    """

    @property
    def id(self) -> str:
        """Identifies the content of the data set."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...
