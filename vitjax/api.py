"""The public functions that take a model: the pure ones, compiled at the door.

They nest inside a user's own `jit`, `vmap` and `grad`. Keywords that are Python values
are static: a new value compiles a new program, an equal one reuses it.
"""

from collections.abc import Sequence

import jax
from jaxtyping import Array, Float

from vitjax.analysis import interventions
from vitjax.models import forward as capture
from vitjax.models import heads as readout
from vitjax.models.model import Model
from vitjax.saliency import methods, removal
from vitjax.saliency import relevancy as relevancies
from vitjax.types import Edits

forward = jax.jit(capture.forward, static_argnames=("capture",))
scan_blocks = jax.jit(capture.scan_blocks, static_argnames=("read", "state"))
relevancy = jax.jit(relevancies.relevancy, static_argnames=("of", "loss", "query"))
helpful_minus_attended = jax.jit(
    relevancies.helpful_minus_attended, static_argnames=("of", "loss")
)
explain = jax.jit(
    methods.explain,
    static_argnames=("method", "layers", "heads", "of", "loss", "steps", "seed"),
)
removal_curve = jax.jit(removal.removal_curve, static_argnames=("keep_counts", "order"))
refinement_logits = jax.jit(capture.refinement_logits)
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
    renormalize: bool = False,
) -> Edits:
    """Image tokens no longer see other image tokens.

    "paper" (Vilas et al. 2023, section 5): after the softmax, an image row's weights to
    other image tokens become 0; its own and those to prefix tokens stay, and nothing is
    renormalised. "vilas2023_code": an image row's own weight becomes exactly 1 and all
    others 0, those to [CLS] included. Rows of prefix tokens are untouched in both.

    Args:
        model: the model; only its architecture counts.
        layers: block numbers, negative ones from the end; None for all.
        heads: head numbers, likewise.
        convention: see above.
        renormalize: with "paper", cut the links before the softmax, so that what is
            left of an image row sums to one. The other convention's rows always do.

    Returns:
        Edits for `forward`, to be combined with others by `&`.

    Raises:
        ValueError: a block or head that does not exist, or an unknown convention.
    """
    return interventions.self_only(
        model.config,
        layers=layers,
        heads=heads,
        convention=convention,
        renormalize=renormalize,
    )


def no_cls(
    model: Model,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    renormalize: bool = False,
) -> Edits:
    """Image tokens no longer see [CLS] (Vilas et al. 2023, section 5).

    Args:
        model: the model; only its architecture counts.
        layers: block numbers, negative ones from the end; None for all.
        heads: head numbers, likewise.
        renormalize: cut the link before the softmax, so that the rest of an image row
            sums to one; otherwise its weight is set to 0 after the softmax.

    Returns:
        Edits for `forward`, to be combined with others by `&`.

    Raises:
        ValueError: the model has no [CLS], or a block or head does not exist.
    """
    return interventions.no_cls(
        model.config, layers=layers, heads=heads, renormalize=renormalize
    )
