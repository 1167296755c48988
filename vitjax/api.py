"""The public functions that take a model: the pure ones, compiled at the door.

They nest inside a user's own `jit`, `vmap` and `grad`. Keywords that are Python values
are static: a new value compiles a new program, an equal one reuses it.
"""

from collections.abc import Sequence

import jax
from jaxtyping import Array, Float

from vitjax.analysis import interventions
from vitjax.models import capture, readout
from vitjax.models.model import Model
from vitjax.types import Edits

forward = jax.jit(capture.forward, static_argnames=("capture",))
scan_blocks = jax.jit(capture.scan_blocks, static_argnames=("read", "state"))
attention_gradients = jax.jit(
    capture.attention_gradients, static_argnames=("scalar_fn",)
)


def memory_values(model: Model) -> dict[str, Float[Array, "layer memory dim"]]:
    """Value vectors of both key-value memory systems (Vilas et al. 2023, section 6).

    Args:
        model: the model.

    Returns:
        "attention": rows of the output projection, head-major, `head * key` of them;
        "mlp": rows of the second dense layer, `mlp_dim` of them. Biases are left out.
    """
    return readout.memory_values(model.params)


def self_only(
    model: Model,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    convention: interventions.Convention = "paper",
) -> Edits:
    """`analysis.interventions.self_only` for a model's architecture."""
    return interventions.self_only(
        model.config, layers=layers, heads=heads, convention=convention
    )


def no_cls(
    model: Model,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    renormalize: bool = False,
) -> Edits:
    """`analysis.interventions.no_cls` for a model's architecture."""
    return interventions.no_cls(
        model.config, layers=layers, heads=heads, renormalize=renormalize
    )
