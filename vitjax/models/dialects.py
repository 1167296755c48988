"""How checkpoints name and lay out a ViT's arrays: one table per dialect."""

import dataclasses
import math
import re
from collections.abc import Callable

import jax
import numpy as np

from vitjax.models.tree import parameter_shapes
from vitjax.types import Config

BLOCK = "Transformer/encoderblock/"
ATTENTION, MLP = BLOCK + "MultiHeadDotProductAttention_0/", BLOCK + "MlpBlock_0/"
BLOCK_AXIS = "{block}"
"""Stands for the block's number in a foreign key; ours are stacked."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """How one of our arrays is made of foreign ones."""

    ours: str
    theirs: tuple[str, ...]
    make: Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One way in which a ViT's arrays are named and laid out on disk.

    Args:
        name: what errors call it.
        mark: pattern of a key that only this dialect has.
        entries: the table, for a given architecture.
        ignored: patterns of keys that are deliberately left out.
        resize: how its own library resizes position embeddings.
        prefixes: what may stand before every key.
    """

    name: str
    mark: str
    entries: Callable[[Config], list[Entry]]
    resize: str
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)


def keep(array, *, config, dialect):
    """As it is."""
    return array


def transpose(array, *, config, dialect):
    """A torch matrix [out in] as a kernel [in out]."""
    return array.T


def convolution(array, *, config, dialect):
    """A torch convolution [out in row column] as [row column in out]."""
    return array.transpose(2, 3, 1, 0)


def attention_out(array, *, config, dialect):
    """A torch output projection [dim, head x key] as [head key dim]."""
    return array.T.reshape(config.heads, -1, array.shape[0])


def third(which: int) -> Callable[..., np.ndarray]:
    """Query, key or value out of torch's joint projection."""

    def make(array, *, config, dialect):
        part = np.split(array, 3)[which]
        return part.T.reshape(*part.shape[1:], config.heads, -1)

    return make


def positions(position, *, config, dialect):
    """One position per token: the patches' resized to the model's grid.

    Prefix tokens that the file gives no position (registers in timm, [CLS] in
    big_vision) have position 0.
    """
    extra = prefix_positions(position.shape[1], config)
    prefix, patches = position[:, :extra], position[:, extra:]
    if patches.shape[1] != config.patches:
        side = math.isqrt(patches.shape[1])
        grid = patches.reshape(side, side, -1)
        grid = RESIZE[dialect.resize](grid, config.grid)
        patches = grid.reshape(1, config.patches, -1)
    bare = np.zeros((1, config.prefix - extra, position.shape[2]), np.float32)
    return np.concatenate([prefix, bare, patches], axis=1)


def prefix_positions(count: int, config: Config) -> int:
    """How many of a file's positions belong to prefix tokens."""
    candidates = (config.prefix, int(config.class_token), 0)
    for extra in candidates:
        if count - extra == config.patches:
            return extra
    for extra in candidates:
        if math.isqrt(count - extra) ** 2 == count - extra:
            return extra
    raise ValueError(
        f"{count} position embeddings are neither {config.patches} patches nor a "
        f"square number of them, with or without {config.prefix} prefix tokens"
    )


def resize_corners(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The original ViT code's way: linear between aligned corners."""
    from scipy import ndimage

    zoom = (size[0] / grid.shape[0], size[1] / grid.shape[1], 1)
    return np.asarray(ndimage.zoom(grid, zoom, order=1), np.float32)


def resize_bicubic(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """timm's way for torch files: antialiased bicubic between pixel centres."""
    shape = (*size, grid.shape[-1])
    return np.asarray(jax.image.resize(grid, shape, "cubic", antialias=True))


RESIZE = {"corners": resize_corners, "bicubic": resize_bicubic}


def google_entries(attention: str, norm: str, mlp: str) -> Callable:
    """The original Flax naming; numbering of a block's modules came to differ."""

    def entries(config: Config) -> list[Entry]:
        block = "Transformer/encoderblock_{block}/"
        position = "Transformer/posembed_input/pos_embedding"
        names = {
            "LayerNorm_0": ("LayerNorm_0", ("scale", "bias")),
            "LayerNorm_1": (norm, ("scale", "bias")),
            "MultiHeadDotProductAttention_0/out": (attention + "/out", KERNEL),
            "MlpBlock_0/Dense_0": (mlp + "/Dense_0", KERNEL),
            "MlpBlock_0/Dense_1": (mlp + "/Dense_1", KERNEL),
        }
        for part in ("query", "key", "value"):
            leaves = KERNEL if config.qkv_bias else ("kernel",)
            ours = f"MultiHeadDotProductAttention_0/{part}"
            names[ours] = (f"{attention}/{part}", leaves)
        table = [
            Entry(f"{BLOCK}{ours}/{leaf}", (f"{block}{theirs}/{leaf}",), keep)
            for ours, (theirs, leaves) in names.items()
            for leaf in leaves
        ]
        for name in ("embedding", "head", "Transformer/encoder_norm"):
            leaves = ("scale", "bias") if "norm" in name else KERNEL
            table += [
                Entry(f"{name}/{leaf}", (f"{name}/{leaf}",), keep) for leaf in leaves
            ]
        table.append(Entry("pos_embedding", (position,), positions))
        if config.class_token:
            table.append(Entry("cls", ("cls",), keep))
        return table

    return entries


def timm_entries(config: Config) -> list[Entry]:
    """timm's and DeiT's state dict."""
    block = "blocks.{block}."
    table = [
        Entry(ATTENTION + "out/kernel", (block + "attn.proj.weight",), attention_out),
        Entry(ATTENTION + "out/bias", (block + "attn.proj.bias",), keep),
        Entry("embedding/kernel", ("patch_embed.proj.weight",), convolution),
        Entry("embedding/bias", ("patch_embed.proj.bias",), keep),
        Entry("head/kernel", ("head.weight",), transpose),
        Entry("head/bias", ("head.bias",), keep),
        Entry("pos_embedding", ("pos_embed",), positions),
    ]
    for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
        if ours == "bias" and not config.qkv_bias:
            continue
        key = f"{block}attn.qkv.{theirs}"
        table += [
            Entry(f"{ATTENTION}{part}/{ours}", (key,), third(which))
            for which, part in enumerate(("query", "key", "value"))
        ]
    for index in (0, 1):
        fc = f"{block}mlp.fc{index + 1}."
        table.append(Entry(f"{MLP}Dense_{index}/kernel", (fc + "weight",), transpose))
        table.append(Entry(f"{MLP}Dense_{index}/bias", (fc + "bias",), keep))
        if config.layer_scale:
            gamma = f"{block}ls{index + 1}.gamma"
            table.append(Entry(f"{BLOCK}LayerScale_{index}/gamma", (gamma,), keep))
    norms = {f"{BLOCK}LayerNorm_{i}": f"{block}norm{i + 1}." for i in (0, 1)}
    norms["Transformer/encoder_norm"] = "norm." if config.class_token else "fc_norm."
    for ours, theirs in norms.items():
        table.append(Entry(ours + "/scale", (theirs + "weight",), keep))
        table.append(Entry(ours + "/bias", (theirs + "bias",), keep))
    return table + timm_prefix(config)


def timm_prefix(config: Config) -> list[Entry]:
    """Tokens before the first patch."""
    table = []
    if config.class_token:
        table.append(Entry("cls", ("cls_token",), keep))
    if config.registers:
        table.append(Entry("registers", ("reg_token",), keep))
    return table


def own_entries(config: Config) -> list[Entry]:
    """Our own tree, as `vitjax convert` writes it."""
    table = [
        Entry(path, (path,), keep)
        for path in parameter_shapes(config, 1)
        if path != "pos_embedding"
    ]
    return [*table, Entry("pos_embedding", ("pos_embedding",), positions)]


KERNEL = ("kernel", "bias")

DIALECTS = (
    Dialect(
        name="vitjax's own layout",
        mark=re.escape(ATTENTION) + "query/kernel",
        entries=own_entries,
        resize="bicubic",
    ),
    Dialect(
        name="original npz, pre-Linen numbering",
        mark="Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel",
        entries=google_entries(
            "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"
        ),
        resize="corners",
        # timm and the paper leave the representation layer out as well.
        ignored=("pre_logits/(kernel|bias)",),
        prefixes=("", "opt/target/"),
    ),
    Dialect(
        name="original npz, Linen numbering",
        mark="Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel",
        entries=google_entries(
            "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"
        ),
        resize="corners",
        ignored=("pre_logits/(kernel|bias)",),
        prefixes=("", "opt/target/"),
    ),
    Dialect(
        name="timm state dict",
        mark=r"blocks\.0\.attn\.qkv\.weight",
        entries=timm_entries,
        resize="bicubic",
        prefixes=("", "model.", "module."),
    ),
)
