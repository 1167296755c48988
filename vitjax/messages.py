"""Wordings of error messages that many places share."""

import difflib
from collections.abc import Iterable
from typing import Any


def unknown(what: str, value: Any, known: Iterable[str]) -> str:
    """Say that a value is not one of those known, and which is nearest."""
    known = [str(name) for name in known]
    close = difflib.get_close_matches(str(value), known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{what}={value!r} is not one of {', '.join(known) or 'none'}.{hint}"


def out_of_range(what: str, value: Any, low: Any, high: Any) -> str:
    """Say that a value is outside [low, high)."""
    return f"{what}={value!r} is out of range [{low}, {high})."
