"""What a notebook says first: the device it has, and what it will download."""

import glob
import math
import os
from collections.abc import Mapping

import jax

from vitjax.checkpoints import download, registry
from vitjax.models.model import parameter_shapes

GPU_FILES = ("/dev/nvidia[0-9]*", "/dev/kfd")
TPU_FILES = ("/dev/accel[0-9]*",)
PLATFORMS = {"gpu": ("gpu", "cuda", "rocm"), "tpu": ("tpu",)}
"""What JAX_PLATFORMS may call them."""
TPU_VARIABLES = ("TPU_NAME", "TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR")


def welcome(
    model: str, *, checkpoint: str | None = None, data: str | None = None
) -> None:
    """Print what this session runs on and what it will fetch.

    Args:
        model: a name out of `list_models()`, or a folder.
        checkpoint: your own file with its weights.
        data: a source, as `vitjax run --data` takes it.
    """
    platform = jax.default_backend()
    print(f"jax {jax.__version__} computes on {platform}.", end=" ")
    print(advice(platform, present_accelerator()))
    print(weights_text(model, checkpoint))
    if data is not None:
        print(f"Pictures: {data}. {data_text(data)}")


def present_accelerator(
    *,
    environment: Mapping[str, str] = os.environ,
    gpu_files: tuple[str, ...] = GPU_FILES,
    tpu_files: tuple[str, ...] = TPU_FILES,
) -> str | None:
    """What this machine has, whether or not JAX uses it.

    Args:
        environment: variables of the process.
        gpu_files: patterns of the files of GPUs.
        tpu_files: likewise of TPUs.

    Returns:
        "gpu", "tpu" or None.
    """
    if any(glob.glob(pattern) for pattern in gpu_files):
        return "gpu"
    named = any(environment.get(name) for name in TPU_VARIABLES)
    return "tpu" if named or any(glob.glob(name) for name in tpu_files) else None


def advice(
    platform: str,
    present: str | None,
    *,
    environment: Mapping[str, str] = os.environ,
) -> str:
    """What to do about the device, in a line or two.

    Args:
        platform: what JAX uses.
        present: what `present_accelerator` found.
        environment: variables of the process.
    """
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
    extra = {"gpu": '"jax[cuda13]=={0}" (or cuda12)', "tpu": '"jax[tpu]=={0}"'}
    plugin = extra[present].format(jax.__version__)
    return (
        f"This machine has a {present.upper()} that JAX does not use: its plugin is "
        f"missing or does not fit. `%pip install {plugin}`, restart the runtime, run "
        "all cells again."
    )


def weights_text(model: str, checkpoint: str | None = None) -> str:
    """Where a model's weights come from, and how large they are, in a line.

    Args:
        model: a name out of `list_models()`, or a folder.
        checkpoint: your own file with its weights.

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
    if kept := download.cached(row):
        return f"Weights: {kept} ({size}), downloaded before."
    if not row.url:
        return f"Weights: {model} cannot be downloaded. {row.obtain}"
    return (
        f"Weights: about {size} will be downloaded once, to {download.cache_folder()} "
        f"({row.source}; {row.license})."
    )


def data_text(data: str) -> str:
    """Whether pictures come from elsewhere: they never do."""
    if data.split(":")[0] == "textured_digits":
        return "They come with vitjax."
    return "They are read from this machine; nothing is downloaded."
