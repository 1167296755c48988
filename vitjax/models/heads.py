"""Heads: from the residual stream to class logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.edits import patch_mask
from vitjax.models.layers import NORMAL
from vitjax.types import Config, Edits, along_last

BATCH_NORM_EPSILON = 1e-5


class Head(nn.Module):
    """Parameters of the classification head, E^T and b of `ClassSpace`."""

    dim: int
    classes: int

    def setup(self):
        self.kernel = self.param("kernel", NORMAL, (self.dim, self.classes))
        self.bias = self.param("bias", nn.initializers.zeros, (self.classes,))


class FixedBatchNorm(nn.Module):
    """Batch normalization by the stored mean and variance of each channel."""

    @nn.compact
    def __call__(self, x: Float[Array, "*any dim"]) -> Float[Array, "*any dim"]:
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, x.shape[-1:]
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = self.param("mean", zeros, shape), self.param("var", ones, shape)
        gain = scale * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
        return x * along_last(gain, x) + along_last(bias - mean * gain, x)


class Refinement(nn.Module):
    """The token-refinement module of one block.

    With patches P on their grid and the block's normalized residual stream,

        r = mean(relu(B(C.relu(B(C.P))) + P)) + W.[CLS] + w

    where C is a 3x3 convolution without bias and B batch normalization, the same both
    times. Class logits are `E.r + b`. Reference: Naseer et al. 2022, "On Improving
    Adversarial Transferability of Vision Transformers", in the form of its published
    weights, which hold one convolution and one normalization for both layers.
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


def pool(
    x: Float[Array, "*any token dim"], edits: Edits, config: Config
) -> Float[Array, "*any dim"]:
    """The state that the head reads: [CLS], or the mean of the patches that exist."""
    if config.class_token:
        return x[..., 0, :]
    patches = x[..., config.prefix :, :]
    if edits.keep is None:
        return patches.mean(-2)
    keep = patch_mask(edits).astype(x.dtype)
    keep = keep.reshape((1,) * (x.ndim - 3) + (*keep.shape, 1))
    return (patches * keep).sum(-2) / jnp.maximum(keep.sum(-2), 1)


def pool_weights(
    x: Float[Array, "batch token _"], edits: Edits, config: Config
) -> Float[Array, "batch token"]:
    """The weight of every token in `pool`, of x's dtype."""
    batch, length, _ = x.shape
    rows = jnp.arange(length) == 0
    if not config.class_token:
        rows = jnp.arange(length) >= config.prefix
    rows = jnp.tile(rows[None], (batch, 1))
    if edits.keep is not None and not config.class_token:
        patches = (batch, length - config.prefix)
        keep = jnp.broadcast_to(patch_mask(edits), patches)
        rows = rows.at[:, config.prefix :].set(keep)
    rows = rows.astype(x.dtype)
    return rows / jnp.maximum(rows.sum(1, keepdims=True), 1)


def pooled_rows(config: Config) -> slice:
    """The tokens that `pool` reads."""
    return slice(0, 1) if config.class_token else slice(config.prefix, None)
