"""The Vision Transformer: one Flax Linen module for every architecture.

Parameter names follow big_vision's scanned ViT: blocks are stacked on a leading
`layer` axis. `pos_embedding` has one entry per token, prefix tokens first, as in the
original ViT.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.edits import (
    BlockEdits,
    check_edits,
    edit_embedding,
    split_edits,
)
from vitjax.models.heads import Head, Refinement, pool
from vitjax.models.layers import NEAR_ZERO, NORMAL, Block, LayerNorm, PatchEmbedding
from vitjax.types import ArrayLike, ClassSpace, Config, Edits


class Encoder(nn.Module):
    """The scanned blocks and the final norm."""

    config: Config
    dropout: float = 0.0
    drop_path: float = 0.0

    def setup(self):
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 0, 0, nn.broadcast),  # pyright: ignore
            length=self.config.depth,
        )
        self.encoderblock = blocks(self.config, self.dropout)
        self.encoder_norm = LayerNorm(self.config.dim, self.config.epsilon)

    def __call__(self, x, shared: BlockEdits, layered: BlockEdits, train: bool):
        rates = jnp.linspace(0, self.drop_path, self.config.depth)
        return self.encoderblock(x, shared, layered, rates, train)[0]


class VisionTransformer(nn.Module):
    """Images to class logits: `embed`, the encoder, `unembed`.

    Plain Flax use works: `apply` with `capture_intermediates` yields arrays stacked
    over blocks. In training, `dropout` is the rate after the embedding and in each
    sub-layer, `drop_path` that of stochastic depth at the last block, rising linearly
    from 0.
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
        self.head = Head(cfg.dim, self.classes)
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
        """The residual stream entering block 0."""
        check_edits(edits, self.config, images.shape[0])
        x = self.embedding(images)
        prefix = self.config.prefix
        x = x + self.pos_embedding[:, prefix:]
        if edits.select is not None:
            select = jnp.asarray(edits.select)[:, :, None]
            select = jnp.where(select < 0, x.shape[1], select)  # NaN, not the last one
            x = jnp.take_along_axis(x, select, axis=1)
        if prefix:
            tokens = [self.cls] if self.config.class_token else []
            tokens += [self.registers] if self.config.registers else []
            first = jnp.concatenate(tokens, axis=1) + self.pos_embedding[:, :prefix]
            x = jnp.concatenate([jnp.tile(first, (x.shape[0], 1, 1)), x], axis=1)
        return edit_embedding(x, edits, self.config)

    def class_space(self) -> ClassSpace:
        """The parameters that turn a state into class logits."""
        norm = self.Transformer.encoder_norm
        return ClassSpace(
            embedding=self.head.kernel.T,
            bias=self.head.bias,
            norm_scale=norm.scale,
            norm_shift=norm.bias,
            epsilon=self.config.epsilon,
        )

    def unembed(
        self, x: Float[Array, "batch token dim"], edits: Edits
    ) -> Float[Array, "batch class"]:
        """Class logits of the final residual stream, at [CLS] or pooled patches."""
        return self.class_space().logits(pool(x, edits, self.config))

    def refine(
        self, params: Any, x: Float[Array, "batch token dim"]
    ) -> Float[Array, "batch class"]:
        """Class logits of the refinement module with these parameters."""
        module = Refinement(self.config, parent=None)
        refined: Any = module.apply(
            {"params": params}, self.Transformer.encoder_norm(x)
        )
        return self.class_space().affine(refined)

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
        return self.unembed(x, edits)
