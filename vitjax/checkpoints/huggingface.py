"""Hugging Face folders: architecture, class names and preprocessing of ViT and DeiT."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from vitjax import messages
from vitjax.checkpoints.files import CheckpointError
from vitjax.data.images import Interpolation, Preprocess
from vitjax.types import Config

EPSILON = 1e-12
"""transformers' default for ViT and DeiT, for a file without its config.json."""

GELUS = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_fast": "tanh",
}
"""transformers' name of an activation -> `Config.gelu`."""


def architecture(config_json: Mapping[str, Any]) -> Config:
    """The architecture of a config.json; absent fields have transformers' default."""
    image = config_json.get("image_size", 224)
    patch = config_json.get("patch_size", 16)
    patches = {patch} if isinstance(patch, int) else set(patch)
    if len(patches) > 1:
        raise CheckpointError(f"Patches of {patch} pixels are not square.")
    config = Config(
        image_size=image if isinstance(image, int) else (image[0], image[1]),
        patch_size=patches.pop(),
        dim=config_json.get("hidden_size", 768),
        depth=config_json.get("num_hidden_layers", 12),
        heads=config_json.get("num_attention_heads", 12),
        mlp_dim=config_json.get("intermediate_size", 3072),
        registers=int(config_json["model_type"] == "deit"),
        qkv_bias=config_json.get("qkv_bias", True),
    )
    return with_numerics(config, config_json)


def with_numerics(config: Config, config_json: Mapping[str, Any]) -> Config:
    """The architecture with a config.json's epsilon and GELU; it may be empty."""
    act = config_json.get("hidden_act", "gelu")
    if act not in GELUS:
        raise CheckpointError(messages.unknown("hidden_act", act, GELUS))
    epsilon = float(config_json.get("layer_norm_eps", EPSILON))
    fields: dict[str, Any] = {"epsilon": epsilon, "gelu": GELUS[act]}
    return dataclasses.replace(config, **fields)


def class_names(config_json: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes in the order of the logits; empty where it has none."""
    names = config_json.get("id2label") or {}
    return tuple(names[key] for key in sorted(names, key=int))


def preprocessing(config: Mapping[str, Any]) -> Preprocess:
    """The pipeline that a preprocessor_config.json describes.

    Raises:
        ValueError: it describes something that `Preprocess` cannot.
    """
    size, fields = config.get("size", 224), {}
    height, width = height_and_width(size)
    if config.get("do_center_crop", False):
        if height != width:
            raise ValueError(f"A crop from {height} x {width} pixels is not supported.")
        shorter = isinstance(size, dict) and "shortest_edge" in size
        fields = {"resize": "shorter" if shorter else "square", "resize_size": height}
        height, width = height_and_width(config.get("crop_size", 224))
    filters, resample = get_args(Interpolation), config.get("resample", 2)
    if not config.get("do_resize", True) or resample not in range(len(filters)):
        raise ValueError(
            f"Preprocessing without resizing or by filter {resample} is not supported."
        )
    if abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError(f"rescale_factor={config['rescale_factor']} is not 1/255.")
    mean, std = (0.0,) * 3, (1.0,) * 3
    if config.get("do_normalize", True):
        mean, std = (config.get(key, (0.5,) * 3) for key in ("image_mean", "image_std"))
    fields |= {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
    return Preprocess(height, width, interpolation=filters[resample], **fields)


def height_and_width(size: int | Sequence[int] | Mapping[str, int]) -> tuple[int, int]:
    """(height, width) of a size: a number, a pair, or names."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        return (edge, edge) if edge else (size["height"], size["width"])
    return size[0], size[-1]
