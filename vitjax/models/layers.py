"""Layers of a Vision Transformer block, with a tap on every intermediate."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.backward_rules import Rules, dense
from vitjax.models.edits import BlockEdits, join_taps, log_mask
from vitjax.types import ArrayLike, Config, TapEdit, gelu

NORMAL = nn.initializers.normal(0.02)
"""Initial weights of timm 0.6.12, the paper's control; timm truncates at +-2, a hundred
deviations away."""
NEAR_ZERO = nn.initializers.normal(1e-6)
"""timm's for [CLS] and registers, which their position embeddings tell apart."""


def torch_uniform(fan_in: int) -> Callable:
    """PyTorch's default for a convolution and its bias: U(-1, 1) / sqrt(fan_in)."""

    def initialize(key, shape, dtype=jnp.float32):
        limit = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return initialize


class LayerNorm(nn.Module):
    """Layer normalization; its statistics are float32 at least."""

    dim: int
    epsilon: float
    initial_scale: float = 1.0
    rules: Rules = Rules()

    def setup(self):
        ones = nn.initializers.constant(self.initial_scale)
        self.scale = self.param("scale", ones, (self.dim,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.dim,))

    def __call__(self, x: Float[Array, "*any dim"]) -> Float[Array, "*any dim"]:
        return self.rules.norm(x, self.scale, self.bias, epsilon=self.epsilon)


def mix(
    weights: Float[Array, "batch head row token"],
    values: Float[Array, "batch token head key"],
    product: Callable[..., Any] = jnp.einsum,
) -> Float[Array, "batch row head key"]:
    """Values summed over tokens by their attention weight.

    Heads come first on either side of the product: for "bhqt,bthk->bqhk", XLA reads
    the weights column by column on a CPU, two to three times as slow with 197 tokens.
    """
    mixed = product("bhqt,bhtk->bhqk", weights, values.swapaxes(1, 2))
    return mixed.swapaxes(1, 2)


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel's size, as one product for each patch.

    Compilers' convolutions are not made for three channels: B/32's takes twice as long
    on a CPU.
    """

    patch_size: int
    dim: int
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, images: Float[ArrayLike, "batch height width channel"]
    ) -> Float[Array, "batch patch dim"]:
        size = self.patch_size
        batch, height, width, channels = images.shape
        uniform = torch_uniform(channels * size**2)
        kernel = self.param("kernel", uniform, (size, size, channels, self.dim))
        rows, columns = height // size, width // size
        x = jnp.asarray(images)[:, : rows * size, : columns * size]
        x = x.reshape(batch, rows, size, columns, size * channels).swapaxes(2, 3)
        x = x.reshape(batch, rows * columns, channels * size**2)
        x = x @ kernel.reshape(-1, self.dim)
        if not self.use_bias:
            return x
        return x + self.param("bias", uniform, (self.dim,)).reshape(1, 1, -1)


Taps = Mapping[str, TapEdit]


class Tap(nn.Module):
    """Names an array for `capture_intermediates`, and applies its edit if any."""

    @nn.compact
    def __call__(self, x: Float[Array, "..."], taps: Taps) -> Float[Array, "..."]:
        edit = taps.get(self.name or "")
        return x if edit is None else edit(x)


class Attention(nn.Module):
    """Multi-head self-attention; `mixed` are values mixed already, in place of x's."""

    config: Config
    rules: Rules = Rules()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch token dim"],
        *masks: BlockEdits,
        taps: Taps,
        mixed: Float[Array, "batch token head key"] | None = None,
    ) -> Float[Array, "batch token dim"]:
        mixed = self.mix(x, masks, taps) if mixed is None else mixed
        mixed = Tap(name="mixed_values")(mixed, taps)
        out = nn.DenseGeneral(
            self.config.dim, axis=(-2, -1), kernel_init=NORMAL, name="out"
        )
        return dense(self.rules, out, mixed)

    def mix(self, x, masks, taps) -> Float[Array, "batch token head key"]:
        """The values, mixed by the attention weights."""
        cfg, rules = self.config, self.rules

        def project(name):
            shape = (cfg.heads, cfg.head_dim)
            layer = nn.DenseGeneral(
                shape, use_bias=cfg.qkv_bias, kernel_init=NORMAL, name=name
            )
            return dense(rules, layer, x)

        def normalize(x, name):
            if not cfg.qk_norm:
                return x
            return LayerNorm(cfg.head_dim, cfg.epsilon, rules=rules, name=name)(x)

        query = normalize(project("query"), "query_norm")
        query = Tap(name="queries")(query, taps)
        query = rules.scaled(query, query / math.sqrt(cfg.head_dim))
        key = Tap(name="keys")(normalize(project("key"), "key_norm"), taps)
        value = Tap(name="values")(project("value"), taps)
        scores = rules.product("bqhk,bthk->bhqt", query, key)
        scores = Tap(name="attention_scores")(scores, taps)
        for mask in masks:
            if mask.attend is not None:
                scores = scores + log_mask(mask.attend, scores.dtype)
        weights = rules.softmax(scores, jax.nn.softmax(scores, axis=-1))
        for mask in masks:
            if mask.scale is not None:
                scaled = weights * jnp.asarray(mask.scale, weights.dtype)
                weights = rules.scaled(weights, scaled)
        weights = Tap(name="attention_weights")(weights, taps)
        return mix(weights, value, rules.product)


class MlpBlock(nn.Module):
    """Two dense layers with a GELU between, or a SwiGLU."""

    config: Config
    dropout: float = 0.0
    rules: Rules = Rules()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token dim"], taps: Taps, *, train: bool = False
    ) -> Float[Array, "batch token dim"]:
        first = nn.Dense(self.config.mlp_dim, kernel_init=NORMAL, name="Dense_0")
        second = nn.Dense(self.config.dim, kernel_init=NORMAL, name="Dense_1")
        hidden = Tap(name="mlp_preactivation")(dense(self.rules, first, x), taps)
        if self.config.mlp == "swiglu":
            up = nn.Dense(self.config.mlp_dim, kernel_init=NORMAL, name="up")
            gate = self.rules.gelu(hidden, jax.nn.silu(hidden))
            up = dense(self.rules, up, x)
            hidden = self.rules.product("btm,btm->btm", gate, up)
        else:
            hidden = self.rules.gelu(hidden, gelu(hidden, self.config.gelu))
        hidden = Tap(name="mlp_hidden")(hidden, taps)
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        return dense(self.rules, second, hidden)


class LayerScale(nn.Module):
    """A learned factor per channel."""

    rules: Rules = Rules()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token dim"]
    ) -> Float[Array, "batch token dim"]:
        gamma = self.param("gamma", nn.initializers.constant(1e-5), x.shape[-1:])
        return self.rules.scaled(x, x * gamma[None, None])


class Block(nn.Module):
    """One encoder block; also returns [CLS] for a head that reads several, or None."""

    config: Config
    dropout: float = 0.0
    rules: Rules = Rules()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch token dim"],
        shared: BlockEdits = BlockEdits(),
        layered: BlockEdits = BlockEdits(),
        drop_path: Float[Array, ""] | float = 0.0,
        train: bool = False,
        mixed: Float[Array, "batch token head key"] | None = None,
    ) -> tuple[Float[Array, "batch token dim"], Any]:
        name = "MultiHeadDotProductAttention_0"
        attention = Attention(self.config, self.rules, name=name)
        mlp = MlpBlock(self.config, self.dropout, self.rules, name="MlpBlock_0")
        taps = join_taps(shared, layered)

        def attend(y):
            return attention(y, shared, layered, taps=taps, mixed=mixed)

        def transform(y):
            return mlp(y, taps, train=train)

        update = self.update(0, attend, x, drop_path, train)
        x = self.rules.add(x, Tap(name="attention_update")(update, taps))
        update = self.update(1, transform, x, drop_path, train)
        x = self.rules.add(x, Tap(name="mlp_update")(update, taps))
        x = Tap(name="residual")(x, taps)
        return x, x[:, 0] if self.config.head_blocks > 1 else None

    def update(self, index: int, sublayer: Callable, x, drop_path, train: bool):
        """What sub-layer 0 (attention) or 1 (MLP) adds to the residual stream."""
        cfg, name, rules = self.config, f"LayerNorm_{index}", self.rules
        if cfg.norm == "residual_post":
            # timm starts these at 1e-5: every block begins as the identity.
            norm = LayerNorm(cfg.dim, cfg.epsilon, 1e-5, rules, name=name)
            y = norm(sublayer(x))
        else:
            norm = LayerNorm(cfg.dim, cfg.epsilon, rules=rules, name=name)
            y = sublayer(norm(x))
        if cfg.layer_scale:
            y = LayerScale(rules, name=f"LayerScale_{index}")(y)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return self.stochastic_depth(y, drop_path) if train else y

    def stochastic_depth(self, y, rate):
        """Drop the whole update of an image with probability `rate`, in training."""
        shape = (y.shape[0], 1, 1)
        survives = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
        return jnp.where(survives, y / (1 - rate), 0)
