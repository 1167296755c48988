"""Token refinement: class logits of a block from its [CLS] and its patches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.initializers import NORMAL
from vitjax.types import Config

BATCH_NORM_EPSILON = 1e-5


class FixedBatchNorm(nn.Module):
    """Batch normalisation by the stored mean and variance of each channel."""

    @nn.compact
    def __call__(self, x: Float[Array, "*any dim"]) -> Float[Array, "*any dim"]:
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        shape, along_last = x.shape[-1:], (1,) * (x.ndim - 1) + x.shape[-1:]
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = self.param("mean", zeros, shape), self.param("var", ones, shape)
        gain = scale * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
        return x * gain.reshape(along_last) + (bias - mean * gain).reshape(along_last)


class Refinement(nn.Module):
    """The token-refinement module of one block.

    With patches P on their grid and the block's normalised stream,

        r = mean(relu(B(C.relu(B(C.P))) + P)) + W.[CLS] + w

    where C is a 3x3 convolution without bias and B batch normalisation, the same both
    times. Class logits are `E.r + b`. Reference: Naseer et al. 2022, "On Improving
    Adversarial Transferability of Vision Transformers", in the form of its published
    weights, which hold one convolution and one normalisation for both layers.
    """

    config: Config

    @nn.compact
    def __call__(self, x: Float[Array, "batch token dim"]) -> Float[Array, "batch dim"]:
        cfg = self.config
        conv = nn.Conv(
            cfg.dim, (3, 3), padding=1, use_bias=False, kernel_init=NORMAL, name="conv"
        )
        norm = FixedBatchNorm(name="norm")
        patches = x[:, cfg.prefix :].reshape(x.shape[0], *cfg.grid, cfg.dim)
        y = norm(conv(jax.nn.relu(norm(conv(patches))))) + patches
        pooled = jnp.mean(jax.nn.relu(y), axis=(1, 2))
        return pooled + nn.Dense(cfg.dim, kernel_init=NORMAL, name="token")(x[:, 0])
