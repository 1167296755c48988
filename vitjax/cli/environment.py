"""What a notebook runs on: its device, and what it will download."""

import glob
import math
import os
from collections.abc import Mapping

import jax

from vitjax.checkpoints import download, registry
from vitjax.models.model import parameter_shapes

DEVICE_FILES = {"gpu": ("/dev/nvidia[0-9]*", "/dev/kfd"), "tpu": ("/dev/accel[0-9]*",)}
TPU_VARIABLES = ("TPU_NAME", "TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR")
PLATFORMS = {"gpu": ("gpu", "cuda", "rocm"), "tpu": ("tpu",)}
"""What JAX_PLATFORMS may call them."""
PLUGINS = {"gpu": '"jax[cuda13]=={0}" (or cuda12)', "tpu": '"jax[tpu]=={0}"'}


def print_environment(
    model: str, *, checkpoint: str | None = None, data: str | None = None
) -> None:
    """Print what this session runs on and what it will download.

    `model`, `checkpoint` and `data` are those of `vitjax run`.
    """
    platform = jax.default_backend()
    advice = device_advice(platform, find_accelerator())
    print(f"jax {jax.__version__} computes on {platform}. {advice}")
    print(describe_weights(model, checkpoint))
    if data is not None:
        embedded = data.split(":")[0] == "textured_digits"
        origin = "come with vitjax" if embedded else "are read from this machine"
        print(f"Images: {data}. They {origin}; nothing is downloaded.")


def find_accelerator(
    environment: Mapping[str, str] = os.environ,
    files: Mapping[str, tuple[str, ...]] = DEVICE_FILES,
) -> str | None:
    """What this machine has, whether or not JAX uses it: "gpu", "tpu" or None."""
    for kind, patterns in files.items():
        if any(map(glob.glob, patterns)):
            return kind
    return "tpu" if any(map(environment.get, TPU_VARIABLES)) else None


def device_advice(
    platform: str, present: str | None, environment: Mapping[str, str] = os.environ
) -> str:
    """What to do where JAX computes on `platform` and the machine has `present`."""
    if platform != "cpu":
        return "The accelerator is in use; nothing to do."
    if present is None:
        return (
            "There is no accelerator here; the embedded model needs none. In Colab: "
            "Runtime > Change runtime type, then run all cells again."
        )
    chosen = environment.get("JAX_PLATFORMS")
    if chosen and not any(name in chosen for name in PLATFORMS[present]):
        return (
            f"This machine has a {present.upper()}, but JAX_PLATFORMS={chosen} keeps "
            "JAX from it: unset it and restart the runtime."
        )
    return (
        f"This machine has a {present.upper()} that JAX does not use: its plugin is "
        "missing or does not fit. `%pip install "
        f"{PLUGINS[present].format(jax.__version__)}`, restart the runtime, run all "
        "cells again."
    )


def describe_weights(model: str, checkpoint: str | None = None) -> str:
    """Where a model's weights come from, and how large they are.

    Raises:
        ValueError: there is no such model.
    """
    if checkpoint is not None:
        return f"Weights: your own, {checkpoint}; nothing is downloaded."
    if model not in registry.VARIANTS and os.path.isdir(model):
        return f"Weights: the folder {model}; nothing is downloaded."
    row = registry.find(model)
    if row.packaged:
        return f"Weights: {model} comes with vitjax; nothing is downloaded."
    shapes = parameter_shapes(row.config, len(row.labels()[0])).values()
    size = f"{4 * sum(map(math.prod, shapes)) / 1e6:,.0f} MB"
    if cached := download.cached(row):
        return f"Weights: {cached} ({size}), downloaded before."
    if not row.url:
        return f"Weights: {model} cannot be downloaded. {row.obtain}"
    return (
        f"Weights: about {size} will be downloaded once, to {download.cache_folder()} "
        f"({row.source}; {row.license})."
    )
