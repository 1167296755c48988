"""Checkpoint layouts: how each library names and shapes a ViT's arrays.

One table per layout: path of a parameter -> (key in the file, conversion). "{block}" in
a key stands for the block's number, "{refined}" for that of a block with a refinement
module; parameters are stacked over blocks.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from vitjax.checkpoints.files import Arrays
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
    the grid of its position embeddings. `prefixes` are the numbers of prefix tokens
    that may have a position in the file.
    """

    config: Config
    source_config: Config | None
    resize: str
    prefixes: tuple[int, ...]


Convert = Callable[[np.ndarray, Target], np.ndarray]
Table = dict[str, tuple[str, Convert]]
Keys = Collection[str]


@dataclasses.dataclass(frozen=True)
class CheckpointLayout:
    """One way in which a ViT's arrays are named and shaped on disk.

    `mark` is the pattern of a key that only this layout has, and `prefix` of what may
    stand before it; keys are meant without their prefix. `rename` maps patterns to
    replacements, for libraries that renamed their arrays. `table(config, keys)` gives
    the arrays of an architecture, `adjust(config, arrays)` the architecture of a file
    that has more than the one that was given. `ignored` maps patterns of keys that are
    left out to what they are. `head` holds the biases that a head may have.
    `positions` are the prefix tokens with a position of their own: all, only the
    "class" token, or none. `pools_first`: its library, without [CLS], normalizes
    after pooling, as this model does.
    """

    name: str
    library: str
    mark: str
    table: Callable[[Config, Keys], Table]
    resize: str
    prefix: str = r"(?:.*[./])?"
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    head: tuple[str, ...] = ("head/bias",)
    positions: tuple[Literal["all", "class", "none"], ...] = ("all",)
    pools_first: bool = True
    adjust: Callable[[Config, Arrays], Config] = lambda config, arrays: config

    @property
    def pattern(self) -> re.Pattern:
        """Keys that mark the layout; the group is their prefix."""
        return re.compile(f"({self.prefix}){self.mark}")

    def position_prefixes(self, config: Config) -> tuple[int, ...]:
        """How many prefix tokens may have a position of their own in the file."""
        counts = {"all": config.prefix, "class": int(config.class_token), "none": 0}
        return tuple(dict.fromkeys(counts[kind] for kind in self.positions))


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


def half(index: int) -> Convert:
    """One of the two matrices of a SwiGLU that torch has in one, or of their biases."""
    return lambda array, target: np.split(array, 2)[index].T


def split_qkv(index: int) -> Convert:
    """Query, key or value out of torch's joint projection."""
    return lambda array, target: split_heads(np.split(array, 3)[index], target)


def flax_table(
    config: Config, keys: Keys = (), *, rename: Mapping[str, str] | None = None
) -> Table:
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
    library="google",
    resize="corners",
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


def timm_table(config: Config, keys: Keys) -> Table:
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
    if config.qk_norm:
        norms[ATTENTION + "query_norm/"] = block + "attn.q_norm."
        norms[ATTENTION + "key_norm/"] = block + "attn.k_norm."
    if config.layer_scale:
        table[BLOCK + "LayerScale_0/gamma"] = (block + "ls1.gamma", identity)
        table[BLOCK + "LayerScale_1/gamma"] = (block + "ls2.gamma", identity)
    if config.class_token:
        table["cls"] = ("cls_token", identity)
    if config.registers:
        token = "dist_token" if "dist_token" in keys else "reg_token"
        table["registers"] = (token, identity)
    if config.distilled:
        dense["head_dist/"] = ("head_dist.", transpose)
    if config.refinement:  # the modules of Naseer et al.
        head = REFINEMENT + "{refined}."
        dense["refinement/token/"] = (head + "token_fc.", transpose)
        norms["refinement/norm/"] = head + "bn."
        table["refinement/norm/mean"] = (head + "bn.running_mean", identity)
        table["refinement/norm/var"] = (head + "bn.running_var", identity)
        table["refinement/conv/kernel"] = (head + "conv.weight", convolution)
    table |= torch_table(dense, norms)
    if config.mlp == "swiglu":
        split = "blocks.0.mlp.fc1_g.weight" in keys
        for index, (module, name) in enumerate((("Dense_0", "fc1_g"), ("up", "fc1_x"))):
            source = f"{block}mlp.{name if split else 'fc1'}."
            for leaf, key in (("kernel", "weight"), ("bias", "bias")):
                convert = transpose if split else half(index)
                table[f"{MLP}{module}/{leaf}"] = (source + key, convert)
    return table


def packed_swiglu(arrays: Arrays) -> bool:
    """Whether the first layer of an MLP gives twice what the second one takes."""
    first, second = (f"blocks.0.mlp.fc{number}.weight" for number in (1, 2))
    if first not in arrays or second not in arrays:
        return False
    return arrays[first]().shape[:1] == (2 * arrays[second]().shape[-1],)


def timm_config(config: Config, arrays: Arrays) -> Config:
    """The architecture with those parts that the file has beyond it."""
    changes: dict[str, Any] = {}
    if "blocks.0.ls1.gamma" in arrays:
        changes["layer_scale"] = True
    if "blocks.0.attn.q_norm.weight" in arrays:
        changes["qk_norm"] = True
    if "blocks.0.mlp.fc1_g.weight" in arrays or packed_swiglu(arrays):
        changes["mlp"] = "swiglu"
    if "dist_token" in arrays:
        changes["registers"] = max(1, config.registers)
        changes["distilled"] = "head_dist.bias" in arrays or config.distilled
    return dataclasses.replace(config, **changes)


def hugging_face_table(config: Config, keys: Keys) -> Table:
    """transformers' ViT and DeiT for image classification."""
    block = "encoder.layer.{block}."
    dense = {
        "head/": ("cls_classifier." if config.distilled else "classifier.", transpose),
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
    if config.registers:
        table["registers"] = ("embeddings.distillation_token", identity)
    if config.distilled:
        dense["head_dist/"] = ("distillation_classifier.", transpose)
    return table | torch_table(dense, norms)


def hugging_face_config(config: Config, arrays: Arrays) -> Config:
    """DeiT's distillation token is a register, with or without a head of its own."""
    if "embeddings.distillation_token" not in arrays:
        return config
    distilled = "distillation_classifier.bias" in arrays or config.distilled
    registers = max(1, config.registers)
    return dataclasses.replace(config, registers=registers, distilled=distilled)


FIRST = "Transformer/encoderblock_0/"

LAYOUTS = (
    CheckpointLayout(
        name="vitjax's own layout",
        library="vitjax",
        mark=re.escape(ATTENTION) + "query/kernel",
        table=flax_table,
        resize="bicubic",
        prefix="",
    ),
    CheckpointLayout(
        name="big_vision npz, stacked",
        mark=re.escape(ATTENTION) + "query/kernel",
        table=flax_table,
        positions=("none",),
        **GOOGLE,
    ),
    CheckpointLayout(
        name="original npz, pre-Linen numbering",
        mark=FIRST + "MultiHeadDotProductAttention_1/query/kernel",
        table=functools.partial(flax_table, rename=LINEN | PRE_LINEN | POSITION),
        **GOOGLE,
    ),
    CheckpointLayout(
        name="original npz, Linen numbering",
        mark="Transformer/posembed_input/pos_embedding",
        table=functools.partial(flax_table, rename=LINEN | POSITION),
        **GOOGLE,
    ),
    CheckpointLayout(
        name="big_vision npz",
        mark=FIRST + "MultiHeadDotProductAttention_0/query/kernel",
        table=functools.partial(flax_table, rename=LINEN),
        positions=("none",),
        **GOOGLE,
    ),
    CheckpointLayout(
        name="timm state dict",
        library="timm",
        mark=r"blocks\.0\.attn\.qkv\.weight",
        table=timm_table,
        resize="bicubic",
        rename={  # DeiT III; DINOv2
            r"\.gamma_([12])$": r".ls\1.gamma",
            r"\.mlp\.w12\.": ".mlp.fc1.",
            r"\.mlp\.w3\.": ".mlp.fc2.",
        },
        ignored={
            re.escape(REFINEMENT) + ".*": "refinement, unless the Config has it",
            "mask_token": "the mask token of pre-training",
        },
        head=("head.bias",),
        positions=("all", "class", "none"),
        adjust=timm_config,
    ),
    CheckpointLayout(
        name="Hugging Face state dict",
        library="huggingface",
        mark=r"(?:encoder\.layer|layers)\.0\.attention\."
        r"(?:attention\.query|q_proj)\.weight",
        table=hugging_face_table,
        resize="plain_bicubic",
        rename={  # transformers 5
            r"^layers\.": "encoder.layer.",
            r"\.attention\.([qkv])_proj\.": r".attention.attention.\1_proj.",
            r"\.q_proj\.": ".query.",
            r"\.k_proj\.": ".key.",
            r"\.v_proj\.": ".value.",
            r"\.attention\.o_proj\.": ".attention.output.dense.",
            r"\.mlp\.fc1\.": ".intermediate.dense.",
            r"\.mlp\.fc2\.": ".output.dense.",
        },
        ignored={
            r"pooler\.dense\.(weight|bias)": "a layer that the classifier skips",
            r"embeddings\.mask_token": "the mask token of pre-training",
        },
        head=("classifier.bias", "cls_classifier.bias"),
        adjust=hugging_face_config,
    ),
)
