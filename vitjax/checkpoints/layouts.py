"""Checkpoint layouts: how each library names and shapes a ViT's arrays.

One table per layout: path of a parameter -> (key in the file, conversion). "{block}" in
a key stands for the block's number, "{refined}" for that of a block with a refinement
module; parameters are stacked over blocks.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vitjax.checkpoints.huggingface import with_numerics
from vitjax.checkpoints.positions import resize_positions
from vitjax.models.model import parameter_shapes
from vitjax.types import Config

BLOCK = "Transformer/encoderblock/"
ATTENTION, MLP = BLOCK + "MultiHeadDotProductAttention_0/", BLOCK + "MlpBlock_0/"
NORM = "Transformer/encoder_norm/"
REFINEMENT = "transformerheads."
LAST_BLOCKS_WITHOUT = {"{block}": 0, "{refined}": 1}
"""Placeholder -> how many blocks at the end have no such key."""


class Target(NamedTuple):
    """The architecture that arrays are converted for, and how positions are resized.

    `source_config` is that which the file was written for, where it is known: it tells
    the grid of its position embeddings.
    """

    config: Config
    source_config: Config | None
    resize: str


Convert = Callable[[np.ndarray, Target], np.ndarray]
Table = dict[str, tuple[str, Convert]]


@dataclasses.dataclass(frozen=True)
class CheckpointLayout:
    """One way in which a ViT's arrays are named and shaped on disk.

    `mark` is the pattern of a key that only this layout has, `ignored` maps patterns of
    keys that are left out to what they are, `prefixes` may stand before all keys, and
    `head` is the head's bias. `pools_first`: its library, without [CLS], normalizes
    after pooling, as this model does. `adjust_config(config, keys without the prefix,
    reader of the config.json in the same folder)` sets the fields that the file
    decides.
    """

    name: str
    mark: str
    table: Callable[[Config], Table]
    resize: str
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefixes: tuple[str, ...] = ("",)
    head: str = "head/bias"
    pools_first: bool = True
    adjust_config: Callable[..., Config] = lambda config, keys, read: config


def identity(array, target):
    """As it is."""
    return array


def transpose(array, target):
    """A torch matrix [out in] as a kernel [in out]."""
    return array.T


def convolution(array, target):
    """A torch convolution [out in row column] as [row column in out]."""
    return array.transpose(2, 3, 1, 0)


def attention_out(array, target):
    """A torch output projection [dim, head x key] as [head key dim]."""
    return array.T.reshape(target.config.heads, -1, array.shape[0])


def split_heads(array, target):
    """A torch projection [head x key, dim], or its bias, split by head."""
    return array.T.reshape(*array.shape[1:], target.config.heads, -1)


def split_qkv(index: int) -> Convert:
    """Query, key or value out of torch's joint projection."""
    return lambda array, target: split_heads(np.split(array, 3)[index], target)


def flax_table(config: Config, rename: Mapping[str, str] | None = None) -> Table:
    """Our own parameter tree, with parts of its paths renamed."""
    table: Table = {}
    for path in parameter_shapes(config, 1):
        key = path
        for part, name in (rename or {}).items():
            key = key.replace(part, name)
        table[path] = (key, identity)
    key, _ = table["pos_embedding"]
    return table | {"pos_embedding": (key, resize_positions)}


POSITION = {"pos_embedding": "Transformer/posembed_input/pos_embedding"}
LINEN = {BLOCK: "Transformer/encoderblock_{block}/"}
PRE_LINEN = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
}
"""Modules of a block in the original code, numbered all together."""
GOOGLE: Any = dict(
    resize="corners",
    ignored={
        "pre_logits/(kernel|bias)": "the representation layer; timm and the paper too",
        "(opt|extra|chrono)/.*|step": "the state of a training run",
    },
    pools_first=False,
)


def torch_table(
    dense: Mapping[str, tuple[str, Convert]], norms: Mapping[str, str]
) -> Table:
    """Weights and biases of dense layers and norms, by their prefixes."""
    table: Table = {}
    for target, (source, convert) in dense.items():
        table[target + "kernel"] = (source + "weight", convert)
        table[target + "bias"] = (source + "bias", identity)
    for target, source in norms.items():
        table[target + "scale"] = (source + "weight", identity)
        table[target + "bias"] = (source + "bias", identity)
    return table


def timm_table(config: Config) -> Table:
    """timm's and DeiT's state dict."""
    block, qkv = "blocks.{block}.", "blocks.{block}.attn.qkv."
    dense = {
        "head/": ("head.", transpose),
        "embedding/": ("patch_embed.proj.", convolution),
        ATTENTION + "out/": (block + "attn.proj.", attention_out),
        MLP + "Dense_0/": (block + "mlp.fc1.", transpose),
        MLP + "Dense_1/": (block + "mlp.fc2.", transpose),
    }
    norms = {
        BLOCK + "LayerNorm_0/": block + "norm1.",
        BLOCK + "LayerNorm_1/": block + "norm2.",
        NORM: "norm." if config.class_token else "fc_norm.",
    }
    table: Table = {"pos_embedding": ("pos_embed", resize_positions)}
    for index, part in enumerate(("query", "key", "value")):
        table[f"{ATTENTION}{part}/kernel"] = (qkv + "weight", split_qkv(index))
        if config.qkv_bias:
            table[f"{ATTENTION}{part}/bias"] = (qkv + "bias", split_qkv(index))
    if config.layer_scale:
        table[BLOCK + "LayerScale_0/gamma"] = (block + "ls1.gamma", identity)
        table[BLOCK + "LayerScale_1/gamma"] = (block + "ls2.gamma", identity)
    if config.class_token:
        table["cls"] = ("cls_token", identity)
    if config.registers:
        table["registers"] = ("reg_token", identity)
    if config.refinement:  # the modules of Naseer et al.
        head = REFINEMENT + "{refined}."
        dense["refinement/token/"] = (head + "token_fc.", transpose)
        norms["refinement/norm/"] = head + "bn."
        table["refinement/norm/mean"] = (head + "bn.running_mean", identity)
        table["refinement/norm/var"] = (head + "bn.running_var", identity)
        table["refinement/conv/kernel"] = (head + "conv.weight", convolution)
    return table | torch_table(dense, norms)


def hugging_face_table(config: Config) -> Table:
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
        NORM: "layernorm.",
    }
    table: Table = {
        "pos_embedding": ("embeddings.position_embeddings", resize_positions)
    }
    for part in ("query", "key", "value"):
        target, source = f"{ATTENTION}{part}/", f"{block}attention.attention.{part}."
        table[target + "kernel"] = (source + "weight", split_heads)
        if config.qkv_bias:
            table[target + "bias"] = (source + "bias", split_heads)
    if config.class_token:
        table["cls"] = ("embeddings.cls_token", identity)
    if config.registers:  # DeiT's second prefix token, without its own head
        table["registers"] = ("embeddings.distillation_token", identity)
    return table | torch_table(dense, norms)


def hugging_face_config(config: Config, keys, read_config_json) -> Config:
    """transformers' numerics, and DeiT's distillation token as a register."""
    registers = int("embeddings.distillation_token" in keys)
    config = dataclasses.replace(config, registers=max(registers, config.registers))
    return with_numerics(config, read_config_json())


FIRST = "Transformer/encoderblock_0/"

LAYOUTS = (
    CheckpointLayout(
        name="vitjax's own layout",
        mark=re.escape(ATTENTION) + "query/kernel",
        table=flax_table,
        resize="bicubic",
    ),
    CheckpointLayout(
        name="big_vision npz, stacked",
        mark=re.escape(ATTENTION) + "query/kernel",
        table=flax_table,
        prefixes=("params/",),
        **GOOGLE,
    ),
    CheckpointLayout(
        name="original npz, pre-Linen numbering",
        mark=FIRST + "MultiHeadDotProductAttention_1/query/kernel",
        table=functools.partial(flax_table, rename=LINEN | PRE_LINEN | POSITION),
        prefixes=("", "opt/target/", "params/"),
        **GOOGLE,
    ),
    CheckpointLayout(
        name="original npz, Linen numbering",
        mark="Transformer/posembed_input/pos_embedding",
        table=functools.partial(flax_table, rename=LINEN | POSITION),
        prefixes=("", "opt/target/", "params/"),
        **GOOGLE,
    ),
    CheckpointLayout(
        name="big_vision npz",
        mark=FIRST + "MultiHeadDotProductAttention_0/query/kernel",
        table=functools.partial(flax_table, rename=LINEN),
        prefixes=("params/", ""),
        **GOOGLE,
    ),
    CheckpointLayout(
        name="timm state dict",
        mark=r"blocks\.0\.attn\.qkv\.weight",
        table=timm_table,
        resize="bicubic",
        ignored={re.escape(REFINEMENT) + ".*": "refinement, unless the Config has it"},
        prefixes=("", "model.", "module."),
        head="head.bias",
    ),
    CheckpointLayout(
        name="Hugging Face state dict",
        mark=r"encoder\.layer\.0\.attention\.attention\.query\.weight",
        table=hugging_face_table,
        resize="plain_bicubic",
        ignored={r"pooler\.dense\.(weight|bias)": "a layer that the classifier skips"},
        prefixes=("vit.", "deit."),
        head="classifier.bias",
        adjust_config=hugging_face_config,
    ),
)
