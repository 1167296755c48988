"""Hugging Face config.json: the architecture and class names of a ViT or DeiT."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitjax import messages
from vitjax.checkpoints.files import CheckpointError
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
