"""The public functions that take a model, compiled.

They nest inside a user's own `jit`, `vmap` and `grad`. Keywords that are Python values
are static: a new value compiles a new program, an equal one reuses it. What takes a
user's function, `scan_blocks`, `attention_gradients` and `attribution_patching`, is not
compiled: a function that closes over changing data would go on using the first call's.
"""

from typing import Any

import jax

from vitjax.checks import checked
from vitjax.models import class_heads, text
from vitjax.models import forward as passes
from vitjax.saliency import attribution, methods, relevancy, removal


def compiled(function: Any, *static: str) -> Any:
    """A function compiled, its arguments checked outside of the program."""
    program: Any = jax.jit(function, static_argnames=static)
    call: Any = checked(program)
    call.lower, call._cache_size = program.lower, program._cache_size
    return call


forward = compiled(passes.forward, "capture")
encode_image = compiled(class_heads.encode_image)
encode_text = compiled(text.encode_text)
refinement_logits = compiled(passes.refinement_logits)
explain = compiled(
    methods.explain, "method", "layers", "heads", "of", "loss", "steps", "at"
)
helpful_minus_attended = compiled(relevancy.helpful_minus_attended, "of", "loss")
removal_curve = compiled(removal.removal_curve, "keep_counts", "order")
relevancy = compiled(relevancy.relevancy, "of", "loss", "query")
logit_attribution = compiled(attribution.logit_attribution, "neurons")
