"""Error messages for wrong arguments: one wording for each kind of mistake."""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

Number = int | float

SHOWN = 40
"""Of more names than a person reads, a message has the first ones."""


def did_you_mean(value: Any, known: Iterable[Any], *, n: int = 1) -> str:
    """` Did you mean 'y'?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(str(value), [str(name) for name in known], n=n)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def unknown(what: str, value: Any, known: Iterable[Any]) -> str:
    """`method='x' is not one of a, b, c. Did you mean 'y'?`"""
    known = list(map(str, known))
    names = ", ".join(known)
    if len(known) > SHOWN:
        names = f"{', '.join(known[:3])} and {len(known) - 3} more"
    return f"{what}={value!r} is not one of {names}.{did_you_mean(value, known)}"


def out_of_range(what: str, value: Any, low: Number, high: Number = math.inf) -> str:
    """`layers=(12,) is out of range [-12, 11].`"""
    end = ")" if high == math.inf else "]"
    return f"{what}={value!r} is out of range [{low}, {high}{end}."


def check_one_of(what: str, value: Any, known: Iterable[Any]) -> None:
    """Raise ValueError unless the value is known."""
    known = list(known)
    if value not in known:
        raise ValueError(unknown(what, value, known))


def check_range(
    what: str, value: Any | Sequence[Any], low: Number, high: Number = math.inf
) -> None:
    """Raise ValueError unless low <= value <= high, for each of a sequence; not NaN."""
    values = value if isinstance(value, Sequence) else (value,)
    if not all(low <= each <= high for each in values):
        raise ValueError(out_of_range(what, value, low, high))


def check_classes(count: int) -> None:
    """Raise ValueError where a model has no classes."""
    if not count:
        raise ValueError(
            "The model has no classes. Give it some: of class embeddings by "
            "vitjax.zero_shot(model, embeddings, classes=names) or load(..., "
            "classes=FILE), of a probe by vitjax.with_head(model, probe)."
        )
