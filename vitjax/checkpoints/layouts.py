"""How checkpoints name and lay out a ViT's arrays: one table per dialect."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from vitjax.checkpoints.huggingface import with_numerics
from vitjax.checkpoints.positions import positions
from vitjax.models.model import parameter_shapes
from vitjax.types import Config

BLOCK = "Transformer/encoderblock/"
ATTENTION, MLP = BLOCK + "MultiHeadDotProductAttention_0/", BLOCK + "MlpBlock_0/"
AXES = {"{block}": 0, "{refined}": 1}
"""What stands for a block's number in a foreign key (ours are stacked), and how many
blocks at the end have none."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """How one of our arrays is made of foreign ones."""

    ours: str
    theirs: tuple[str, ...]
    make: Callable[..., np.ndarray]


def nothing(config: Config) -> dict[str, str]:
    """No key is left out."""
    return {}


def as_asked(
    config: Config, keys: Collection[str], beside: Callable[[], Mapping[str, Any]]
) -> Config:
    """The architecture that the caller describes is the file's."""
    return config


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One way in which a ViT's arrays are named and laid out on disk.

    Args:
        name: what errors call it.
        mark: pattern of a key that only this dialect has.
        entries: the table, for a given architecture.
        resize: how its own library resizes position embeddings.
        ignored: patterns of keys that are deliberately left out, and what they are.
        prefixes: what may stand before every key.
        head: name of the head's bias.
        pools_first: whether its library, without [CLS], normalises after pooling, as
            ours does; otherwise before.
        written: the architecture that the file was written for, where that is known:
            it tells the grid of its position embeddings.
        travels: what of the architecture a file of this dialect decides by itself:
            (config, its keys without the prefix, a reader of the config.json beside it)
            -> config.
    """

    name: str
    mark: str
    entries: Callable[[Config], list[Entry]]
    resize: str
    ignored: Callable[[Config], Mapping[str, str]] = nothing
    prefixes: tuple[str, ...] = ("",)
    head: str = "head/bias"
    pools_first: bool = True
    written: Config | None = None
    travels: Callable[..., Config] = as_asked


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


def by_head(array, *, config, dialect):
    """A torch projection [head x key, dim], or its bias, split by head."""
    return array.T.reshape(*array.shape[1:], config.heads, -1)


def third(which: int) -> Callable[..., np.ndarray]:
    """Query, key or value out of torch's joint projection."""

    def make(array, *, config, dialect):
        part = np.split(array, 3)[which]
        return part.T.reshape(*part.shape[1:], config.heads, -1)

    return make


def google_entries(
    attention: str,
    norm: str,
    mlp: str,
    *,
    position: str = "Transformer/posembed_input/pos_embedding",
) -> Callable:
    """The original Flax naming; numbering of a block's modules came to differ."""

    def entries(config: Config) -> list[Entry]:
        block = "Transformer/encoderblock_{block}/"
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
    return table + timm_prefix(config) + timm_refinement(config)


def timm_refinement(config: Config) -> list[Entry]:
    """The token-refinement modules of Naseer et al., one per block but the last."""
    if not config.refinement:
        return []
    theirs = REFINEMENT + "{refined}."
    names = {
        "conv/kernel": ("conv.weight", convolution),
        "norm/scale": ("bn.weight", keep),
        "norm/bias": ("bn.bias", keep),
        "norm/mean": ("bn.running_mean", keep),
        "norm/var": ("bn.running_var", keep),
        "token/kernel": ("token_fc.weight", transpose),
        "token/bias": ("token_fc.bias", keep),
    }
    return [
        Entry(f"refinement/{ours}", (theirs + name,), make)
        for ours, (name, make) in names.items()
    ]


def timm_ignored(config: Config) -> dict[str, str]:
    """What of a torch state dict is left out."""
    if config.refinement:
        return {re.escape(REFINEMENT) + r"\d+\.bn\.num_batches_tracked": "a counter"}
    # The published analysis of the refined DeiT-B strips them as well.
    return {re.escape(REFINEMENT) + r".*": "token refinement; Config(refinement=True)"}


def timm_prefix(config: Config) -> list[Entry]:
    """Tokens before the first patch."""
    table = []
    if config.class_token:
        table.append(Entry("cls", ("cls_token",), keep))
    if config.registers:
        table.append(Entry("registers", ("reg_token",), keep))
    return table


def hugging_face_entries(config: Config) -> list[Entry]:
    """transformers' ViT and DeiT for image classification."""
    block = "encoder.layer.{block}."
    dense = {
        "head/": ("classifier.", transpose),
        MLP + "Dense_0/": (block + "intermediate.dense.", transpose),
        MLP + "Dense_1/": (block + "output.dense.", transpose),
        ATTENTION + "out/": (block + "attention.output.dense.", attention_out),
        "embedding/": ("embeddings.patch_embeddings.projection.", convolution),
    }
    norms = {
        BLOCK + "LayerNorm_0/": block + "layernorm_before.",
        BLOCK + "LayerNorm_1/": block + "layernorm_after.",
        "Transformer/encoder_norm/": "layernorm.",
    }
    table = [
        Entry("pos_embedding", ("embeddings.position_embeddings",), positions),
    ]
    if config.class_token:
        table.append(Entry("cls", ("embeddings.cls_token",), keep))
    if config.registers:
        # DeiT's second prefix token; nothing reads the answer there.
        table.append(Entry("registers", ("embeddings.distillation_token",), keep))
    for ours, (theirs, make) in dense.items():
        table.append(Entry(ours + "kernel", (theirs + "weight",), make))
        table.append(Entry(ours + "bias", (theirs + "bias",), keep))
    for ours, theirs in norms.items():
        table.append(Entry(ours + "scale", (theirs + "weight",), keep))
        table.append(Entry(ours + "bias", (theirs + "bias",), keep))
    for part in ("query", "key", "value"):
        ours, theirs = f"{ATTENTION}{part}/", f"{block}attention.attention.{part}."
        table.append(Entry(ours + "kernel", (theirs + "weight",), by_head))
        if config.qkv_bias:
            table.append(Entry(ours + "bias", (theirs + "bias",), by_head))
    return table


def hugging_face_ignored(config: Config) -> dict[str, str]:
    """What of transformers' classifiers is left out."""
    return {r"pooler\.dense\.(weight|bias)": "a layer that the classifier skips"}


def hugging_face_travels(
    config: Config, keys: Collection[str], beside: Callable[[], Mapping[str, Any]]
) -> Config:
    """transformers' numerics, and DeiT's distillation token as a register."""
    registers = int("embeddings.distillation_token" in keys)
    config = dataclasses.replace(config, registers=max(registers, config.registers))
    return with_numerics(config, beside())


def own_entries(config: Config) -> list[Entry]:
    """Our own tree, as `vitjax convert` writes it."""
    table = [
        Entry(path, (path,), keep)
        for path in parameter_shapes(config, 1)
        if path != "pos_embedding"
    ]
    return [*table, Entry("pos_embedding", ("pos_embedding",), positions)]


KERNEL = ("kernel", "bias")
REFINEMENT = "transformerheads."


def google_ignored(config: Config) -> dict[str, str]:
    """What of an original checkpoint is left out: timm and the paper do so too."""
    return {
        "pre_logits/(kernel|bias)": "the representation layer",
        "(opt|extra|chrono)/.*|step": "the state of a training run",
    }


PRE_LINEN = ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
LINEN = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
FIRST = "Transformer/encoderblock_0/"

DIALECTS = (
    Dialect(
        name="vitjax's own layout",
        mark=re.escape(ATTENTION) + "query/kernel",
        entries=own_entries,
        resize="bicubic",
    ),
    Dialect(
        name="big_vision npz, stacked",
        mark=re.escape(ATTENTION) + "query/kernel",
        entries=own_entries,
        resize="corners",
        ignored=google_ignored,
        prefixes=("params/",),
        pools_first=False,
    ),
    Dialect(
        name="original npz, pre-Linen numbering",
        mark=f"{FIRST}{PRE_LINEN[0]}/query/kernel",
        entries=google_entries(*PRE_LINEN),
        resize="corners",
        ignored=google_ignored,
        prefixes=("", "opt/target/", "params/"),
        pools_first=False,
    ),
    Dialect(
        name="original npz, Linen numbering",
        mark="Transformer/posembed_input/pos_embedding",
        entries=google_entries(*LINEN),
        resize="corners",
        ignored=google_ignored,
        prefixes=("", "opt/target/", "params/"),
        pools_first=False,
    ),
    Dialect(
        name="big_vision npz",
        mark=f"{FIRST}{LINEN[0]}/query/kernel",
        entries=google_entries(*LINEN, position="pos_embedding"),
        resize="corners",
        ignored=google_ignored,
        prefixes=("params/", ""),
        pools_first=False,
    ),
    Dialect(
        name="timm state dict",
        mark=r"blocks\.0\.attn\.qkv\.weight",
        entries=timm_entries,
        resize="bicubic",
        ignored=timm_ignored,
        prefixes=("", "model.", "module."),
        head="head.bias",
    ),
    Dialect(
        name="Hugging Face state dict",
        mark=r"encoder\.layer\.0\.attention\.attention\.query\.weight",
        entries=hugging_face_entries,
        resize="plain_bicubic",
        ignored=hugging_face_ignored,
        prefixes=("vit.", "deit."),
        head="classifier.bias",
        travels=hugging_face_travels,
    ),
)
