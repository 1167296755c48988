"""MAC counts: multiply-accumulates of a program, whatever device it runs on.

XLA's cost analysis counts the body of a scan once: all blocks of a ViT as one.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def count_macs(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiply-accumulates of the matrix products and convolutions of a function.

    Counted in the program as it is written, before a compiler simplifies it:

        dot_general: batch x rows x columns x contracted
        convolution: outputs x kernel height x kernel width x inputs of a group
        scan: its length times its body; shard_map: its body on every device;
        cond: its costliest branch;
        while: its body once, since nothing says how often it runs.

    Elementwise work is left out: on matrix units it is nearly free, elsewhere it is
    what a ratio of seconds has above a ratio of MACs.
    """
    return count_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def count_jaxpr(jaxpr: Any) -> int:
    """MACs of a jaxpr and of those that it calls."""
    return sum(count_equation(equation) for equation in jaxpr.eqns)


def count_equation(equation: Any) -> int:
    """MACs of one equation."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        left = equation.invars[0].aval.shape
        (contracted, _), _ = params["dimension_numbers"]
        contractions = math.prod(left[axis] for axis in contracted)
        return math.prod(equation.outvars[0].aval.shape) * contractions
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
    bodies = [x for x in jax.tree.leaves(params) if hasattr(x, "eqns")]
    inner = [count_jaxpr(body) for body in bodies]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":
        return params["mesh"].size * sum(inner)
    return max(inner, default=0) if name == "cond" else sum(inner)
