"""What a notebook runs on: its device, and what it will download."""

import os

import jax

from vitjax.checkpoints import download, registry
from vitjax.cli.models import count_parameters


def print_environment(
    model: str, *, checkpoint: str | None = None, data: str | None = None
) -> None:
    """Print what this session runs on and what it will download.

    `model`, `checkpoint` and `data` are those of `vitjax run`.
    """
    platform = jax.default_backend()
    print(f"jax {jax.__version__} computes on {platform}. {device_advice(platform)}")
    print(describe_weights(model, checkpoint))
    if data is not None:
        embedded = data.split(":")[0] == "textured_digits"
        origin = "come with vitjax" if embedded else "are read from this machine"
        print(f"Images: {data}. They {origin}; nothing is downloaded.")


def device_advice(platform: str) -> str:
    """How to compute on an accelerator; JAX itself warns of one that it cannot use."""
    if platform != "cpu":
        return "The accelerator is in use; nothing to do."
    return (
        "The embedded model needs no accelerator. To use one in Colab: Runtime > "
        "Change runtime type; elsewhere: install vitjax[cuda] or vitjax[tpu], unset "
        "JAX_PLATFORMS, and restart."
    )


def describe_weights(model: str, checkpoint: str | None = None) -> str:
    """Where a model's weights come from, and how large they are."""
    if checkpoint is not None:
        return f"Weights: your own, {checkpoint}; nothing is downloaded."
    if model not in registry.VARIANTS and os.path.isdir(model):
        return f"Weights: the folder {model}; nothing is downloaded."
    row = registry.find(model)
    if row.packaged:
        return f"Weights: {model} comes with vitjax; nothing is downloaded."
    size = f"{4 * count_parameters(row) / 1e6:,.0f} MB"
    if cached := download.cached(row):
        return f"Weights: {cached} ({size}), downloaded before."
    if not row.url:
        return f"Weights: {model} cannot be downloaded. {row.obtain}"
    return (
        f"Weights: about {size} will be downloaded once, to {download.cache_folder()} "
        f"({row.source}; {row.license})."
    )
