"""Heads: pooling of tokens, and the parameters of class spaces."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitjax.models.edits import log_mask, token_mask
from vitjax.models.layers import NORMAL, LayerNorm
from vitjax.types import Config, Edits, along_last

BATCH_NORM_EPSILON = 1e-5


class Head(nn.Module):
    """Parameters of a head: those of `ClassSpace`, `logit_bias` that classes share."""

    dim: int
    classes: int
    cosine: bool = False
    sigmoid: bool = False

    def setup(self):
        self.kernel = self.param("kernel", NORMAL, (self.dim, self.classes))
        self.bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        if self.cosine:  # where CLIP's training starts
            start = nn.initializers.constant(1 / 0.07)
            self.temperature = self.param("temperature", start, ())
        if self.sigmoid:  # where SigLIP's does
            start = nn.initializers.constant(-10.0)
            self.logit_bias = self.param("logit_bias", start, ())


class Affine(nn.Module):
    """Parameters of an affine map; without the shape of a bias, of a linear one."""

    kernel_shape: tuple[int, ...]
    bias_shape: tuple[int, ...] | None = None

    def setup(self):
        self.kernel = self.param("kernel", NORMAL, self.kernel_shape)
        if self.bias_shape is not None:
            self.bias = self.param("bias", nn.initializers.zeros, self.bias_shape)


def affine_heads(equation: str, x: Array, layer: Affine) -> Float[Array, "..."]:
    """A product with a kernel that has head axes, and its bias; float32 at least."""
    kernel = layer.kernel
    dtype = np.promote_types(kernel.dtype, jnp.float32)
    x = x.astype(kernel.dtype)
    y = jnp.einsum(equation, x, kernel, preferred_element_type=dtype)
    return y + along_last(layer.bias, y)


class AttentionPool(nn.Module):
    """SigLIP's attention pooling, with one learned query (big_vision's MAPHead).

    Of normalized tokens z_j, a head's value is sum_j softmax_j(q.k_j / sqrt(key)) v_j;
    their output projection is the embedding, to which `ClassSpace` adds the MLP.
    """

    config: Config

    def setup(self):
        cfg = self.config
        dim, hidden, heads = cfg.dim, cfg.mlp_dim, (cfg.heads, cfg.head_dim)
        self.probe = self.param("probe", NORMAL, (1, 1, dim))
        self.query, self.key, self.value = (
            Affine((dim, *heads), heads) for _ in range(3)
        )
        self.out = Affine((*heads, dim), (dim,))
        self.LayerNorm_0 = LayerNorm(dim, cfg.epsilon)
        self.Dense_0 = Affine((dim, hidden), (hidden,))
        self.Dense_1 = Affine((hidden, dim), (dim,))

    def __call__(
        self,
        z: Float[Array, "batch token dim"],
        weights: Float[Array, "batch head token"],
    ) -> Float[Array, "batch dim"]:
        """Embeddings before the MLP, affine in z."""
        values = self.project(self.value, z)
        mixed = jnp.einsum("bht,bthk->bhk", weights, values)
        return affine_heads("bhk,hkd->bd", mixed, self.out)

    def project(self, layer: Affine, z: Float[Array, "batch token dim"]):
        """Queries, keys or values of every head."""
        return affine_heads("btd,dhk->bthk", z, layer)

    def weights(
        self, z: Float[Array, "batch token dim"], presence: Any
    ) -> Float[Array, "batch head token"]:
        """The learned query's attention weights on present tokens; 0 where none is."""
        query = self.project(self.query, self.probe)
        query = query[0, 0] / math.sqrt(self.config.head_dim)
        scores = jnp.einsum("hk,bthk->bht", query, self.project(self.key, z))
        if presence is None:
            return jax.nn.softmax(scores, axis=-1)
        presence = jnp.asarray(presence, scores.dtype)[:, None]
        weights = jax.nn.softmax(scores + log_mask(presence, scores.dtype), axis=-1)
        return jnp.where(presence > 0, weights, 0)

    def of_one_token(self) -> dict[str, Any]:
        """Fields of `ClassSpace`: of a token alone, the attention weight is 1."""
        value, out, norm = self.value, self.out, self.LayerNorm_0
        return dict(
            projection=jnp.einsum("dhk,hke->de", value.kernel, out.kernel),
            shift=jnp.einsum("hk,hke->e", value.bias, out.kernel) + out.bias,
            mlp={
                "LayerNorm_0": {"scale": norm.scale, "bias": norm.bias},
                "Dense_0": {"kernel": self.Dense_0.kernel, "bias": self.Dense_0.bias},
                "Dense_1": {"kernel": self.Dense_1.kernel, "bias": self.Dense_1.bias},
            },
            gelu=self.config.gelu,
        )


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


def presence_of(edits: Edits, config: Config, presence: Any = None) -> Any:
    """How far each token takes part in pooling: 0 if removed; None where all do."""
    exists = token_mask(edits, config)
    if exists is None or presence is None:
        return presence if exists is None else exists
    return presence * exists.astype(presence.dtype)


def pool(
    x: Float[Array, "*any token dim"],
    edits: Edits,
    config: Config,
    presence: Float[Array, "batch token"] | None = None,
) -> Float[Array, "*any dim"]:
    """[CLS], or the mean of the patches by their presence, for a head of one state."""
    if config.pooling == "cls":
        return x[..., 0, :]
    return mean_of_patches(x, edits, config, presence)


def mean_of_patches(
    x: Float[Array, "*any token dim"],
    edits: Edits,
    config: Config,
    presence: Float[Array, "batch token"] | None = None,
) -> Float[Array, "*any dim"]:
    """The mean of the patches that exist, by their presence."""
    patches = x[..., config.prefix :, :]
    presence = presence_of(edits, config, presence)
    if presence is None:
        return patches.mean(-2)
    weights = along_last(presence[:, config.prefix :, None], patches)
    total = jnp.maximum(weights.sum(-2), jnp.finfo(x.dtype).tiny)
    return (patches * weights).sum(-2) / total


def mean_weights(
    x: Float[Array, "batch token _"], exists: Any
) -> Float[Array, "batch token"]:
    """Weights of a mean over the tokens that exist, None for all; of x's dtype."""
    exists = True if exists is None else exists
    exists = jnp.broadcast_to(jnp.asarray(exists), x.shape[:2]).astype(x.dtype)
    return exists / jnp.maximum(exists.sum(1, keepdims=True), 1)


def pooled_rows(config: Config) -> slice:
    """The tokens that the head reads."""
    if config.pooling == "cls":
        return slice(0, 1)
    return slice(config.prefix if config.pooling == "mean" else 0, None)
