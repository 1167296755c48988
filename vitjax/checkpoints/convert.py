"""Conversion of checkpoints: arrays of any known layout become our parameter tree.

Every key is converted or named as ignored; anything else is an error that lists both
sides. Our tree is big_vision's stacked one: see `vitjax.models.vit`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from vitjax.checkpoints.files import Arrays, CheckpointError
from vitjax.checkpoints.layouts import (
    LAST_BLOCKS_WITHOUT,
    LAYOUTS,
    CheckpointLayout,
    Target,
)
from vitjax.models.model import parameter_shapes, unflatten
from vitjax.types import Config


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Arrays whose layout is known.

    `keys` maps the layout's keys to those in the file, which may have a prefix.
    """

    arrays: Arrays
    layout: CheckpointLayout
    keys: Mapping[str, str]

    def count_classes(self) -> int:
        """Number of classes of the head."""
        if self.layout.head not in self.keys:
            raise CheckpointError(
                "The checkpoint has no classification head, so it has no class space; "
                "give one that was trained to classify."
            )
        return len(self.arrays[self.keys[self.layout.head]]())

    def params(
        self, config: Config, *, classes: int, resize: str = "", source_config=None
    ) -> tuple[Any, str]:
        """Parameters of a model, float32, and how position embeddings are resized.

        They are resized to the image size of `config`, by default as the
        layout does; `source_config` is the architecture that the file was written for.
        """
        resize = resize or self.layout.resize
        target, table = Target(config, source_config, resize), self.layout.table(config)
        self.check_keys(config, [source for source, _ in table.values()])
        shapes, flat, problems = parameter_shapes(config, classes), {}, []
        for path, (source, convert) in table.items():
            try:
                array = self.stack(source, lambda x, f=convert: f(x, target), config)
            except CheckpointError:  # a ValueError too: the file is damaged
                raise
            except ValueError as error:
                problems.append(f"{source}: {error}")
                continue
            if array.shape == shapes[path]:
                flat[path] = jnp.asarray(array)
            else:
                problems.append(
                    f"{source} gives {array.shape}, the model's {path} is "
                    f"{shapes[path]}"
                )
        if problems:
            raise CheckpointError(shape_mismatch(problems, self.layout, classes))
        return unflatten(flat), resize

    def check_keys(self, config: Config, sources: list[str]) -> None:
        """Every expected key is there, every key that is there is expected."""
        layout = self.layout
        if not (config.class_token or layout.pools_first or config.norm != "pre"):
            raise CheckpointError(
                f"The checkpoint, read as {layout.name}, is of a library that "
                "normalizes every token before it averages them; without [CLS], this "
                "model normalizes the average, and its logits would differ. Such "
                "files are not read."
            )
        expected = {key for source in sources for key in block_keys(source, config)}
        ignored = re.compile("|".join(layout.ignored) or r"(?!)")
        extra = sorted(k for k in set(self.keys) - expected if not ignored.fullmatch(k))
        missing = sorted(expected - set(self.keys))
        if missing or extra:
            raise CheckpointError(
                f"The checkpoint, read as {layout.name}, does not fit {config}. "
                f"Missing: {group_blocks(missing)}. Extra: {group_blocks(extra)}. "
                "Check the Config against the file: depth, qkv_bias, class_token, "
                "registers, layer_scale."
            )

    def stack(self, source: str, convert: Callable, config: Config) -> np.ndarray:
        """One converted array, stacked over blocks where it belongs to them."""
        stacked, keys = np.empty(0), block_keys(source, config)
        for block, key in enumerate(keys):
            array = np.asarray(self.arrays[self.keys[key]]()).astype(np.float32)
            array = convert(array)
            if keys == [source]:
                return array
            if block == 0:
                stacked = np.empty((len(keys), *array.shape), np.float32)
            stacked[block] = array
        return stacked


def detect_layout(arrays: Arrays) -> Checkpoint:
    """Arrays with the layout that their keys are written in."""
    for layout in LAYOUTS:
        for prefix in layout.prefixes:
            mark = re.compile(re.escape(prefix) + layout.mark)
            if any(map(mark.fullmatch, arrays)):
                keys = {key.removeprefix(prefix): key for key in arrays}
                return Checkpoint(arrays, layout, keys)
    raise CheckpointError(
        f"These {len(arrays)} keys are in no known layout "
        f"({'; '.join(layout.name for layout in LAYOUTS)}): "
        f"{first_keys(sorted(arrays))}. Is it the checkpoint of a Vision Transformer?"
    )


def block_keys(source: str, config: Config) -> list[str]:
    """The keys of all blocks, or the key itself where it has no block's number."""
    for pattern, without in LAST_BLOCKS_WITHOUT.items():
        if pattern in source:
            blocks = range(config.depth - without)
            return [source.replace(pattern, str(block)) for block in blocks]
    return [source]


def shape_mismatch(problems: list[str], layout: CheckpointLayout, classes: int) -> str:
    """The message for arrays of other shapes than the model's."""
    advice = "Is the file of this model? Check the name or the Config against it."
    if all("head/" in problem for problem in problems):
        advice = (
            f"Only the head differs: the model has {classes} classes; pass classes= "
            "with the file's own number, or its list of names."
        )
    return (
        f"The checkpoint, read as {layout.name}, has arrays of other shapes than the "
        f"model: {first_keys(problems)}. {advice}"
    )


def group_blocks(items: list[str]) -> str:
    """A list in words; items that differ only in the block's number are one."""
    groups: dict[str, list[int]] = {}
    for item in items:
        numbered = re.search(r"(blocks\.|encoderblock_|layer\.|heads\.)(\d+)", item)
        if numbered:
            start, end = numbered.span(2)
            pattern = item[:start] + "{block}" + item[end:]
            groups.setdefault(pattern, []).append(int(numbered[2]))
        else:
            groups[item] = []
    words = [
        pattern + (f" for blocks {', '.join(map(str, sorted(blocks)))}" * bool(blocks))
        for pattern, blocks in groups.items()
    ]
    return "; ".join(words) or "none"


def first_keys(items: list[str], count: int = 4) -> str:
    """The first of a list in words, and how many more there are."""
    more = len(items) - count
    return group_blocks(items[:count]) + (f"; and {more} more" if more > 0 else "")
