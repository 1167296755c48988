"""The one Vision Transformer, in Flax Linen, with a tap on every intermediate.

Parameter names follow big_vision's scanned ViT: blocks are stacked on a leading
`layer` axis. `pos_embedding` has one entry per token, prefix tokens first, as in the
original ViT.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitjax.models.backward_rules import Rules, dense
from vitjax.models.edits import (
    AttentionMasks,
    check_edits,
    log_mask,
    patch_mask,
    split_edits,
)
from vitjax.models.initializers import NEAR_ZERO, NORMAL, torch_uniform
from vitjax.models.refinement import Refinement
from vitjax.types import ArrayLike, Config, Edits

GELU: dict[str, Callable] = {
    "erf": lambda x: jax.nn.gelu(x, approximate=False),
    "tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class LayerNorm(nn.Module):
    """Layer normalisation; its statistics are float32 at least."""

    epsilon: float
    initial_scale: float = 1.0
    rules: Rules = Rules()

    @nn.compact
    def __call__(self, x: Float[Array, "*any dim"]) -> Float[Array, "*any dim"]:
        ones = nn.initializers.constant(self.initial_scale)
        scale = self.param("scale", ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return self.rules.norm(x, scale, bias, epsilon=self.epsilon)


def mix(
    weights: Float[Array, "batch head row token"],
    values: Float[Array, "batch token head key"],
    product: Callable[..., Any] = jnp.einsum,
) -> Float[Array, "batch row head key"]:
    """Values summed over tokens by their attention weight.

    Heads come first on either side of the product: asked for "bhqt,bthk->bqhk", XLA
    reads the weights column by column on a CPU, two to three times as slow with 197
    tokens.

    Args:
        weights: rows of the attention weights.
        values: of every token.
        product: an einsum.
    """
    mixed = product("bhqt,bhtk->bhqk", weights, values.swapaxes(1, 2))
    return mixed.swapaxes(1, 2)


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel's size: one product over the pixels of
    each patch.

    Written as the product that it is, since compilers' convolutions are not made for
    three channels: B/32's takes twice as long on a CPU.
    """

    patch_size: int
    dim: int

    @nn.compact
    def __call__(
        self, images: Float[ArrayLike, "batch height width channel"]
    ) -> Float[Array, "batch patch dim"]:
        size = self.patch_size
        batch, height, width, channels = images.shape
        uniform = torch_uniform(channels * size**2)
        kernel = self.param("kernel", uniform, (size, size, channels, self.dim))
        bias = self.param("bias", uniform, (self.dim,))
        rows, columns = height // size, width // size
        x = jnp.asarray(images)[:, : rows * size, : columns * size]
        x = x.reshape(batch, rows, size, columns, size * channels).swapaxes(2, 3)
        x = x.reshape(batch, rows * columns, channels * size**2)
        return x @ kernel.reshape(-1, self.dim) + bias.reshape(1, 1, -1)


class Tap(nn.Module):
    """Gives an array a name that `capture_intermediates` can see; the identity.

    Where the collection `perturbations` holds an entry for it, the entry is added:
    the gradient with respect to the entry is the gradient with respect to the array.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.has_variable("perturbations", "value"):
            return x + self.get_variable("perturbations", "value")
        return x


class Attention(nn.Module):
    """Multi-head self-attention; links act on its logits and on its weights."""

    config: Config
    rules: Rules = Rules()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token dim"], *links: AttentionMasks
    ) -> Float[Array, "batch token dim"]:
        cfg, rules = self.config, self.rules

        def project(name):
            shape = (cfg.heads, cfg.head_dim)
            layer = nn.DenseGeneral(
                shape, use_bias=cfg.qkv_bias, kernel_init=NORMAL, name=name
            )
            return dense(rules, layer, x)

        query = project("query")
        query = rules.scaled(query, query / math.sqrt(cfg.head_dim))
        key, value = project("key"), Tap(name="values")(project("value"))
        logits = rules.product("bqhk,bthk->bhqt", query, key)
        for link in links:
            if link.attend is not None:
                logits = logits + log_mask(link.attend, logits.dtype)
        weights = rules.softmax(logits, jax.nn.softmax(logits, axis=-1))
        for link in links:
            if link.scale is not None:
                scaled = weights * jnp.asarray(link.scale, weights.dtype)
                weights = rules.scaled(weights, scaled)
        weights = Tap(name="attention_weights")(weights)
        mixed = Tap(name="mixed_values")(mix(weights, value, rules.product))
        out = nn.DenseGeneral(cfg.dim, axis=(-2, -1), kernel_init=NORMAL, name="out")
        return dense(rules, out, mixed)


class MlpBlock(nn.Module):
    """Two dense layers with a GELU between."""

    config: Config
    dropout: float = 0.0
    rules: Rules = Rules()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token dim"], *, train: bool = False
    ) -> Float[Array, "batch token dim"]:
        first = nn.Dense(self.config.mlp_dim, kernel_init=NORMAL, name="Dense_0")
        second = nn.Dense(self.config.dim, kernel_init=NORMAL, name="Dense_1")
        hidden = Tap(name="mlp_preactivation")(dense(self.rules, first, x))
        hidden = self.rules.gelu(hidden, GELU[self.config.gelu](hidden))
        hidden = Tap(name="mlp_hidden")(hidden)
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
    """One encoder block; returns `(stream, None)`, the form that `nn.scan` asks for."""

    config: Config
    dropout: float = 0.0
    rules: Rules = Rules()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch token dim"],
        shared: AttentionMasks = AttentionMasks(),
        layered: AttentionMasks = AttentionMasks(),
        drop_path: Float[Array, ""] | float = 0.0,
        train: bool = False,
    ) -> tuple[Float[Array, "batch token dim"], None]:
        name = "MultiHeadDotProductAttention_0"
        attention = Attention(self.config, self.rules, name=name)
        mlp = MlpBlock(self.config, self.dropout, self.rules, name="MlpBlock_0")

        def attend(y):
            return attention(y, shared, layered)

        def transform(y):
            return mlp(y, train=train)

        update = self.update(0, attend, x, drop_path, train)
        x = self.rules.add(x, Tap(name="attention_update")(update))
        update = self.update(1, transform, x, drop_path, train)
        x = self.rules.add(x, Tap(name="mlp_update")(update))
        return Tap(name="residual")(x), None

    def update(self, index: int, sublayer: Callable, x, drop_path, train: bool):
        """What sub-layer number `index` adds to the stream."""
        name, rules = f"LayerNorm_{index}", self.rules
        if self.config.norm == "residual_post":
            # timm starts these at 1e-5: every block begins as the identity.
            norm = LayerNorm(self.config.epsilon, 1e-5, rules, name=name)
            y = norm(sublayer(x))
        else:
            norm = LayerNorm(self.config.epsilon, rules=rules, name=name)
            y = sublayer(norm(x))
        if self.config.layer_scale:
            y = LayerScale(rules, name=f"LayerScale_{index}")(y)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return self.stochastic_depth(y, drop_path) if train else y

    def stochastic_depth(self, y, rate):
        """Drop the whole update of an image with probability `rate`, in training."""
        shape = (y.shape[0], 1, 1)
        survives = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
        return jnp.where(survives, y / (1 - rate), 0)


class Encoder(nn.Module):
    """The scanned blocks and the final norm."""

    config: Config
    dropout: float = 0.0
    drop_path: float = 0.0

    def setup(self):
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0, "intermediates": 0, "perturbations": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 0, 0, nn.broadcast),  # pyright: ignore
            length=self.config.depth,
        )
        self.encoderblock = blocks(self.config, self.dropout)
        self.encoder_norm = LayerNorm(self.config.epsilon)

    def __call__(self, x, shared: AttentionMasks, layered: AttentionMasks, train: bool):
        rates = jnp.linspace(0, self.drop_path, self.config.depth)
        return self.encoderblock(x, shared, layered, rates, train)[0]


class Head(nn.Module):
    """Class logits of a state, added up and returned in float32 at least.

    In half precision, rounding them would merge answers that differ by less than a
    three-hundredth part; the products are the same as those of a narrow result.
    """

    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "*any dim"]) -> Float[Array, "*any class"]:
        shape = (x.shape[-1], self.classes)
        kernel = self.param("kernel", NORMAL, shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        dtype = np.promote_types(kernel.dtype, jnp.float32)
        last = (((x.ndim - 1,), (0,)), ((), ()))
        x = x.astype(kernel.dtype)
        logits = jax.lax.dot_general(x, kernel, last, preferred_element_type=dtype)
        return logits + bias.astype(dtype).reshape((1,) * (x.ndim - 1) + shape[1:])


class VisionTransformer(nn.Module):
    """Images to class logits: `embed`, the encoder, `readout`.

    Plain Flax use works: `apply` with `capture_intermediates` yields arrays stacked
    over blocks, and entries of `perturbations` are added where a tap finds one.

    Args:
        config: the architecture.
        classes: number of classes.
        dropout: rate of dropout after the embedding and in each sub-layer, in training.
        drop_path: rate of stochastic depth at the last block, rising linearly from 0.
    """

    config: Config
    classes: int
    dropout: float = 0.0
    drop_path: float = 0.0

    def setup(self):
        cfg = self.config
        self.embedding = PatchEmbedding(cfg.patch_size, cfg.dim)
        self.pos_embedding = self.param(
            "pos_embedding", NORMAL, (1, cfg.tokens, cfg.dim)
        )
        if cfg.class_token:
            self.cls = self.param("cls", NEAR_ZERO, (1, 1, cfg.dim))
        if cfg.registers:
            self.registers = self.param(
                "registers", NEAR_ZERO, (1, cfg.registers, cfg.dim)
            )
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.Transformer = Encoder(cfg, self.dropout, self.drop_path)
        self.head = Head(self.classes)
        if cfg.refinement:
            stacked = nn.vmap(
                Refinement,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                axis_size=cfg.depth - 1,
            )
            self.refinement = stacked(cfg)

    def embed(
        self, images: Float[ArrayLike, "batch height width channel"], edits: Edits
    ) -> Float[Array, "batch token dim"]:
        """The stream entering block 0."""
        check_edits(edits, self.config, images.shape[0])
        x = self.embedding(images)
        prefix = self.config.prefix
        x = x + self.pos_embedding[:, prefix:]
        if edits.select is not None:
            x = jnp.take_along_axis(x, jnp.asarray(edits.select)[:, :, None], axis=1)
        if not prefix:
            return x
        tokens = [self.cls] if self.config.class_token else []
        tokens += [self.registers] if self.config.registers else []
        first = jnp.concatenate(tokens, axis=1) + self.pos_embedding[:, :prefix]
        return jnp.concatenate([jnp.tile(first, (x.shape[0], 1, 1)), x], axis=1)

    def readout(
        self, x: Float[Array, "batch token dim"], edits: Edits
    ) -> Float[Array, "batch class"]:
        """Class logits of the last stream, at [CLS] or at the mean of kept patches."""
        return self.head(self.Transformer.encoder_norm(pool(x, edits, self.config)))

    def refine(
        self, params: Any, stream: Float[Array, "batch token dim"]
    ) -> Float[Array, "batch class"]:
        """Class logits of the refinement module with these parameters."""
        module = Refinement(self.config, parent=None)
        normed = self.Transformer.encoder_norm(stream)
        refined: Any = module.apply({"params": params}, normed)
        return self.head(refined)

    def __call__(
        self,
        images: Float[ArrayLike, "batch height width channel"],
        edits: Edits | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch class"]:
        edits = Edits() if edits is None else edits
        x = self.embed(images, edits)
        x = self.embedding_dropout(x, deterministic=not train)
        if self.config.refinement and self.is_initializing():
            self.refinement(jnp.tile(x[None], (self.config.depth - 1, 1, 1, 1)))
        x = self.Transformer(x, *split_edits(edits, self.config), train)
        return self.readout(x, edits)


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
    """The weight of every token in what `pool` makes of a stream, of x's dtype."""
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
