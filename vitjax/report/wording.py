"""What a run found, in sentences; and how the page says a number."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitjax.report.per_image import TOKENS, Digest

Row = Mapping[str, Any]


def number(value: float | None) -> str:
    """A fraction as the page shows it."""
    if value is None or value != value:
        return "–"
    fine = 0 < abs(value) < 0.01 or 0.99 < value < 1
    return f"{value:.{4 if fine else 3}f}".replace("-", "−")


def sentences(
    digest: Digest, curves: Sequence[Row], table: Sequence[Row], edits: Sequence[Row]
) -> list[str]:
    """What the numbers of a run say.

    Args:
        digest: of the run.
        curves: of `curve_table`, of this run.
        table: of `summary_table`.
        edits: of `intervention_table`; may be empty.

    Returns:
        Sentences with numbers; none where no image could be used.
    """
    if not len(digest.image):
        return []
    by_name = {row["quantity"]: row for row in table}
    return [
        answers(digest, by_name),
        *(
            rise(digest, curves, kind)
            for kind in ("cls", "image")
            if kind in digest.tokens
        ),
        single_tokens(by_name),
        *kinds(by_name),
        *edited(edits),
    ]


def answers(digest: Digest, table: Mapping[str, Row]) -> str:
    """How often the model is right."""
    row, name = table["top-1 accuracy"], digest.manifest["model"]["name"]
    return (
        f"{name} answers {share(row)} of {row['images']:,} images right, among "
        f"{len(digest.classes):,} classes."
    )


def rise(digest: Digest, curves: Sequence[Row], kind: str) -> str:
    """How identifiability develops over the blocks at one kind of tokens."""
    key = ("residual", kind, "identifiability")
    lines = [r for r in curves if (r["stream"], r["tokens"], r["measure"]) == key]
    first, last = lines[0], lines[-1]
    start = above_chance(lines)
    beyond = {
        None: "in the last block its interval still holds chance or lies below it",
        1: "its interval lies above chance from the first block on",
    }.get(start, f"its interval stays above chance from block {start} on")
    if first["low"] != first["low"]:
        beyond = "one image has no interval"
    if len(lines) == 1:
        return (
            f"Mean identifiability of the class at {TOKENS[kind]} is "
            f"{number(last['mean'])} after the only block (chance "
            f"{number(last['chance'])}); {beyond}."
        )
    return (
        f"Mean identifiability of the class at {TOKENS[kind]} goes from "
        f"{number(first['mean'])} after block 1 to {number(last['mean'])} after block "
        f"{last['block']} (chance {number(last['chance'])}); {beyond}."
    )


def above_chance(lines: Sequence[Row]) -> int | None:
    """The block from which on the interval of the mean stays above chance.

    Args:
        lines: of `curve_table`, one per block.

    Returns:
        Counted from 1; None where not even the last block's does.
    """
    below = [row["block"] for row in lines if not row["low"] > row["chance"]]
    start = max(below, default=0) + 1
    return start if start <= len(lines) else None


def single_tokens(table: Mapping[str, Row]) -> str:
    """How many tokens put the class first."""
    rate = table["image tokens that are identifiable, last block"]
    some = table["images with an identifiable token, last block"]
    return (
        f"In the last block {share(rate)} of the image tokens put it first (chance "
        f"{rate['chance']:.4g}); {share(some)} of the images have such a token."
    )


def kinds(table: Mapping[str, Row]) -> Iterator[str]:
    """Class against context tokens, where there are masks."""
    row = table.get("identifiability of class minus context tokens, last block")
    if row is None or row["value"] != row["value"]:
        return
    if row["low"] != row["low"]:
        words = "of one image have no interval:"
    elif row["low"] <= 0 <= row["high"]:
        words = "do not differ beyond their interval:"
    else:
        words = (
            f"differ: on the class it is {'higher' if row['value'] > 0 else 'lower'},"
        )
    yield (
        f"Class and context tokens {words} class minus context, within images, is "
        f"{share(row)} in the last block."
    )


EDITED = {
    "self_only": ("When image tokens see only themselves and [CLS]", None),
    "no_cls": ("When image tokens do not see [CLS]", None),
    "without_context": ("With context tokens removed", "random_as_class"),
    "without_class": ("With class tokens removed", "random_as_context"),
}
"""Interventions that are said in words: how they begin, name of their control."""


def edited(edits: Sequence[Row]) -> Iterator[str]:
    """What interventions do to image tokens, removals beside their random control."""
    by_name = {row["intervention"]: row for row in edits}
    for name, (begin, control) in EDITED.items():
        row, random = by_name.get(name), by_name.get(control)
        if row is None or row["change"] != row["change"]:
            continue
        beside = (
            f"; with as many removed at random, to {number(random['after'])} from "
            f"{number(random['before'])}"
            if random
            else ""
        )
        yield (
            f"{begin}, the share of identifiable image tokens among those that stay "
            f"goes from {number(row['before'])} to {number(row['after'])} "
            f"(p {row['p']:.2g}), accuracy from {number(row['accuracy_before'])} to "
            f"{number(row['accuracy_after'])}{beside}."
        )


def share(row: Row) -> str:
    """A mean with its interval."""
    said = number(row["value"])
    if row["low"] != row["low"]:
        return said
    return f"{said} [{number(row['low'])}, {number(row['high'])}]"
