"""timm's folders on the Hugging Face hub: architecture, class names, preprocessing."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from vitjax import messages
from vitjax.checkpoints import json_fields as read
from vitjax.checkpoints.convert import Checkpoint
from vitjax.checkpoints.files import CheckpointError
from vitjax.checkpoints.huggingface import ADVICE
from vitjax.data.images import Interpolation, Preprocess
from vitjax.data.labels import Labels
from vitjax.types import Config

FAMILIES = ("vit_", "deit_", "deit3_")
"""How names of models begin that are plain Vision Transformers."""

HEADS = {
    ("tiny", 192): 3,
    ("xsmall", 256): 4,
    ("wee", 256): 4,
    ("little", 320): 5,
    ("small", 384): 6,
    ("medium", 512): 8,
    ("betwixt", 640): 10,
    ("base", 768): 12,
    ("so150m", 896): 14,
    ("large", 1024): 16,
    ("so400m", 1152): 16,
    ("huge", 1280): 16,
    ("giant", 1408): 16,
    ("giant", 1536): 24,
    ("gigantic", 1664): 16,
}
"""The size in a name, and the width -> attention heads, which no array tells."""

WITHOUT_EFFECT = {
    *("num_classes", "in_chans", "img_size", "patch_size", "embed_dim", "depth"),
    *("mlp_ratio", "qkv_bias", "qk_norm", "init_values", "class_token", "reg_tokens"),
    *("no_embed_class", "fc_norm", "drop_rate", "pos_drop_rate", "patch_drop_rate"),
    *("proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init"),
    *("dynamic_img_size", "strict_img_size", "global_pool", "num_heads", "act_layer"),
    *("pretrained", "pretrained_strict", "features_only", "scriptable", "exportable"),
}
"""Arguments of a model that its arrays show as well, or that the logits do not need."""

GELUS: dict[str, Literal["erf", "tanh"]] = {"gelu": "erf", "gelu_tanh": "tanh"}
"""timm's name of an activation -> `Config.gelu`."""


def describes(config_json: Mapping[str, Any]) -> bool:
    """Whether a config.json is timm's."""
    return isinstance(config_json.get("architecture"), str)


def pretrained(config_json: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about preprocessing and classes; older files have nothing else."""
    return section(config_json, "pretrained_cfg") or config_json


def section(config_json: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """A nested object; empty where it is absent."""
    value = config_json.get(field) or {}
    if not isinstance(value, Mapping):
        raise read.wrong(field, value, "an object")
    return value


def architecture(config_json: Mapping[str, Any], checkpoint: Checkpoint) -> Config:
    """The architecture by a config.json and the arrays themselves."""
    name, arguments = config_json["architecture"], section(config_json, "model_args")
    arrays = checkpoint.arrays
    unknown = {key for key, value in arguments.items() if value not in (None, False)}
    if not name.startswith(FAMILIES) or unknown - WITHOUT_EFFECT:
        odd = sorted(unknown - WITHOUT_EFFECT)
        raise CheckpointError(
            f"The architecture {name!r}{f' with {odd[0]}' if odd else ''} is none that "
            "vitjax knows of timm. If it is a plain Vision Transformer, give its "
            "vitjax.Config and the folder as checkpoint=."
        )

    def shape(key: str, axes: int) -> tuple[int, ...]:
        if key not in arrays or len(arrays[key]().shape) != axes:
            raise CheckpointError(
                f"The checkpoint has no array {key} with {axes} axes, which a Vision "
                "Transformer of timm has."
            )
        return arrays[key]().shape

    dim, channels, patch_size, _ = shape("patch_embed.proj.weight", 4)
    heads = arguments.get("num_heads")
    if heads is None:
        heads = next((HEADS[k] for k in HEADS if k[0] in name and k[1] == dim), None)
    if heads is None:
        raise CheckpointError(
            f"How many attention heads {name!r} of width {dim} has is not known: give "
            "a vitjax.Config, and the folder as checkpoint=."
        )
    check_pooling(config_json, "cls_token" in arrays)
    blocks = {key.split(".")[1] for key in arrays if key.startswith("blocks.")}
    registers = shape("reg_token", 3)[1] if "reg_token" in arrays else 0
    config = Config(
        image_size=image_size(config_json),
        patch_size=patch_size,
        dim=dim,
        depth=len(blocks),
        heads=read.integer("num_heads", heads),
        mlp_dim=shape("blocks.0.mlp.fc2.weight", 2)[1],
        class_token="cls_token" in arrays,
        registers=registers,
        norm="residual_post" if "_rpn_" in name else "pre",
        qkv_bias="blocks.0.attn.qkv.bias" in arrays,
        gelu=gelu(config_json),
        epsilon=1e-6,
        channels=channels,
    )
    return checkpoint.adjust(config)


def gelu(config_json: Mapping[str, Any]) -> Literal["erf", "tanh"]:
    """`Config.gelu` of an architecture."""
    act = section(config_json, "model_args").get("act_layer")
    if act is None:
        act = "quickgelu" if "quickgelu" in config_json["architecture"] else "gelu"
    if not isinstance(act, str) or act not in GELUS:
        raise CheckpointError(messages.unknown("act_layer", act, GELUS))
    return GELUS[act]


def image_size(config_json: Mapping[str, Any]) -> int | tuple[int, int]:
    """The image size that the position embeddings are of."""
    return read.image_size("img_size", input_size(config_json)[1:])


def check_pooling(config_json: Mapping[str, Any], class_token: bool) -> None:
    """Raise CheckpointError unless the head reads [CLS], or the mean without one."""
    arguments = section(config_json, "model_args")
    pool = arguments.get("global_pool") or config_json.get("global_pool")
    if pool not in (None, "token" if class_token else "avg"):
        raise CheckpointError(
            f"global_pool={pool!r} is not supported of a model "
            f"{'with' if class_token else 'without'} a class token."
        )


def input_size(config_json: Mapping[str, Any]) -> tuple[int, int, int]:
    """(channels, height, width) of the input."""
    size = pretrained(config_json).get("input_size") or (3, 224, 224)
    if not isinstance(size, list | tuple) or len(size) != 3:
        raise read.wrong("input_size", size, "channels, height and width")
    sides = section(config_json, "model_args").get("img_size") or size[1:]
    channels = section(config_json, "model_args").get("in_chans") or size[0]
    height, width = read.height_and_width("img_size", sides)
    return read.integer("in_chans", channels), height, width


def labels(config_json: Mapping[str, Any]) -> Labels:
    """Class names and ids; empty where the file has none."""
    fields = {**pretrained(config_json), **config_json}
    ids = read.class_names(
        "label_names", fields.get("label_names") or fields.get("labels")
    )
    words = section(fields, "label_descriptions")
    names = tuple(read.class_name(words.get(each, each)) for each in ids)
    return names, ids if len(set(ids)) == len(ids) else read.unique_ids(ids)


def preprocessing(config_json: Mapping[str, Any]) -> Preprocess:
    """timm's pipeline of evaluation.

    Raises:
        ValueError: it describes something that `Preprocess` cannot.
    """
    fields = pretrained(config_json)
    _, height, width = input_size(config_json)

    def get(field: str, default: Any) -> Any:
        return fields.get(field) or default

    interpolation, mode = get("interpolation", "bicubic"), get("crop_mode", "center")
    if interpolation not in get_args(Interpolation) or mode not in ("center", "squash"):
        raise CheckpointError(
            f"interpolation={interpolation!r} with crop_mode={mode!r} is not "
            f"supported. {ADVICE}"
        )
    share = read.number("crop_pct", get("crop_pct", 0.875))
    if not 0 < share <= 1:
        raise read.wrong("crop_pct", share, "in (0, 1]")
    geometry: dict[str, Any] = {}
    sides = [math.floor(side / share) for side in (height, width)]
    if mode == "center" or sides != [height, width]:
        if height != width:
            raise CheckpointError(
                f"A crop of {height} x {width} pixels is not supported. {ADVICE}"
            )
        geometry["resize"] = "shorter" if mode == "center" else "square"
        geometry["resize_size"] = sides[0]
    std = read.colors("std", get("std", (0.229, 0.224, 0.225)))
    if min(std) <= 0:
        raise CheckpointError(f"std={std} must be positive.")
    return Preprocess(
        height,
        width,
        **geometry,
        interpolation=interpolation,
        mean=read.colors("mean", get("mean", (0.485, 0.456, 0.406))),
        std=std,
    )
