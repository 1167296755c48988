"""Initial values of a model's parameters: those of timm 0.6.12, the paper's control."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

NORMAL = nn.initializers.normal(0.02)
"""Of weights; timm truncates at +-2, a hundred deviations away."""
NEAR_ZERO = nn.initializers.normal(1e-6)
"""timm's for [CLS] and registers, which their position embeddings tell apart."""


def torch_uniform(fan_in: int) -> Callable:
    """PyTorch's default for a convolution and its bias: U(-1, 1) / sqrt(fan_in)."""

    def initialise(key, shape, dtype=jnp.float32):
        limit = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return initialise
