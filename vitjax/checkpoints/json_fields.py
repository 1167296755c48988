"""Fields of a JSON description, read strictly: people and libraries write them freely.

A number may be a string of digits, an image size a number, a list or names; what means
nothing is a CheckpointError that names the field and its value.
"""

import collections
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitjax import messages
from vitjax.checkpoints.files import CheckpointError


def wrong(field: str, value: Any, expected: str) -> CheckpointError:
    """The error for a field with a value that means nothing."""
    return CheckpointError(f"{field}={value!r} is not {expected}.")


class Fields:
    """A JSON object; a field that is absent or null has the default given."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = values

    def get(self, field: str, default: Any = None, parse: Callable | None = None):
        """A field's value, read by one of this module's functions."""
        value = self.values.get(field)
        value = default if value is None else value
        return value if parse is None else parse(field, value)

    def one_of(self, field: str, known: Mapping[str, Any], default: Any) -> Any:
        """What a word means."""
        word = self.get(field, default)
        if not isinstance(word, str) or word not in known:
            raise CheckpointError(messages.unknown(field, word, known))
        return known[word]

    def section(self, field: str) -> "Fields":
        """A nested object; empty where it is absent."""
        value = self.values.get(field) or {}
        if not isinstance(value, Mapping):
            raise wrong(field, value, "an object")
        return Fields(value)


def number(field: str, value: Any, *, low: float = -math.inf) -> float:
    """A finite number, at least `low`."""
    try:
        parsed = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        parsed = math.nan
    if not math.isfinite(parsed) or parsed < low:
        least = f" of at least {low}" if low > -math.inf else ""
        raise wrong(field, value, f"a number{least}")
    return parsed


def integer(field: str, value: Any, *, low: int = 1, high: int = 2**16) -> int:
    """A whole number in [low, high]."""
    parsed = number(field, value)
    if parsed != int(parsed) or not low <= parsed <= high:
        raise wrong(field, value, f"a whole number in [{low}, {high}]")
    return int(parsed)


def boolean(field: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool | int) or value not in (0, 1):
        raise wrong(field, value, "true or false")
    return bool(value)


def height_and_width(field: str, value: Any) -> tuple[int, int]:
    """(height, width) of a size: a number, a list of one or two, or names."""
    if isinstance(value, Mapping):
        sides = {key: side for key, side in value.items() if side is not None}
        if sides.keys() != {"height", "width"}:
            raise wrong(field, value, "a height and a width")
        value = [sides["height"], sides["width"]]
    sides = value if isinstance(value, list | tuple) else [value]
    if len(sides) not in (1, 2):
        raise wrong(field, value, "a height and a width")
    return integer(field, sides[0]), integer(field, sides[-1])


def image_size(field: str, value: Any) -> int | tuple[int, int]:
    """`Config.image_size`: one number where the image is a square."""
    height, width = height_and_width(field, value)
    return height if height == width else (height, width)


def colors(field: str, value: Any) -> tuple[float, float, float]:
    """One number per color channel, or one for all."""
    values = value if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3:
        raise wrong(field, value, "one number, or one for each of three colors")
    red, green, blue = (number(field, each) for each in values)
    return red, green, blue


def deviations(field: str, value: Any) -> tuple[float, float, float]:
    """Colors that are divided by."""
    values = colors(field, value)
    if min(values) <= 0:
        raise wrong(field, value, "positive")
    return values


def class_name(value: Any) -> str:
    """A class name: a string, or a number in digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float | np.number):
        return str(value)
    raise wrong("class name", value, "a string or a number")


def class_names(field: str, value: Any) -> tuple[str, ...]:
    """Names in the order of the logits, of a list or of {number: name}; () of none."""
    if not value and not isinstance(value, bool | int | float | str):
        return ()
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        raise wrong(field, value, "a list of names, or names by number")
    names = {integer(field, key, low=0): name for key, name in value.items()}
    if missing := sorted(set(range(len(value))) - set(names)):
        raise CheckpointError(
            f"{field} has {len(value)} names, but none of number {missing[0]}: give "
            "every class from 0 its name, or pass classes=."
        )
    return tuple(class_name(names[number]) for number in range(len(value)))


def unique_ids(names: tuple[str, ...]) -> tuple[str, ...]:
    """One id per class: its name, with its number where other classes share that."""
    count = collections.Counter(names)
    return tuple(f"{n} ({i})" if count[n] > 1 else n for i, n in enumerate(names))
