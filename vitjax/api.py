"""The public functions that take a model, compiled.

They nest inside a user's own `jit`, `vmap` and `grad`. Keywords that are Python values
are static: a new value compiles a new program, an equal one reuses it. What takes a
user's function, `scan_blocks` and `attention_gradients`, is not compiled here: a
function that closes over changing data would go on using the first call's.
"""

import jax
from jaxtyping import Array, Float

from vitjax.analysis.interventions import no_cls, self_only
from vitjax.models import forward as passes
from vitjax.models import heads
from vitjax.models.forward import attention_gradients, scan_blocks
from vitjax.models.model import Model
from vitjax.saliency import methods, relevancy, removal

__all__ = [
    "attention_gradients",
    "explain",
    "forward",
    "helpful_minus_attended",
    "memory_values",
    "no_cls",
    "refinement_logits",
    "relevancy",
    "removal_curve",
    "scan_blocks",
    "self_only",
]

forward = jax.jit(passes.forward, static_argnames=("capture",))
refinement_logits = jax.jit(passes.refinement_logits)
explain = jax.jit(
    methods.explain,
    static_argnames=("method", "layers", "heads", "of", "loss", "steps", "seed"),
)
helpful_minus_attended = jax.jit(
    relevancy.helpful_minus_attended, static_argnames=("of", "loss")
)
removal_curve = jax.jit(removal.removal_curve, static_argnames=("keep_counts", "order"))
relevancy = jax.jit(relevancy.relevancy, static_argnames=("of", "loss", "query"))


def memory_values(model: Model) -> dict[str, Float[Array, "layer memory dim"]]:
    """Value vectors of both key-value memory systems (Vilas et al. 2023, section 6).

    Args:
        model: the model.

    Returns:
        "attention": rows of the output projection, head-major, `head * key` of them;
        "mlp": rows of the second dense layer, `mlp_dim` of them. Biases are left out.
    """
    return heads.memory_values(model.params)
