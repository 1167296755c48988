"""Foreign checkpoints to our parameter tree, one table per dialect.

Every foreign key is consumed or named as ignored; anything else is an error that lists
both sides. Our tree is big_vision's stacked one: see `vitjax.models.vit`.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from vitjax.models.dialects import BLOCK_AXIS, DIALECTS, Dialect, Entry
from vitjax.models.files import Arrays, CheckpointError
from vitjax.models.tree import parameter_shapes, unflatten
from vitjax.types import Config


def convert(
    arrays: Arrays, config: Config, *, classes: int, resize: str = ""
) -> tuple[Any, str]:
    """A checkpoint's arrays as parameters of a model.

    Args:
        arrays: foreign key to array.
        config: the architecture that the file is meant for; where its image size is
            another than the file's, position embeddings are resized.
        classes: number of classes of the head.
        resize: how position embeddings are resized; "" takes the dialect's way.

    Returns:
        The parameter tree, float32 JAX arrays; and the way of resizing positions.

    Raises:
        CheckpointError: keys are missing or left over, or shapes do not fit.
    """
    dialect, prefix = guess(arrays)
    if resize:
        dialect = dataclasses.replace(dialect, resize=resize)
    entries = dialect.entries(config)
    foreign = {key.removeprefix(prefix): key for key in arrays}
    check_keys(dialect, entries, foreign, config)
    shapes = parameter_shapes(config, classes)
    flat, problems = {}, []
    for entry in entries:
        try:
            array = build(entry, arrays, foreign, config, dialect)
        except ValueError as error:
            problems.append(f"{', '.join(entry.theirs)}: {error}")
            continue
        if array.shape != shapes[entry.ours]:
            problems.append(
                f"{', '.join(entry.theirs)} gives {array.shape}, the model's "
                f"{entry.ours} is {shapes[entry.ours]}"
            )
            continue
        flat[entry.ours] = jax.numpy.asarray(array)
    if problems:
        raise CheckpointError(misfit(problems, dialect, classes))
    return unflatten(flat), dialect.resize


def count_classes(arrays: Arrays) -> int:
    """Number of classes of a checkpoint's head."""
    _, prefix = guess(arrays)
    for key in ("head/bias", "head.bias"):
        if prefix + key in arrays:
            return len(arrays[prefix + key])
    raise CheckpointError(
        "The checkpoint has no classification head, so it has no class space; give one "
        "that was trained to classify."
    )


def guess(keys: Iterable[str]) -> tuple[Dialect, str]:
    """The dialect that a set of keys is written in, and what stands before them all."""
    keys = list(keys)
    for dialect in DIALECTS:
        for prefix in dialect.prefixes:
            if any(re.fullmatch(re.escape(prefix) + dialect.mark, key) for key in keys):
                return dialect, prefix
    raise CheckpointError(
        f"These {len(keys)} keys are in no known dialect "
        f"({'; '.join(dialect.name for dialect in DIALECTS)}): {some(sorted(keys))}. "
        "Is it the checkpoint of a Vision Transformer?"
    )


def check_keys(dialect, entries, foreign, config) -> None:
    """Every expected key is there, every key that is there is expected."""
    expected = set()
    for entry in entries:
        for key in entry.theirs:
            blocks = range(config.depth) if BLOCK_AXIS in key else (0,)
            expected |= {key.replace(BLOCK_AXIS, str(block)) for block in blocks}
    ignored = re.compile("|".join(dialect.ignored) or r"(?!)")
    missing = sorted(expected - set(foreign))
    extra = sorted(k for k in set(foreign) - expected if not ignored.fullmatch(k))
    if missing or extra:
        raise CheckpointError(
            f"The checkpoint, read as {dialect.name}, does not fit {config}. "
            f"Missing: {some(missing)}. Extra: {some(extra)}. Check the Config against "
            "the file: depth, qkv_bias, class_token, registers, layer_scale."
        )


def misfit(problems: list[str], dialect: Dialect, classes: int) -> str:
    """The message for arrays of other shapes than the model's."""
    advice = "Check the Config against the file."
    if all("head/" in problem for problem in problems):
        advice = (
            f"Only the head differs: the model was asked for {classes} classes; pass "
            "classes= with the file's own number, or its list of names."
        )
    return (
        f"The checkpoint, read as {dialect.name}, has arrays of other shapes than the "
        f"model: {some(problems)}. {advice}"
    )


def some(items: list[str]) -> str:
    """A list in words; what differs only in the block's number is said once."""
    blocks: dict[str, list[int]] = {}
    for item in items:
        numbered = re.search(r"(blocks\.|encoderblock_)(\d+)", item)
        if numbered:
            start, end = numbered.span(2)
            pattern = item[:start] + BLOCK_AXIS + item[end:]
            blocks.setdefault(pattern, []).append(int(item[start:end]))
        else:
            blocks[item] = []
    words = [
        f"{pattern} for blocks {', '.join(map(str, sorted(numbers)))}"
        if numbers
        else pattern
        for pattern, numbers in blocks.items()
    ]
    return "; ".join(words) or "none"


def build(entry: Entry, arrays, foreign, config, dialect) -> np.ndarray:
    """One of our arrays, stacked over blocks where it belongs to them."""

    def read(block):
        keys = [key.replace(BLOCK_AXIS, str(block)) for key in entry.theirs]
        values = [np.asarray(arrays[foreign[k]]).astype(np.float32) for k in keys]
        return entry.make(*values, config=config, dialect=dialect)

    if BLOCK_AXIS not in entry.theirs[0]:
        return read(0)
    first = read(0)
    stack = np.empty((config.depth, *first.shape), np.float32)
    for block in range(config.depth):
        stack[block] = first if block == 0 else read(block)
    return stack
