"""What the config.json of a Hugging Face model says of its architecture."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitjax.checkpoints.files import CheckpointError
from vitjax.types import Config

EPSILON = 1e-12
"""transformers' default for ViT and DeiT, where a file comes without its config."""

GELUS = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_fast": "tanh",
}
"""transformers' name of an activation -> ours."""


def is_hugging_face(written: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a ViT or DeiT that transformers saved."""
    return written.get("model_type") in ("vit", "deit")


def architecture(written: Mapping[str, Any]) -> Config:
    """The architecture that a config.json describes.

    Args:
        written: its content; what is absent has transformers' default.

    Raises:
        CheckpointError: it describes something that `Config` cannot.
    """
    image, patch = written.get("image_size", 224), written.get("patch_size", 16)
    patches = {patch} if isinstance(patch, int) else set(patch)
    if len(patches) > 1:
        raise CheckpointError(f"Patches of {patch} pixels are not square.")
    config = Config(
        image_size=image if isinstance(image, int) else (image[0], image[1]),
        patch_size=patches.pop(),
        dim=written.get("hidden_size", 768),
        depth=written.get("num_hidden_layers", 12),
        heads=written.get("num_attention_heads", 12),
        mlp_dim=written.get("intermediate_size", 3072),
        registers=int(written["model_type"] == "deit"),
        qkv_bias=written.get("qkv_bias", True),
    )
    return with_numerics(config, written)


def with_numerics(config: Config, written: Mapping[str, Any]) -> Config:
    """An architecture with a config.json's epsilon and GELU.

    Args:
        config: the architecture.
        written: content of the config.json; empty where there is none.

    Raises:
        CheckpointError: the activation is no GELU.
    """
    act = written.get("hidden_act", "gelu")
    if act not in GELUS:
        raise CheckpointError(f"hidden_act {act!r} is none of {', '.join(GELUS)}.")
    epsilon = float(written.get("layer_norm_eps", EPSILON))
    fields: dict[str, Any] = {"epsilon": epsilon, "gelu": GELUS[act]}
    return dataclasses.replace(config, **fields)


def class_names(written: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes in the order of the logits; empty where it has none."""
    names = written.get("id2label") or {}
    return tuple(names[key] for key in sorted(names, key=int))
