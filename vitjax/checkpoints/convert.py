"""Foreign checkpoints to our parameter tree, one table per dialect.

Every foreign key is consumed or named as ignored; anything else is an error that lists
both sides. Our tree is big_vision's stacked one: see `vitjax.models.vit`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from vitjax.checkpoints.files import Arrays, CheckpointError
from vitjax.checkpoints.layouts import AXES, DIALECTS, Dialect, Entry
from vitjax.models.model import parameter_shapes, unflatten
from vitjax.types import Config


def convert(
    arrays: Arrays,
    config: Config,
    *,
    classes: int,
    resize: str = "",
    written: Config | None = None,
) -> tuple[Any, str]:
    """A checkpoint's arrays as parameters of a model.

    Args:
        arrays: foreign key to array.
        config: the architecture that the file is meant for; where its image size is
            another than the file's, position embeddings are resized.
        classes: number of classes of the head.
        resize: how position embeddings are resized; "" takes the dialect's way.
        written: the architecture that the file was written for, where that is known;
            it may differ in the image size.

    Returns:
        The parameter tree, float32 JAX arrays; and the way of resizing positions.

    Raises:
        CheckpointError: keys are missing or left over, or shapes do not fit.
    """
    dialect, prefix = guess(arrays)
    resize = resize or dialect.resize
    dialect = dataclasses.replace(dialect, resize=resize, written=written)
    entries = dialect.entries(config)
    foreign = {key.removeprefix(prefix): key for key in arrays}
    check_keys(dialect, entries, foreign, config)
    shapes = parameter_shapes(config, classes)
    flat, problems = {}, []
    for entry in entries:
        try:
            array = build(entry, arrays, foreign, config, dialect)
        except CheckpointError:  # a ValueError too: the file is damaged
            raise
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


def adapt(
    keys: Iterable[str], config: Config, *, beside: Callable[[], Mapping[str, Any]]
) -> Config:
    """The architecture, with what a checkpoint's dialect decides by itself.

    Args:
        keys: the checkpoint's.
        config: the architecture that the file is meant for.
        beside: reads the config.json beside it; empty where there is none.

    Raises:
        CheckpointError: the keys are in no known dialect.
    """
    keys = list(keys)
    dialect, prefix = guess(keys)
    return dialect.travels(config, {k.removeprefix(prefix) for k in keys}, beside)


def count_classes(arrays: Arrays) -> int:
    """Number of classes of a checkpoint's head."""
    dialect, prefix = guess(arrays)
    for key in (prefix + dialect.head, dialect.head):
        if key in arrays:
            return len(arrays[key])
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
        f"({'; '.join(dialect.name for dialect in DIALECTS)}): {few(sorted(keys))}. "
        "Is it the checkpoint of a Vision Transformer?"
    )


def check_keys(dialect, entries, foreign, config) -> None:
    """Every expected key is there, every key that is there is expected."""
    if not (config.class_token or dialect.pools_first or config.norm != "pre"):
        raise CheckpointError(
            f"The checkpoint, read as {dialect.name}, is of a library that normalises "
            "every token before it averages them; without [CLS], this model normalises "
            "the average, and its answers would be others. Such files are not read."
        )
    expected = {
        key.replace(axis, str(block)) if axis else key
        for entry in entries
        for key in entry.theirs
        for axis, count in [stacked(key, config)]
        for block in range(count)
    }
    ignored = re.compile("|".join(dialect.ignored(config)) or r"(?!)")
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
    advice = "Is the file of this model? Check the name or the Config against it."
    if all("head/" in problem for problem in problems):
        advice = (
            f"Only the head differs: the model was asked for {classes} classes; pass "
            "classes= with the file's own number, or its list of names."
        )
    return (
        f"The checkpoint, read as {dialect.name}, has arrays of other shapes than the "
        f"model: {few(problems)}. {advice}"
    )


def some(items: list[str]) -> str:
    """A list in words; what differs only in the block's number is said once."""
    blocks: dict[str, list[int]] = {}
    for item in items:
        numbered = re.search(r"(blocks\.|encoderblock_|layer\.|heads\.)(\d+)", item)
        if numbered:
            start, end = numbered.span(2)
            pattern = item[:start] + "{block}" + item[end:]
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


def few(items: list[str], count: int = 4) -> str:
    """The first of a list in words, and how many more there are."""
    more = len(items) - count
    return some(items[:count]) + (f"; and {more} more" if more > 0 else "")


def stacked(key: str, config: Config) -> tuple[str, int]:
    """What stands for the block's number in a key ("" for none), and how many have."""
    for axis, without in AXES.items():
        if axis in key:
            return axis, config.depth - without
    return "", 1


def build(entry: Entry, arrays, foreign, config, dialect) -> np.ndarray:
    """One of our arrays, stacked over blocks where it belongs to them."""
    axis, count = stacked(entry.theirs[0], config)

    def read(block):
        keys = [key.replace(axis, str(block)) if axis else key for key in entry.theirs]
        values = [np.asarray(arrays[foreign[k]]).astype(np.float32) for k in keys]
        return entry.make(*values, config=config, dialect=dialect)

    first = read(0)
    if not axis:
        return first
    stack = np.empty((count, *first.shape), np.float32)
    for block in range(count):
        stack[block] = first if block == 0 else read(block)
    return stack
