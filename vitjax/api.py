"""The public functions that take a model, compiled.

They nest inside a user's own `jit`, `vmap` and `grad`. Keywords that are Python values
are static: a new value compiles a new program, an equal one reuses it. What takes a
user's function, `scan_blocks`, `attention_gradients` and `attribution_patching`, is not
compiled: a function that closes over changing data would go on using the first call's.
"""

import jax

from vitjax.models import forward as passes
from vitjax.saliency import attribution, methods, relevancy, removal

forward = jax.jit(passes.forward, static_argnames=("capture",))
refinement_logits = jax.jit(passes.refinement_logits)
explain = jax.jit(
    methods.explain,
    static_argnames=("method", "layers", "heads", "of", "loss", "steps", "seed"),
)
logit_attribution = jax.jit(attribution.logit_attribution, static_argnames=("neurons",))
helpful_minus_attended = jax.jit(
    relevancy.helpful_minus_attended, static_argnames=("of", "loss")
)
removal_curve = jax.jit(removal.removal_curve, static_argnames=("keep_counts", "order"))
relevancy = jax.jit(relevancy.relevancy, static_argnames=("of", "loss", "query"))
