"""Conversion of checkpoints: arrays of any known layout become our parameter tree.

Every key is converted or named as ignored; anything else is an error that lists both
sides. Our tree is big_vision's stacked one: see `vitjax.models.vit`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from vitjax.checkpoints.files import Arrays, CheckpointError, not_floating
from vitjax.checkpoints.layouts import (
    ATTENTION,
    BLOCK,
    LAST_BLOCKS_WITHOUT,
    LAYOUTS,
    MAP,
    MLP,
    CheckpointLayout,
    Table,
    Target,
    identity,
)
from vitjax.models.model import parameter_shapes, unflatten
from vitjax.types import Config

Weights = Literal["ema", "plain"]
"""Which of two sets of weights: the moving average, or those that were trained."""

AVERAGED = re.compile(
    r"(?:^|[._/])(?:ema|teacher|target_encoder|momentum_encoder|averaged|swa|shadow)"
    r"(?:[._/]|$)"
)
"""Names of moving averages of weights, in the prefix of their keys."""
TRAINING = re.compile(
    r"(?:optim\w*|opt(?!/target/)|\w*sched\w*|\w*scaler\w*|amp\w*|\w*rng\w*|epoch|args"
    r"|(?:global_?)?step|iter\w*|config|hparams|hyper_parameters|callbacks|loops"
    r"|criterion|loss(?:_fn)?|n_averaged|metrics?|best\w*|extra|chrono)(?:[./].*)?"
)
"""Keys of the state of a training run, beside the weights."""

REFUSED = {
    "pre_logits": "a layer between [CLS] and the head (dense, then tanh), which this "
    "model has not; without it the logits would be wrong. Take weights from after the "
    "fine-tuning.",
    "relative_position_bias|rel_pos": "attention has a bias for relative positions "
    "(BEiT), which this model has not.",
    r"rope|storage_tokens": "positions are rotations of queries and keys (DINOv3, "
    "EVA-02), which this model has not.",
}
"""Patterns of keys of parts that no `Config` has, and what they are."""


PARTS: dict[str, dict[str, Any]] = {
    BLOCK + "LayerScale_0/gamma": dict(layer_scale=True),
    ATTENTION + "query_norm/scale": dict(qk_norm=True),
    "embed_norm/scale": dict(embed_norm=True),
    "head_dist/bias": dict(distilled=True),
    MAP + "probe": dict(pool="map"),
    "head/logit_bias": dict(sigmoid=True),
}
"""Parameter -> fields of the architecture of a file that has it."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Arrays whose layout is known.

    `arrays` has the layout's own keys. `weights` is the set that was taken where the
    file holds several, `ignored` the keys that were left out, and what they are.
    """

    arrays: Arrays
    layout: CheckpointLayout
    weights: str = ""
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    allow_nonfinite: bool = False

    def table(self, config: Any, shapes: Mapping[str, Any] | None = None) -> Table:
        """The layout's table for this architecture: each of its paths, no other."""
        table = self.layout.table(config, self.arrays)
        paths = parameter_shapes(config, 1) if shapes is None else shapes
        return {path: table.get(path, (path, identity)) for path in paths}

    def source(self, config: Config, path: str) -> str:
        """The key of the array that becomes a parameter, of block 0; "" of none."""
        entry = self.layout.table(config, self.arrays).get(path, (path, identity))
        key = entry[0].replace("{block}", "0") if isinstance(entry, tuple) else ""
        return key if key in self.arrays else ""

    def shape(self, config: Config, path: str) -> tuple[int, ...]:
        """The shape that this array has in the file; () of none."""
        key = self.source(config, path)
        return self.arrays[key]().shape if key else ()

    def adjust(self, config: Config) -> Config:
        """The architecture with the parts that the file has beyond it."""
        source = functools.partial(self.source, config)
        shape = functools.partial(self.shape, config)
        torch = self.layout.head.endswith(".")
        changes: dict[str, Any] = {}
        for path, fields in PARTS.items():
            changes |= fields if source(path) else {}
        if changes.get("embed_norm"):
            changes["patch_bias"] = bool(source("embedding/bias"))
        if changes.get("pool") == "map":
            changes["class_token"] = bool(source("cls"))
            if not source("head/kernel"):
                changes |= dict(head="cosine", sigmoid=True)
        if "dist" in source("registers"):  # DeiT's distillation token
            changes["registers"] = max(1, config.registers)
        gated = dataclasses.replace(config, mlp="swiglu") if torch else config
        up, first, second = (MLP + f"{n}/kernel" for n in ("up", "Dense_0", "Dense_1"))
        joint = self.source(gated, up) == self.source(gated, first)
        hidden = self.shape(gated, up)[:1]
        doubled = tuple(2 * size for size in shape(second)[-1:])
        if hidden and (not joint or hidden == doubled):
            changes["mlp"] = "swiglu"
        kernel = shape("head/kernel")
        parts, rest = divmod(kernel[-1], config.dim) if len(kernel) == 2 else (1, 0)
        if torch and parts > 1 and not rest and config.pooling in ("cls", "cls_mean"):
            changes |= dict(pool="cls_mean", head_blocks=parts - 1)
        if len(patch := shape("embedding/kernel")) == 4:
            changes["channels"] = patch[1 if torch else 2]
        return self.layout.adjust(dataclasses.replace(config, **changes), self.arrays)

    def with_head(self, head: Arrays) -> "Checkpoint":
        """The checkpoint with the linear head of a file of its own."""
        names = {name: self.layout.head + name for name in ("weight", "bias")}
        ours = {names.get(key.rsplit(".", 1)[-1], key): key for key in head}
        if len(head) != 2 or ours.keys() != set(names.values()):
            raise CheckpointError(
                f"head= holds {first_keys(sorted(head)) or 'nothing'}; a linear head "
                "is one weight [class, width] and one bias [class], of a backbone of "
                "torch."
            )
        if both := sorted(ours.keys() & self.arrays.keys()):
            raise CheckpointError(
                f"head= is given, but the checkpoint has {first_keys(both)}: load it "
                "without head=."
            )
        arrays = {**self.arrays, **{name: head[key] for name, key in ours.items()}}
        return dataclasses.replace(self, arrays=arrays)

    def check_positions(self, config: Config) -> None:
        """Raise CheckpointError unless there is a position for each patch."""
        shape = self.shape(config, "pos_embedding")
        counts = [
            config.patches + prefix for prefix in self.layout.position_prefixes(config)
        ]
        if len(shape) in (2, 3) and shape[-2] not in counts:
            raise CheckpointError(
                f"The checkpoint has {shape[-2]} position embeddings, but its "
                f"description, of {config.patches} patches in an image of "
                f"{config.shape} pixels, asks for {' or '.join(map(str, counts))}."
            )

    def params(
        self, config: Config, *, classes: int, resize: str, source_config: Config | None
    ) -> Any:
        """Parameters of a model; `source_config` is what the file was written for."""
        prefixes = self.layout.position_prefixes(config)
        target = Target(config, source_config, resize, prefixes)
        return self.convert(config, parameter_shapes(config, classes), target)

    def convert(self, config: Any, shapes: Mapping[str, Any], target: Target) -> Any:
        """The tree of parameters of these shapes, float32."""
        flat: dict[str, Any] = {}
        table, problems = {}, []
        for path, entry in self.table(config, shapes).items():
            if not isinstance(entry, tuple):
                flat[path] = jnp.full(shapes[path], entry, "f4")
            elif 0 in shapes[path] and entry[0] not in self.arrays:  # no classes
                flat[path] = jnp.zeros(shapes[path], "f4")
            else:
                table[path] = entry
        self.check_keys(config, table)
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
            advice = (
                "Is the file of this model? Check the name or the Config against it."
            )
            if "head/bias" in shapes and all("head/" in text for text in problems):
                advice = (
                    f"Only the head differs: the model has {shapes['head/bias'][0]} "
                    "classes; pass classes= with the file's own number, or its list of "
                    "names."
                )
            raise CheckpointError(
                f"The checkpoint, read as {self.layout.name}, has arrays of other "
                f"shapes than the model: {first_keys(problems)}. {advice}"
            )
        return unflatten(flat)

    def expected(self, config: Any, table: Any) -> set[str]:
        """Keys of arrays that become parameters."""
        sources = (entry[0] for entry in table.values() if isinstance(entry, tuple))
        return {key for source in sources for key in block_keys(source, config)}

    def check_keys(self, config: Any, table: Any) -> None:
        """Every expected key is there, every key that is there is expected."""
        layout, expected = self.layout, self.expected(config, table)
        ignored = re.compile("|".join(layout.ignored) or r"(?!)")
        others = self.arrays.keys() - expected
        extra = sorted(key for key in others if not ignored.fullmatch(key))
        missing = sorted(expected - self.arrays.keys())
        for pattern, reason in REFUSED.items():
            if keys := [key for key in extra if re.search(pattern, key)]:
                raise CheckpointError(
                    f"The checkpoint, read as {layout.name}, has {first_keys(keys)}: "
                    f"{reason} Such files are not read."
                )
        if missing or extra:
            raise CheckpointError(
                f"The checkpoint, read as {layout.name}, does not fit {config}. "
                f"Missing: {group_blocks(missing)}. Extra: {group_blocks(extra)}. "
                "Check the Config against the file: depth, qkv_bias, class_token, "
                "registers, layer_scale."
            )

    def describe_ignored(self, config: Config) -> tuple[str, ...]:
        """What was left out: one sentence for each kind of key."""
        expected = self.expected(config, self.table(config))
        unused = sorted(self.arrays.keys() - expected)
        ignored = {**self.ignored}
        for pattern, what in self.layout.ignored.items():
            ignored |= dict.fromkeys(
                filter(re.compile(pattern).fullmatch, unused), what
            )
        kinds: dict[str, list[str]] = {}
        for key, what in ignored.items():
            kinds.setdefault(what, []).append(key)
        return tuple(f"{what}: {first_keys(keys)}" for what, keys in kinds.items())

    def stack(self, source: str, convert: Callable, config: Any) -> np.ndarray:
        """One converted array, stacked over blocks where it belongs to them."""
        stacked, keys = np.empty(0), block_keys(source, config)
        for block, key in enumerate(keys):
            array = np.asarray(self.arrays[key]())
            if not jnp.issubdtype(array.dtype, jnp.floating):
                raise not_floating(key, array.dtype)
            with np.errstate(over="ignore"):  # which the next check reports
                array = array.astype(np.float32)
            if not (self.allow_nonfinite or np.isfinite(array).all()):
                count = int((~np.isfinite(array)).sum())
                raise CheckpointError(
                    f"The array {key} has {count} values that are NaN or infinite in "
                    "float32: the training diverged, or the file is damaged. To load "
                    "it all the same, pass allow_nonfinite=True (on the command line "
                    "--allow-nonfinite)."
                )
            array = convert(array)
            if keys == [source]:
                return array
            if block == 0:
                stacked = np.empty((len(keys), *array.shape), np.float32)
            stacked[block] = array
        return stacked


def detect_layout(
    arrays: Arrays,
    weights: str | None = None,
    layouts: Sequence[CheckpointLayout] = LAYOUTS,
    advice: str = "Is it the checkpoint of a Vision Transformer?",
    *,
    allow_nonfinite: bool = False,
) -> Checkpoint:
    """Arrays in their layout, wherever they are nested; averages first, as timm."""
    for layout in layouts:
        pattern = re.compile(f"({layout.prefix}){layout.mark}")
        matches = map(pattern.fullmatch, arrays)
        prefixes = sorted({match[1] for match in matches if match})
        prefixes = [p for p in prefixes if not TRAINING.fullmatch(p)] or prefixes
        if prefixes:
            prefix, others = choose_prefix(prefixes, weights)
            ours, ignored = strip_prefix(arrays, prefix, others, layout)
            taken = (prefix.strip("./") or "plain") if others else ""
            return Checkpoint(ours, layout, taken, ignored, allow_nonfinite)
    raise CheckpointError(
        f"These {len(arrays)} keys are in no known layout "
        f"({'; '.join(layout.name for layout in layouts)}): "
        f"{first_keys(sorted(arrays)) or 'none'}. {advice}"
    )


def choose_prefix(
    prefixes: Sequence[str], weights: str | None
) -> tuple[str, list[str]]:
    """The prefix of the weights to take, and those of the others."""
    averaged = [prefix for prefix in prefixes if AVERAGED.search(prefix)]
    plain = [prefix for prefix in prefixes if prefix not in averaged]
    by_choice = {None: averaged or plain, "ema": averaged, "plain": plain}
    chosen = by_choice[weights]
    names = ", ".join(prefix.strip("./") or "without a prefix" for prefix in prefixes)
    if not chosen:
        raise CheckpointError(
            f"weights={weights!r}, but the checkpoint has no such set of weights; it "
            f"holds: {names}."
        )
    if len(chosen) > 1:
        raise CheckpointError(
            f"The checkpoint holds several sets of weights: {names}. Save the one that "
            "you mean to a file of its own."
        )
    return chosen[0], [prefix for prefix in prefixes if prefix != chosen[0]]


def strip_prefix(
    arrays: Arrays, prefix: str, others: Sequence[str], layout: CheckpointLayout
) -> tuple[Arrays, dict[str, str]]:
    """Arrays by their keys in the layout, and what is left out, with the reason.

    A head often lies beside the backbone and not in it: a key outside the prefix is
    read from the innermost part of the prefix that it shares. Two keys that become
    one keep their full names, and so are errors.
    """
    ends = [0, *(match.end() for match in re.finditer(r"[./]", prefix))]
    outer = [prefix[:end] for end in reversed(ends)]
    own = divergence(prefix, others)
    roots = sorted({own, *(divergence(p, [prefix]) for p in others)}, key=len)[::-1]
    keys: dict[str, str] = {}
    ignored: dict[str, str] = {}
    for key in arrays:
        if next((root for root in roots if key.startswith(root)), own) != own:
            ignored[key] = "other weights"
            continue
        short = key.removeprefix(next(part for part in outer if key.startswith(part)))
        if not (key.startswith(prefix) and prefix) and (
            TRAINING.fullmatch(key) or TRAINING.fullmatch(short)
        ):
            ignored[key] = "the state of a training run"
            continue
        for pattern, replacement in layout.rename.items():
            short = re.sub(pattern, replacement, short)
        if short in keys:
            first = keys.pop(short)
            keys |= {first: first, key: key}
        else:
            keys[short] = key
    return {short: arrays[key] for short, key in keys.items()}, ignored


def divergence(prefix: str, others: Sequence[str]) -> str:
    """A prefix up to the first part in which it differs from all others."""
    ends = [match.end() for match in re.finditer(r"[./]", prefix)]
    for end in ends if others else ():
        if not any(other.startswith(prefix[:end]) for other in others):
            return prefix[:end]
    return prefix if others else ""


def block_keys(source: str, config: Any) -> list[str]:
    """The keys of all blocks, or the key itself where it has no block's number."""
    for pattern, without in LAST_BLOCKS_WITHOUT.items():
        if pattern in source:
            blocks = range(config.depth - without)
            return [source.replace(pattern, str(block)) for block in blocks]
    return [source]


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
