"""Checkpoint layouts: how each library names and shapes a ViT's arrays.

One table per layout: path of a parameter -> (key in the file, conversion), or a number
that fills a parameter which the library has not. "{block}" in a key stands for the
block's number, "{refined}" for that of a block with a refinement module; parameters are
stacked over blocks. A table holds every path that the layout may have; those that an
architecture has not are left out.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from vitjax.checkpoints.files import Arrays, CheckpointError
from vitjax.checkpoints.positions import resize_positions
from vitjax.models.model import parameter_shapes
from vitjax.types import Config

BLOCK = "Transformer/encoderblock/"
ATTENTION, MLP = BLOCK + "MultiHeadDotProductAttention_0/", BLOCK + "MlpBlock_0/"
NORM, MAP = "Transformer/encoder_norm/", "MAPHead_0/"
QKV = ("query", "key", "value")
REFINEMENT = "transformerheads."
MASK_TOKEN = "the mask token of pre-training"
TEXT, SCALE = "the text tower", "the scale of a text tower's logits"
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
Table = dict[str, tuple[str, Convert] | float]
Keys = Collection[str]


@dataclasses.dataclass(frozen=True)
class CheckpointLayout:
    """One way in which a ViT's arrays are named and shaped on disk.

    `mark` is the pattern of a key that only this layout has, and `prefix` of what may
    stand before it; keys are meant without their prefix. `rename` maps patterns to
    replacements, for libraries that renamed their arrays. `table(config, keys)` gives
    the arrays of an architecture, `adjust(config, arrays)` what of the architecture is
    the library's own, beyond the parts that the file shows. `ignored` maps patterns of
    keys that are left out to what they are. `head` is the start of the keys of a linear
    head.
    `positions` are the prefix tokens with a position of their own: all, only the
    "class" token, or none. `numerics` are fields of `Config` that the library assumes
    where no description lies beside the file.
    """

    name: str
    library: str
    mark: str
    table: Callable[[Config, Keys], Table]
    resize: str = "bicubic"
    prefix: str = r"(?:.*[./])?"
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    head: str = "head."
    positions: tuple[Literal["all", "class", "none"], ...] = ("all",)
    adjust: Callable[[Config, Arrays], Config] = lambda config, arrays: config
    numerics: Mapping[str, Any] = dataclasses.field(default_factory=dict)

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


def part(index: int, count: int, convert: Convert) -> Convert:
    """One of several matrices that torch has in one, or of their biases."""
    return lambda array, target: convert(np.split(array, count)[index], target)


def token(array, target):
    """[dim] as a token [1 1 dim]."""
    return array.reshape(1, 1, -1)


def scalar(array, target):
    """[1] or [] as []."""
    return array.reshape(())


def exponential(array, target):
    """The factor whose logarithm the file holds."""
    return np.asarray(np.exp(array.reshape(())))


CONVERSIONS: dict[str, Convert] = {
    "pos_embedding": resize_positions,
    "cls": token,
    "embedding": convolution,
    "conv": convolution,
    "out": attention_out,
    **dict.fromkeys(QKV, split_heads),
}
"""Module, or array of none -> how torch's becomes ours; other modules are dense."""


def flax_table(
    config: Config, keys: Keys = (), *, rename: Mapping[str, str] | None = None
) -> Table:
    """Our own parameter tree, with parts of its paths renamed."""
    table: Table = {}
    for path in parameter_shapes(config, 1):
        key = path
        for of_ours, of_theirs in (rename or {}).items():
            key = key.replace(of_ours, of_theirs)
        table[path] = (key, resize_positions if path == "pos_embedding" else identity)
    return table


POSITION = {"pos_embedding": "Transformer/posembed_input/pos_embedding"}
LINEN = {BLOCK: "Transformer/encoderblock_{block}/"}
PRE_LINEN = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
}
"""Modules of a block in the original code, numbered all together."""
MAP_HEAD = {f"{MAP}{n}": f"{MAP}MlpBlock_0/{n}" for n in ("Dense_0", "Dense_1")} | {
    f"{MAP}{n}/": f"{MAP}MultiHeadDotProductAttention_0/{n}/" for n in (*QKV, "out")
}


def google_config(config: Config, arrays: Arrays) -> Config:
    """The original code and big_vision average normalized tokens."""
    if config.pooling == "mean" and config.norm == "pre":
        return dataclasses.replace(config, pool_norm="before")
    return config


def scales(temperature: str, bias: str, keys: Keys) -> Table:
    """Temperature and bias of all class logits; 1 and 0 in a file without its text."""
    return {
        "head/temperature": (temperature, exponential) if temperature in keys else 1.0,
        "head/logit_bias": (bias, scalar) if bias in keys else 0.0,
    }


def google(name: str, mark: str, rename: Mapping[str, str], **fields: Any):
    """A layout of the original code or of big_vision."""

    def table(config: Config, keys: Keys) -> Table:
        ours = flax_table(config, rename={**rename, **MAP_HEAD})
        return ours | scales("t", "b", keys)  # which SigLIP has outside

    old_pooling = r"^(probe$|(?:MlpBlock|LayerNorm|MultiHeadDotProductAttention)_0/)"
    return CheckpointLayout(
        name=name,
        library="google",
        mark=mark,
        table=table,
        resize="corners",
        rename={old_pooling: MAP + r"\1"},
        ignored={r"txt/.*": TEXT, "[tb]": SCALE},
        head="head/",
        adjust=google_config,
        **fields,
    )


def torch_table(names: Mapping[str, str]) -> Table:
    """Arrays by their keys; modules, which end in "/", by the beginnings of theirs."""
    table: Table = {}
    for target, source in names.items():
        module = target.removesuffix("/").rsplit("/", 1)[-1]
        convert = CONVERSIONS.get(module, transpose)
        if not target.endswith("/"):
            table[target] = (source, CONVERSIONS.get(module, identity))
        elif "norm" in module.lower():
            table[target + "scale"] = (source + "weight", identity)
            table[target + "bias"] = (source + "bias", identity)
        else:
            bias = split_heads if convert is split_heads else identity
            table[target + "kernel"] = (source + "weight", convert)
            table[target + "bias"] = (source + "bias", bias)
    return table


def joint_table(target: str, names: tuple[str, ...], source: str) -> Table:
    """Projections of attention that torch has in one matrix and one bias."""
    table: Table = {}
    for index, name in enumerate(names):
        convert = part(index, len(names), split_heads)
        table[f"{target}{name}/kernel"] = (source + "weight", convert)
        table[f"{target}{name}/bias"] = (source + "bias", convert)
    return table


def swiglu_table(block: str, joint: str, apart: tuple[str, str], keys: Keys) -> Table:
    """The gate and the other factor of SwiGLU, which a file has joint or apart."""
    table: Table = {}
    split = (block + apart[0] + "weight").replace("{block}", "0") in keys
    for index, module in enumerate(("Dense_0", "up")):
        source = block + (apart[index] if split else joint)
        convert = transpose if split else part(index, 2, transpose)
        table[f"{MLP}{module}/kernel"] = (source + "weight", convert)
        table[f"{MLP}{module}/bias"] = (source + "bias", convert)
    return table


def head_table(head: str) -> Table:
    """A linear head: of [CLS] of the last blocks, then of the mean of the patches."""

    def columns(part: Callable[[Config], Any]) -> tuple[str, Convert]:
        def convert(array, target):
            parts = target.config.head_blocks + (target.config.pooling == "cls_mean")
            by_part = array.reshape(len(array), parts, -1).transpose(1, 2, 0)
            return by_part[part(target.config)]

        return head + "weight", convert

    return {
        "head/kernel": columns(lambda config: config.head_blocks - 1),
        "head/bias": (head + "bias", identity),
        "head_patches/kernel": columns(lambda config: -1),
        "head_earlier/kernel": columns(lambda config: slice(config.head_blocks - 1)),
    }


def timm_table(config: Config, keys: Keys) -> Table:
    """timm's and DeiT's state dict."""
    block, attention = "blocks.{block}.", "blocks.{block}.attn."
    refined = REFINEMENT + "{refined}."
    pooled_first = config.pooling == "mean" and config.pool_norm == "after"
    names = {
        "embedding/": "patch_embed.proj.",
        "pos_embedding": "pos_embed",
        "cls": "cls_token",
        "registers": "dist_token" if "dist_token" in keys else "reg_token",
        "embed_norm/": "norm_pre.",
        BLOCK + "LayerNorm_0/": block + "norm1.",
        ATTENTION + "query_norm/": attention + "q_norm.",
        ATTENTION + "key_norm/": attention + "k_norm.",
        ATTENTION + "out/": attention + "proj.",
        BLOCK + "LayerScale_0/gamma": block + "ls1.gamma",
        BLOCK + "LayerNorm_1/": block + "norm2.",
        MLP + "Dense_0/": block + "mlp.fc1.",
        MLP + "Dense_1/": block + "mlp.fc2.",
        BLOCK + "LayerScale_1/gamma": block + "ls2.gamma",
        NORM: "fc_norm." if pooled_first else "norm.",
        MAP + "probe": "attn_pool.latent",
        MAP + "query/": "attn_pool.q.",
        MAP + "out/": "attn_pool.proj.",
        MAP + "LayerNorm_0/": "attn_pool.norm.",
        MAP + "Dense_0/": "attn_pool.mlp.fc1.",
        MAP + "Dense_1/": "attn_pool.mlp.fc2.",
        "head_dist/": "head_dist.",
        "refinement/conv/": refined + "conv.",
        "refinement/norm/": refined + "bn.",
        "refinement/norm/mean": refined + "bn.running_mean",
        "refinement/norm/var": refined + "bn.running_var",
        "refinement/token/": refined + "token_fc.",
    }
    table: Table = {
        **torch_table(names),
        **joint_table(ATTENTION, QKV, attention + "qkv."),
        **joint_table(MAP, QKV[1:], "attn_pool.kv."),
        **head_table("head."),
        **scales("logit_scale", "logit_bias", keys),
    }
    if "blocks.0.attn.q_bias" in keys:  # keys have no bias
        for name in ("query", "value"):
            key = f"{attention}{name[0]}_bias"
            table[f"{ATTENTION}{name}/bias"] = (key, split_heads)
        table[f"{ATTENTION}key/bias"] = 0.0
    if config.projection is not None:  # it lies where a classifier has its head
        table["projection/kernel"] = ("head.weight", transpose)
        table |= {"head/kernel": 0.0, "head/bias": 0.0}
    if config.mlp == "swiglu":
        table |= swiglu_table(block, "mlp.fc1.", ("mlp.fc1_g.", "mlp.fc1_x."), keys)
    return table


def timm_config(config: Config, arrays: Arrays) -> Config:
    """The norm that a mean is taken before or after; a head that is a projection."""
    if config.projection is not None and np.any(arrays.get("head.bias", bool)()):
        raise CheckpointError(
            "The head has a bias, so it is no projection of CLIP: give a Config with "
            "projection=None and head='linear'."
        )
    if config.pooling == "mean" and "norm.weight" in arrays:
        return dataclasses.replace(config, pool_norm="before")
    return config


def hugging_face_table(config: Config, keys: Keys) -> Table:
    """transformers' ViT, DeiT and DINOv2, alone or with a classifier."""
    block, deit = "encoder.layer.{block}.", "embeddings.distillation_token"
    names = {
        "embedding/": "embeddings.patch_embeddings.projection.",
        "pos_embedding": "embeddings.position_embeddings",
        "cls": "embeddings.cls_token",
        "registers": deit if deit in keys else "embeddings.register_tokens",
        BLOCK + "LayerNorm_0/": block + "layernorm_before.",
        **{f"{ATTENTION}{n}/": f"{block}attention.attention.{n}." for n in QKV},
        ATTENTION + "out/": block + "attention.output.dense.",
        BLOCK + "LayerScale_0/gamma": block + "layer_scale1.lambda1",
        BLOCK + "LayerNorm_1/": block + "layernorm_after.",
        MLP + "Dense_0/": block + "intermediate.dense.",
        MLP + "Dense_1/": block + "output.dense.",
        BLOCK + "LayerScale_1/gamma": block + "layer_scale2.lambda1",
        NORM: "layernorm.",
        "head_dist/": "distillation_classifier.",
    }
    head = "cls_classifier." if config.distilled else "classifier."
    table: Table = torch_table(names) | head_table(head)
    if config.mlp == "swiglu":
        apart = "mlp.gate_proj.", "mlp.up_proj."
        table |= swiglu_table(block, "intermediate.dense.", apart, keys)
    return table


def hugging_face_clip_table(config: Config, keys: Keys) -> Table:
    """Vision towers of transformers' CLIP and SigLIP."""
    block = "encoder.layers.{block}."
    names = {
        "embedding/": "embeddings.patch_embedding.",
        "pos_embedding": "embeddings.position_embedding.weight",
        "cls": "embeddings.class_embedding",
        "embed_norm/": "pre_layrnorm.",  # their spelling
        BLOCK + "LayerNorm_0/": block + "layer_norm1.",
        **{f"{ATTENTION}{n}/": f"{block}self_attn.{n[0]}_proj." for n in QKV},
        ATTENTION + "out/": block + "self_attn.out_proj.",
        BLOCK + "LayerNorm_1/": block + "layer_norm2.",
        MLP + "Dense_0/": block + "mlp.fc1.",
        MLP + "Dense_1/": block + "mlp.fc2.",
        NORM: "post_layernorm.",
        MAP + "probe": "head.probe",
        MAP + "out/": "head.attention.out_proj.",
        MAP + "LayerNorm_0/": "head.layernorm.",
        MAP + "Dense_0/": "head.mlp.fc1.",
        MAP + "Dense_1/": "head.mlp.fc2.",
        "projection/": "visual_projection.",
    }
    return {
        **torch_table(names),
        **joint_table(MAP, QKV, "head.attention.in_proj_"),
        **head_table("classifier."),
        **scales("logit_scale", "logit_bias", keys),
    }


def hugging_face_clip_config(config: Config, arrays: Arrays) -> Config:
    """The width of a projection; what a classifier reads, which skips the pooling."""
    changes: dict[str, Any] = {}
    if "classifier.weight" in arrays:
        if config.embed_norm:
            raise CheckpointError(
                "The classifier of transformers' CLIPForImageClassification reads the "
                "mean of patches before the final norm, which no class space here "
                "does. Load the CLIP that it was made of, or fit a probe."
            )
        changes |= dict(pool="mean", pool_norm="before")
    if "visual_projection.weight" in arrays:
        width = arrays["visual_projection.weight"]().shape[0]
        changes |= dict(projection=width, head="cosine")
    return dataclasses.replace(config, **changes)


def open_clip_table(config: Config, keys: Keys) -> Table:
    """The image tower of open_clip and of OpenAI's CLIP."""
    block = "visual.transformer.resblocks.{block}."
    names = {
        "embedding/": "visual.conv1.",
        "pos_embedding": "visual.positional_embedding",
        "cls": "visual.class_embedding",
        "embed_norm/": "visual.ln_pre.",
        BLOCK + "LayerNorm_0/": block + "ln_1.",
        ATTENTION + "out/": block + "attn.out_proj.",
        BLOCK + "LayerScale_0/gamma": block + "ls_1.gamma",
        BLOCK + "LayerNorm_1/": block + "ln_2.",
        MLP + "Dense_0/": block + "mlp.c_fc.",
        MLP + "Dense_1/": block + "mlp.c_proj.",
        BLOCK + "LayerScale_1/gamma": block + "ls_2.gamma",
        NORM: "visual.ln_post.",
        "projection/kernel": "visual.proj",
    }
    return {
        **torch_table(names),
        **joint_table(ATTENTION, QKV, block + "attn.in_proj_"),
        **head_table("head."),
        **scales("logit_scale", "logit_bias", keys),
    }


def open_clip_config(config: Config, arrays: Arrays) -> Config:
    """The width of a projection; its convolution never has a bias."""
    config = dataclasses.replace(config, patch_bias=False)
    if "visual.proj" not in arrays:
        return config
    width = arrays["visual.proj"]().shape[1]
    return dataclasses.replace(config, projection=width, head="cosine")


FIRST = "Transformer/encoderblock_0/"
CHUNKED = {r"^blocks\.\d+\.(\d+)\.": r"blocks.\1."}
"""Blocks in groups, as DINOv2's training saves them."""

TIMM = CheckpointLayout(
    name="timm state dict",
    library="timm",
    mark=r"blocks\.0\.attn\.qkv\.weight",
    table=timm_table,
    rename={  # DeiT III; DINOv2
        r"\.gamma_([12])$": r".ls\1.gamma",
        r"\.mlp\.w12\.": ".mlp.fc1.",
        r"\.mlp\.w3\.": ".mlp.fc2.",
        r"^register_tokens$": "reg_token",
    },
    ignored={
        re.escape(REFINEMENT) + ".*": "refinement, unless the Config has it",
        r"head\.bias": "zeros, as a projection has no bias",
        "mask_token": MASK_TOKEN,
    },
    positions=("all", "class", "none"),
    adjust=timm_config,
)
HUGGING_FACE = CheckpointLayout(
    name="Hugging Face state dict",
    library="huggingface",
    mark=r"(?:encoder\.layer|layers)\.0\.attention\.(?:attention\.query|q_proj)\.weight",
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
        r"\.mlp\.(?:fc2|down_proj)\.": ".output.dense.",
        r"\.norm1\.": ".layernorm_before.",  # DINOv2
        r"\.norm2\.": ".layernorm_after.",
        r"\.mlp\.weights_in\.": ".intermediate.dense.",
        r"\.mlp\.weights_out\.": ".output.dense.",
    },
    ignored={
        r"pooler\.dense\.(weight|bias)": "a layer that the classifier skips",
        r"embeddings\.mask_token": MASK_TOKEN,
    },
    head="classifier.",
    numerics=dict(epsilon=1e-12, gelu="erf"),
)
HUGGING_FACE_DINO = dataclasses.replace(
    HUGGING_FACE,
    name="Hugging Face state dict of DINOv2",
    mark=r"(?:encoder\.layer|layers)\.0\.norm1\.weight",
    numerics=dict(epsilon=1e-6, gelu="erf"),
)

LAYOUTS = (
    CheckpointLayout(
        name="vitjax's own layout",
        library="vitjax",
        mark=re.escape(ATTENTION) + "query/kernel",
        table=flax_table,
        prefix="",
        head="head/",
    ),
    google(
        "big_vision npz, stacked",
        re.escape(ATTENTION) + "query/kernel",
        {},
        positions=("none",),
    ),
    google(
        "original npz, pre-Linen numbering",
        FIRST + "MultiHeadDotProductAttention_1/query/kernel",
        LINEN | PRE_LINEN | POSITION,
    ),
    google(
        "original npz, Linen numbering",
        "Transformer/posembed_input/pos_embedding",
        LINEN | POSITION,
    ),
    google(
        "big_vision npz",
        FIRST + "MultiHeadDotProductAttention_0/query/kernel",
        LINEN,
        positions=("none",),
    ),
    dataclasses.replace(
        HUGGING_FACE_DINO,
        name="Hugging Face state dict of DINOv2 with registers",
        mark=r"embeddings\.register_tokens",
        resize="bicubic",
        positions=("class",),
    ),
    HUGGING_FACE_DINO,
    HUGGING_FACE,
    CheckpointLayout(
        name="Hugging Face state dict of CLIP or SigLIP",
        library="huggingface",
        mark=r"embeddings\.patch_embedding\.weight",
        table=hugging_face_clip_table,
        resize="plain_bicubic",
        ignored={
            r"text_model\..*|text_projection\..*": TEXT,
            r"embeddings\.position_ids": "numbers of positions",
            "logit_scale|logit_bias": SCALE,
            r"head\..*": "attention pooling, which the classifier skips",
        },
        head="classifier.",
        adjust=hugging_face_clip_config,
    ),
    dataclasses.replace(
        TIMM,
        name="open_clip state dict with an image tower of timm",
        library="open_clip",
        prefix=r"(?:.*[./])?visual\.trunk\.",
        ignored={r"text\..*": TEXT, "logit_scale|logit_bias": SCALE},
    ),
    CheckpointLayout(
        name="open_clip state dict",
        library="open_clip",
        mark=r"visual\.transformer\.resblocks\.0\.attn\.in_proj_weight",
        table=open_clip_table,
        ignored={
            r"(?:text|transformer|token_embedding|ln_final)\..*": TEXT,
            r"positional_embedding|text_projection(?:\..*)?|attn_mask": TEXT,
            "input_resolution|context_length|vocab_size": "sizes",
            "logit_scale|logit_bias": SCALE,
        },
        adjust=open_clip_config,
    ),
    dataclasses.replace(
        TIMM,
        name="DINOv2 state dict with registers",
        library="dinov2",
        mark="register_tokens",
        rename={**CHUNKED, **TIMM.rename},
    ),
    dataclasses.replace(
        TIMM,
        name="DINOv2 state dict",
        library="dinov2",
        mark="mask_token",
        resize="offset_bicubic",
        rename={**CHUNKED, **TIMM.rename},
    ),
    TIMM,
)
