"""What all commands have."""

import dataclasses
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
