"""How many multiplications a program asks for, whatever device it runs on."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

from vitjax.types import Config


def multiplications(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiplications in the matrix products and convolutions of a function.

    Counted in the program as it is written, before a compiler simplifies it:

        dot_general: batch x rows x columns x contracted
        convolution: outputs x kernel height x kernel width x inputs of a group
        scan: its length times its body; shard_map: its body on every device;
        cond: its costliest branch;
        while: its body once, since nothing says how often it runs.

    Elementwise work is left out: on matrix units it is nearly free, elsewhere it is
    what a ratio of seconds has above a ratio of these.

    Args:
        function: a pure function of arrays; also jitted ones.
        arguments: what it would be called with; nothing is computed.

    Returns:
        At least 0.
    """
    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def count(program: Any) -> int:
    """Multiplications of a jaxpr and of what it calls."""
    return sum(of_equation(equation) for equation in program.eqns)


def of_equation(equation: Any) -> int:
    """Multiplications of one equation."""
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        return of_product(equation)
    if name == "conv_general_dilated":
        return of_convolution(equation)
    inner = [count(program) for program in programs(parameters)]
    if name == "scan":
        return parameters["length"] * sum(inner)
    if name == "shard_map":
        return parameters["mesh"].size * sum(inner)
    return max(inner, default=0) if name == "cond" else sum(inner)


def of_product(equation: Any) -> int:
    """Multiplications of a `dot_general`."""
    left = equation.invars[0].aval.shape
    (contracted, _), _ = equation.params["dimension_numbers"]
    return math.prod(equation.outvars[0].aval.shape) * math.prod(
        left[axis] for axis in contracted
    )


def of_convolution(equation: Any) -> int:
    """Multiplications of a convolution."""
    kernel = equation.invars[1].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    each = math.prod(kernel) // outputs
    return math.prod(equation.outvars[0].aval.shape) * each


def programs(parameters: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in parameters.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part


def forward_multiplications(config: Config, *, classes: int) -> int:
    """Multiplications in the matrix products of one image's forward pass.

    Args:
        config: the architecture.
        classes: rows of the head.

    Returns:
        Patch embedding, every block's projections, attention and MLP, and the head.
    """
    tokens, dim = config.tokens, config.dim
    embed = config.patches * 3 * config.patch_size**2 * dim
    projections = tokens * dim * (4 * dim + 2 * config.mlp_dim)
    attention = 2 * tokens**2 * dim
    return embed + config.depth * (projections + attention) + dim * classes


def ratio_floor(config: Config, *, classes: int) -> float:
    """Multiplications of an analysis of all streams over those of a forward pass.

    Class logits are linear in the stream before the LayerNorm's division, so that each
    block needs two projections for its three streams, and block 0 one for its input.

    Args:
        config: the architecture.
        classes: rows of the head.

    Returns:
        Above 1.
    """
    projection = config.tokens * config.dim * classes
    added = (2 * config.depth + 1) * projection
    return 1 + added / forward_multiplications(config, classes=classes)
