"""What all commands have."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import tyro


def metavar(text: str) -> Any:
    """What stands for a value in the help."""
    return tyro.conf.arg(metavar=text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What all commands have.

    Args:
        traceback: show where in the code an error came up.
    """

    traceback: bool = False

    def __call__(self) -> Any:
        raise TypeError(f"{type(self).__name__} does nothing by itself.")


def find_devices(platform: str | None) -> list[Any]:
    """All devices of a platform, or of the best there is.

    Raises:
        ValueError: there is none.
    """
    try:
        return jax.devices(platform)
    except RuntimeError as error:
        raise ValueError(
            f"JAX finds no {platform} here ({error}). Leave out --platform, or install "
            "vitjax with the extra for it: cuda or tpu."
        ) from error


def make_folder(folder: pathlib.Path) -> pathlib.Path:
    """A folder for results, made before anything is computed for it.

    Raises:
        ValueError: it cannot be, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK) else "you may not write there"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise ValueError(
            f"Cannot write to {folder}: {problem}. Give another --out, where you "
            "may write."
        )
    return folder
