"""What every data set hands out, and what a data set is."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, UInt8

from vitjax.data.images import Pixels


class SourceError(ValueError):
    """A data set that cannot be opened, or a label that is none of the classes."""


Label = str | int | np.integer
"""What a data set may call a class."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One picture of a data set.

    Args:
        image: decoded.
        label: as the data set has it: an id, a name, a number; None where unknown. Of a
            source that `open_source` made: the class's number, -1 where unknown.
        name: which one, relative to the data set.
        mask: on the picture, True or 1 class, False or 0 context, 255 neither.
        context: which context, where the data set knows.
    """

    image: Pixels
    label: Label | None
    name: str
    mask: (
        Bool[np.ndarray, "height width"] | UInt8[np.ndarray, "height width"] | None
    ) = None
    context: int | None = None


@runtime_checkable
class Source(Protocol):
    """What every data set can do, and all that yours has to.

    `id` names the content: another list of pictures, another id. A picture that cannot
    be read raises `ImageError`. Optional: `names`, one per picture, and `label_names`,
    all that occur, so that both are known before anything is decoded.
    """

    @property
    def id(self) -> str:
        """What the pictures depend on."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...
