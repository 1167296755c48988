"""Which class of a model a data set's label means."""

import collections
import difflib
import functools
import re
from collections.abc import Sequence

from vitjax.data.records import Label, SourceError


def match_label(label: Label, classes: Sequence[str], class_ids: Sequence[str]) -> int:
    """Which class a label means: by id, then by name, then by number.

    Names match whatever their case and with underscores for spaces; of ImageNet's
    "tench, Tinca tinca" either part will do, if no other class has it.

    Args:
        label: as the data set has it.
        classes: names, in the order of the logits.
        class_ids: ids, in the same order.

    Returns:
        The class's number.

    Raises:
        SourceError: it is none of them, and the nearest are named, or the name of two.
    """
    ids, names = label_tables(tuple(classes), tuple(class_ids))
    text = str(label)
    if isinstance(label, str):
        found = (ids[label],) if label in ids else names.get(plain(label), ())
        if len(found) == 1:
            return found[0]
        if found:
            theirs = " and ".join(class_ids[number] for number in found)
            raise SourceError(
                f"The label {label!r} is the name of {len(found)} classes; use their "
                f"ids instead, {theirs}."
            )
    if re.fullmatch(r"\d+", text) and int(text) < len(classes):
        return int(text)
    near = difflib.get_close_matches(plain(text), [*map(plain, ids), *names], n=3)
    hint = f" Near: {', '.join(near)}." if near else ""
    some = ", ".join(dict.fromkeys((*class_ids[:2], *classes[:2])))
    raise SourceError(
        f"The label {label!r} is none of the model's {len(classes)} classes ({some}, "
        f"...).{hint} Labels are matched against class id, then name, then number from "
        "0; give one of them, or load the model with the data set's own classes."
    )


@functools.lru_cache(maxsize=8)
def label_tables(
    classes: tuple[str, ...], class_ids: tuple[str, ...]
) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """(id -> number, plain name -> numbers); whole names go before parts of names."""
    ids = {key: number for number, key in enumerate(class_ids) if key}
    whole, parts = collections.defaultdict(set), collections.defaultdict(set)
    for number, name in enumerate(classes):
        whole[plain(name)].add(number)
        for part in name.split(","):
            parts[plain(part)].add(number)
    return ids, {name: tuple(sorted(found)) for name, found in (parts | whole).items()}


def plain(name: str) -> str:
    """A name as it is compared."""
    return " ".join(name.replace("_", " ").casefold().split())
